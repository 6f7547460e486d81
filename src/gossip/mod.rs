//! Gossip: how nodes come to hold the same states.
//!
//! `snapshot`, `protocol` and `report` are rules without a server; `replica` runs them on the database,
//! `transport` carries messages (`tls`, `credentials` and `passfile` are its keys), `worker` and `launcher` do it in the background.

mod background;
pub(crate) mod control;
mod credentials;
mod detector;
pub(crate) mod drop_database;
mod helper;
pub(crate) mod launcher;
mod passfile;
mod peers;
pub mod protocol;
mod pump;
mod replica;
mod report;
mod reporter;
mod retention;
pub mod snapshot;
pub(crate) mod sql;
pub(crate) mod statistics;
mod streams;
mod tally;
mod tls;
mod transport;
mod worker;

#[cfg(test)]
mod simulator;
