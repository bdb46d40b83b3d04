//! The daemon on the command line: start, reload, log, health check.

pub(crate) mod check;
pub(crate) mod healthcheck;
pub(crate) mod logging;
mod reload;
pub(crate) mod serve;
mod sockets;
pub(crate) mod stderr;
