//! What nodes say of their leases to each other, and what that means for a grant here.
//!
//! A report is hearsay: it says what was granted elsewhere, not what is granted there now. It makes
//! conflicting grants rare and their epochs grow; it does not exclude them.

use serde::{Deserialize, Serialize};

use super::grant::{MAX_TTL, check_name};
use crate::error::{Result, malformed_binary};
use crate::node::identity;

/// One that can still be followed by as many again: a higher one was not counted up to.
const MAX_EPOCH: i64 = i64::MAX / 2;

/// The last grant of a resource on one node, as it travels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaseReport {
    pub resource: String,
    /// The node that granted it.
    pub node: String,
    pub holder: String,
    pub epoch: i64,
    pub has_ended: bool,
    /// Grows with every report of the node about this resource.
    pub version: i64,
    /// Microseconds until it expires, as of the message: nodes do not compare their clocks. What the
    /// message takes to arrive is added, so a lease rather looks held too long.
    pub time_left: i64,
}

impl LeaseReport {
    pub fn check(&self) -> Result<()> {
        check_name("a resource", &self.resource)?;
        check_name("a holder", &self.holder)?;
        identity::check_name(&self.node)?;
        let is_in_range = (1..=MAX_EPOCH).contains(&self.epoch)
            && self.version >= 0
            && (0..=MAX_TTL).contains(&self.time_left);
        if is_in_range {
            Ok(())
        } else {
            let detail = "A number of a lease is out of range.";
            Err(malformed_binary("gossip message", detail))
        }
    }

    /// Whether it says more than another report of the same node about the same resource.
    #[cfg(test)]
    pub fn is_newer_than(&self, other: &Self) -> bool {
        let order = |report: &Self| (report.epoch, report.has_ended, report.version);
        order(self) > order(other)
    }
}

/// A grant on another node, as this one heard of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reported {
    pub node: String,
    pub holder: String,
    pub epoch: i64,
    pub has_ended: bool,
    /// By the lease clock of this node.
    pub expires_at: i64,
    pub heard_at: i64,
}

impl Reported {
    pub fn is_live(&self, now: i64) -> bool {
        !self.has_ended && now < self.expires_at
    }
}

/// What was heard of a resource from all other nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Elsewhere(Vec<Reported>);

impl Elsewhere {
    pub fn new(reports: Vec<Reported>) -> Self {
        Self(reports)
    }

    /// The grant with the highest epoch; of equal ones that of the node whose name comes first.
    pub fn latest(&self) -> Option<&Reported> {
        highest(self.0.iter())
    }

    /// The same among those that have not come to their end, as far as is known here.
    pub fn live(&self, now: i64) -> Option<&Reported> {
        highest(self.0.iter().filter(|report| report.is_live(now)))
    }

    /// 0 when nothing was heard.
    pub fn highest_epoch(&self) -> i64 {
        self.latest().map_or(0, |latest| latest.epoch)
    }
}

fn highest<'a>(reports: impl Iterator<Item = &'a Reported>) -> Option<&'a Reported> {
    reports.max_by(|left, right| (left.epoch, &right.node).cmp(&(right.epoch, &left.node)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reported(node: &str, epoch: i64, expires_at: i64, has_ended: bool) -> Reported {
        Reported {
            node: node.to_owned(),
            holder: "h".to_owned(),
            epoch,
            has_ended,
            expires_at,
            heard_at: 0,
        }
    }

    fn node(report: Option<&Reported>) -> Option<&str> {
        report.map(|report| report.node.as_str())
    }

    #[test]
    fn the_highest_epoch_counts() {
        let heard = Elsewhere::new(vec![
            reported("a", 3, 200, false),
            reported("c", 5, 100, false),
            reported("b", 5, 100, false),
            reported("d", 9, 900, true),
        ]);
        assert_eq!(node(heard.latest()), Some("d"));
        assert_eq!(heard.highest_epoch(), 9);
        assert_eq!(node(heard.live(99)), Some("b"));
        assert_eq!(node(heard.live(100)), Some("a"));
        assert_eq!(node(heard.live(200)), None);
        assert_eq!(Elsewhere::default().highest_epoch(), 0);
    }

    fn report(epoch: i64, has_ended: bool, version: i64) -> LeaseReport {
        LeaseReport {
            resource: "r".to_owned(),
            node: "a".to_owned(),
            holder: "h".to_owned(),
            epoch,
            has_ended,
            version,
            time_left: 1,
        }
    }

    #[test]
    fn an_end_counts_for_more_than_a_renewal() {
        let renewed = report(3, false, 9);
        assert!(renewed.is_newer_than(&report(3, false, 8)));
        assert!(report(3, true, 1).is_newer_than(&renewed));
        assert!(report(4, false, 1).is_newer_than(&report(3, true, 9)));
        assert!(!renewed.is_newer_than(&renewed));
    }

    #[test]
    fn what_is_out_of_range_is_refused() {
        assert!(report(1, false, 0).check().is_ok());
        assert!(report(0, false, 0).check().is_err());
        assert!(report(1, false, -1).check().is_err());
        let without_end = LeaseReport {
            time_left: MAX_TTL + 1,
            ..report(1, false, 0)
        };
        assert!(without_end.check().is_err());
        let nameless = LeaseReport {
            node: String::new(),
            ..report(1, false, 0)
        };
        assert!(nameless.check().is_err());
    }
}
