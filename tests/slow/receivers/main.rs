//! Receivers with one fault each, and the two tools that must find it: the conformance suite and the simulator.

#[allow(dead_code, unused_imports, unused_macros, reason = "each program uses a part of it")]
#[path = "../../it/support/mod.rs"]
mod support;

mod conformance;
mod forwarder;
mod receiver;
mod simulator;
