//! What the worker reports to the mesh of this node's leases.
//!
//! A grant or its end is reported when listeners are told. A renewal is reported when half of the ttl is
//! left of what the peers were told, so that a lease renewed every second costs them one row in half its
//! ttl.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use super::background::transaction;
use crate::lease::memory::{self, Held};
use crate::lease::store;
use crate::spi::Value;

/// Leases reported in one transaction: some tenths of a second, in which the worker hears nobody.
const PAGE: usize = 10_000;

/// All entries of shared memory are looked at each time.
const SHORTEST_PACE: Duration = Duration::from_millis(100);

/// How far the reports of what there was before have come since the worker began.
enum Progress {
    /// No other node was ever heard of.
    Alone,
    /// Every lease up to this resource.
    UpTo(String),
    Done,
}

pub struct Reporter {
    progress: Progress,
    last_look: Option<Instant>,
    /// Expiries as reported, of leases in memory, by their numbers.
    expiries: HashMap<i64, i64>,
}

impl Reporter {
    pub fn new() -> Self {
        Self {
            progress: Progress::Alone,
            last_look: None,
            expiries: HashMap::new(),
        }
    }

    /// Reports these resources, whose holder has changed, and, once in `interval`, what else is due.
    /// Returns whether there is something new for the peers.
    pub fn attend(&mut self, changed: &[String], interval: Duration) -> bool {
        let mut has_news = false;
        if !changed.is_empty() && !matches!(self.progress, Progress::Alone) {
            has_news |= self.report_changed(changed);
        }
        let pace = interval.max(SHORTEST_PACE);
        if self.last_look.is_none_or(|last| last.elapsed() >= pace) {
            has_news |= self.look();
            self.last_look = Some(Instant::now());
        }
        has_news
    }

    fn report_changed(&mut self, changed: &[String]) -> bool {
        let resources: Vec<&str> = changed.iter().map(String::as_str).collect();
        let reported = number(
            c"SELECT coord.lease_report_own($1)",
            &[Value::Texts(&resources)],
        );
        if reported.is_none() {
            // Whatever they were, they are among all.
            self.progress = Progress::UpTo(String::new());
        }
        reported.is_some_and(|count| count > 0)
    }

    fn look(&mut self) -> bool {
        match &self.progress {
            Progress::Alone => self.begin(),
            Progress::UpTo(resource) => {
                let resource = resource.clone();
                // What is renewed meanwhile is not to look expired.
                self.report_page(&resource) | self.report_renewals()
            }
            Progress::Done => {
                number(c"SELECT coord.report_lapse()", &[]);
                self.report_renewals()
            }
        }
    }

    fn begin(&mut self) -> bool {
        if !has_company() {
            return false;
        }
        self.progress = Progress::UpTo(String::new());
        true
    }

    fn report_page(&mut self, after: &str) -> bool {
        let page = transaction(|spi| {
            let rows = spi.write(
                c"WITH page AS MATERIALIZED (
                    SELECT l.resource FROM coord.lease l WHERE l.resource > $1 ORDER BY l.resource LIMIT $2)
                  SELECT max(p.resource), coord.lease_report_own(coalesce(array_agg(p.resource), '{}')) FROM page p",
                &[Value::Text(Some(after)), Value::Int(PAGE as i64)],
            );
            Ok((rows.get::<String>(0, 0), rows.get::<i64>(0, 1)))
        });
        match page {
            Ok((last, count)) => {
                self.progress = last.map_or(Progress::Done, Progress::UpTo);
                count > Some(0)
            }
            Err(reason) => {
                log_failure(&reason);
                false
            }
        }
    }

    fn report_renewals(&mut self) -> bool {
        let (held, now) = (memory::held(), store::now());
        let due: Vec<&Held> = (held.iter())
            .filter(|lease| is_due(self.expiries.get(&lease.lease_id).copied(), lease, now))
            .take(PAGE)
            .collect();
        if due.is_empty() {
            return false;
        }
        let numbers: Vec<i64> = due.iter().map(|lease| lease.lease_id).collect();
        let count = number(
            c"SELECT coord.lease_report_own(ARRAY(
                SELECT l.resource FROM coord.lease l WHERE l.lease_id = ANY ($1)))",
            &[Value::Ints(&numbers)],
        );
        if count.is_some() {
            let reported = due.iter().map(|lease| (lease.lease_id, lease.expires_at));
            self.expiries.extend(reported);
            let present: HashSet<i64> = held.iter().map(|lease| lease.lease_id).collect();
            self.expiries
                .retain(|lease_id, _| present.contains(lease_id));
        }
        count > Some(0)
    }
}

/// Whether the peers are to hear of an expiry when they were told another one, or none.
fn is_due(reported: Option<i64>, lease: &Held, now: i64) -> bool {
    reported.is_none_or(|reported| {
        let is_longer = lease.expires_at > reported && reported - now < lease.ttl / 2;
        is_longer || lease.expires_at < reported
    })
}

/// Whether other nodes were ever heard of, and the extension is of a version that has reports.
fn has_company() -> bool {
    let answer = transaction(|spi| {
        let rows = spi.read(
            c"SELECT to_regclass('coord.report_cursor') IS NOT NULL
                 AND EXISTS (SELECT FROM coord.roster r, coord.local_node n WHERE r.name <> n.name)",
            &[],
        );
        Ok(rows.get::<bool>(0, 0))
    });
    answer.unwrap_or_else(|reason| {
        log_failure(&reason);
        None
    }) == Some(true)
}

/// The number that a statement gives, in a transaction of its own. None when it failed.
fn number(statement: &'static std::ffi::CStr, arguments: &[Value]) -> Option<i64> {
    match transaction(|spi| Ok(spi.write(statement, arguments).get::<i64>(0, 0))) {
        Ok(found) => found,
        Err(reason) => {
            log_failure(&reason);
            None
        }
    }
}

fn log_failure(reason: &str) {
    pgrx::log!("pg_test: could not report leases to the mesh: {reason}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_renewal_is_told_when_half_of_the_ttl_is_left() {
        let lease = |expires_at| Held {
            lease_id: 1,
            expires_at,
            ttl: 100,
        };
        assert!(is_due(None, &lease(150), 50));
        assert!(!is_due(Some(150), &lease(150), 149), "nothing to tell");
        assert!(!is_due(Some(150), &lease(200), 100), "enough is left");
        assert!(is_due(Some(150), &lease(201), 101));
        assert!(is_due(Some(150), &lease(149), 50), "shortened");
    }
}
