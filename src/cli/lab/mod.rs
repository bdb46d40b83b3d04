//! Commands that play a marketplace: fixtures, conformance, simulator.

pub(crate) mod conformance;
pub(crate) mod fixtures;
pub(crate) mod replay;
pub(crate) mod scenario;
pub(crate) mod simulate;
