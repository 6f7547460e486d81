//! Streams: append-only tables that travel by logical replication.

pub mod offer;
pub mod sql;
