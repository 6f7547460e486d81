//! Locks of the lock manager, of a class of their own: `userlock` in `pg_locks`, which nothing else
//! uses since PostgreSQL 8.1.
//!
//! A writer holds its leases in ROW SHARE mode until its transaction ends; a takeover takes ACCESS
//! EXCLUSIVE, a release SHARE UPDATE EXCLUSIVE, which writers do not wait for; so does, for a moment, who makes the
//! entry of a lease in shared memory, and the worker that writes back its expiry. A transaction that
//! writes under more than [`MOST_LEASES`] leases holds the lock of every lease in SHARE mode instead of
//! more single ones; a takeover holds that one in ROW EXCLUSIVE mode.
//!
//! Two resources whose names hash alike share a lock: each waits for the writers of the other.

use std::panic::AssertUnwindSafe;

use pgrx::pg_sys::panic::CaughtError;
use pgrx::prelude::*;
use pgrx::{PgTryBuilder, pg_sys};

use crate::process::own_database;
use crate::varlena::hash_extended;

/// A transaction that holds some ten thousand locks fills the lock table of the server.
pub const MOST_LEASES: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lock {
    hash: u64,
    kind: u16,
}

const LEASE: u16 = 1;
const EVERY_LEASE: u16 = 2;
const QUEUE: u16 = 3;
const ORIGIN: u16 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Of a lease: writes under it are in flight.
    Writer,
    /// Of a lease: it is about to end, or to be renewed in the table, or must not meanwhile.
    Change,
    /// Of a lease: it changes its holder. Of a queue: the place at its head.
    Takeover,
    /// Of every lease: one of them changes its holder.
    TakeoverOfOne,
    /// Of every lease: writes under any of them are in flight.
    WriterOfAny,
    /// Of an origin: operations of it are admitted.
    Admission,
}

impl Mode {
    fn level(self) -> pg_sys::LOCKMODE {
        let level = match self {
            Self::Writer => pg_sys::RowShareLock,
            Self::TakeoverOfOne => pg_sys::RowExclusiveLock,
            Self::Change => pg_sys::ShareUpdateExclusiveLock,
            Self::WriterOfAny => pg_sys::ShareLock,
            Self::Takeover | Self::Admission => pg_sys::AccessExclusiveLock,
        };
        level.cast_signed()
    }
}

/// By which a resource is known in shared memory.
pub fn hash(name: &str) -> u64 {
    hash_extended(name.as_bytes(), 0).cast_unsigned()
}

impl Lock {
    pub fn of_lease(resource: &str) -> Self {
        Self {
            hash: hash(resource),
            kind: LEASE,
        }
    }

    pub fn of_queue(resource: &str) -> Self {
        Self {
            hash: hash(resource),
            kind: QUEUE,
        }
    }

    /// Whoever brings operations of an origin holds it, so that two do not bring the same one at once.
    pub fn of_origin(origin: &str) -> Self {
        Self {
            hash: hash(origin),
            kind: ORIGIN,
        }
    }

    pub const OF_EVERY_LEASE: Self = Self {
        hash: 0,
        kind: EVERY_LEASE,
    };

    /// The two numbers that `pg_locks` shows.
    pub fn numbers(self) -> (u32, u32) {
        ((self.hash >> 32) as u32, self.hash as u32)
    }

    fn tag(self) -> pg_sys::LOCKTAG {
        let (high, low) = self.numbers();
        pg_sys::LOCKTAG {
            locktag_field1: own_database(),
            locktag_field2: high,
            locktag_field3: low,
            locktag_field4: self.kind,
            locktag_type: pg_sys::LockTagType::LOCKTAG_USERLOCK as u8,
            locktag_lockmethodid: pg_sys::DEFAULT_LOCKMETHOD as u8,
        }
    }

    /// Whether this process holds the lock in this very mode.
    pub fn is_held(self, mode: Mode) -> bool {
        // SAFETY: the tag outlives the call.
        #[cfg(any(feature = "pg15", feature = "pg16"))]
        unsafe {
            pg_sys::LockHeldByMe(&self.tag(), mode.level())
        }
        // SAFETY: as above.
        #[cfg(not(any(feature = "pg15", feature = "pg16")))]
        unsafe {
            pg_sys::LockHeldByMe(&self.tag(), mode.level(), false)
        }
    }

    /// Takes the lock, until the transaction or the savepoint it is taken in ends. Waits as long as
    /// the settings `lock_timeout` and `statement_timeout` let it.
    pub fn take(self, mode: Mode) {
        // SAFETY: the tag outlives the call.
        for_transaction(|| unsafe { pg_sys::LockAcquire(&self.tag(), mode.level(), false, false) });
    }

    /// Takes the lock if nobody is in the way.
    pub fn try_take(self, mode: Mode) -> bool {
        // SAFETY: as above.
        let outcome = for_transaction(|| unsafe {
            pg_sys::LockAcquire(&self.tag(), mode.level(), false, true)
        });
        outcome != pg_sys::LockAcquireResult::LOCKACQUIRE_NOT_AVAIL
    }

    /// Takes the lock, waiting in its queue for up to `milliseconds`. False when the time is up.
    pub fn take_within(self, mode: Mode, milliseconds: i64) -> bool {
        if self.try_take(mode) {
            return true;
        }
        let milliseconds = i32::try_from(milliseconds).unwrap_or(i32::MAX);
        if milliseconds <= 0 {
            return false;
        }
        within_lock_timeout(milliseconds, || self.take(mode))
    }

    /// Gives the lock back before the transaction ends.
    pub fn release(self, mode: Mode) {
        // SAFETY: as above; the lock is held.
        for_transaction(|| unsafe { pg_sys::LockRelease(&self.tag(), mode.level(), false) });
    }
}

/// Runs `work` with the transaction or savepoint, not the statement, as owner of locks: what waits in a
/// subtransaction of its own leaves its locks there, and a lock is released by its owner alone.
fn for_transaction<T>(work: impl FnOnce() -> T) -> T {
    // SAFETY: plain variables of this process; an error ends the transaction, which sets them itself.
    unsafe {
        let owner = pg_sys::CurrentResourceOwner;
        pg_sys::CurrentResourceOwner = pg_sys::CurTransactionResourceOwner;
        let result = work();
        pg_sys::CurrentResourceOwner = owner;
        result
    }
}

/// Runs `wait` with `lock_timeout` no longer than this. False when it timed out; every other error goes
/// on, once what the wait left behind is taken back. A lock taken meanwhile stays.
fn within_lock_timeout(milliseconds: i32, wait: impl FnOnce()) -> bool {
    // SAFETY: a plain variable of this process, put back below whatever happens. The subtransaction
    // takes back what a wait that failed has left behind; begin and end are paired.
    unsafe {
        let (context, owner) = (pg_sys::CurrentMemoryContext, pg_sys::CurrentResourceOwner);
        let given = pg_sys::LockTimeout;
        let is_shorter = given == 0 || milliseconds < given;
        pg_sys::BeginInternalSubTransaction(std::ptr::null());
        if is_shorter {
            pg_sys::LockTimeout = milliseconds;
        }
        let is_taken = PgTryBuilder::new(AssertUnwindSafe(|| {
            wait();
            pg_sys::ReleaseCurrentSubTransaction();
            true
        }))
        .catch_others(|error| {
            pg_sys::LockTimeout = given;
            pg_sys::RollbackAndReleaseCurrentSubTransaction();
            pg_sys::MemoryContextSwitchTo(context);
            pg_sys::CurrentResourceOwner = owner;
            if is_lock_timeout(&error) {
                false
            } else {
                error.rethrow()
            }
        })
        .execute();
        pg_sys::LockTimeout = given;
        pg_sys::MemoryContextSwitchTo(context);
        pg_sys::CurrentResourceOwner = owner;
        is_taken
    }
}

fn is_lock_timeout(error: &CaughtError) -> bool {
    matches!(
        error,
        CaughtError::PostgresError(report) | CaughtError::ErrorReport(report)
            if report.sql_error_code() == PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE
    )
}
