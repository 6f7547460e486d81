//! The server's one hybrid logical clock, in shared memory and monotone across crashes.
//!
//! Invariant: no stamp is given out that is not below the ceiling on disk. After a restart the
//! clock goes on from that ceiling, so a stamp given out before a crash is never given again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use pgrx::prelude::*;
use pgrx::{PGRXSharedMemory, PgAtomic, PgLwLock, pg_shmem_init, pg_sys};

use super::hlc;
use crate::error::{self, Result};
use crate::guc;

/// Relative to the data directory, where every server process runs. A base backup carries it.
const CEILING_FILE: &str = "pg_test.hlc";
const CEILING_FILE_NEW: &str = "pg_test.hlc.new";

/// How far the ceiling is moved ahead of use: one small synchronous write per ten seconds of a
/// busy clock, and at most that much skipped after a crash.
const CEILING_STEP_MILLISECONDS: u64 = 10_000;

#[derive(Default)]
struct Shared {
    last: AtomicU64,
    ceiling: AtomicU64,
    refused: AtomicU64,
}

// SAFETY: only atomics.
unsafe impl PGRXSharedMemory for Shared {}

// SAFETY: the names are this extension's own.
static SHARED: PgAtomic<Shared> = unsafe { PgAtomic::new(c"pg_test hlc") };
// Held across the write of the ceiling on purpose: whoever needs a stamp above the ceiling has to
// wait for that write, and nobody else takes this lock.
static CEILING_LOCK: PgLwLock<()> = unsafe { PgLwLock::new(c"pg_test hlc ceiling") };

/// Called from `_PG_init` while the server preloads libraries.
pub fn register() {
    pg_shmem_init!(SHARED = restored());
    pg_shmem_init!(CEILING_LOCK = ());
}

fn restored() -> Shared {
    let ceiling = read_ceiling();
    Shared {
        last: AtomicU64::new(ceiling),
        ceiling: AtomicU64::new(ceiling),
        refused: AtomicU64::new(0),
    }
}

fn read_ceiling() -> u64 {
    match std::fs::read_to_string(CEILING_FILE) {
        Ok(text) => text.trim().parse().unwrap_or_else(|_| {
            ereport!(
                FATAL,
                PgSqlErrorCode::ERRCODE_DATA_CORRUPTED,
                format!("invalid contents of file \"{CEILING_FILE}\"")
            );
        }),
        Err(missing) if missing.kind() == std::io::ErrorKind::NotFound => 0,
        Err(failure) => {
            ereport!(
                FATAL,
                PgSqlErrorCode::ERRCODE_IO_ERROR,
                format!("could not read file \"{CEILING_FILE}\": {failure}")
            );
        }
    }
}

fn shared() -> Result<&'static Shared> {
    if crate::is_preloaded() {
        Ok(SHARED.get())
    } else {
        Err(error::not_preloaded("the hybrid logical clock"))
    }
}

/// Milliseconds since 1970 by this server's wall clock.
pub fn physical_milliseconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(hlc::MAX_MILLISECONDS)
        })
        .min(hlc::MAX_MILLISECONDS)
}

fn max_drift() -> u64 {
    u64::try_from(guc::MAX_CLOCK_DRIFT.get()).unwrap_or(0)
}

/// A stamp above every stamp given out or observed on this server.
pub fn now() -> Result<u64> {
    let shared = shared()?;
    advance(shared, |last| hlc::tick(last, physical_milliseconds()))
}

/// A stamp above `remote` as well. A stamp too far ahead is counted, refused and never applied.
pub fn observe(remote: u64) -> Result<u64> {
    let shared = shared()?;
    let physical = physical_milliseconds();
    hlc::check_drift(physical, remote, max_drift()).inspect_err(|_| {
        shared.refused.fetch_add(1, Ordering::Relaxed);
    })?;
    advance(shared, |last| {
        hlc::observe(last, physical, remote, max_drift())
    })
}

/// A stamp above one that this server already holds, however far ahead: it was admitted once.
pub fn after(held: u64) -> Result<u64> {
    let shared = shared()?;
    advance(shared, |last| {
        hlc::tick(last.max(held), physical_milliseconds())
    })
}

/// Refuses a stamp from elsewhere that is too far ahead; works without preloading.
pub fn check_drift(remote: u64) -> Result<()> {
    hlc::check_drift(physical_milliseconds(), remote, max_drift())
}

/// Stamps refused since the server started.
pub fn refused() -> Result<u64> {
    Ok(shared()?.refused.load(Ordering::Relaxed))
}

fn advance(shared: &Shared, next: impl Fn(u64) -> Result<u64>) -> Result<u64> {
    let mut last = shared.last.load(Ordering::Acquire);
    loop {
        let stamp = next(last)?;
        if stamp >= shared.ceiling.load(Ordering::Acquire) {
            raise_ceiling(shared, stamp)?;
        }
        match shared
            .last
            .compare_exchange_weak(last, stamp, Ordering::AcqRel, Ordering::Acquire)
        {
            Ok(_) => return Ok(stamp),
            Err(newer) => last = newer,
        }
    }
}

fn raise_ceiling(shared: &Shared, stamp: u64) -> Result<()> {
    let _guard = CEILING_LOCK.exclusive();
    if stamp < shared.ceiling.load(Ordering::Acquire) {
        return Ok(());
    }
    let ceiling = stamp.saturating_add(hlc::at(CEILING_STEP_MILLISECONDS));
    write_ceiling(ceiling)?;
    shared.ceiling.store(ceiling, Ordering::Release);
    Ok(())
}

fn write_ceiling(ceiling: u64) -> Result<()> {
    std::fs::write(CEILING_FILE_NEW, format!("{ceiling}\n"))
        .map_err(|failure| error::file_not_written(CEILING_FILE_NEW, &failure))?;
    // SAFETY: plain C strings; flushes the file, renames it and flushes the directory, and raises
    // an error itself where that fails.
    unsafe {
        pg_sys::durable_rename(
            c"pg_test.hlc.new".as_ptr(),
            c"pg_test.hlc".as_ptr(),
            PgLogLevel::ERROR as i32,
        );
    }
    Ok(())
}
