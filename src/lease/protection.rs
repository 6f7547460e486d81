//! Tables whose every write is checked against a lease, by triggers that always fire.
//!
//! A table of one resource is checked before each statement and before each row: statement triggers do
//! not fire for rows that replication applies or that are written straight into a partition. A table
//! whose rows name their resource is checked after each row, when no trigger can change it any more.

use std::borrow::Cow;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};

use pgrx::prelude::*;
use pgrx::{PGRXSharedMemory, PgAtomic, pg_shmem_init, pg_sys};

use super::{admission, transaction};
use crate::error::{self, Result};
use crate::is_preloaded;
use crate::process::own_database;
use crate::trigger::{Firing, Operation, trigger_function};
use crate::varlena::raise;

/// What a table is protected by: arguments of its triggers. Empty stands for none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protection<'a> {
    pub resource: &'a str,
    pub resource_column: &'a str,
    pub epoch_column: &'a str,
}

impl<'a> Protection<'a> {
    /// Reads `pg_trigger.tgargs`: strings that each end with a zero byte.
    pub fn parse(arguments: &'a [u8]) -> Option<Self> {
        let text = std::str::from_utf8(arguments).ok()?;
        let mut parts = text.split_terminator('\0');
        Some(Self {
            resource: parts.next()?,
            resource_column: parts.next()?,
            epoch_column: parts.next()?,
        })
    }
}

trigger_function!(
    fence_guard_wrapper,
    pg_finfo_fence_guard_wrapper,
    fence_guard
);

fn fence_guard(firing: &Firing) -> pg_sys::Datum {
    let write = Write { firing };
    if let Err(refusal) = write.check() {
        count_refusal(write.firing.table_oid());
        raise(refusal);
    }
    write.firing.unchanged()
}

/// A write to a protected table, as its trigger is told of it.
struct Write<'a> {
    firing: &'a Firing<'a>,
}

impl Write<'_> {
    fn protection(&self) -> Protection<'_> {
        Protection {
            resource: self.firing.argument(0),
            resource_column: self.firing.argument(1),
            epoch_column: self.firing.argument(2),
        }
    }

    /// Checks what is written, and for a row that is moved to another resource also what is replaced.
    fn check(&self) -> Result<()> {
        let protection = self.protection();
        let is_by_column = protection.resource.is_empty();
        match self.firing.operation() {
            Operation::Truncate if is_by_column => {
                Err(error::fence_truncate(&self.firing.table_name()))
            }
            // The rows bring their tokens.
            Operation::Insert | Operation::Update
                if !self.firing.is_for_row() && !protection.epoch_column.is_empty() =>
            {
                Ok(())
            }
            Operation::Truncate => self.check_under(protection.resource, None),
            _ if !self.firing.is_for_row() => self.check_under(protection.resource, None),
            Operation::Insert => self.check_insert(protection),
            // What is deleted brings no token.
            Operation::Delete => {
                let resource = self.resource_of(protection, self.firing.row())?;
                self.check_under(&resource, None)
            }
            Operation::Update => self.check_update(protection),
        }
    }

    fn check_update(&self, protection: Protection) -> Result<()> {
        let resource = self.resource_of(protection, self.firing.replacement())?;
        if protection.resource.is_empty() {
            // A row that changes its resource is also written under the one it had.
            let before = self.resource_of(protection, self.firing.row())?;
            if before != resource {
                self.check_under(&before, None)?;
            }
        }
        let token = self.token_set(protection.epoch_column)?;
        self.check_under(&resource, token)
    }

    fn check_insert(&self, protection: Protection) -> Result<()> {
        let row = self.firing.row();
        let token = match protection.epoch_column {
            "" => None,
            name => self.epoch_at(row, self.column_number(name)?),
        };
        self.check_under(&self.resource_of(protection, row)?, token)
    }

    /// The epoch that the UPDATE itself has put in a row. What it leaves alone is what some earlier writer
    /// knew.
    fn token_set(&self, epoch_column: &str) -> Result<Option<i64>> {
        if epoch_column.is_empty() {
            return Ok(None);
        }
        let number = self.column_number(epoch_column)?;
        Ok(self
            .firing
            .is_set(number)
            .then(|| self.epoch_at(self.firing.replacement(), number))
            .flatten())
    }

    fn epoch_at(&self, row: pg_sys::HeapTuple, number: i32) -> Option<i64> {
        // SAFETY: coord.protect_table has seen to it that the column is a bigint.
        unsafe { self.firing.value(row, number) }
    }

    /// Checks the token that the row brings, or that of the transaction.
    fn check_under(&self, resource: &str, brought: Option<i64>) -> Result<()> {
        match brought.or_else(|| transaction::token(resource)) {
            Some(epoch) => admission::admit(resource, epoch),
            None => Err(error::fence_missing(resource, &self.firing.table_name())),
        }
    }

    /// The resource of the table, or the one that the row names.
    fn resource_of<'p>(
        &self,
        protection: Protection<'p>,
        row: pg_sys::HeapTuple,
    ) -> Result<Cow<'p, str>> {
        if !protection.resource.is_empty() {
            return Ok(protection.resource.into());
        }
        let column = protection.resource_column;
        let number = self.column_number(column)?;
        // SAFETY: coord.protect_table has seen to it that the column is text or varchar.
        unsafe { self.firing.value::<String>(row, number) }
            .map(Cow::Owned)
            .ok_or_else(|| error::fence_unnamed(&self.firing.table_name(), column))
    }

    fn column_number(&self, name: &str) -> Result<i32> {
        self.firing
            .column_number(name)
            .ok_or_else(|| error::fence_column_missing(&self.firing.table_name(), name))
    }
}

/// Tables that refusals are counted of, of all databases of the server.
const COUNTED: usize = 512;

#[derive(Default)]
struct Counter {
    database: AtomicU32,
    table: AtomicU32,
    refusals: AtomicI64,
}

struct Counters {
    tables: [Counter; COUNTED],
}

// SAFETY: only atomics.
unsafe impl PGRXSharedMemory for Counters {}

// SAFETY: the name is this extension's own.
static COUNTERS: PgAtomic<Counters> = unsafe { PgAtomic::new(c"pg_test refusals") };

/// Called from `_PG_init` while the server preloads libraries.
pub fn register() {
    pg_shmem_init!(
        COUNTERS = Counters {
            tables: std::array::from_fn(|_| Counter::default()),
        }
    );
}

impl Counter {
    fn is_of(&self, database: u32, table: u32) -> bool {
        self.table.load(Ordering::Acquire) == table
            && self.database.load(Ordering::Acquire) == database
    }

    fn take(&self, table: u32) -> bool {
        self.table
            .compare_exchange(0, table, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }
}

/// A refused write is rolled back, so only shared memory can count it. When all places are taken the
/// table goes uncounted.
fn count_refusal(table: u32) {
    if !is_preloaded() {
        return;
    }
    let database = own_database();
    let mut counters = COUNTERS.get().tables.iter();
    let known = counters
        .clone()
        .find(|counter| counter.is_of(database, table));
    let counter = known.or_else(|| {
        let counter = counters.find(|counter| counter.take(table))?;
        counter.database.store(database, Ordering::Release);
        Some(counter)
    });
    if let Some(counter) = counter {
        counter.refusals.fetch_add(1, Ordering::AcqRel);
    }
}

/// Writes to a table refused since the server started. None without preloading.
pub fn refusals(table: u32) -> Option<i64> {
    if !is_preloaded() {
        return None;
    }
    let database = own_database();
    let counters = COUNTERS.get().tables.iter();
    let mine = counters.filter(|counter| counter.is_of(database, table));
    Some(
        mine.map(|counter| counter.refusals.load(Ordering::Acquire))
            .sum(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read_back() {
        let parsed = Protection::parse(b"job\0\0epoch\0").unwrap();
        assert_eq!(
            parsed,
            Protection {
                resource: "job",
                resource_column: "",
                epoch_column: "epoch"
            }
        );
        assert_eq!(Protection::parse(b"job\0"), None);
        assert_eq!(Protection::parse(b"\xff\0\0\0"), None);
    }
}
