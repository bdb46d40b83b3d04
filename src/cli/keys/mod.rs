//! Keys on the command line: those that sign requests, and those that encrypt stored answers.

pub(crate) mod arguments;
pub(crate) mod encryption;
pub(crate) mod market;
pub(crate) mod signatures;
