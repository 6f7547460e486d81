//! What the launcher and the workers share: signals, waiting and transactions outside a session.

use std::os::fd::RawFd;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use pgrx::pg_sys;
use pgrx::pg_sys::panic::CaughtError;
#[cfg(not(feature = "pg18"))]
use pgrx::pg_sys::pqsignal;
// PostgreSQL 18 has one for servers and one for clients.
#[cfg(feature = "pg18")]
use pgrx::pg_sys::pqsignal_be as pqsignal;
use pgrx::prelude::*;

use crate::process;
use crate::spi::{self, Session};

unsafe extern "C-unwind" {
    // Core's own handlers. pgrx's set a flag that does not interrupt a query; and what pg_sys
    // exports under these names are Rust wrappers, which must not run as signal handlers.
    fn die(signal: i32);
    fn SignalHandlerForConfigReload(signal: i32);
}

/// Installs the handlers of an ordinary backend and lets signals in.
pub fn accept_signals() {
    // SAFETY: called once by the main thread of a new background worker.
    unsafe {
        pqsignal(libc::SIGHUP, Some(SignalHandlerForConfigReload));
        pqsignal(libc::SIGTERM, Some(die));
        pg_sys::BackgroundWorkerUnblockSignals();
    }
}

/// Waits for the latch, for `readable` and for the time to pass, whichever is first, then acts on
/// signals: ends the process on SIGTERM or postmaster death, reads the configuration on SIGHUP.
pub fn wait(readable: Option<RawFd>, timeout: Duration) {
    let mut events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
    if readable.is_some() {
        events |= pg_sys::WL_SOCKET_READABLE;
    }
    // SAFETY: this process's own latch; the descriptor, when given, is open.
    unsafe {
        pg_sys::WaitLatchOrSocket(
            pg_sys::MyLatch,
            events.cast_signed(),
            readable.unwrap_or(-1),
            process::latch_milliseconds(timeout),
            pg_sys::PG_WAIT_EXTENSION,
        );
        pg_sys::ResetLatch(pg_sys::MyLatch);
        pgrx::check_for_interrupts!();
        if std::ptr::replace(&raw mut pg_sys::ConfigReloadPending, 0) != 0 {
            pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
        }
    }
}

/// Runs `work` in a transaction of its own. An error of PostgreSQL or of the rules rolls it back
/// and comes back as text; the process goes on.
pub fn transaction<T>(work: impl FnOnce(&Session) -> crate::error::Result<T>) -> Result<T, String> {
    // SAFETY: no transaction is in progress here; start, commit and abort are paired.
    unsafe {
        pg_sys::SetCurrentStatementStartTimestamp();
        pg_sys::StartTransactionCommand();
    }
    let outcome = PgTryBuilder::new(AssertUnwindSafe(|| {
        // SAFETY: a transaction is in progress.
        unsafe { pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot()) };
        let result = spi::connect(work).map_err(|error| error.to_string());
        if result.is_ok() {
            // SAFETY: pushed above.
            unsafe {
                pg_sys::PopActiveSnapshot();
                pg_sys::CommitTransactionCommand();
            }
        }
        result
    }))
    .catch_others(|cause| Err(describe(&cause)))
    .catch_rust_panic(|cause| Err(describe(&cause)))
    .execute();
    if outcome.is_err() {
        // SAFETY: the transaction is still in progress, failed or not.
        unsafe { pg_sys::AbortCurrentTransaction() };
    }
    outcome
}

fn describe(cause: &CaughtError) -> String {
    match cause {
        CaughtError::PostgresError(report) | CaughtError::ErrorReport(report) => {
            report.message().to_owned()
        }
        CaughtError::RustPanic { ereport, .. } => ereport.message().to_owned(),
    }
}

/// The number of this transaction, when it has written.
pub fn own_xid() -> Option<u64> {
    // SAFETY: a plain getter; the invalid number stands for none.
    let own = unsafe { pg_sys::GetTopFullTransactionIdIfAny() }.value;
    (own != 0).then_some(own)
}

/// Makes this transaction's commit wait for the disk, when it has anything to commit: what it
/// stored is about to be acknowledged to the peer that gave it.
pub fn flush_at_commit() {
    if own_xid().is_some() {
        process::force_sync_commit();
    }
}
