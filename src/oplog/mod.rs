//! The operation log.

pub mod admission;
pub mod append;
pub mod arrival;
pub mod op;
pub mod payload;
pub mod report;
pub mod sql;
