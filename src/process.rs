//! This server process, and how processes wake each other.

use std::time::Duration;

use pgrx::pg_sys;

/// The database that the process is connected to.
pub fn own_database() -> u32 {
    // SAFETY: set before any function of this database runs.
    unsafe { pg_sys::MyDatabaseId }.to_u32()
}

/// Address of the process's latch, for others to wake it by.
pub fn own_latch() -> usize {
    // SAFETY: the address of this process's latch, which lies in shared memory.
    unsafe { pg_sys::MyLatch as usize }
}

/// Wakes the process whose latch lies at an address; 0 stands for none.
pub fn set_latch(address: usize) {
    if address != 0 {
        // SAFETY: the address of a process's latch in shared memory, which stays mapped; waking a
        // process that has taken over the slot meanwhile does no harm.
        unsafe { pg_sys::SetLatch(address as *mut pg_sys::Latch) };
    }
}

/// A latch waits for whole milliseconds: rounded up, so that the time has passed afterwards.
pub fn latch_milliseconds(timeout: Duration) -> i64 {
    i64::try_from(timeout.as_micros().div_ceil(1_000)).unwrap_or(i64::MAX)
}

/// Makes the commit of this transaction wait for the disk, whatever `synchronous_commit` says.
pub fn force_sync_commit() {
    // SAFETY: a flag of the current transaction.
    unsafe { pg_sys::ForceSyncCommit() };
}

/// Lets time pass, or less of it when the latch is set; open to cancel and shutdown.
pub fn pause(time: Duration) {
    let events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
    // SAFETY: this process's own latch.
    unsafe {
        pg_sys::WaitLatch(
            pg_sys::MyLatch,
            events.cast_signed(),
            latch_milliseconds(time),
            pg_sys::PG_WAIT_EXTENSION,
        );
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
    pgrx::check_for_interrupts!();
}
