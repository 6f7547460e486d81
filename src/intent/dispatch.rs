//! The rules of dispatch, over plain values: whether a run may go on, and which record of it counts.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::{Result, bad_argument};
use crate::json::parse_object;
use crate::lease::grant::{Lease, Standing, check_name};
use crate::lease::report::Reported;

/// What a run has come to. A later one counts for more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    Pending,
    Failed,
    Committed,
}

impl Status {
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "pending" => Ok(Self::Pending),
            "failed" => Ok(Self::Failed),
            "committed" => Ok(Self::Committed),
            _ => Err(bad_argument(
                "invalid status of a run",
                format!("The status \"{name}\" is not one of pending, failed, committed."),
            )),
        }
    }
}

/// The next attempt is still a number.
const MOST_ATTEMPTS: i32 = 1_000_000_000;

/// What an operation of surface `intent` says.
#[derive(Debug, Deserialize)]
pub struct Record {
    pub agent: String,
    run_id: String,
    holder: String,
    pub epoch: i64,
    status: String,
    attempt: i32,
}

impl Record {
    /// None for a payload that is the record of no run.
    pub fn parse(payload: &str) -> Option<Self> {
        let record: Self = parse_object(payload)?;
        let names = [&record.agent, &record.run_id, &record.holder];
        let is_named = names.iter().all(|name| check_name("it", name).is_ok());
        let is_whole = record.epoch > 0
            && (1..=MOST_ATTEMPTS).contains(&record.attempt)
            && Status::parse(&record.status).is_ok();
        (is_named && is_whole).then_some(record)
    }
}

/// Ranks compare bytewise, and the lowest stays: the first record that says committed, since it has happened
/// then; else the last, by epoch before stamp.
pub fn rank(status: Status, epoch: i64, hlc: u64, op_id: &str) -> Vec<u8> {
    let order = [
        &epoch.cast_unsigned().to_be_bytes()[..],
        &hlc.to_be_bytes(),
        op_id.as_bytes(),
    ]
    .concat();
    if status == Status::Committed {
        [&[0], order.as_slice()].concat()
    } else {
        let reversed = order.iter().map(|byte| !byte);
        std::iter::once(1).chain(reversed).collect()
    }
}

/// An epoch that no grant of the agent's lease can have had.
pub fn check_issued(agent: &str, epoch: i64, last: i64) -> Result<()> {
    if (1..=last).contains(&epoch) {
        return Ok(());
    }
    Err(bad_argument(
        format!("epoch {epoch} of lease \"{agent}\" was never issued"),
        format!("The last one is {last}."),
    ))
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Proceed,
    AlreadyCommitted { operation: String },
    StaleEpoch { current: i64, holder: String },
    NotHeld,
    Expired,
}

/// Whether `holder`, who claims `epoch` of the agent's lease, may dispatch the run; `committed` is the
/// record that it has happened. A later grant on another node counts for more than the last one here.
pub fn decide(
    committed: Option<String>,
    lease: Option<&Lease>,
    elsewhere: Option<&Reported>,
    holder: &str,
    epoch: i64,
    now: i64,
) -> Decision {
    if let Some(operation) = committed {
        return Decision::AlreadyCommitted { operation };
    }
    let last = lease.map_or(0, |lease| lease.epoch);
    if let Some(report) = elsewhere.filter(|report| report.epoch > last) {
        return decide_by_hearsay(report, epoch);
    }
    let Some(lease) = lease else {
        return Decision::NotHeld;
    };
    let is_claimants = lease.epoch == epoch && lease.holder == holder;
    match lease.standing(now) {
        Standing::Free(_) => Decision::NotHeld,
        Standing::Held if is_claimants => Decision::Proceed,
        Standing::Expired if is_claimants => Decision::Expired,
        Standing::Held | Standing::Expired => Decision::StaleEpoch {
            current: lease.epoch,
            holder: lease.holder.clone(),
        },
    }
}

/// Hearsay can say that an epoch is over, never that one is current.
fn decide_by_hearsay(report: &Reported, epoch: i64) -> Decision {
    if report.has_ended || epoch >= report.epoch {
        return Decision::NotHeld;
    }
    Decision::StaleEpoch {
        current: report.epoch,
        holder: report.holder.clone(),
    }
}

impl Decision {
    pub fn to_json(&self, claimed: i64) -> Value {
        let decision = match self {
            Self::Proceed => json!({"decision": "proceed"}),
            Self::AlreadyCommitted { operation } => {
                json!({"decision": "already_committed", "committed_op_id": operation})
            }
            Self::StaleEpoch { current, holder } => json!({
                "decision": "stale_epoch", "claimed_epoch": claimed,
                "current_epoch": current, "current_holder": holder,
            }),
            Self::NotHeld => json!({"decision": "not_held", "claimed_epoch": claimed}),
            Self::Expired => json!({"decision": "expired", "claimed_epoch": claimed}),
        };
        json!({"decision": decision, "may_dispatch": *self == Self::Proceed})
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::grant::Ended;

    fn lease(ended: Option<Ended>) -> Lease {
        Lease {
            holder: "b".to_owned(),
            epoch: 2,
            expires_at: 100,
            request: None,
            ended,
        }
    }

    fn decided(lease: Option<&Lease>, holder: &str, epoch: i64, now: i64) -> Decision {
        decide(None, lease, None, holder, epoch, now)
    }

    #[test]
    fn hearsay_never_lets_anybody_proceed() {
        let report = |epoch, has_ended| Reported {
            node: "n".to_owned(),
            holder: "c".to_owned(),
            epoch,
            has_ended,
            expires_at: 100,
            heard_at: 0,
        };
        let by = |lease, report: &Reported, holder, epoch| {
            decide(None, lease, Some(report), holder, epoch, 99)
        };
        let stale = Decision::StaleEpoch {
            current: 4,
            holder: "c".to_owned(),
        };
        let heard = report(4, false);
        assert_eq!(by(None, &heard, "b", 3), stale);
        assert_eq!(by(None, &heard, "c", 4), Decision::NotHeld);
        assert_eq!(by(None, &heard, "c", 5), Decision::NotHeld);
        assert_eq!(by(None, &report(4, true), "b", 3), Decision::NotHeld);
        // A grant here is over once a later one was heard, and not before.
        let held = lease(None);
        assert_eq!(by(Some(&held), &heard, "b", 2), stale);
        assert_eq!(
            by(Some(&held), &report(2, false), "b", 2),
            Decision::Proceed
        );
        assert_eq!(
            by(Some(&held), &report(1, false), "b", 2),
            Decision::Proceed
        );
    }

    #[test]
    fn what_has_happened_comes_first() {
        let committed = decide(Some("op-1".to_owned()), None, None, "a", 1, 0);
        assert_eq!(
            committed.to_json(1).to_string(),
            r#"{"decision":{"committed_op_id":"op-1","decision":"already_committed"},"may_dispatch":false}"#
        );
    }

    #[test]
    fn only_the_holder_at_its_epoch_proceeds() {
        let held = lease(None);
        assert_eq!(decided(Some(&held), "b", 2, 99), Decision::Proceed);
        assert_eq!(decided(Some(&held), "b", 2, 100), Decision::Expired);
        let stale = Decision::StaleEpoch {
            current: 2,
            holder: "b".to_owned(),
        };
        assert_eq!(decided(Some(&held), "a", 1, 99), stale);
        assert_eq!(decided(Some(&held), "a", 2, 99), stale);
        assert_eq!(decided(Some(&held), "b", 3, 99), stale);
        assert_eq!(decided(Some(&held), "a", 1, 100), stale);
        assert_eq!(decided(None, "a", 1, 0), Decision::NotHeld);
        let released = lease(Some(Ended::Released));
        assert_eq!(decided(Some(&released), "b", 2, 0), Decision::NotHeld);
    }

    #[test]
    fn only_one_decision_dispatches() {
        let decisions = [
            Decision::AlreadyCommitted {
                operation: "op-1".to_owned(),
            },
            Decision::StaleEpoch {
                current: 2,
                holder: "b".to_owned(),
            },
            Decision::NotHeld,
            Decision::Expired,
        ];
        assert!(
            decisions
                .iter()
                .all(|decision| decision.to_json(1)["may_dispatch"] == false)
        );
        assert_eq!(Decision::Proceed.to_json(1)["may_dispatch"], true);
    }

    #[test]
    fn committed_stays_and_later_epochs_win() {
        use Status::{Committed, Failed, Pending};
        let ranks = [
            rank(Committed, 1, 5, "op-a"),
            rank(Committed, 1, 6, "op-a"),
            rank(Committed, 2, 0, "op-a"),
            rank(Pending, 3, 0, "op-a"),
            rank(Pending, 2, 9, "op-b"),
            rank(Failed, 2, 9, "op-a"),
            rank(Failed, 2, 8, "op-c"),
            rank(Pending, 1, 9, "op-a"),
        ];
        assert!(ranks.is_sorted());
    }

    #[test]
    fn a_record_of_a_run_is_whole() {
        let whole = r#"{"agent": "a", "run_id": "r", "holder": "h", "epoch": 1, "status": "failed", "attempt": 2}"#;
        assert!(Record::parse(whole).is_some());
        assert!(Record::parse(r#"["a", "r", "h", 1, "failed", 2]"#).is_none());
        for (part, spoiled) in [
            ("\"a\"", "\"\""),
            ("\"r\"", "1"),
            ("\"epoch\": 1", "\"epoch\": 0"),
            ("\"epoch\": 1", "\"epoch\": 1.5"),
            ("failed", "done"),
            ("2}", "0}"),
            ("2}", "2000000000}"),
            ("\"holder\"", "\"owner\""),
        ] {
            let payload = whole.replace(part, spoiled);
            assert!(Record::parse(&payload).is_none(), "{payload}");
        }
    }

    #[test]
    fn arguments() {
        assert!(check_issued("a", 0, 3).is_err());
        assert!(check_issued("a", 3, 3).is_ok());
        assert!(check_issued("a", 4, 3).is_err());
        assert!(Status::parse("done").is_err());
        assert!(Status::Pending < Status::Failed && Status::Failed < Status::Committed);
    }
}
