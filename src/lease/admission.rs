//! Admission of a write: the lease's lock first, then a look at what is true now, whatever snapshot the transaction has.
//!
//! While the lock is held nobody else can be granted the lease, so what was found stays true but for its expiry and its
//! end, until the transaction ends, or the savepoint after which the lock was taken is rolled back. Both are looked at
//! again with every write.
//!
//! Shared memory is looked at first, and its yes is enough: an entry that has an epoch proves that the grant of that epoch
//! stands (see `entry`). Everything else the table has to say, also of what this transaction itself has changed.

use std::cell::RefCell;
use std::collections::HashMap;

use super::grant::{self, Stale};
use super::memory::{self, Key};
use super::store::{self, Leases, StoredLease};
use super::transaction;
use crate::error::{self, Error, Result};
use crate::heap::{self, Access};
use crate::lock::{self, Lock, Mode};

/// How many leases a process remembers the entries of.
const MOST_KEYS: usize = 16_384;

thread_local! {
    /// By resource, as the table had them when it was last asked.
    static KEYS: RefCell<HashMap<String, Key>> = RefCell::new(HashMap::new());
}

/// Passes while the epoch is current and not expired, and keeps others from being granted the lease
/// until the transaction ends. 23514 otherwise.
pub fn admit(resource: &str, epoch: i64) -> Result<()> {
    lock_for_writing(resource);
    if is_current_by_memory(resource, epoch) {
        Ok(())
    } else {
        admit_by_table(resource, epoch)
    }
}

/// A bulk write under many leases takes one lock instead of filling the lock table.
fn lock_for_writing(resource: &str) {
    let lock = Lock::of_lease(resource);
    if lock.is_held(Mode::Writer) {
        return;
    }
    if transaction::locked() < lock::MOST_LEASES {
        lock.take(Mode::Writer);
        transaction::count_locked();
    } else if !Lock::OF_EVERY_LEASE.is_held(Mode::WriterOfAny) {
        Lock::OF_EVERY_LEASE.take(Mode::WriterOfAny);
    }
}

fn is_current_by_memory(resource: &str, epoch: i64) -> bool {
    let key = KEYS.with_borrow(|keys| keys.get(resource).copied());
    // The extension may have been dropped and created again.
    let table = heap::relation_oid(c"lease").to_u32();
    key.filter(|key| key.relation == table).is_some_and(|key| {
        let expires_at = memory::expires_at(key, epoch);
        expires_at.is_some_and(|expires_at| grant::is_before_expiry(store::now(), expires_at))
            && !transaction::has_changed(key)
    })
}

fn admit_by_table(resource: &str, epoch: i64) -> Result<()> {
    // With its entry, which the next look goes by.
    let found = Leases::open(Access::Read).load(resource, 0);
    if let Some(found) = &found {
        remember(resource, found.key);
    }
    let lease = found.as_ref().map(|found| &found.lease);
    grant::check_token(lease, epoch, store::now())
        .map_err(|stale| refusal(resource, epoch, found.as_ref(), stale))
}

fn remember(resource: &str, key: Key) {
    KEYS.with_borrow_mut(|keys| {
        if let Some(known) = keys.get_mut(resource) {
            *known = key;
            return;
        }
        if keys.len() >= MOST_KEYS {
            keys.clear();
        }
        keys.insert(resource.to_owned(), key);
    });
}

fn refusal(resource: &str, claimed: i64, found: Option<&StoredLease>, stale: Stale) -> Error {
    let detail = match found {
        None => "The lease was never granted; the current epoch is 0.".to_owned(),
        Some(StoredLease { lease, .. }) => {
            let what = match stale {
                Stale::Expired => "expired",
                Stale::Ended(grant::Ended::Released) => "released",
                Stale::Ended(grant::Ended::Revoked) => "revoked",
                Stale::Superseded | Stale::NeverIssued => "",
            };
            let end = if what.is_empty() {
                String::new()
            } else {
                format!(" and {what}")
            };
            format!(
                "The current epoch is {}, held by \"{}\"{end}.",
                lease.epoch, lease.holder
            )
        }
    };
    error::fence_stale(resource, claimed, detail)
}
