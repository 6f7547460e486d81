//! The operation log.

pub mod append;
pub mod op;
pub mod report;
pub mod sql;
