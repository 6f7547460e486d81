//! Transaction snapshots as values: `pg_snapshot` (src/backend/utils/adt/xid8funcs.c).
//!
//! A snapshot says which transactions of its server had ended when it was taken: those below
//! `xmax` that are not listed as in progress. A cursor is such a snapshot, never a sequence number,
//! because numbers are given out before commit and do not say what was visible.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, malformed_binary};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Every transaction below has ended.
    pub xmin: u64,
    /// No transaction from here on had ended.
    pub xmax: u64,
    /// Transactions between the two still in progress, ascending.
    pub in_progress: Vec<u64>,
}

fn malformed(text: &str) -> Error {
    malformed_binary("pg_snapshot", format!("\"{text}\" is not a snapshot."))
}

impl Snapshot {
    /// Reads the text form `xmin:xmax:xip,xip`.
    pub fn parse(text: &str) -> Result<Self> {
        let mut parts = text.splitn(3, ':');
        let mut number = || {
            parts
                .next()
                .and_then(|part| part.parse::<u64>().ok())
                .ok_or_else(|| malformed(text))
        };
        let (xmin, xmax) = (number()?, number()?);
        let list = parts.next().ok_or_else(|| malformed(text))?;
        let in_progress = list
            .split(',')
            .filter(|part| !part.is_empty())
            .map(|part| part.parse::<u64>().map_err(|_| malformed(text)))
            .collect::<Result<Vec<u64>>>()?;
        let snapshot = Self {
            xmin,
            xmax,
            in_progress,
        };
        snapshot.check()?;
        Ok(snapshot)
    }

    /// Checks what the fields must keep to, for a snapshot that came from elsewhere.
    pub fn check(&self) -> Result<()> {
        let ordered = self.in_progress.is_sorted_by(|a, b| a < b);
        let bounded = self
            .in_progress
            .iter()
            .all(|xid| (self.xmin..self.xmax).contains(xid));
        let in_range = 0 < self.xmin && self.xmin <= self.xmax && self.xmax <= i64::MAX as u64;
        if ordered && bounded && in_range {
            Ok(())
        } else {
            Err(malformed(&self.to_string()))
        }
    }

    /// Whether the transaction had ended when the snapshot was taken.
    pub fn sees(&self, xid: u64) -> bool {
        xid < self.xmin || (xid < self.xmax && self.in_progress.binary_search(&xid).is_err())
    }

    /// The last transaction that had ended.
    pub fn last_ended(&self) -> Option<u64> {
        (1..self.xmax).rev().find(|xid| self.sees(*xid))
    }

    /// The snapshot as told to a peer by a reader whose own transaction may still roll back: a
    /// snapshot does not list its own transaction, so it is added to those in progress, and its
    /// rows come after its commit instead of being lost or given twice.
    #[must_use]
    pub fn with_in_progress(mut self, own: u64) -> Self {
        if !self.sees(own) {
            return self;
        }
        self.xmin = self.xmin.min(own);
        if let Err(place) = self.in_progress.binary_search(&own) {
            self.in_progress.insert(place, own);
        }
        self
    }

    /// The snapshot as told by a reader whose message leaves only after its own transaction has
    /// committed. Transactions that started before it and have not ended stay in progress.
    #[must_use]
    pub fn with_committed(mut self, own: u64) -> Self {
        if own >= self.xmax {
            self.in_progress.extend(self.xmax..own);
            self.xmax = own + 1;
        } else {
            self.in_progress.retain(|xid| *xid != own);
        }
        self.xmin = self.in_progress.first().copied().unwrap_or(self.xmax);
        self
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}:", self.xmin, self.xmax)?;
        for (index, xid) in self.in_progress.iter().enumerate() {
            let separator = if index == 0 { "" } else { "," };
            write!(out, "{separator}{xid}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn snapshot(text: &str) -> Snapshot {
        Snapshot::parse(text).unwrap()
    }

    #[test]
    fn text_is_read_strictly() {
        for bad in [
            "", "1", "1:2", "0:1:", "5:4:", "1:5:7", "1:5:3,2", "1:5:2,2", "x:1:", "1:5:2;3",
        ] {
            assert!(Snapshot::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(snapshot("3:9:3,5").to_string(), "3:9:3,5");
        assert_eq!(snapshot("3:3:").to_string(), "3:3:");
    }

    #[test]
    fn own_transaction_is_told_as_it_will_be_seen() {
        // A snapshot of the writing transaction 7 itself, which lists neither 7 nor its like.
        let taken = snapshot("5:9:5");
        assert!(!taken.clone().with_in_progress(7).sees(7));
        assert!(taken.clone().with_committed(7).sees(7));
        // Number 12 was taken after the snapshot's xmax; 9 to 11 may still be running.
        let told = taken.clone().with_committed(12);
        assert!(told.sees(12) && !told.sees(9) && !told.sees(11) && !told.sees(13));
        assert_eq!(taken.clone().with_in_progress(12), taken);
        // Nothing else was running: xmin may lie above the own number.
        assert_eq!(snapshot("8:8:").with_in_progress(7).to_string(), "7:8:7");
        assert_eq!(snapshot("7:7:").with_committed(7).to_string(), "8:8:");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn round_trips_and_sees_what_it_says(xmin in 1..50_u64, span in 0..20_u64, picks: BTreeSet<u8>, own in 1..80_u64) {
            let xmax = xmin + span;
            let in_progress: Vec<u64> = picks.iter().map(|pick| xmin + u64::from(*pick)).filter(|xid| *xid < xmax).collect();
            let taken = Snapshot { xmin, xmax, in_progress };
            prop_assert_eq!(&snapshot(&taken.to_string()), &taken);
            for (told, own_seen) in [(taken.clone().with_in_progress(own), false), (taken.clone().with_committed(own), true)] {
                prop_assert_eq!(&snapshot(&told.to_string()), &told);
                prop_assert_eq!(told.sees(own), own_seen);
                let ended = (1..100).filter(|xid| told.sees(*xid)).max();
                prop_assert_eq!(told.last_ended(), ended);
                for xid in (1..100).filter(|xid| *xid != own) {
                    prop_assert_eq!(told.sees(xid), taken.sees(xid), "{}", xid);
                }
            }
        }

        #[test]
        fn any_text_is_an_error_or_a_value(text in "[0-9:,]{0,20}") {
            if let Ok(read) = Snapshot::parse(&text) {
                prop_assert_eq!(snapshot(&read.to_string()), read);
            }
        }
    }
}
