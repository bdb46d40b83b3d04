//! Tools that play the marketplace: fixtures, conformance, the simulator.

pub mod conformance;
pub mod exchange;
pub mod market_stand_in;
pub mod report;
pub mod scenario;
pub mod simulator;
