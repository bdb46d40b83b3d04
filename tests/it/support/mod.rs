//! Helpers of the tests. `tests/it` and the programs of `tests/slow` share them.
//!
//! The programs of `tests/slow` include this folder by its path, so no file here may use `crate::`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a test that panics has said what it found"
)]

pub(crate) mod admin;
pub(crate) mod bench;
pub(crate) mod chromium;
pub(crate) mod contract;
pub(crate) mod daemon;
pub(crate) mod examples;
pub(crate) mod executable;
#[allow(dead_code, reason = "of the programs of `tests/slow` alone")]
pub(crate) mod faultfs;
pub(crate) mod hook;
pub(crate) mod machine;
pub(crate) mod memory_store;
pub(crate) mod process;
#[allow(dead_code, reason = "of the programs of `tests/slow` alone")]
pub(crate) mod random;
pub(crate) mod said;
#[allow(dead_code, reason = "of the programs of `tests/slow` alone")]
pub(crate) mod serving;
