//! What sessions, workers and the launcher tell each other, in shared memory: atomics and latches
//! only, because a commit callback writes here, past the point where anything may fail.

use std::cell::Cell;
use std::sync::atomic::{
    AtomicBool, AtomicI32, AtomicI64, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering,
};

use pgrx::prelude::*;
use pgrx::{PGRXSharedMemory, PgAtomic, pg_shmem_init, pg_sys};

use crate::is_preloaded;
use crate::process::{own_database, own_latch, set_latch};

/// Databases of one server that can be nodes.
pub const MAX_DATABASES: usize = 64;

#[derive(Default)]
pub struct Database {
    /// 0 marks a free slot.
    oid: AtomicU32,
    /// How often a worker was asked for since the last one found nothing to do; 0 for not at all.
    wanted: AtomicU32,
    /// The database is about to be dropped: no worker, whoever asks.
    is_dismissed: AtomicBool,
    /// A commit changed something that peers wait for.
    pub is_dirty: AtomicBool,
    /// A commit appended to the operation log.
    pub is_appended: AtomicBool,
    /// The worker's process, 0 when none runs.
    pub worker: AtomicI32,
    /// Address of the worker's latch, which lies in shared memory; 0 when none runs.
    latch: AtomicUsize,
    /// Ticks of the worker's timer, counted on from what peers have heard of before.
    pub heartbeat: AtomicU64,
    /// Microseconds that the worker wanted to run and did not.
    pub stalled: AtomicI64,
    /// Score of the worker's mistrust of its own judgement.
    pub doubt: AtomicU8,
}

impl Database {
    pub fn oid(&self) -> u32 {
        self.oid.load(Ordering::Acquire)
    }

    pub fn is_wanted(&self) -> bool {
        self.wanted_times() > 0
    }

    pub fn is_dismissed(&self) -> bool {
        self.is_dismissed.load(Ordering::Acquire)
    }

    /// To be read before looking whether there is a node.
    pub fn wanted_times(&self) -> u32 {
        self.wanted.load(Ordering::Acquire)
    }

    /// Nothing was found to do, unless a worker was asked for again while looking.
    pub fn give_up(&self, wanted_times: u32) {
        let _ = self
            .wanted
            .compare_exchange(wanted_times, 0, Ordering::AcqRel, Ordering::Acquire);
    }

    pub fn has_worker(&self) -> bool {
        self.worker.load(Ordering::Acquire) != 0
    }

    pub fn free(&self) {
        self.wanted.store(0, Ordering::Release);
        self.is_dismissed.store(false, Ordering::Release);
        self.is_dirty.store(false, Ordering::Release);
        self.is_appended.store(false, Ordering::Release);
        self.heartbeat.store(0, Ordering::Release);
        self.oid.store(0, Ordering::Release);
    }
}

struct Shared {
    databases: [Database; MAX_DATABASES],
    launcher_latch: AtomicUsize,
    /// Where the transaction log ended when the server started; 0 until the launcher has looked.
    started_at: AtomicU64,
}

// SAFETY: only atomics.
unsafe impl PGRXSharedMemory for Shared {}

// SAFETY: the name is this extension's own.
static SHARED: PgAtomic<Shared> = unsafe { PgAtomic::new(c"pg_test control") };

/// Called from `_PG_init` while the server preloads libraries.
pub fn register() {
    pg_shmem_init!(
        SHARED = Shared {
            databases: std::array::from_fn(|_| Database::default()),
            launcher_latch: AtomicUsize::new(0),
            started_at: AtomicU64::new(0),
        }
    );
}

/// All slots, for the launcher.
pub fn databases() -> &'static [Database] {
    &SHARED.get().databases
}

/// The slot of a database that has one. None without preloading, when there are no slots.
pub fn known_database(oid: u32) -> Option<&'static Database> {
    if oid == 0 || !is_preloaded() {
        return None;
    }
    databases().iter().find(|database| database.oid() == oid)
}

/// The slot of a database, taken if need be. None when all are in use or nothing is preloaded.
pub fn database(oid: u32) -> Option<&'static Database> {
    if !is_preloaded() {
        return None;
    }
    let taken = known_database(oid);
    if taken.is_some() {
        return taken;
    }
    databases().iter().find(|slot| {
        slot.oid
            .compare_exchange(0, oid, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    })
}

pub fn launcher_is_here() {
    SHARED
        .get()
        .launcher_latch
        .store(own_latch(), Ordering::Release);
}

/// Remembers where the transaction log ended when the server started: the checkpoint that ends
/// recovery, or that of the shutdown before, is written there. The launcher starts right after it; a
/// later launcher leaves the value alone.
pub fn note_start() {
    let mut is_sound = false;
    // SAFETY: reads the control file into memory of this process.
    let checkpoint =
        unsafe { (*pg_sys::get_controlfile(pg_sys::DataDir, &raw mut is_sound)).checkPoint };
    if is_sound {
        let started_at = &SHARED.get().started_at;
        let _ = started_at.compare_exchange(0, checkpoint, Ordering::AcqRel, Ordering::Acquire);
    }
}

/// Where the transaction log ended when the server started; the latest there is where that is not
/// known.
pub fn started_at() -> u64 {
    const LATEST: u64 = i64::MAX as u64;
    if !is_preloaded() {
        return LATEST;
    }
    match SHARED.get().started_at.load(Ordering::Acquire) {
        0 => LATEST,
        position => position,
    }
}

fn wake_launcher() {
    set_latch(SHARED.get().launcher_latch.load(Ordering::Acquire));
}

/// The worker of a database announces itself.
pub fn worker_is_here(database: &Database) {
    // SAFETY: a plain getter.
    database
        .worker
        .store(unsafe { pg_sys::MyProcPid }, Ordering::Release);
    database.latch.store(own_latch(), Ordering::Release);
}

/// The worker of a database is about to exit.
pub fn worker_is_gone(database: &Database) {
    database.latch.store(0, Ordering::Release);
    database.worker.store(0, Ordering::Release);
    // A launcher that was restarted meanwhile is not told by the postmaster.
    wake_launcher();
}

/// The process of a database's worker, when one runs.
pub fn worker_of(oid: u32) -> Option<i32> {
    let process = known_database(oid)?.worker.load(Ordering::Acquire);
    (process != 0).then_some(process)
}

/// Asks for a worker in a database.
pub fn want_worker(oid: u32) {
    if let Some(database) = database(oid) {
        database.wanted.fetch_add(1, Ordering::AcqRel);
        wake_launcher();
    }
}

/// Wakes the worker of this database: its peers are to hear from it.
pub fn wake_own_worker() {
    if let Some(database) = known_database(own_database()) {
        wake_worker(database, News::Anything);
    }
}

/// Tells the worker what has changed.
fn wake_worker(database: &Database, news: News) {
    let flag = match news {
        News::Operations => &database.is_appended,
        News::Anything => &database.is_dirty,
    };
    flag.store(true, Ordering::Release);
    set_latch(database.latch.load(Ordering::Acquire));
}

/// What peers wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum News {
    /// Operations of this node and nothing else: peers that a stream brings them to wait for nobody.
    Operations,
    Anything,
}

thread_local! {
    /// This transaction changed something that peers wait for.
    static TELL_AT_COMMIT: Cell<Option<News>> = const { Cell::new(None) };
    /// This transaction made the database a node.
    static LAUNCH_AT_COMMIT: Cell<bool> = const { Cell::new(false) };
    /// This transaction has told a peer what it holds, counting itself as committed.
    static HAS_ANSWERED: Cell<bool> = const { Cell::new(false) };
    /// This transaction sent the worker of a database away in order to drop it.
    static DISMISSED: Cell<u32> = const { Cell::new(0) };
}

/// Sends the worker of a database away until this transaction ends, either way.
pub fn dismiss_worker(oid: u32) {
    if let Some(database) = known_database(oid) {
        database.is_dismissed.store(true, Ordering::Release);
        set_latch(database.latch.load(Ordering::Acquire));
        DISMISSED.set(oid);
    }
}

/// Wakes the worker once this transaction has committed.
pub fn tell_at_commit(news: News) {
    if is_preloaded() {
        TELL_AT_COMMIT.set(TELL_AT_COMMIT.get().max(Some(news)));
    }
}

/// Asks for a worker once this transaction has committed.
pub fn launch_at_commit() {
    LAUNCH_AT_COMMIT.set(is_preloaded());
}

/// From here on this transaction must not change a state: the peer has been told that it was given
/// all of this transaction's changes.
pub fn answered() {
    HAS_ANSWERED.set(true);
}

pub fn has_answered() -> bool {
    HAS_ANSWERED.get()
}

/// Called from `_PG_init`.
pub fn register_callback() {
    // SAFETY: the callback stays loaded as long as the process.
    unsafe { pg_sys::RegisterXactCallback(Some(at_transaction_end), std::ptr::null_mut()) };
}

#[pg_guard]
unsafe extern "C-unwind" fn at_transaction_end(
    event: pg_sys::XactEvent::Type,
    _argument: *mut std::ffi::c_void,
) {
    let has_ended = matches!(
        event,
        pg_sys::XactEvent::XACT_EVENT_COMMIT
            | pg_sys::XactEvent::XACT_EVENT_ABORT
            | pg_sys::XactEvent::XACT_EVENT_PREPARE
    );
    if !has_ended {
        return;
    }
    let (tells, launches) = (TELL_AT_COMMIT.take(), LAUNCH_AT_COMMIT.take());
    HAS_ANSWERED.set(false);
    let dismissed = DISMISSED.take();
    if let Some(database) = known_database(dismissed) {
        // Dropped or not: the launcher looks whether the database is still there.
        database.is_dismissed.store(false, Ordering::Release);
        want_worker(dismissed);
    }
    if event != pg_sys::XactEvent::XACT_EVENT_COMMIT {
        return;
    }
    let oid = own_database();
    if launches {
        want_worker(oid);
    }
    let news = if launches {
        Some(News::Anything)
    } else {
        tells
    };
    if let (Some(news), Some(database)) = (news, known_database(oid)) {
        wake_worker(database, news);
    }
}
