//! Admission of a write: the lease's lock first, then a look with the latest snapshot.
//!
//! While the lock is held nobody else can be granted the lease, so the epoch that was found stays the
//! current one until the transaction ends, or the savepoint after which the lock was taken is rolled
//! back. Only the expiry is looked at again with every write.

use super::grant::{self, Stale};
use super::store::{self, Leases, StoredLease};
use super::transaction;
use crate::error::{self, Error, Result};
use crate::heap::Access;
use crate::lock::{self, Lock, Mode};

/// Passes while the epoch is current and not expired, and keeps others from being granted the lease
/// until the transaction ends. 23514 otherwise.
pub fn admit(resource: &str, epoch: i64) -> Result<()> {
    let passes = transaction::with_admitted(resource, |found| {
        if !found.refresh_from_memory() {
            return None;
        }
        grant::check_token(Some(&found.lease), epoch, store::now()).ok()
    });
    match passes {
        Some(()) => Ok(()),
        None => admit_anew(resource, epoch),
    }
}

/// As [`admit`], for what was not looked at before, has been changed by this transaction, has its expiry
/// in the table alone, or was refused by what was seen before.
fn admit_anew(resource: &str, epoch: i64) -> Result<()> {
    lock_for_writing(resource);
    let found = Leases::open(Access::Read).find(resource);
    let checked = grant::check_token(
        found.as_ref().map(|found| &found.lease),
        epoch,
        store::now(),
    );
    let refusal = checked
        .err()
        .map(|stale| refusal(resource, epoch, found.as_ref(), stale));
    transaction::admitted(resource, found);
    refusal.map_or(Ok(()), Err)
}

/// A bulk write under many leases takes one lock instead of filling the lock table.
fn lock_for_writing(resource: &str) {
    if transaction::is_locked(resource) {
        return;
    }
    if transaction::count_admitted() < lock::MOST_LEASES {
        Lock::of_lease(resource).take(Mode::Writer);
    } else {
        Lock::OF_EVERY_LEASE.take(Mode::WriterOfAny);
        transaction::hold_every_lease();
    }
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
