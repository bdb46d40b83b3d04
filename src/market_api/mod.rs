//! Requests to the marketplaces' own APIs.

pub mod order_lookup;
