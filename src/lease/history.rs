//! The record of grants and their ends.

use std::ffi::CStr;

use pgrx::IntoDatum;
use pgrx::prelude::*;

use super::store::timestamp;
use crate::heap::{Access, Key, Latest, Row, Table};

const TABLE: &CStr = c"lease_history";
const INDEX: &CStr = c"lease_history_local_xid";

/// Columns of `coord.lease_history`, from 0.
mod column {
    pub const RESOURCE: usize = 0;
    pub const EPOCH: usize = 1;
    pub const EVENT: usize = 2;
    pub const HOLDER: usize = 3;
    pub const LOCAL_XID: usize = 5;
    pub const EXPIRES_AT: usize = 6;
    pub const REASON: usize = 7;
    pub const COUNT: usize = 8;
}

const XID_NUMBER: i16 = column::LOCAL_XID as i16 + 1;

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
    Table::open(TABLE, Access::Write).insert(&[
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

/// A line as listeners get it.
#[derive(Debug)]
pub struct Line {
    pub resource: String,
    pub epoch: i64,
    pub event: String,
    pub holder: String,
    pub expires_at: Option<i64>,
    pub reason: Option<String>,
}

impl Line {
    fn read(row: &Row) -> Self {
        let values = row.values::<{ column::COUNT }>();
        // SAFETY: the types are those of sql/lease.sql; only nullable columns can be null.
        unsafe {
            Self {
                resource: values.get(column::RESOURCE).unwrap_or_default(),
                epoch: values.get(column::EPOCH).unwrap_or_default(),
                event: values.get(column::EVENT).unwrap_or_default(),
                holder: values.get(column::HOLDER).unwrap_or_default(),
                expires_at: values
                    .get::<TimestampWithTimeZone>(column::EXPIRES_AT)
                    .map(TimestampWithTimeZone::into_inner),
                reason: values.get(column::REASON),
            }
        }
    }
}

/// Lines that the active snapshot sees and a `pg_snapshot` did not, in the order of epochs: those of
/// transactions that were in progress then, and of all that came later.
pub fn lines_since(snapshot: &str) -> Vec<Line> {
    let table = Table::open(TABLE, Access::Read);
    let seen = Latest::active();
    let mut lines = Vec::new();
    for key in unseen_by(snapshot) {
        table.scan(&seen, Some(INDEX), &[key], |row| {
            lines.push(Line::read(&row));
            true
        });
    }
    lines.sort_by(|a, b| (&a.resource, a.epoch, &a.event).cmp(&(&b.resource, b.epoch, &b.event)));
    lines
}

/// Transactions that a snapshot, in the form `xmin:xmax:xip,…`, does not see.
fn unseen_by(snapshot: &str) -> Vec<Key<'static>> {
    let mut parts = snapshot.split(':').skip(1);
    let later = parts.next().and_then(|xmax| xmax.parse().ok());
    let in_progress = parts.next().unwrap_or_default().split(',');
    in_progress
        .filter_map(|xid| xid.parse().ok())
        .map(|xid| Key::Xid(XID_NUMBER, xid))
        .chain(later.map(|xmax| Key::XidFrom(XID_NUMBER, xmax)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_does_not_see_what_is_in_progress_or_later() {
        let unseen = format!("{:?}", unseen_by("10:20:10,14"));
        assert_eq!(unseen, "[Xid(6, 10), Xid(6, 14), XidFrom(6, 20)]");
        assert_eq!(format!("{:?}", unseen_by("10:10:")), "[XidFrom(6, 10)]");
    }
}
