//! Tests that take minutes of processor time and do not depend on its speed: every call to the disk failing once, and
//! random lives on two stores.

#[allow(dead_code, unused_imports, unused_macros, reason = "each program uses a part of it")]
#[path = "../../it/support/mod.rs"]
mod support;

mod fault_loops;
mod faults;
mod lifecycle_random;
mod pruning;
