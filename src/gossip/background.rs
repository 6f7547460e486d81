//! What the launcher and the workers share: signals, settings, waiting, processes they start, and transactions
//! outside a session.

use std::ffi::{CStr, c_char};
use std::os::fd::RawFd;
use std::panic::AssertUnwindSafe;
use std::ptr::NonNull;
use std::time::Duration;

use pgrx::pg_sys;
use pgrx::pg_sys::panic::{CaughtError, ErrorReport};
#[cfg(not(feature = "pg18"))]
use pgrx::pg_sys::pqsignal;
// PostgreSQL 18 has one for servers and one for clients.
#[cfg(feature = "pg18")]
use pgrx::pg_sys::pqsignal_be as pqsignal;
use pgrx::prelude::*;

use crate::spi::{self, Session};
use crate::{heap, process};

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

/// Sets what holds for all of this process, whatever the database or the role takes as a default.
pub fn set_options(settings: &[(&CStr, &CStr)]) {
    for (name, value) in settings {
        // SAFETY: plain C strings of known settings.
        unsafe {
            pg_sys::SetConfigOption(
                name.as_ptr(),
                value.as_ptr(),
                pg_sys::GucContext::PGC_SUSET,
                pg_sys::GucSource::PGC_S_OVERRIDE,
            );
        }
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

/// A process that this one has started.
pub struct Process(NonNull<pg_sys::BackgroundWorkerHandle>);

impl Process {
    /// Starts a process that is connected to a database, by the function in this library that it runs. None when
    /// the server has no slot for one; it may have one later. To be called outside of transactions: the handle
    /// is kept.
    pub fn start(name: &str, function: &str, database: u32) -> Option<Self> {
        let mut worker = pg_sys::BackgroundWorker {
            bgw_flags: (pg_sys::BGWORKER_SHMEM_ACCESS
                | pg_sys::BGWORKER_BACKEND_DATABASE_CONNECTION)
                .cast_signed(),
            bgw_start_time: pg_sys::BgWorkerStartTime::BgWorkerStart_RecoveryFinished,
            bgw_restart_time: pg_sys::BGW_NEVER_RESTART,
            bgw_main_arg: pg_sys::Datum::from(pg_sys::Oid::from(database)),
            // SAFETY: a plain getter.
            bgw_notify_pid: unsafe { pg_sys::MyProcPid },
            ..pg_sys::BackgroundWorker::default()
        };
        copy_name(&mut worker.bgw_name, name);
        copy_name(&mut worker.bgw_type, name);
        copy_name(&mut worker.bgw_library_name, "pg_test");
        copy_name(&mut worker.bgw_function_name, function);
        let mut handle = std::ptr::null_mut();
        // SAFETY: the structure is copied; the handle is allocated for the life of this process.
        let is_registered =
            unsafe { pg_sys::RegisterDynamicBackgroundWorker(&raw mut worker, &raw mut handle) };
        NonNull::new(handle).filter(|_| is_registered).map(Self)
    }

    pub fn has_ended(&self) -> bool {
        let mut process = 0;
        // SAFETY: a handle from a successful registration.
        let status = unsafe { pg_sys::GetBackgroundWorkerPid(self.0.as_ptr(), &raw mut process) };
        status == pg_sys::BgwHandleStatus::BGWH_STOPPED
    }

    pub fn terminate(&self) {
        // SAFETY: as above.
        unsafe { pg_sys::TerminateBackgroundWorker(self.0.as_ptr()) };
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // SAFETY: allocated by the registration, and not used again.
        unsafe { pg_sys::pfree(self.0.as_ptr().cast()) };
    }
}

fn copy_name(field: &mut [c_char], name: &str) {
    for (place, byte) in field.iter_mut().zip(name.bytes()) {
        *place = byte.cast_signed();
    }
}

/// Says that a process could not be started, and what comes of that.
pub fn warn_of_missing_slot(process: &str, consequence: &str) {
    ErrorReport::new(
        PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
        format!("no slot is free for {process}"),
        "pg_test",
    )
    .set_detail(consequence)
    .set_hint("Raise max_worker_processes.")
    .report(PgLogLevel::WARNING);
}

/// What a question says, or a function that tends something, in a transaction of its own. None when it failed, which
/// is logged, and where the extension is of a version without this table.
pub fn ask(table: &'static CStr, question: &'static CStr, subject: &str) -> Option<bool> {
    let answer = transaction(|spi| {
        if !heap::is_there(table) {
            return Ok(None);
        }
        Ok(spi.write(question, &[]).get(0, 0))
    });
    answer.unwrap_or_else(|reason| {
        pgrx::log!("pg_test: could not tend {subject}: {reason}");
        None
    })
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
