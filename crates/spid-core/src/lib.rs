//! The rules without a socket or a clock: signatures, dialects, the lifecycle.

pub mod dialect;
pub mod document;
pub mod lifecycle;
pub mod limits;
pub mod market_api;
pub mod query;
pub mod redact;
pub mod signature;
pub mod span;
