//! The rules of a lease, over plain values: who is granted it, who may renew it, whose token passes.
//!
//! [`decide`] is the one place where a grant is decided.
//!
//! Fencing tokens after Gray and Cheriton 1989 (leases) and Burrows 2006 (Chubby's sequencers).

use super::report::Elsewhere;
use crate::error::{Error, Result, bad_argument, too_large};

pub const MAX_NAME_BYTES: usize = 255;

/// Microseconds.
pub const MIN_TTL: i64 = 1_000;
pub const MAX_TTL: i64 = 3_652 * DAY + DAY / 2;
pub const DAY: i64 = 86_400_000_000;

/// Epochs of one life of a node: more than a lease can be granted in it.
const EPOCHS_OF_A_LIFE: u32 = 40;

/// How a grant came to its end before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ended {
    Released,
    Revoked,
}

/// The last grant of a resource.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Lease {
    pub holder: String,
    pub epoch: i64,
    /// By the lease clock, renewals included.
    pub expires_at: i64,
    pub request: Option<[u8; 16]>,
    pub ended: Option<Ended>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Held,
    Expired,
    Free(Ended),
}

/// At the very moment of its expiry a lease is no longer held.
pub fn is_before_expiry(now: i64, expires_at: i64) -> bool {
    now < expires_at
}

impl Lease {
    pub fn standing(&self, now: i64) -> Standing {
        match self.ended {
            Some(ended) => Standing::Free(ended),
            None if is_before_expiry(now, self.expires_at) => Standing::Held,
            None => Standing::Expired,
        }
    }

    pub fn is_held(&self, now: i64) -> bool {
        self.standing(now) == Standing::Held
    }
}

/// Who asks for a grant.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    pub holder: &'a str,
    pub id: Option<[u8; 16]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    Grant {
        epoch: i64,
    },
    /// The request has been granted before, and its grant stands.
    Repeat,
    Held,
    /// By hearsay.
    HeldElsewhere,
}

/// Whether a request is granted, and at which epoch: above all that were granted here or, as far as was
/// heard, elsewhere. A holder that asks again under another request is refused as anybody is: it may be a
/// second process of the same name. The life of the node is asked for only when there is a grant to be made in it.
pub fn decide(
    lease: Option<&Lease>,
    elsewhere: &Elsewhere,
    request: Request,
    incarnation: impl FnOnce() -> Result<i64>,
    now: i64,
) -> Result<Decision> {
    match lease {
        Some(lease) if lease.is_held(now) => {
            let is_repeated = lease.holder == request.holder
                && request.id.is_some()
                && request.id == lease.request;
            Ok(if is_repeated {
                Decision::Repeat
            } else {
                Decision::Held
            })
        }
        _ if elsewhere.live(now).is_some() => Ok(Decision::HeldElsewhere),
        _ => {
            let last = lease.map_or(0, |lease| lease.epoch);
            next_epoch(last.max(elsewhere.highest_epoch()), incarnation()?)
                .map(|epoch| Decision::Grant { epoch })
        }
    }
}

/// One more than the last, and above whatever an earlier life of the node can have given out.
pub fn next_epoch(last: i64, incarnation: i64) -> Result<i64> {
    let floor = incarnation.saturating_sub(1).checked_shl(EPOCHS_OF_A_LIFE);
    floor
        .filter(|floor| floor >> EPOCHS_OF_A_LIFE == incarnation.saturating_sub(1))
        .and_then(|floor| last.max(floor).checked_add(1))
        .ok_or_else(|| too_large("epoch", "A lease has 2^63 - 1 epochs."))
}

/// Why somebody who claims an epoch does not have the lease any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    Superseded,
    Released,
    Revoked,
    NeverHeld,
}

impl Loss {
    pub fn name(self) -> &'static str {
        match self {
            Self::Superseded => "superseded",
            Self::Released => "released",
            Self::Revoked => "revoked",
            Self::NeverHeld => "never held",
        }
    }
}

/// Whether the lease is still what the claimant was granted, expired or not.
pub fn check_claim(
    lease: Option<&Lease>,
    holder: &str,
    epoch: i64,
) -> std::result::Result<(), Loss> {
    let Some(lease) = lease.filter(|lease| (1..=lease.epoch).contains(&epoch)) else {
        return Err(Loss::NeverHeld);
    };
    if epoch < lease.epoch {
        return Err(Loss::Superseded);
    }
    if lease.holder != holder {
        return Err(Loss::NeverHeld);
    }
    match lease.ended {
        None => Ok(()),
        Some(Ended::Released) => Err(Loss::Released),
        Some(Ended::Revoked) => Err(Loss::Revoked),
    }
}

/// Why a token does not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stale {
    Superseded,
    NeverIssued,
    Ended(Ended),
    Expired,
}

/// Whether a write under `epoch` may go on: only while that epoch is current and not expired.
pub fn check_token(lease: Option<&Lease>, epoch: i64, now: i64) -> std::result::Result<(), Stale> {
    match lease {
        Some(lease) if lease.epoch == epoch => match lease.standing(now) {
            Standing::Held => Ok(()),
            Standing::Expired => Err(Stale::Expired),
            Standing::Free(ended) => Err(Stale::Ended(ended)),
        },
        Some(lease) if (1..lease.epoch).contains(&epoch) => Err(Stale::Superseded),
        _ => Err(Stale::NeverIssued),
    }
}

/// An expiry as the table has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    pub expires_at: i64,
    pub ttl: i64,
    /// When the shared memory was made that it was written from.
    pub memory: i64,
}

/// How the shared memory before this one ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Predecessor {
    /// Written back in full; the wall clock had been stepped by so much meanwhile.
    Closed { stepped: i64 },
    /// Renewals may have been lost.
    Lost,
}

/// One run of shared memory.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Since when it exists; it also names it.
    pub memory: i64,
    /// Since when the server can grant leases: a standby exists long before.
    pub start: i64,
    pub predecessor: Predecessor,
}

impl Stored {
    /// When a lease expires whose expiry is not in shared memory. Renewals that an unclean end lost
    /// may have gone up to that end, each for no longer than its ttl.
    pub fn expiry(self, run: Run) -> i64 {
        if self.memory == run.memory {
            return self.expires_at;
        }
        match run.predecessor {
            Predecessor::Closed { stepped } => self.expires_at.saturating_add(stepped),
            Predecessor::Lost => self.expires_at.max(run.start.saturating_add(self.ttl)),
        }
    }
}

/// Refuses a name of a resource or a holder that is empty or too long.
pub fn check_name(what: &str, name: &str) -> Result<()> {
    if (1..=MAX_NAME_BYTES).contains(&name.len()) {
        return Ok(());
    }
    Err(bad_argument(
        format!("invalid name of {what}"),
        format!(
            "A name has 1 to {MAX_NAME_BYTES} bytes; this one has {}.",
            name.len()
        ),
    ))
}

pub fn check_ttl(ttl: i64) -> Result<()> {
    if (MIN_TTL..=MAX_TTL).contains(&ttl) {
        return Ok(());
    }
    Err(bad_argument(
        "ttl out of range",
        "The ttl of a lease is 1 millisecond to 10 years.",
    ))
}

/// Longest wait of a function, in microseconds: it holds a snapshot meanwhile.
pub const MAX_WAIT: i64 = 60_000_000;

pub fn check_max_wait(max_wait: i64) -> Result<()> {
    if (0..=MAX_WAIT).contains(&max_wait) {
        return Ok(());
    }
    Err(bad_argument(
        "max_wait out of range",
        "A wait is 0 to 60 seconds.",
    ))
}

/// An interval in microseconds, months and years counted as `extract(epoch FROM …)` counts them.
pub fn interval_microseconds(months: i32, days: i32, microseconds: i64) -> Result<i64> {
    let (years, months) = (i64::from(months / 12), i64::from(months % 12));
    let quarter_days = years * 1_461 + (months * 30 + i64::from(days)) * 4;
    quarter_days
        .checked_mul(DAY / 4)
        .and_then(|sum| sum.checked_add(microseconds))
        .ok_or_else(|| -> Error { bad_argument("interval out of range", "It is too long.") })
}

#[cfg(test)]
mod tests {
    use super::super::report::Reported;
    use super::*;
    use proptest::prelude::*;

    fn lease(epoch: i64, expires_at: i64, ended: Option<Ended>) -> Lease {
        Lease {
            holder: "a".to_owned(),
            epoch,
            expires_at,
            request: Some([7; 16]),
            ended,
        }
    }

    fn request(holder: &str, id: Option<[u8; 16]>) -> Request<'_> {
        Request { holder, id }
    }

    fn decided(lease: Option<&Lease>, by: Request, now: i64) -> Decision {
        decide(lease, &Elsewhere::default(), by, || Ok(1), now).unwrap()
    }

    #[test]
    fn hearsay_refuses_and_raises_the_epoch() {
        let heard = Elsewhere::new(vec![Reported {
            node: "n".to_owned(),
            holder: "c".to_owned(),
            epoch: 7,
            has_ended: false,
            expires_at: 200,
            heard_at: 0,
        }]);
        let decided = |lease, now| {
            let by = request("b", Some([7; 16]));
            decide(lease, &heard, by, || Ok(1), now).unwrap()
        };
        assert_eq!(decided(None, 199), Decision::HeldElsewhere);
        assert_eq!(decided(None, 200), Decision::Grant { epoch: 8 });
        let last = lease(3, 100, None);
        // What this node has granted itself comes first.
        assert_eq!(decided(Some(&last), 99), Decision::Held);
        assert_eq!(decided(Some(&last), 100), Decision::HeldElsewhere);
        let higher = lease(9, 100, None);
        assert_eq!(decided(Some(&higher), 200), Decision::Grant { epoch: 10 });
    }

    #[test]
    fn the_first_grant_has_epoch_one() {
        let decision = decided(None, request("a", None), 0);
        assert_eq!(decision, Decision::Grant { epoch: 1 });
    }

    #[test]
    fn the_moment_of_expiry_is_free() {
        let held = lease(3, 100, None);
        assert_eq!(decided(Some(&held), request("b", None), 99), Decision::Held);
        let decision = decided(Some(&held), request("b", None), 100);
        assert_eq!(decision, Decision::Grant { epoch: 4 });
    }

    #[test]
    fn only_the_request_of_the_grant_is_repeated() {
        let held = lease(3, 100, None);
        for (by, expected) in [
            (request("a", Some([7; 16])), Decision::Repeat),
            (request("a", Some([8; 16])), Decision::Held),
            (request("a", None), Decision::Held),
            (request("b", Some([7; 16])), Decision::Held),
        ] {
            assert_eq!(decided(Some(&held), by, 99), expected);
        }
        let anonymous = Lease {
            request: None,
            ..held
        };
        assert_eq!(
            decided(Some(&anonymous), request("a", None), 99),
            Decision::Held
        );
    }

    #[test]
    fn a_released_lease_is_free_before_its_time() {
        let released = lease(3, 100, Some(Ended::Released));
        let decision = decided(Some(&released), request("a", Some([7; 16])), 50);
        assert_eq!(decision, Decision::Grant { epoch: 4 });
    }

    #[test]
    fn a_new_life_grants_above_the_old_one() {
        assert_eq!(next_epoch(5, 1).unwrap(), 6);
        assert_eq!(next_epoch(5, 2).unwrap(), (1 << 40) + 1);
        assert_eq!(next_epoch((1 << 40) + 9, 2).unwrap(), (1 << 40) + 10);
        assert_eq!(next_epoch((1 << 40) + 9, 3).unwrap(), (2 << 40) + 1);
        assert!(next_epoch(i64::MAX, 1).is_err());
        assert!(next_epoch(0, i64::MAX).is_err());
    }

    #[test]
    fn a_loss_says_which() {
        let held = lease(3, 100, None);
        assert_eq!(check_claim(Some(&held), "a", 3), Ok(()));
        assert_eq!(check_claim(Some(&held), "a", 2), Err(Loss::Superseded));
        assert_eq!(check_claim(Some(&held), "b", 3), Err(Loss::NeverHeld));
        assert_eq!(check_claim(Some(&held), "a", 4), Err(Loss::NeverHeld));
        assert_eq!(check_claim(Some(&held), "a", 0), Err(Loss::NeverHeld));
        assert_eq!(check_claim(None, "a", 1), Err(Loss::NeverHeld));
        let revoked = lease(3, 100, Some(Ended::Revoked));
        assert_eq!(check_claim(Some(&revoked), "a", 3), Err(Loss::Revoked));
        let released = lease(3, 100, Some(Ended::Released));
        assert_eq!(check_claim(Some(&released), "a", 3), Err(Loss::Released));
    }

    #[test]
    fn a_token_passes_only_at_its_epoch_and_in_its_time() {
        let held = lease(3, 100, None);
        assert_eq!(check_token(Some(&held), 3, 99), Ok(()));
        assert_eq!(check_token(Some(&held), 3, 100), Err(Stale::Expired));
        assert_eq!(check_token(Some(&held), 2, 99), Err(Stale::Superseded));
        assert_eq!(check_token(Some(&held), 4, 99), Err(Stale::NeverIssued));
        assert_eq!(check_token(Some(&held), 0, 99), Err(Stale::NeverIssued));
        assert_eq!(check_token(None, 1, 99), Err(Stale::NeverIssued));
        let ended = lease(3, 100, Some(Ended::Released));
        assert_eq!(
            check_token(Some(&ended), 3, 99),
            Err(Stale::Ended(Ended::Released))
        );
    }

    #[test]
    fn an_unclean_start_holds_every_lease_for_its_ttl() {
        let stored = Stored {
            expires_at: 1_000,
            ttl: 300,
            memory: 10,
        };
        let run = |memory, start, predecessor| Run {
            memory,
            start,
            predecessor,
        };
        let closed = Predecessor::Closed { stepped: 0 };
        assert_eq!(stored.expiry(run(10, 10, Predecessor::Lost)), 1_000);
        assert_eq!(stored.expiry(run(2_000, 2_000, closed)), 1_000);
        assert_eq!(stored.expiry(run(2_000, 2_000, Predecessor::Lost)), 2_300);
        assert_eq!(stored.expiry(run(500, 500, Predecessor::Lost)), 1_000);
        // A standby that has existed for long is promoted.
        assert_eq!(stored.expiry(run(500, 2_000, Predecessor::Lost)), 2_300);
    }

    #[test]
    fn a_step_of_the_wall_clock_is_carried_over() {
        let stored = Stored {
            expires_at: 1_000,
            ttl: 300,
            memory: 10,
        };
        let run = |memory| Run {
            memory,
            start: memory,
            predecessor: Predecessor::Closed { stepped: -600 },
        };
        assert_eq!(stored.expiry(run(20)), 400);
        assert_eq!(stored.expiry(run(10)), 1_000);
    }

    #[test]
    fn limits() {
        assert!(check_ttl(999).is_err());
        assert!(check_ttl(1_000).is_ok());
        let ten_years = interval_microseconds(120, 0, 0).unwrap();
        assert!(check_ttl(ten_years).is_ok());
        assert!(check_ttl(ten_years + 1).is_err());
        assert!(check_max_wait(-1).is_err());
        assert!(check_max_wait(60_000_001).is_err());
        assert!(check_name("a resource", "").is_err());
        assert!(check_name("a resource", &"x".repeat(255)).is_ok());
        assert!(check_name("a resource", &"x".repeat(256)).is_err());
        assert!(interval_microseconds(i32::MAX, i32::MAX, i64::MAX).is_err());
        assert_eq!(interval_microseconds(1, 1, 1).unwrap(), 31 * DAY + 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        /// Whatever happens to a lease, epochs grow, and at most one claim and one token pass.
        #[test]
        fn epochs_only_grow(steps in prop::collection::vec((0..4_u8, 0..200_i64, 1..100_i64, 0..3_usize), 1..40)) {
            let holders = ["a", "b", "c"];
            let (mut now, mut current, mut incarnation) = (0, None::<Lease>, 1);
            let mut granted: Vec<(usize, i64)> = Vec::new();
            for (step, passing, ttl, who) in steps {
                now += passing;
                let holder = holders[who];
                match step {
                    0 | 1 => {
                        let by = Request { holder, id: None };
                        if let Decision::Grant { epoch } = decide(current.as_ref(), &Elsewhere::default(), by, || Ok(incarnation), now).unwrap() {
                            prop_assert!(granted.last().is_none_or(|last| last.1 < epoch));
                            granted.push((who, epoch));
                            current = Some(Lease {
                                holder: holder.to_owned(), epoch, expires_at: now + ttl, request: None, ended: None,
                            });
                        }
                    }
                    2 => {
                        if let Some(lease) = current.as_mut().filter(|lease| lease.holder == holder) {
                            lease.ended = Some(Ended::Released);
                        }
                    }
                    _ => incarnation += 1,
                }
                let claims = granted.iter().filter(|(who, epoch)| check_claim(current.as_ref(), holders[*who], *epoch).is_ok());
                prop_assert!(claims.count() <= 1);
                let tokens = granted.iter().filter(|(_, epoch)| check_token(current.as_ref(), *epoch, now).is_ok());
                prop_assert!(tokens.count() <= 1);
            }
        }
    }
}
