//! Running the seller's hook: a program, an HTTP service or the author's own code.

pub mod exec;
pub mod http;
pub mod log;
pub mod orphaned_hooks;
pub mod runner;
