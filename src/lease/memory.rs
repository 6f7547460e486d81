//! The shared memory that keeps the expiry of leases: its entries, and which databases use it.
//!
//! What an entry proves, and what happens to it, is in `entry`. Here an entry is found, made, and thrown out for another
//! when the table knows all it knows and nobody has pinned it; that takes the lock exclusively, and
//! everything else takes it shared.

use std::ptr::NonNull;
use std::sync::atomic::{
    AtomicBool, AtomicI64, AtomicPtr, AtomicU8, AtomicU32, AtomicUsize, Ordering,
};

use pgrx::prelude::*;
use pgrx::{PgLwLock, pg_shmem_init, pg_sys};

use super::clock::{self, Anchor};
use super::entry::Entry;
pub use super::entry::{Extent, Held, Key, Known, Renewal, Unwritten};
use super::grant::Predecessor;
use super::ring::{Ring, Taken};
use crate::process::{own_database, own_latch, set_latch};
use crate::{guc, is_preloaded};

/// Entries that one lease can be in.
const WAYS: usize = 8;

const MAX_DATABASES: usize = 64;

#[repr(C)]
struct Database {
    oid: AtomicU32,
    /// The oid of the table of leases that the entries are of; 0 for none. DROP EXTENSION and CREATE EXTENSION make
    /// another table.
    table: AtomicU32,
    /// Renewals may stay in memory, because the table says so itself and a crash would be noticed.
    is_open: AtomicBool,
    /// What the table says of the memory before this one: 0 until somebody has looked, 1 for closed, 2 for
    /// lost.
    predecessor: AtomicU8,
    /// Of a closed one, by how much the wall clock was stepped.
    stepped: AtomicI64,
    /// A change of holder that the worker has not told yet.
    is_changed: AtomicBool,
    /// An entry is to be written at once.
    is_urgent: AtomicBool,
    /// Address of the worker's latch; 0 when none runs.
    worker: AtomicUsize,
    /// Where the lines of history are that say what has changed.
    lines: Ring,
}

#[repr(C)]
struct Header {
    anchor: Anchor,
    /// 0 until the launcher has begun.
    start: AtomicI64,
    databases: [Database; MAX_DATABASES],
    entries: usize,
}

static LOCK: PgLwLock<()> = {
    // SAFETY: the name is this extension's own.
    unsafe { PgLwLock::new(c"pg_test leases") }
};
/// Set before any process of the server is forked off the postmaster.
static HEADER: AtomicPtr<Header> = AtomicPtr::new(std::ptr::null_mut());
static PREVIOUS_REQUEST: AtomicUsize = AtomicUsize::new(0);
static PREVIOUS_STARTUP: AtomicUsize = AtomicUsize::new(0);

type Hook = unsafe extern "C-unwind" fn();

/// Called from `_PG_init` while the server preloads libraries.
pub fn register() {
    pg_shmem_init!(LOCK = ());
    // SAFETY: hooks are set by the postmaster alone, before there are other processes.
    unsafe {
        PREVIOUS_REQUEST.store(address(pg_sys::shmem_request_hook), Ordering::Relaxed);
        pg_sys::shmem_request_hook = Some(request);
        PREVIOUS_STARTUP.store(address(pg_sys::shmem_startup_hook), Ordering::Relaxed);
        pg_sys::shmem_startup_hook = Some(startup);
    }
}

fn address(hook: Option<Hook>) -> usize {
    hook.map_or(0, |hook| hook as usize)
}

fn call_previous(hook: &AtomicUsize) {
    let address = hook.load(Ordering::Relaxed);
    if address != 0 {
        // SAFETY: made from a hook by `address`.
        unsafe {
            let hook = std::mem::transmute::<usize, Hook>(address);
            pg_sys::submodules::ffi::pg_guard_ffi_boundary(|| hook());
        }
    }
}

fn wanted_entries() -> usize {
    (guc::LEASE_ENTRIES.get().unsigned_abs() as usize).next_multiple_of(WAYS)
}

fn size() -> usize {
    size_of::<Header>() + wanted_entries() * size_of::<Entry>()
}

#[pg_guard]
unsafe extern "C-unwind" fn request() {
    call_previous(&PREVIOUS_REQUEST);
    // SAFETY: called by the postmaster while it adds up what is asked for.
    unsafe { pg_sys::RequestAddinShmemSpace(size()) };
}

#[pg_guard]
unsafe extern "C-unwind" fn startup() {
    call_previous(&PREVIOUS_STARTUP);
    let mut is_found = false;
    // SAFETY: the postmaster alone runs this, and after a crash again with new memory; the whole is
    // zeroed, which is a value of every type in it, before anybody sees it.
    unsafe {
        let name = c"pg_test leases table".as_ptr();
        let header: *mut Header = pg_sys::ShmemInitStruct(name, size(), &raw mut is_found).cast();
        if !is_found {
            std::ptr::write_bytes(header.cast::<u8>(), 0, size());
            (*header).entries = wanted_entries();
            (*header).anchor = Anchor {
                wall: pg_sys::GetCurrentTimestamp(),
                monotonic: clock::monotonic(),
            };
        }
        HEADER.store(header, Ordering::Release);
    }
}

fn header() -> Option<&'static Header> {
    if !is_preloaded() {
        return None;
    }
    // SAFETY: set by `startup`, and mapped as long as the process.
    NonNull::new(HEADER.load(Ordering::Acquire)).map(|header| unsafe { header.as_ref() })
}

/// The entries that a key can be in.
fn bucket(database: u32, key: Key) -> &'static [Entry] {
    let Some(header) = header() else {
        return &[];
    };
    // Fibonacci hashing: identifiers are dense, so a multiplication spreads them (Knuth, TAOCP 6.4).
    let mixed =
        (key.lease_id.cast_unsigned() ^ u64::from(database) << 32 ^ u64::from(key.relation))
            .wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let buckets = header.entries / WAYS;
    let place = ((u128::from(mixed) * buckets as u128) >> 64) as usize;
    &entries(header)[place * WAYS..(place + 1) * WAYS]
}

fn entries(header: &'static Header) -> &'static [Entry] {
    // SAFETY: `startup` has made as many entries behind the header, all zero.
    unsafe {
        let first = std::ptr::from_ref(header).add(1).cast::<Entry>();
        std::slice::from_raw_parts(first, header.entries)
    }
}

/// The place of this database; None without preloading or when all are in use.
fn database() -> Option<&'static Database> {
    let oid = own_database();
    let databases = &header()?.databases;
    let known = databases
        .iter()
        .find(|place| place.oid.load(Ordering::Acquire) == oid);
    known.or_else(|| {
        databases.iter().find(|place| {
            place
                .oid
                .compare_exchange(0, oid, Ordering::AcqRel, Ordering::Acquire)
                .is_ok()
        })
    })
}

/// The lease clock without the offset that tests set. Without preloading there is no memory to
/// anchor it in, and it is the wall clock.
pub fn clock_now() -> i64 {
    match header() {
        Some(header) => header.anchor.at(clock::monotonic()),
        // SAFETY: reads the clock.
        None => unsafe { pg_sys::GetCurrentTimestamp() },
    }
}

/// How far the wall clock has been stepped while the server ran.
pub fn clock_stepped() -> i64 {
    header().map_or(0, |header| {
        // SAFETY: reads the clock.
        let wall = unsafe { pg_sys::GetCurrentTimestamp() };
        header.anchor.stepped(wall, clock::monotonic())
    })
}

/// Since when this server's memory exists; it also names it.
pub fn since() -> i64 {
    // SAFETY: a plain getter.
    header().map_or(unsafe { pg_sys::PgStartTime }, |header| header.anchor.wall)
}

/// Since when this server can grant leases; None as long as nobody has noted it.
pub fn start() -> Option<i64> {
    let Some(header) = header() else {
        // SAFETY: a plain getter.
        return Some(unsafe { pg_sys::PgStartTime });
    };
    let start = header.start.load(Ordering::Acquire);
    (start != 0).then_some(start)
}

/// Called by the launcher, which begins once recovery has ended, and again if it crashed.
pub fn note_start() {
    if let Some(header) = header() {
        let now = header.anchor.at(clock::monotonic());
        let _ = header
            .start
            .compare_exchange(0, now, Ordering::AcqRel, Ordering::Acquire);
    }
}

/// How the memory before this one ended, if somebody has found out already.
pub fn predecessor() -> Option<Predecessor> {
    let here = database()?;
    match here.predecessor.load(Ordering::Acquire) {
        0 => None,
        1 => Some(Predecessor::Closed {
            stepped: here.stepped.load(Ordering::Acquire),
        }),
        _ => Some(Predecessor::Lost),
    }
}

/// On a standby nothing is noted: its primary goes on.
pub fn note_predecessor(predecessor: Predecessor) {
    // SAFETY: a plain getter.
    if unsafe { pg_sys::RecoveryInProgress() } {
        return;
    }
    if let Some(here) = database() {
        let answer = match predecessor {
            Predecessor::Closed { stepped } => {
                here.stepped.store(stepped, Ordering::Release);
                1
            }
            Predecessor::Lost => 2,
        };
        here.predecessor.store(answer, Ordering::Release);
    }
}

/// Whether renewals of the leases of this table may stay in memory.
pub fn is_open(relation: u32) -> bool {
    has_entries(relation) && database().is_some_and(|here| here.is_open.load(Ordering::Acquire))
}

/// Whether leases of this table have entries: since memory was opened for it the first time. They are kept right while
/// it is closed, too.
fn has_entries(relation: u32) -> bool {
    database().is_some_and(|here| here.table.load(Ordering::Acquire) == relation)
}

/// The entries of this database, for whoever has the lock.
fn own_entries() -> impl Iterator<Item = &'static Entry> {
    let database = own_database();
    let all = header().into_iter().flat_map(entries);
    all.filter(move |entry| entry.is_of_database(database))
}

/// From here on renewals stay in memory: the table says so. What is left of another table counts no more.
pub fn open(relation: u32) {
    let _alone = LOCK.exclusive();
    if let Some(here) = database() {
        if here.table.swap(relation, Ordering::AcqRel) != relation {
            own_entries().for_each(Entry::outdate);
        }
        here.worker.store(own_latch(), Ordering::Release);
        here.is_open.store(true, Ordering::Release);
    }
}

/// The table was emptied, and that has committed: allocates nothing and cannot fail.
pub fn forget() {
    if header().is_some() {
        let _alone = LOCK.exclusive();
        own_entries().for_each(Entry::outdate);
    }
}

/// From here on no renewal stays in memory alone: when this returns, none is under way. Entries go on to say what they
/// know, because the table does not know it yet.
pub fn close() {
    let _alone = LOCK.exclusive();
    if let Some(here) = database() {
        here.is_open.store(false, Ordering::Release);
        here.worker.store(0, Ordering::Release);
    }
}

fn find(key: Key) -> Option<&'static Entry> {
    let database = own_database();
    let mut places = bucket(database, key).iter();
    places.find(|entry| entry.is_of(database, key))
}

/// The expiry of a lease, when memory has it for this epoch.
pub fn expires_at(key: Key, epoch: i64) -> Option<i64> {
    header()?;
    let _shared = LOCK.share();
    if !has_entries(key.relation) {
        return None;
    }
    find(key)?.expiry_at(epoch)
}

/// Whether an entry is to be made for a grant, which stands: there is none, and there is a place.
pub fn lacks(key: Key, epoch: i64) -> bool {
    if header().is_none() {
        return false;
    }
    let _shared = LOCK.share();
    has_entries(key.relation)
        && find(key).map_or_else(|| place(key).is_some(), |entry| !entry.is_current(epoch))
}

/// Moves the expiry of a lease that has an entry. None when it has none, or when renewals do not
/// stay in memory now.
pub fn renew(key: Key, epoch: i64, expires_at: i64, ttl: i64) -> Option<Renewal> {
    header()?;
    let _shared = LOCK.share();
    if !is_open(key.relation) {
        return None;
    }
    move_expiry(key, epoch, expires_at, ttl)
}

/// A renewal in the table has committed: allocates nothing and cannot fail.
pub fn note_renewal(key: Key, epoch: i64, expires_at: i64, ttl: i64) {
    if header().is_some() {
        let _shared = LOCK.share();
        move_expiry(key, epoch, expires_at, ttl);
    }
}

/// Under the lock.
fn move_expiry(key: Key, epoch: i64, expires_at: i64, ttl: i64) -> Option<Renewal> {
    let renewal = find(key)?.renew(epoch, expires_at, ttl);
    if renewal == (Renewal::Renewed { is_urgent: true }) {
        tell_worker(|here| &here.is_urgent);
    }
    Some(renewal)
}

/// The grant of this epoch has ended, and that has committed: allocates nothing and cannot fail.
pub fn end(key: Key, epoch: i64) {
    if header().is_none() {
        return;
    }
    let _shared = LOCK.share();
    if let Some(entry) = find(key) {
        entry.end(epoch);
        wake(entry);
    }
}

/// Whoever waits for the lease is to look again.
fn wake(entry: &Entry) {
    set_latch(entry.waiter());
}

/// An entry that stays until this is dropped.
pub struct Pinned {
    entry: &'static Entry,
}

impl Pinned {
    fn new(entry: &'static Entry) -> Self {
        entry.pin();
        Self { entry }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.entry.unpin();
    }
}

/// The entry of a lease, made if there is none. What the table knows corrects one that is of another epoch; where it
/// knows of no grant, or of one that has ended, the entry must not say otherwise, and a new one says nothing. None when
/// there are no entries, or no place for one. The caller keeps everybody else from changing the lease from before it
/// looked at the table: an entry of an old look would be believed.
pub fn pin(key: Key, known: Option<Known>) -> Option<Pinned> {
    header()?;
    let is_right = |entry: &Entry| known.is_none_or(|known| entry.is_current(known.epoch));
    {
        let _shared = LOCK.share();
        if !has_entries(key.relation) {
            return None;
        }
        match find(key) {
            Some(entry) if is_right(entry) => return Some(Pinned::new(entry)),
            // To ask before keeps a table that is full from stopping everybody.
            None if place(key).is_none() => return None,
            _ => {}
        }
    }
    let _alone = LOCK.exclusive();
    let entry = find_or_make(key)?;
    if let Some(known) = known
        && !entry.is_current(known.epoch)
    {
        entry.set(known);
    }
    Some(Pinned::new(entry))
}

/// Where an entry could be made: one that is free, or that is missed the least.
fn place(key: Key) -> Option<&'static Entry> {
    let places = bucket(own_database(), key).iter();
    places
        .filter(|entry| entry.can_be_replaced())
        .min_by_key(|entry| entry.worth())
}

/// The entry of a lease, made without knowing anything of it if there is none. Under the lock, exclusively.
fn find_or_make(key: Key) -> Option<&'static Entry> {
    if !has_entries(key.relation) {
        return None;
    }
    let known = find(key);
    if known.is_some() {
        return known;
    }
    let place = place(key)?;
    place.assign(own_database(), key);
    Some(place)
}

impl Pinned {
    /// Marks the lease as being taken over, if it has expired by `now` or has ended; else says until
    /// when it is held. Renewals are refused from here on.
    pub fn take(&self, now: i64, has_ended: bool) -> Result<(), i64> {
        self.entry.take(now, has_ended)
    }

    /// The takeover has committed: allocates nothing and cannot fail.
    pub fn grant(&self, epoch: i64, expires_at: i64, ttl: i64) {
        self.entry.grant(epoch, expires_at, ttl);
        wake(self.entry);
    }

    /// The takeover was rolled back.
    pub fn give_back(&self) {
        self.entry.give_back();
        wake(self.entry);
    }
}

/// Until this is dropped the process is woken when the lease changes. A wait that ends the process leaves
/// its latch behind, which does no harm.
pub struct Watching {
    entry: &'static Entry,
}

/// Watches a lease. None when memory is not open or has no place. Its entry is not pinned: a process that
/// is ended while it waits could not take the pin back.
pub fn watch(key: Key) -> Option<Watching> {
    header()?;
    let shared = LOCK.share();
    let known = find(key).filter(|_| has_entries(key.relation));
    drop(shared);
    let entry = match known {
        Some(entry) => entry,
        None => {
            let _alone = LOCK.exclusive();
            find_or_make(key)?
        }
    };
    entry.watch(own_latch());
    Some(Watching { entry })
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.entry.unwatch(own_latch());
    }
}

/// Wakes the worker, unless it has been woken for the same before and has not come to it yet.
fn tell_worker(flag: fn(&Database) -> &AtomicBool) {
    if let Some(here) = database()
        && !flag(here).swap(true, Ordering::AcqRel)
    {
        set_latch(here.worker.load(Ordering::Acquire));
    }
}

/// A holder has changed, as a line of history says: the worker is to tell whoever listens.
pub fn tell_change(line: u64) {
    if let Some(here) = database() {
        here.lines.put(line);
    }
    tell_worker(|here| &here.is_changed);
}

/// Behind all changes until now.
pub fn changes_position() -> u64 {
    database().map_or(0, |here| here.lines.position())
}

/// The lines of what has changed since a position.
pub fn changes_since(position: u64) -> Option<Taken> {
    Some(database()?.lines.take(position))
}

pub fn has_change() -> bool {
    database().is_some_and(|here| here.is_changed.load(Ordering::Acquire))
}

/// To be called before looking what has changed.
pub fn take_change() {
    if let Some(here) = database() {
        here.is_changed.store(false, Ordering::Release);
    }
}

/// Whether something is to be written at once, unless somebody else asks meanwhile.
pub fn take_urgency() -> bool {
    database().is_some_and(|here| here.is_urgent.swap(false, Ordering::AcqRel))
}

/// Takes what the table does not know yet, up to `limit`. Until the caller says what has become of it no
/// entry is thrown out.
pub fn take_unwritten(extent: Extent, limit: usize) -> Vec<Unwritten<'static>> {
    let _shared = LOCK.share();
    let unwritten = own_entries().filter_map(|entry| entry.take_unwritten(extent));
    unwritten.take(limit).collect()
}

/// It could not be written after all.
pub fn put_back(unwritten: &Unwritten) {
    if unwritten.put_back() {
        tell_worker(|here| &here.is_urgent);
    }
}

/// The leases of this database whose expiry is in memory, but for those that are being taken over.
pub fn held() -> Vec<Held> {
    let _shared = LOCK.share();
    own_entries().filter_map(Entry::held).collect()
}

/// What was being written when the worker was ended is to be written again.
pub fn put_back_interrupted() {
    let _shared = LOCK.share();
    own_entries().for_each(Entry::put_back_interrupted);
}
