//! Counters per peer, in shared memory: they change with every round, and a round with nothing to
//! say writes nothing to disk. Without preloading there are none.

use std::cell::RefCell;

use pgrx::prelude::*;
use pgrx::{PGRXSharedMemory, PgLwLock, pg_shmem_init, pg_sys};

use crate::error::Error;
use crate::is_preloaded;
use crate::node::detector::{Liveness, Pulse};
use crate::node::identity::MAX_NAME_BYTES;
use crate::process::own_database;

/// Peers of all databases of the server together.
const SLOTS: usize = 256;
const ERROR_BYTES: usize = 500;

#[derive(Clone, Copy)]
pub(super) struct Text<const N: usize> {
    length: u16,
    bytes: [u8; N],
}

impl<const N: usize> Text<N> {
    const EMPTY: Self = Self {
        length: 0,
        bytes: [0; N],
    };

    fn new(text: &str) -> Self {
        let mut length = text.len().min(N);
        while !text.is_char_boundary(length) {
            length -= 1;
        }
        let mut bytes = [0; N];
        bytes[..length].copy_from_slice(&text.as_bytes()[..length]);
        Self {
            length: length as u16,
            bytes,
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(self.bytes()).into_owned()
    }
}

/// What is known of the contact with one peer since the server started.
#[derive(Clone, Copy)]
pub(super) struct Contact {
    database: u32,
    pub(super) peer: Text<MAX_NAME_BYTES>,
    last_contact: i64,
    /// Last answer to a message of this node.
    last_answer: i64,
    last_failure: i64,
    /// Last message of a life that was admitted.
    last_met: i64,
    /// Where its transaction log stood, at the furthest.
    log_position: u64,
    /// When it last asked which life it is in.
    last_asked: i64,
    round_trip_microseconds: i64,
    rounds: i64,
    failures: i64,
    full_syncs: i64,
    rows_in: i64,
    rows_out: i64,
    bytes_in: i64,
    bytes_out: i64,
    refused: i64,
    last_error: Text<ERROR_BYTES>,
    /// Of a peer that the worker watches.
    pub(super) pulse: Option<Pulse>,
    pub(super) liveness: Liveness,
}

impl Contact {
    const FREE: Self = Self {
        database: 0,
        peer: Text::EMPTY,
        last_contact: 0,
        last_answer: 0,
        last_failure: 0,
        last_met: 0,
        log_position: 0,
        last_asked: 0,
        round_trip_microseconds: 0,
        rounds: 0,
        failures: 0,
        full_syncs: 0,
        rows_in: 0,
        rows_out: 0,
        bytes_in: 0,
        bytes_out: 0,
        refused: 0,
        last_error: Text::EMPTY,
        pulse: None,
        liveness: Liveness::Unknown,
    };

    fn is_of(&self, database: u32, peer: &Text<MAX_NAME_BYTES>) -> bool {
        self.database == database
            && self.peer.length == peer.length
            && self.peer.bytes == peer.bytes
    }
}

struct Contacts {
    slots: [Contact; SLOTS],
}

// SAFETY: plain values without pointers.
unsafe impl PGRXSharedMemory for Contacts {}

// SAFETY: the name is this extension's own.
static CONTACTS: PgLwLock<Contacts> = unsafe { PgLwLock::new(c"pg_test contacts") };

/// Called from `_PG_init` while the server preloads libraries.
pub fn register() {
    pg_shmem_init!(
        CONTACTS = Contacts {
            slots: [Contact::FREE; SLOTS],
        }
    );
}

pub fn now() -> i64 {
    // SAFETY: reads the clock.
    unsafe { pg_sys::GetCurrentTimestamp() }
}

/// Changes what is known of a peer. When all slots are in use the peer goes uncounted.
pub(super) fn with_contact(peer: &str, change: impl FnOnce(&mut Contact)) {
    if !is_preloaded() || peer.is_empty() {
        return;
    }
    let database = own_database();
    let name = Text::<MAX_NAME_BYTES>::new(peer);
    let mut contacts = CONTACTS.exclusive();
    let place = contacts
        .slots
        .iter()
        .position(|slot| slot.is_of(database, &name))
        .or_else(|| contacts.slots.iter().position(|slot| slot.database == 0));
    if let Some(place) = place {
        let slot = &mut contacts.slots[place];
        if slot.database == 0 {
            *slot = Contact {
                database,
                peer: name,
                ..Contact::FREE
            };
        }
        change(slot);
    }
}

/// Changes what is known of every peer of this database, under one lock.
pub(super) fn with_all_contacts(mut change: impl FnMut(&mut Contact)) {
    if !is_preloaded() {
        return;
    }
    let database = own_database();
    let mut contacts = CONTACTS.exclusive();
    let mine = contacts.slots.iter_mut();
    mine.filter(|slot| slot.database == database)
        .for_each(&mut change);
}

/// What is known of every peer of this database.
pub(super) fn all_contacts() -> Vec<Contact> {
    if !is_preloaded() {
        return Vec::new();
    }
    let database = own_database();
    let contacts = CONTACTS.share();
    let mine = contacts
        .slots
        .iter()
        .filter(|slot| slot.database == database);
    mine.copied().collect()
}

/// Forgets the peers of a database that is gone.
pub fn forget_database(database: u32) {
    let mut contacts = CONTACTS.exclusive();
    for slot in contacts
        .slots
        .iter_mut()
        .filter(|slot| slot.database == database)
    {
        *slot = Contact::FREE;
    }
}

thread_local! {
    /// Counts of the step under way. They are added when its transaction has committed: a step
    /// that is rolled back and repeated counts once.
    static STEP: RefCell<Vec<(String, Step)>> = const { RefCell::new(Vec::new()) };
}

#[derive(Clone, Copy, Default)]
struct Step {
    sent: u64,
    received: u64,
    full_syncs: u64,
}

fn count(peer: &str, change: impl FnOnce(&mut Step)) {
    STEP.with_borrow_mut(|steps| {
        if let Some((_, step)) = steps.iter_mut().find(|(name, _)| name == peer) {
            change(step);
        } else {
            let mut step = Step::default();
            change(&mut step);
            steps.push((peer.to_owned(), step));
        }
    });
}

/// Rows that a message to the peer carries.
pub fn sent(peer: &str, rows: u64) {
    count(peer, |step| step.sent += rows);
}

/// Rows of the peer that were stored, and whether a giving from the beginning started with them.
pub fn received(peer: &str, rows: u64, is_full: bool) {
    count(peer, |step| {
        step.received += rows;
        step.full_syncs += u64::from(is_full);
    });
}

/// Forgets the counts of a step that failed.
pub fn step_failed() {
    STEP.with_borrow_mut(Vec::clear);
}

/// Adds up a step that is done.
pub fn step_done() {
    for (peer, step) in STEP.take() {
        with_contact(&peer, |contact| {
            contact.rows_out += step.sent.cast_signed();
            contact.rows_in += step.received.cast_signed();
            contact.full_syncs += step.full_syncs.cast_signed();
        });
    }
}

/// A row that was refused.
pub fn refused(peer: &str, state: &str, refusal: &Error) {
    with_contact(peer, |contact| {
        contact.refused += 1;
        contact.last_failure = now();
        contact.last_error = Text::new(&format!("state \"{state}\" refused: {refusal}"));
    });
}

/// A message that came in or an answer that arrived, with its size and, for an answer, how long
/// it took.
pub fn heard(peer: &str, bytes_in: usize, bytes_out: usize, round_trip_microseconds: Option<i64>) {
    with_contact(peer, |contact| {
        contact.last_contact = now();
        contact.bytes_in += bytes_in as i64;
        contact.bytes_out += bytes_out as i64;
        if let Some(taken) = round_trip_microseconds {
            contact.round_trip_microseconds = taken;
            contact.last_answer = now();
        }
    });
}

/// A peer spoke, in the life that it is known in.
pub fn met(peer: &str) {
    with_contact(peer, |contact| contact.last_met = now());
}

/// A peer asks which life it is in.
pub fn overtake(peer: &str) {
    with_contact(peer, |contact| contact.last_asked = now());
}

/// Whether a peer has not asked since `spoken_since`. If so takes note of where its transaction log
/// stood: at once, so that a message is either refused or counted in what the peer is told when it
/// asks. A transaction that has stored it and has not ended shows it to others by nothing else.
pub fn takes(peer: &str, spoken_since: i64, log_position: u64) -> bool {
    let mut is_taken = true;
    with_contact(peer, |contact| {
        is_taken = contact.last_asked <= spoken_since;
        if is_taken {
            contact.log_position = contact.log_position.max(log_position);
        }
    });
    is_taken
}

/// The furthest that the log of a peer was told to be in its present life, since the server started.
pub fn log_position(peer: &str) -> u64 {
    contact(peer).map_or(0, |contact| contact.log_position)
}

/// A new life of a peer has a log of its own.
pub fn forget_log_position(peer: &str) {
    with_contact(peer, |contact| contact.log_position = 0);
}

/// What is known of a peer.
pub(super) fn contact(peer: &str) -> Option<Contact> {
    if !is_preloaded() {
        return None;
    }
    let database = own_database();
    let name = Text::<MAX_NAME_BYTES>::new(peer);
    let contacts = CONTACTS.share();
    contacts
        .slots
        .iter()
        .find(|slot| slot.is_of(database, &name))
        .copied()
}

/// How long a peer has not been met; `None` when it was not met since the server started.
pub fn silent_milliseconds(peer: &str) -> Option<u64> {
    let slot = contact(peer)?;
    let silent = (now() - slot.last_met).max(0).unsigned_abs();
    (slot.last_met != 0).then_some(silent / 1_000)
}

/// A round that was carried through.
pub fn round_done(peer: &str) {
    with_contact(peer, |contact| contact.rounds += 1);
}

/// A round that failed.
pub fn failed(peer: &str, reason: &str) {
    with_contact(peer, |contact| {
        contact.failures += 1;
        contact.last_failure = now();
        contact.last_error = Text::new(reason);
    });
}

type StatisticsRow = (
    String,
    Option<TimestampWithTimeZone>,
    Option<TimestampWithTimeZone>,
    Option<TimestampWithTimeZone>,
    i64,
    i64,
    i64,
    i64,
    i64,
    i64,
    i64,
    i64,
    i64,
    Option<String>,
);

/// The counters of this database's peers, in the order of `coord.peer_statistics`.
pub fn rows() -> Vec<StatisticsRow> {
    all_contacts().iter().map(row).collect()
}

fn row(slot: &Contact) -> StatisticsRow {
    let time = |at: i64| {
        (at != 0)
            .then(|| TimestampWithTimeZone::try_from(at).ok())
            .flatten()
    };
    (
        slot.peer.text(),
        time(slot.last_contact),
        time(slot.last_answer),
        time(slot.last_failure),
        slot.round_trip_microseconds,
        slot.rounds,
        slot.failures,
        slot.full_syncs,
        slot.rows_in,
        slot.rows_out,
        slot.bytes_in,
        slot.bytes_out,
        slot.refused,
        (slot.last_error.length > 0).then(|| slot.last_error.text()),
    )
}
