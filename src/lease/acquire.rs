//! Acquiring a lease: take the locks, judge, grant; or, where others want it too, judge, queue, take the locks, judge
//! again, grant.
//!
//! Whoever is first in the queue of a resource waits for the lease to be released or to expire, then for
//! the writers in flight; the others wait for the queue, which the lock manager keeps in order.
//! Whoever does not want to wait takes the place at the head only when nobody is there, so nobody is
//! overtaken.

use std::cell::Cell;
use std::time::{Duration, Instant};

use pgrx::pg_sys;

use super::grant::{self, Decision, Lease, Request};
use super::history::{self, Event};
use super::memory;
use super::report::Elsewhere;
use super::store::{self, Leases, StoredLease};
use super::transaction::{self, Effect};
use crate::error::{self, Error, Result};
use crate::heap::{Access, Latest};
use crate::lock::{Lock, Mode};
use crate::process;
use crate::spi::{self, Value};

/// How long sessions that were told to terminate are waited for, at least.
const TERMINATION: Duration = Duration::from_secs(5);

/// How long the worker may take to write back a renewal.
const WORKER: Duration = Duration::from_secs(1);

/// How long the end of a lease can go unnoticed that shared memory does not tell, or another node.
const LONGEST_UNTOLD: Duration = Duration::from_secs(1);
const LONGEST_UNTOLD_WITHOUT_MEMORY: Duration = Duration::from_millis(50);

pub struct Wish<'a> {
    pub resource: &'a str,
    pub request: Request<'a>,
    /// Microseconds.
    pub ttl: i64,
    pub max_wait: Duration,
    pub terminates_writers: bool,
}

/// A lease as its holder knows it.
#[derive(Clone, Debug)]
pub struct Grant {
    pub resource: String,
    pub holder: String,
    pub epoch: i64,
    pub expires_at: i64,
}

impl Grant {
    pub fn of(resource: &str, lease: &Lease) -> Self {
        Self {
            resource: resource.to_owned(),
            holder: lease.holder.clone(),
            epoch: lease.epoch,
            expires_at: lease.expires_at,
        }
    }
}

/// A lease that cannot be had now is an answer, and an error only for those who ask that way.
pub enum Answer {
    Granted(Grant),
    Refused(Error),
}

/// Locks of a request that may still be refused: released when it is.
struct Locks {
    held: Vec<(Lock, Mode)>,
}

impl Locks {
    fn take_within(&mut self, lock: Lock, mode: Mode, patience: Duration) -> bool {
        let milliseconds = i64::try_from(patience.as_millis()).unwrap_or(i64::MAX);
        let is_taken = lock.take_within(mode, milliseconds);
        if is_taken {
            self.held.push((lock, mode));
        }
        is_taken
    }

    fn release_from(&mut self, first: usize) {
        while self.held.len() > first {
            if let Some((lock, mode)) = self.held.pop() {
                lock.release(mode);
            }
        }
    }

    /// They stay until the transaction ends.
    fn keep(mut self) {
        self.held.clear();
    }
}

thread_local! {
    /// Whether the last lease that was asked for could not be had. Who asks for what others hold looks before
    /// taking locks, to be in nobody's way.
    static LOOKS_FIRST: Cell<bool> = const { Cell::new(false) };
}

pub fn acquire(wish: &Wish) -> Result<Answer> {
    if !LOOKS_FIRST.get()
        && let Some(grant) = acquire_at_once(wish)?
    {
        return Ok(Answer::Granted(grant));
    }
    let answer = acquire_in_turn(wish)?;
    LOOKS_FIRST.set(matches!(answer, Answer::Refused(_)));
    Ok(answer)
}

/// Mostly nobody else wants the lease, and one look under the locks is enough. None, and nothing has happened, when
/// it is not so. Waits for nothing: the locks are those that others need.
fn acquire_at_once(wish: &Wish) -> Result<Option<Grant>> {
    let Some(leases) = Leases::open_at_once() else {
        return Ok(None);
    };
    let mut locks = Locks { held: Vec::new() };
    let queue = Lock::of_queue(wish.resource);
    let has_locks = locks.take_within(queue, Mode::Takeover, Duration::ZERO)
        && take_over_locks(wish, Instant::now(), &mut locks);
    let grant = if has_locks {
        take_over(wish, leases)?
    } else {
        leases.close_unchanged();
        None
    };
    match grant {
        Some(_) => locks.keep(),
        None => locks.release_from(0),
    }
    Ok(grant)
}

fn acquire_in_turn(wish: &Wish) -> Result<Answer> {
    let deadline = Instant::now() + wish.max_wait;
    let judged = judge(wish)?;
    match judged.decision {
        Decision::Repeat => return Ok(judged.repeated(wish)),
        Decision::Held | Decision::HeldElsewhere if wish.max_wait.is_zero() => {
            return Ok(Answer::Refused(judged.held(wish)));
        }
        Decision::Held | Decision::HeldElsewhere | Decision::Grant { .. } => {
            warn_of_earlier_writes();
        }
    }
    let mut locks = Locks { held: Vec::new() };
    let answer = wait_in_queue(wish, judged, deadline, &mut locks)?;
    match answer {
        Answer::Granted(_) => locks.keep(),
        Answer::Refused(_) => locks.release_from(0),
    }
    Ok(answer)
}

/// What a look at the lease says.
struct Judgement {
    decision: Decision,
    found: Option<StoredLease>,
    elsewhere: Elsewhere,
    now: i64,
}

fn judge(wish: &Wish) -> Result<Judgement> {
    let seen = Latest::take();
    let leases = Leases::open(Access::Read);
    let row = leases.find_row(&seen, wish.resource);
    let found = row.as_ref().map(StoredLease::read);
    let elsewhere = store::elsewhere(&seen, wish.resource);
    let lease = found.as_ref().map(|found| &found.lease);
    let now = store::now();
    // Which life it is matters for the epoch alone, which is decided under the locks.
    let decision = grant::decide(lease, &elsewhere, wish.request, || Ok(1), now)?;
    Ok(Judgement {
        decision,
        found,
        elsewhere,
        now,
    })
}

impl Judgement {
    fn repeated(&self, wish: &Wish) -> Answer {
        let lease = self.found.as_ref().map(|found| &found.lease);
        lease.map_or_else(
            || Answer::Refused(self.held(wish)),
            |lease| Answer::Granted(Grant::of(wish.resource, lease)),
        )
    }

    /// Why the lease cannot be had now.
    fn held(&self, wish: &Wish) -> Error {
        match self.elsewhere.live(self.now) {
            Some(report) if self.decision == Decision::HeldElsewhere => {
                let detail = format!(
                    "Held by \"{}\" at epoch {} until {}, as heard {}.",
                    report.holder,
                    report.epoch,
                    shown(report.expires_at),
                    shown(report.heard_at)
                );
                error::lease_held_elsewhere(wish.resource, detail, &report.node)
            }
            _ => self.held_here(wish),
        }
    }

    fn held_here(&self, wish: &Wish) -> Error {
        let detail = self.found.as_ref().map_or_else(String::new, |found| {
            let lease = &found.lease;
            format!(
                "Held by \"{}\" at epoch {} until {}.",
                lease.holder,
                lease.epoch,
                shown(lease.expires_at)
            )
        });
        error::lease_held(wish.resource, detail)
    }
}

/// A time as the session shows it.
fn shown(microseconds: i64) -> String {
    // SAFETY: the output function gives a C string in the memory of the call.
    unsafe {
        let text = pg_sys::OidOutputFunctionCall(
            pg_sys::F_TIMESTAMPTZ_OUT.into(),
            store::timestamp(microseconds),
        );
        std::ffi::CStr::from_ptr(text)
            .to_string_lossy()
            .into_owned()
    }
}

/// The lease's lock is held to the end of the transaction, however long that goes on writing. The writes
/// of an earlier acquisition are no reason.
fn warn_of_earlier_writes() {
    // SAFETY: a plain getter.
    let has_written = unsafe { pg_sys::GetTopTransactionIdIfAny() } != pg_sys::InvalidTransactionId;
    if transaction::is_first_acquisition() && has_written {
        pgrx::warning!(
            "a lease is acquired in a transaction that has already written: nobody else can have it before this transaction ends"
        );
    }
}

/// Waits for its turn. What was judged before is old by then, but the grant itself is decided on a new
/// look, under all locks.
fn wait_in_queue(
    wish: &Wish,
    mut judged: Judgement,
    deadline: Instant,
    locks: &mut Locks,
) -> Result<Answer> {
    let queue = Lock::of_queue(wish.resource);
    if !locks.take_within(queue, Mode::Takeover, left(deadline)) {
        return Ok(Answer::Refused(busy(wish, &Blockers::of(wish.resource))));
    }
    loop {
        match judged.decision {
            Decision::Repeat => return Ok(judged.repeated(wish)),
            Decision::Held | Decision::HeldElsewhere if left(deadline).is_zero() => {
                return Ok(Answer::Refused(judged.held(wish)));
            }
            Decision::HeldElsewhere => process::pause(left(deadline).min(LONGEST_UNTOLD)),
            Decision::Held => {
                if let Some(found) = &judged.found {
                    wait_for_end(wish, found, deadline);
                }
            }
            Decision::Grant { .. } => {
                let kept = locks.held.len();
                if let Err(blockers) = wait_for_writers(wish, deadline, locks) {
                    return Ok(Answer::Refused(busy(wish, &blockers)));
                }
                if let Some(grant) = take_over(wish, Leases::open(Access::Write))? {
                    return Ok(Answer::Granted(grant));
                }
                // Renewed, or granted to somebody else since.
                locks.release_from(kept);
            }
        }
        pgrx::check_for_interrupts!();
        judged = judge(wish)?;
    }
}

fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

/// Takes the locks of a takeover; waits for the writers in flight, or sends them away.
fn wait_for_writers(
    wish: &Wish,
    mut deadline: Instant,
    locks: &mut Locks,
) -> std::result::Result<(), Blockers> {
    if take_over_locks(wish, Instant::now(), locks) {
        return Ok(());
    }
    // Renewals are to find the entry however long the wait: to make one they would have to wait as well.
    Leases::open(Access::Read).load(wish.resource, 0);
    if wish.terminates_writers {
        terminate_writers(wish.resource);
        deadline = deadline.max(Instant::now() + TERMINATION);
    }
    if take_over_locks(wish, deadline, locks) {
        return Ok(());
    }
    let blockers = Blockers::of(wish.resource);
    // Nobody but the worker, which is done in a moment, or not even that any more.
    if blockers.is_empty() && take_over_locks(wish, Instant::now() + WORKER, locks) {
        return Ok(());
    }
    Err(blockers)
}

fn take_over_locks(wish: &Wish, deadline: Instant, locks: &mut Locks) -> bool {
    let every = (Lock::OF_EVERY_LEASE, Mode::TakeoverOfOne);
    let lease = (Lock::of_lease(wish.resource), Mode::Takeover);
    [every, lease]
        .into_iter()
        .all(|(lock, mode)| locks.take_within(lock, mode, left(deadline)))
}

fn terminate_writers(resource: &str) {
    spi::connect(|spi| {
        spi.write(
            c"SELECT coord.lease_writers_terminate($1)",
            &[Value::Text(Some(resource))],
        );
    });
}

/// Why the lease cannot change its holder: who is in the way.
fn busy(wish: &Wish, blockers: &Blockers) -> Error {
    let named = |what: &str, names: &[String]| {
        (!names.is_empty()).then(|| format!("{what}: {}.", names.join(", ")))
    };
    let details = [
        named(
            "In flight with writes under it, or ending it",
            &blockers.writers,
        ),
        named("Being acquired by", &blockers.acquirers),
    ];
    let detail = details.into_iter().flatten().collect::<Vec<_>>().join(" ");
    let hint = match (blockers.writers.is_empty(), wish.terminates_writers) {
        (true, _) => "Wait for your turn with max_wait.",
        (false, false) => "Wait for them with max_wait, or end them with terminate_writers.",
        (false, true) => {
            "A stopped process does not terminate before it goes on; a prepared transaction ends by COMMIT PREPARED or ROLLBACK PREPARED."
        }
    };
    if detail.is_empty() {
        error::lease_busy(
            wish.resource,
            "Whoever was in the way has just ended.",
            "Try again.",
        )
    } else {
        error::lease_busy(wish.resource, detail, hint)
    }
}

/// Who holds a lock that a takeover waits for.
struct Blockers {
    /// Transactions in flight with writes under the lease, or that end or renew it.
    writers: Vec<String>,
    acquirers: Vec<String>,
}

impl Blockers {
    fn of(resource: &str) -> Self {
        spi::connect(|spi| {
            let rows = spi.read(
                c"SELECT is_acquirer, pid, prepared FROM coord.lease_blocker($1)",
                &[Value::Text(Some(resource))],
            );
            let name = |row| {
                rows.get::<String>(row, 2).map_or_else(
                    || format!("process {}", rows.get::<i32>(row, 1).unwrap_or_default()),
                    |prepared| format!("prepared transaction \"{prepared}\""),
                )
            };
            let of = |is_acquirer| {
                let mine =
                    (0..rows.len()).filter(|row| rows.get::<bool>(*row, 0) == Some(is_acquirer));
                mine.map(name).collect()
            };
            Self {
                writers: of(false),
                acquirers: of(true),
            }
        })
    }

    fn is_empty(&self) -> bool {
        self.writers.is_empty() && self.acquirers.is_empty()
    }
}

/// Waits until the lease may have ended, or the time is up. The caller is at the head of the queue.
fn wait_for_end(wish: &Wish, found: &StoredLease, deadline: Instant) {
    let watching = memory::watch(found.key);
    // It may have ended before somebody knew whom to wake.
    let seen = Leases::open(Access::Read).find(wish.resource);
    let Some(seen) = seen.filter(|seen| seen.lease.is_held(store::now())) else {
        return;
    };
    let to_expiry = u64::try_from(seen.lease.expires_at - store::now()).unwrap_or(0);
    let untold = if watching.is_some() {
        LONGEST_UNTOLD
    } else {
        LONGEST_UNTOLD_WITHOUT_MEMORY
    };
    let patience = left(deadline)
        .min(Duration::from_micros(to_expiry))
        .min(untold);
    process::pause(patience);
}

/// Grants the lease, whose locks are held. None when it is not free, or not any more.
fn take_over(wish: &Wish, leases: Leases) -> Result<Option<Grant>> {
    // A new life waits for whoever has the table open for writing, and is seen by whoever comes later.
    let seen = Latest::take();
    let row = leases.find_row(&seen, wish.resource);
    let found = row.as_ref().map(StoredLease::read);
    let before = found.as_ref().map(|found| &found.lease);
    let now = store::now();
    let elsewhere = store::elsewhere(&seen, wish.resource);
    let incarnation = || store::incarnation(&seen);
    let decision = grant::decide(before, &elsewhere, wish.request, incarnation, now)?;
    let Decision::Grant { epoch } = decision else {
        leases.close_unchanged();
        return Ok(None);
    };
    warn_of_earlier_writes();
    let key = found
        .as_ref()
        .map_or_else(|| leases.new_key(wish.resource), |found| found.key);
    let lease = Lease {
        holder: wish.request.holder.to_owned(),
        epoch,
        expires_at: now + wish.ttl,
        request: wish.request.id,
        ended: None,
    };
    let known = found.as_ref().and_then(StoredLease::known);
    let pinned = memory::pin(key, known);
    let has_ended = before.is_none_or(|lease| lease.ended.is_some());
    // What an earlier takeover of this transaction has found in memory is no concern of this one.
    let is_renewed = !transaction::has_taken(key)
        && pinned
            .as_ref()
            .is_some_and(|pinned| pinned.take(now, has_ended).is_err());
    if is_renewed {
        leases.close_unchanged();
        return Ok(None);
    }
    transaction::at_commit(Effect::Granted {
        key,
        pinned,
        epoch,
        expires_at: lease.expires_at,
        ttl: wish.ttl,
    });
    leases.store_grant(row.as_ref(), wish.resource, key, &lease, wish.ttl, now);
    let event = Event::Granted {
        expires_at: lease.expires_at,
    };
    history::record(wish.resource, &lease.holder, epoch, event, None, now);
    process::force_sync_commit();
    Ok(Some(Grant::of(wish.resource, &lease)))
}
