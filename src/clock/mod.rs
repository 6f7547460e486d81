//! Causality: vector clocks and hybrid logical clocks.

pub mod hlc;
pub mod server;
pub mod sql;
pub mod vclock;
