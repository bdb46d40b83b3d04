//! The daemon: the public listener, the path of a callback, the path of a job, start and stop.

pub mod app;
pub mod client_address;
pub mod daemon;
pub mod dispatch;
pub mod intake;
mod liveness;
pub mod market_jobs;
pub mod public;
pub mod spans;
pub mod supervisor;
