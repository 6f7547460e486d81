//! The record of grants and their ends.

use std::ffi::CStr;

use pgrx::IntoDatum;
use pgrx::prelude::*;

use super::store::timestamp;
use super::transaction::{self, Effect};
use crate::heap::{Access, Latest, Position, Row, Table};

const TABLE: &CStr = c"lease_history";

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

/// Adds a line under this transaction, of which the worker is told when it has committed. There is no index to find
/// it by: all grants would meet at its end.
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
    let position = Table::open(TABLE, Access::Write).insert(&[
        resource.into_datum(),
        epoch.into_datum(),
        event.name().into_datum(),
        holder.into_datum(),
        Some(timestamp(now)),
        Some(pg_sys::Datum::from(xid)),
        expires_at,
        reason.into_datum(),
    ]);
    transaction::at_commit(Effect::Recorded(position.0));
}

/// A line as listeners get it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
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

/// How large the table is.
pub fn blocks() -> u32 {
    Table::open(TABLE, Access::Read).blocks()
}

/// The lines at these positions, in the order of epochs.
pub fn lines_at(positions: &[u64]) -> Vec<Line> {
    let table = Table::open(TABLE, Access::Read);
    let positions: Vec<_> = positions.iter().copied().map(Position).collect();
    let rows = table.versions(&Latest::take(), &positions);
    in_order(rows.iter().map(Line::read).collect())
}

/// Lines that a `pg_snapshot` did not see, in the order of epochs. Reads the whole table.
pub fn lines_since(before: &str) -> Vec<Line> {
    let table = Table::open(TABLE, Access::Read);
    in_order(Unseen::by(before).lines(&table, &Latest::take()))
}

fn in_order(mut lines: Vec<Line>) -> Vec<Line> {
    lines.sort();
    lines.dedup();
    lines
}

/// Transactions that a snapshot, in the form `xmin:xmax:xip,…`, does not see.
#[derive(Debug, PartialEq, Eq)]
struct Unseen {
    in_progress: Vec<u64>,
    from: u64,
}

impl Unseen {
    fn by(snapshot: &str) -> Self {
        let mut parts = snapshot.split(':').skip(1);
        let from = parts.next().and_then(|xmax| xmax.parse().ok());
        let in_progress = parts.next().unwrap_or_default().split(',');
        Self {
            in_progress: in_progress.filter_map(|xid| xid.parse().ok()).collect(),
            from: from.unwrap_or(0),
        }
    }

    fn contains(&self, xid: u64) -> bool {
        xid >= self.from || self.in_progress.contains(&xid)
    }

    fn lines(&self, table: &Table, seen: &Latest) -> Vec<Line> {
        let mut lines = Vec::new();
        table.scan(seen, None, &[], |row| {
            // SAFETY: the type is that of sql/lease.sql.
            let xid = unsafe { row.get::<i64>(column::LOCAL_XID) };
            if xid.is_some_and(|xid| self.contains(xid.cast_unsigned())) {
                lines.push(Line::read(&row));
            }
            true
        });
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_does_not_see_what_is_in_progress_or_later() {
        let unseen = Unseen::by("10:20:10,14");
        let xids = [9, 10, 11, 14, 19, 20, 21].map(|xid| unseen.contains(xid));
        assert_eq!(xids, [false, true, false, true, false, true, true]);
        assert!(Unseen::by("10:10:").contains(10));
        assert!(!Unseen::by("10:10:").contains(9));
    }
}
