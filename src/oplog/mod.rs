//! The operation log.

pub mod op;
pub mod report;
pub mod sql;
