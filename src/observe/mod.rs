//! Bounds, metrics and the requests that were denied: what every other room may use.

pub mod denied;
pub mod files;
pub mod limits;
pub mod metrics;
