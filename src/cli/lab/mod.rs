//! Commands that play a marketplace: fixtures, conformance, simulator.

pub(crate) mod conformance;
pub(crate) mod fixtures;
mod junit;
pub(crate) mod replay;
pub(crate) mod scenario;
pub(crate) mod simulate;
pub(crate) mod span;
