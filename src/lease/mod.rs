//! Leases with fencing: at most one holder of a resource at a time, and no write under an epoch that
//! is over.

mod acquire;
mod admission;
mod clock;
mod entry;
pub mod grant;
mod history;
pub mod memory;
#[cfg(test)]
mod model;
pub mod protection;
pub mod report;
mod ring;
mod savepoint;
mod sql;
pub mod store;
mod tenure;
mod transaction;
pub mod writeback;

pub use transaction::register_callbacks;
