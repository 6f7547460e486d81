//! The operation log.

pub mod op;
pub mod sql;
