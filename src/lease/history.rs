//! The record of grants and their ends.

use pgrx::IntoDatum;
use pgrx::prelude::*;

use super::store::timestamp;
use crate::heap::{Access, Table};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Granted { expires_at: i64 },
    Released,
    Revoked,
}

impl Event {
    fn name(self) -> &'static str {
        match self {
            Self::Granted { .. } => "granted",
            Self::Released => "released",
            Self::Revoked => "revoked",
        }
    }
}

/// Adds a line under this transaction.
pub fn record(
    resource: &str,
    holder: &str,
    epoch: i64,
    event: Event,
    reason: Option<&str>,
    now: i64,
) {
    let expires_at = match event {
        Event::Granted { expires_at } => Some(timestamp(expires_at)),
        Event::Released | Event::Revoked => None,
    };
    // SAFETY: a plain getter, which gives the transaction a number if it has none.
    let xid = unsafe { pg_sys::GetTopFullTransactionId() }.value;
    Table::open(c"lease_history", Access::Write).insert(&[
        resource.into_datum(),
        epoch.into_datum(),
        event.name().into_datum(),
        holder.into_datum(),
        Some(timestamp(now)),
        Some(pg_sys::Datum::from(xid)),
        expires_at,
        reason.into_datum(),
    ]);
}
