//! Commands for authors of hooks.

pub(crate) mod demo;
pub(crate) mod hook;
mod hook_test;
pub(crate) mod route;
pub(crate) mod sign;
pub(crate) mod verify;
