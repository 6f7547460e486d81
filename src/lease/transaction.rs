//! What the current transaction remembers: its tokens, how many leases it has locked to write under, and what shared
//! memory is to know of once it has committed.

use std::cell::RefCell;
use std::collections::HashMap;

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::memory::{self, Key, Pinned};
use super::savepoint::Remembered;
use crate::error;
use crate::varlena;

/// What a commit does to shared memory, and a rollback undoes.
pub enum Effect {
    Granted {
        key: Key,
        pinned: Option<Pinned>,
        epoch: i64,
        expires_at: i64,
        ttl: i64,
    },
    Ended {
        key: Key,
        epoch: i64,
    },
    Renewed {
        key: Key,
        epoch: i64,
        expires_at: i64,
        ttl: i64,
    },
    /// The table of leases was emptied.
    Emptied,
    /// A line of history, by its position in the table.
    Recorded(u64),
}

/// Tokens by resource, forgotten with the savepoint they came after.
#[derive(Default)]
struct Tokens {
    latest: HashMap<String, Vec<i64>>,
    resources: Remembered<String>,
}

impl Tokens {
    fn push(&mut self, resource: &str, epoch: i64) {
        self.resources.push(level(), resource.to_owned());
        self.latest
            .entry(resource.to_owned())
            .or_default()
            .push(epoch);
    }

    fn get(&self, resource: &str) -> Option<i64> {
        self.latest.get(resource)?.last().copied()
    }

    fn subtransaction_aborted(&mut self, level: u32) {
        let latest = &mut self.latest;
        self.resources.subtransaction_aborted(level, |resource| {
            if let Some(epochs) = latest.get_mut(&resource) {
                epochs.pop();
                if epochs.is_empty() {
                    latest.remove(&resource);
                }
            }
        });
    }
}

#[derive(Default)]
struct Transaction {
    tokens: Tokens,
    /// One for each lease whose lock was taken to write under it.
    locked: Remembered<()>,
    effects: Remembered<Effect>,
    has_acquired: bool,
}

thread_local! {
    static CURRENT: RefCell<Option<Transaction>> = const { RefCell::new(None) };
}

fn level() -> u32 {
    // SAFETY: a plain getter.
    unsafe { pg_sys::GetCurrentSubTransactionId() }
}

fn with_current<T>(work: impl FnOnce(&mut Transaction) -> T) -> T {
    CURRENT.with_borrow_mut(|current| work(current.get_or_insert_default()))
}

pub fn set_token(resource: &str, epoch: i64) {
    with_current(|current| current.tokens.push(resource, epoch));
}

pub fn token(resource: &str) -> Option<i64> {
    with_current(|current| current.tokens.get(resource))
}

fn has_effect(is_it: impl Fn(&Effect) -> bool) -> bool {
    with_current(|current| current.effects.values().any(is_it))
}

/// Whether this transaction itself was granted the lease at this epoch.
pub fn has_granted(lease: Key, at: i64) -> bool {
    has_effect(
        |effect| matches!(effect, Effect::Granted { key, epoch, .. } if (*key, *epoch) == (lease, at)),
    )
}

/// Whether this transaction has taken the lease over already.
pub fn has_taken(lease: Key) -> bool {
    has_effect(|effect| matches!(effect, Effect::Granted { key, .. } if *key == lease))
}

/// Whether this transaction has changed the lease, of which shared memory does not know yet.
pub fn has_changed(lease: Key) -> bool {
    has_effect(|effect| effect.is_of(lease))
}

/// The lock of one more lease is held, to write under it.
pub fn count_locked() {
    with_current(|current| current.locked.push(level(), ()));
}

pub fn locked() -> usize {
    with_current(|current| current.locked.values().count())
}

/// Whether this is the first lease that the transaction acquires or tries to.
pub fn is_first_acquisition() -> bool {
    with_current(|current| !std::mem::replace(&mut current.has_acquired, true))
}

/// To be done once this transaction has committed.
pub fn at_commit(effect: Effect) {
    with_current(|current| current.effects.push(level(), effect));
}

/// Called from `_PG_init`.
pub fn register_callbacks() {
    // SAFETY: the callbacks stay loaded as long as the process.
    unsafe {
        pg_sys::RegisterXactCallback(Some(at_transaction_end), std::ptr::null_mut());
        pg_sys::RegisterSubXactCallback(Some(at_subtransaction_end), std::ptr::null_mut());
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn at_transaction_end(
    event: pg_sys::XactEvent::Type,
    _argument: *mut std::ffi::c_void,
) {
    use pg_sys::XactEvent as Event;
    match event {
        Event::XACT_EVENT_PRE_PREPARE => refuse_to_prepare(),
        Event::XACT_EVENT_COMMIT => end(Effect::commit),
        Event::XACT_EVENT_ABORT => end(Effect::roll_back),
        // The lock manager has passed the locks on to the prepared transaction.
        Event::XACT_EVENT_PREPARE => CURRENT.set(None),
        _ => {}
    }
}

/// Runs before the locks are released, so whoever gets one finds shared memory as the commit left it.
fn end(finish: fn(Effect)) {
    if let Some(mut transaction) = CURRENT.take() {
        transaction.effects.take().for_each(finish);
    }
}

/// COMMIT PREPARED runs in another process, perhaps after a restart: what shared memory is to know
/// then is not known there.
fn refuse_to_prepare() {
    let is_refused = CURRENT.with_borrow(|current| {
        current
            .as_ref()
            .is_some_and(|transaction| !transaction.effects.is_empty())
    });
    if is_refused {
        varlena::raise(error::lease_in_prepared_transaction());
    }
}

impl Effect {
    fn commit(self) {
        match self {
            Self::Granted {
                pinned,
                epoch,
                expires_at,
                ttl,
                ..
            } => {
                if let Some(pinned) = pinned {
                    pinned.grant(epoch, expires_at, ttl);
                }
            }
            Self::Ended { key, epoch } => memory::end(key, epoch),
            Self::Emptied => memory::forget(),
            Self::Recorded(line) => memory::tell_change(line),
            Self::Renewed {
                key,
                epoch,
                expires_at,
                ttl,
            } => {
                memory::note_renewal(key, epoch, expires_at, ttl);
            }
        }
    }

    fn roll_back(self) {
        if let Self::Granted {
            pinned: Some(pinned),
            ..
        } = self
        {
            pinned.give_back();
        }
    }

    fn is_of(&self, lease: Key) -> bool {
        match self {
            Self::Granted { key, .. } | Self::Ended { key, .. } | Self::Renewed { key, .. } => {
                *key == lease
            }
            Self::Emptied => true,
            Self::Recorded(_) => false,
        }
    }

    /// Whether both take over the same lease.
    fn is_of_same_takeover(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Granted { key, .. }, Self::Granted { key: other, .. }) => key == other,
            _ => false,
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn at_subtransaction_end(
    event: pg_sys::SubXactEvent::Type,
    level: pg_sys::SubTransactionId,
    parent: pg_sys::SubTransactionId,
    _argument: *mut std::ffi::c_void,
) {
    CURRENT.with_borrow_mut(|current| {
        let Some(transaction) = current else {
            return;
        };
        match event {
            pg_sys::SubXactEvent::SUBXACT_EVENT_COMMIT_SUB => {
                transaction.committed(level, parent);
            }
            pg_sys::SubXactEvent::SUBXACT_EVENT_ABORT_SUB => transaction.aborted(level),
            _ => {}
        }
    });
}

impl Transaction {
    fn committed(&mut self, level: u32, parent: u32) {
        self.tokens
            .resources
            .subtransaction_committed(level, parent);
        self.locked.subtransaction_committed(level, parent);
        self.effects.subtransaction_committed(level, parent);
    }

    fn aborted(&mut self, level: u32) {
        self.tokens.subtransaction_aborted(level);
        self.locked.subtransaction_aborted(level, |()| ());
        let mut undone = Vec::new();
        self.effects
            .subtransaction_aborted(level, |effect| undone.push(effect));
        // A takeover goes on while a later one of the same lease, in a savepoint, is undone.
        let goes_on = |effect: &Effect| {
            let mut others = self.effects.values();
            others.any(|other| other.is_of_same_takeover(effect))
        };
        undone.retain(|effect| !goes_on(effect));
        undone.into_iter().for_each(Effect::roll_back);
    }
}
