//! Rows of `coord.lease`, joined with what shared memory knows of their expiry.

use pgrx::prelude::*;
use pgrx::{IntoDatum, pg_sys};

use super::grant::{Ended, Lease, Predecessor, Run, Stored};
use super::memory::{self, Key, Known};
use super::report::{Elsewhere, Reported};
use crate::error::Result;
use crate::heap::{self, Access, Latest, Row, Table};
use crate::lock::{self, Lock, Mode};
use crate::trigger::Firing;
use crate::{guc, node, roots};

/// The lease clock, which a test may have set ahead or back.
pub fn now() -> i64 {
    memory::clock_now().saturating_add(i64::from(guc::CLOCK_OFFSET.get()) * 1_000)
}

pub fn timestamp(microseconds: i64) -> pg_sys::Datum {
    pg_sys::Datum::from(microseconds)
}

/// An interval of microseconds alone, which reads back as exactly that.
fn interval(microseconds: i64) -> Option<pg_sys::Datum> {
    // SAFETY: allocated in the memory of the call.
    let mut interval = unsafe { PgBox::<pg_sys::Interval>::alloc0() };
    interval.time = microseconds;
    Some(pg_sys::Datum::from(interval.into_pg()))
}

/// What the entry of a lease is found by.
pub fn key(relation: u32, lease_id: i64, resource: &str) -> Key {
    Key {
        relation,
        lease_id,
        resource: lock::hash(resource),
    }
}

/// Columns of `coord.lease`, from 0.
mod column {
    pub const LEASE_ID: usize = 0;
    pub const EPOCH: usize = 1;
    pub const ACQUIRED_AT: usize = 2;
    pub const EXPIRES_AT: usize = 3;
    pub const TTL: usize = 4;
    pub const MEMORY: usize = 5;
    pub const ENDED: usize = 6;
    pub const ENDED_AT: usize = 7;
    pub const REQUEST_ID: usize = 8;
    pub const RESOURCE: usize = 9;
    pub const HOLDER: usize = 10;
    pub const COUNT: usize = 11;
}

/// The last grant of a resource, with the place of its expiry.
#[derive(Clone, Debug)]
pub struct StoredLease {
    /// Its expiry is the effective one as of the last look.
    pub lease: Lease,
    pub key: Key,
    stored: Stored,
    /// Written by this transaction, which may never commit.
    is_own: bool,
}

impl StoredLease {
    pub fn read(row: &Row) -> Self {
        let values = row.values::<{ column::COUNT }>();
        // SAFETY: the types are those of sql/lease.sql; only nullable columns can be null.
        unsafe {
            let stored = Stored {
                expires_at: values.get(column::EXPIRES_AT).unwrap_or_default(),
                ttl: values
                    .get::<Interval>(column::TTL)
                    .map_or(0, |ttl| ttl.micros()),
                memory: values.get(column::MEMORY).unwrap_or_default(),
            };
            let ended = values.get::<&str>(column::ENDED).map(|ended| match ended {
                "released" => Ended::Released,
                _ => Ended::Revoked,
            });
            let request = values.get::<pgrx::Uuid>(column::REQUEST_ID);
            let key = key(
                row.table_oid(),
                values.get(column::LEASE_ID).unwrap_or_default(),
                values.get(column::RESOURCE).unwrap_or_default(),
            );
            let epoch = values.get(column::EPOCH).unwrap_or_default();
            let is_own = row.is_own();
            // Memory does not know yet what this transaction has done.
            let by_memory = (!is_own).then(|| memory::expires_at(key, epoch)).flatten();
            Self {
                lease: Lease {
                    holder: values.get(column::HOLDER).unwrap_or_default(),
                    epoch,
                    expires_at: by_memory.unwrap_or_else(|| expires_at_by_table(stored)),
                    request: request.map(|id| *id.as_bytes()),
                    ended,
                },
                key,
                stored,
                is_own,
            }
        }
    }

    /// What an entry is to have of it: a grant that has ended is in the table alone.
    pub fn known(&self) -> Option<Known> {
        (self.lease.ended.is_none() && !self.is_own).then_some(Known {
            epoch: self.lease.epoch,
            expires_at: self.lease.expires_at,
            ttl: self.stored.ttl,
        })
    }
}

/// When a lease expires: by shared memory if that has it, else by the table.
pub fn expires_at(key: Key, epoch: i64, stored: Stored) -> i64 {
    memory::expires_at(key, epoch).unwrap_or_else(|| expires_at_by_table(stored))
}

fn expires_at_by_table(stored: Stored) -> i64 {
    if stored.memory == memory::since() {
        return stored.expires_at;
    }
    stored.expiry(run())
}

/// This run of shared memory, and how the one before it ended.
pub fn run() -> Run {
    let predecessor = memory::predecessor().unwrap_or_else(|| {
        let found = read_predecessor();
        memory::note_predecessor(found);
        found
    });
    Run {
        memory: memory::since(),
        // Not noted yet: the server has just begun.
        start: memory::start().unwrap_or_else(memory::clock_now),
        predecessor,
    }
}

/// How the memory before this one ended, by the one row that says so. Where there is none, no renewal
/// was ever kept in memory alone.
fn read_predecessor() -> Predecessor {
    let table = Table::open(c"lease_memory", Access::Read);
    let mut found = Predecessor::Closed { stepped: 0 };
    table.scan(&Latest::take(), None, &[], |row| {
        let values = row.values::<5>();
        // SAFETY: the types are those of sql/lease.sql.
        let (memory, closed, stepped) = unsafe {
            let memory = values.get::<i64>(0);
            let (closed, stepped) = if memory == Some(memory::since()) {
                (1, 2)
            } else {
                (3, 4)
            };
            (
                memory,
                values.get::<bool>(closed),
                values.get::<i64>(stepped),
            )
        };
        if memory.is_some() {
            found = match (closed, stepped) {
                (Some(true), Some(stepped)) => Predecessor::Closed { stepped },
                _ => Predecessor::Lost,
            };
        }
        true
    });
    found
}

const INDEX: &std::ffi::CStr = c"lease_pkey";
const RESOURCE_NUMBER: i16 = column::RESOURCE as i16 + 1;
const HOLDER_NUMBER: i16 = column::HOLDER as i16 + 1;

/// `coord.lease`, open.
pub struct Leases {
    table: Table,
}

impl Leases {
    pub fn open(access: Access) -> Self {
        Self {
            table: Table::open(c"lease", access),
        }
    }

    /// For writing, unless somebody has the table locked against that.
    pub fn open_at_once() -> Option<Self> {
        let table = Table::open_at_once(c"lease", Access::Write)?;
        Some(Self { table })
    }

    /// Lets others have the table: it was opened for writing, and nothing was written.
    pub fn close_unchanged(self) {
        self.table.close_unchanged();
    }

    /// The last grant of a resource, by the latest snapshot.
    pub fn find(&self, resource: &str) -> Option<StoredLease> {
        let seen = Latest::take();
        self.find_row(&seen, resource)
            .as_ref()
            .map(StoredLease::read)
    }

    /// The last grant of a resource. It is given its entry in memory where that is missing, if there is a place and
    /// nobody else changes the lease, for which this waits up to so many milliseconds.
    pub fn load(&self, resource: &str, milliseconds: i64) -> Option<StoredLease> {
        let found = self.find(resource)?;
        let is_missing = |known: Known| memory::lacks(found.key, known.epoch);
        let lock = Lock::of_lease(resource);
        if !found.known().is_some_and(is_missing) || !lock.take_within(Mode::Change, milliseconds) {
            return Some(found);
        }
        // What was found before counts no more.
        let found = self.find(resource);
        if let Some((key, known)) = found
            .as_ref()
            .and_then(|found| Some((found.key, found.known()?)))
        {
            memory::pin(key, Some(known));
        }
        lock.release(Mode::Change);
        found
    }

    /// The row of a resource, to be replaced.
    pub fn find_row(&self, seen: &Latest, resource: &str) -> Option<Row<'_>> {
        let keys = [heap::Key::Text(RESOURCE_NUMBER, resource)];
        roots::find(&self.table, seen, &keys, || {
            self.table.find(seen, INDEX, &keys)
        })
    }

    /// Resources last granted to a holder and not given back, with their epochs, in order.
    pub fn of_holder(&self, holder: &str) -> Vec<(String, i64)> {
        let mut found = Vec::new();
        self.table.scan(
            &Latest::take(),
            None,
            &[heap::Key::Text(HOLDER_NUMBER, holder)],
            |row| {
                let values = row.values::<{ column::COUNT }>();
                // SAFETY: the types are those of sql/lease.sql.
                let (resource, epoch) = unsafe {
                    (
                        values.get::<String>(column::RESOURCE),
                        values.get(column::EPOCH),
                    )
                };
                if let (Some(resource), Some(epoch), None) =
                    (resource, epoch, values.datum(column::ENDED))
                {
                    found.push((resource, epoch));
                }
                true
            },
        );
        found.sort();
        found
    }

    /// The resource of the row that a trigger of the table fires for.
    pub fn resource_of(firing: &Firing) -> String {
        let values = firing.values::<{ column::COUNT }>();
        // SAFETY: the type is that of sql/lease.sql.
        unsafe { values.get(column::RESOURCE) }.unwrap_or_default()
    }

    /// What a resource that was never granted is known by.
    pub fn new_key(&self, resource: &str) -> Key {
        let lease_id = heap::next_number(heap::relation_oid(c"lease_lease_id_seq"));
        key(self.table.oid(), lease_id, resource)
    }

    /// Stores a grant in place of the last one. The caller holds the lease for a takeover, and has since
    /// before it looked for that row.
    pub fn store_grant(
        &self,
        before: Option<&Row>,
        resource: &str,
        key: Key,
        lease: &Lease,
        ttl: i64,
        now: i64,
    ) {
        let mut values = [None; column::COUNT];
        values[column::LEASE_ID] = key.lease_id.into_datum();
        values[column::EPOCH] = lease.epoch.into_datum();
        values[column::ACQUIRED_AT] = Some(timestamp(now));
        values[column::EXPIRES_AT] = Some(timestamp(lease.expires_at));
        values[column::TTL] = interval(ttl);
        values[column::MEMORY] = Some(timestamp(memory::since()));
        values[column::REQUEST_ID] = lease
            .request
            .and_then(|id| pgrx::Uuid::from_bytes(id).into_datum());
        values[column::RESOURCE] = resource.into_datum();
        values[column::HOLDER] = lease.holder.as_str().into_datum();
        match before {
            Some(row) => self.table.replace(row, &values),
            None => {
                self.table.insert(&values);
            }
        }
    }

    /// Stores that the last grant of a resource has ended. The caller holds the lease for a change.
    pub fn store_end(&self, resource: &str, ended: Ended, now: i64) {
        let ended = match ended {
            Ended::Released => "released",
            Ended::Revoked => "revoked",
        };
        self.replace(resource, |values| {
            values[column::ENDED] = ended.into_datum();
            values[column::ENDED_AT] = Some(timestamp(now));
        });
    }

    /// Stores a renewal. The caller holds the lease for a change.
    pub fn store_expiry(&self, resource: &str, expires_at: i64, ttl: i64) {
        self.replace(resource, |values| {
            values[column::EXPIRES_AT] = Some(timestamp(expires_at));
            values[column::TTL] = interval(ttl);
            values[column::MEMORY] = Some(timestamp(memory::since()));
        });
    }

    fn replace(
        &self,
        resource: &str,
        change: impl FnOnce(&mut [Option<pg_sys::Datum>; column::COUNT]),
    ) {
        if let Some(row) = self.find_row(&Latest::take(), resource) {
            let before = row.values::<{ column::COUNT }>();
            let mut values = std::array::from_fn(|column| before.datum(column));
            change(&mut values);
            self.table.replace(&row, &values);
        }
    }
}

/// Columns of `coord.lease_report`, from 0.
mod report_column {
    pub const NODE: usize = 1;
    pub const HOLDER: usize = 2;
    pub const EPOCH: usize = 3;
    pub const HAS_ENDED: usize = 4;
    pub const EXPIRES_AT: usize = 5;
    pub const HEARD_AT: usize = 6;
    pub const LEARNED_FROM: usize = 8;
    pub const COUNT: usize = 12;
}

/// What was heard of a resource from other nodes.
pub fn elsewhere(seen: &Latest, resource: &str) -> Elsewhere {
    let table = Table::open(c"lease_report", Access::Read);
    // As long as nothing was ever heard, acquiring does not pay for looking.
    if table.is_empty() {
        return Elsewhere::default();
    }
    let mut reports = Vec::new();
    table.scan(
        seen,
        Some(c"lease_report_pkey"),
        &[heap::Key::Text(1, resource)],
        |row| {
            let values = row.values::<{ report_column::COUNT }>();
            // SAFETY: the types are those of sql/lease.sql; only `learned_from` can be null.
            let reported = unsafe {
                values
                    .get::<&str>(report_column::LEARNED_FROM)
                    .map(|_| Reported {
                        node: values.get(report_column::NODE).unwrap_or_default(),
                        holder: values.get(report_column::HOLDER).unwrap_or_default(),
                        epoch: values.get(report_column::EPOCH).unwrap_or_default(),
                        has_ended: values.get(report_column::HAS_ENDED).unwrap_or_default(),
                        expires_at: values.get(report_column::EXPIRES_AT).unwrap_or_default(),
                        heard_at: values.get(report_column::HEARD_AT).unwrap_or_default(),
                    })
            };
            reports.extend(reported);
            true
        },
    );
    Elsewhere::new(reports)
}

/// The life of this node, which the epochs of its grants lie in; the first one where the database is
/// no node. 55000 while the node does not know yet.
pub fn incarnation(seen: &Latest) -> Result<i64> {
    let life = node::sql::confirmed_life(seen)?;
    Ok(life.map_or(1, |life| life.incarnation))
}
