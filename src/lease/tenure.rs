//! What a holder does with its lease, and an administrator with anybody's: renew it, end it.

use pgrx::pg_sys;

use super::grant::{self, Ended, Loss};
use super::history::{self, Event};
use super::memory::{self, Known, Renewal};
use super::store::{self, Leases, StoredLease};
use super::transaction::{self, Effect};
use crate::error::{self, Error, Result};
use crate::heap::Access;
use crate::lock::{Lock, Mode};

/// Who says which lease is his.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    pub resource: &'a str,
    pub holder: &'a str,
    pub epoch: i64,
}

/// Why a lease stays as it is.
pub enum Refusal {
    Lost { current: i64, loss: Loss },
    BeingGranted,
}

impl Refusal {
    pub fn into_error(self, claim: Claim) -> Error {
        match self {
            Self::Lost { current, loss } => {
                error::lease_lost(claim.resource, claim.epoch, current, loss.name())
            }
            Self::BeingGranted => error::lease_being_granted(claim.resource),
        }
    }

    pub fn name(&self) -> &'static str {
        match self {
            Self::Lost { loss, .. } => loss.name(),
            Self::BeingGranted => "being granted",
        }
    }
}

type Outcome<T> = std::result::Result<T, Refusal>;

fn check(found: Option<StoredLease>, claim: Claim) -> Outcome<StoredLease> {
    let lease = found.as_ref().map(|found| &found.lease);
    let checked = grant::check_claim(lease, claim.holder, claim.epoch);
    match (checked, found) {
        (Ok(()), Some(found)) => Ok(found),
        (checked, found) => Err(Refusal::Lost {
            current: found.map_or(0, |found| found.lease.epoch),
            loss: checked.err().unwrap_or(Loss::NeverHeld),
        }),
    }
}

/// Moves the expiry of a lease to `ttl` microseconds from now, at once. Returns it.
pub fn renew(claim: Claim, ttl: i64) -> Outcome<i64> {
    loop {
        let found = check(Leases::open(Access::Read).find(claim.resource), claim)?;
        let expires_at = store::now() + ttl;
        match memory::renew(found.key, claim.epoch, expires_at, ttl) {
            Some(Renewal::Renewed { .. }) => return Ok(expires_at),
            // Its own grant: it commits with the renewal, or neither does.
            Some(Renewal::Taken) if transaction::has_granted(found.key, claim.epoch) => {
                return renew_in_table(claim, ttl);
            }
            Some(Renewal::Taken) => return Err(Refusal::BeingGranted),
            // Not there, or of another epoch: granted since the look at the table, which says so now, or
            // left over from a time when renewals went to the table.
            None | Some(Renewal::Superseded)
                if memory::is_open(found.key.relation) && load(claim)? => {}
            None | Some(Renewal::Superseded) => return renew_in_table(claim, ttl),
        }
    }
}

/// How long a renewal waits for whoever has the lock of the lease, in milliseconds: who only looks who holds it, or
/// makes its entry, is done long before.
const LOOK: i64 = 3;

/// Gives a lease its entry in memory. False when there is no place, or the grant is of this transaction.
fn load(claim: Claim) -> Outcome<bool> {
    // To the lock manager a writer that waits for more, while an acquirer waits for the writer, is a deadlock.
    let is_writer = Lock::of_lease(claim.resource).is_held(Mode::Writer);
    let patience = if is_writer { 0 } else { LOOK };
    let found = Leases::open(Access::Read).load(claim.resource, patience);
    let found = check(found, claim)?;
    let is_missing = |known: Known| memory::lacks(found.key, known.epoch);
    if found.known().is_some_and(is_missing) {
        return Err(Refusal::BeingGranted);
    }
    Ok(memory::expires_at(found.key, claim.epoch).is_some())
}

/// A renewal that is part of the transaction and as durable as it is.
fn renew_in_table(claim: Claim, ttl: i64) -> Outcome<i64> {
    // SAFETY: a plain C string; raises 25006 in a transaction that only reads.
    unsafe { pg_sys::PreventCommandIfReadOnly(c"lease_renew()".as_ptr()) };
    if !Lock::of_lease(claim.resource).take_within(Mode::Change, LOOK) {
        return Err(Refusal::BeingGranted);
    }
    let leases = Leases::open(Access::Write);
    let found = check(leases.find(claim.resource), claim)?;
    let expires_at = store::now() + ttl;
    leases.store_expiry(claim.resource, expires_at, ttl);
    transaction::at_commit(Effect::Renewed {
        key: found.key,
        epoch: claim.epoch,
        expires_at,
        ttl,
    });
    Ok(expires_at)
}

/// Ends a grant once the transaction commits.
pub fn release(claim: Claim) -> Outcome<()> {
    Lock::of_lease(claim.resource).take(Mode::Change);
    let leases = Leases::open(Access::Write);
    let found = check(leases.find(claim.resource), claim)?;
    end(&leases, claim.resource, &found, Ended::Released, None);
    Ok(())
}

/// Ends every grant of a holder. Returns how many there were.
pub fn release_all(holder: &str) -> i64 {
    let claims = Leases::open(Access::Read).of_holder(holder);
    let released = claims.iter().filter(|(resource, epoch)| {
        let claim = Claim {
            resource,
            holder,
            epoch: *epoch,
        };
        // Lost to somebody else since it was listed.
        release(claim).is_ok()
    });
    i64::try_from(released.count()).unwrap_or(i64::MAX)
}

/// Ends a grant whoever has it, also after its time: its holder could still renew it. False when there is
/// none, or it has ended.
pub fn revoke(resource: &str, reason: &str) -> Result<bool> {
    Lock::of_lease(resource).take(Mode::Change);
    let leases = Leases::open(Access::Write);
    let found = leases.find(resource);
    let Some(found) = found.filter(|found| found.lease.ended.is_none()) else {
        return Ok(false);
    };
    end(&leases, resource, &found, Ended::Revoked, Some(reason));
    Ok(true)
}

/// The end of a grant: of its holder's own will, or by an administrator.
fn end(leases: &Leases, resource: &str, found: &StoredLease, ended: Ended, reason: Option<&str>) {
    let now = store::now();
    transaction::at_commit(Effect::Ended {
        key: found.key,
        epoch: found.lease.epoch,
    });
    leases.store_end(resource, ended, now);
    let event = match ended {
        Ended::Released => Event::Released,
        Ended::Revoked => Event::Revoked,
    };
    history::record(
        resource,
        &found.lease.holder,
        found.lease.epoch,
        event,
        reason,
        now,
    );
}
