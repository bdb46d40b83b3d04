//! Requests to the marketplaces' own APIs.

pub mod client;
pub mod credentials;
pub mod order_lookup;
