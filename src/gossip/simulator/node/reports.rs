//! Reports of leases in a simulated node.

use std::collections::BTreeMap;

use super::{Handle, Node, Session, Transaction};
use crate::error::{self, Result};
use crate::gossip::protocol::{Position, Replica, Window};
use crate::gossip::report::{Reader, Report, ReportBatch, nowhere, reaches_beyond, start};
use crate::gossip::snapshot::Snapshot;
use crate::lease::grant::next_epoch;
use crate::lease::report::LeaseReport;

/// Resource and node.
pub type Key = (String, String);

#[derive(Clone, Debug)]
pub struct Kept {
    pub report: LeaseReport,
    local_xid: u64,
    learned_from: Option<String>,
}

/// Reports and positions, committed or written by a transaction.
#[derive(Clone, Debug, Default)]
pub struct ReportTables {
    kept: BTreeMap<Key, Kept>,
    positions: BTreeMap<String, Position>,
}

impl ReportTables {
    pub fn extend(&mut self, written: Self) {
        self.kept.extend(written.kept);
        self.positions.extend(written.positions);
    }

    /// Whether any is of a lease of the node itself.
    pub fn has_grants(&self) -> bool {
        self.kept.values().any(|kept| kept.learned_from.is_none())
    }

    /// A new life is given everything anew.
    pub fn begin_anew(&mut self) {
        self.positions.clear();
    }
}

/// The order within a transaction.
fn place(key: &Key) -> String {
    format!("{}/{}", key.0, key.1)
}

impl Node {
    /// What is committed.
    pub fn reports(&self) -> impl Iterator<Item = (&Key, &LeaseReport)> {
        self.reports
            .kept
            .iter()
            .map(|(key, kept)| (key, &kept.report))
    }

    fn report_locked(&self, handle: Handle, key: &Key) -> bool {
        self.is_locked(handle, |other| other.reports.kept.contains_key(key))
    }

    pub fn epoch_range(&self) -> u64 {
        let epochs = self.reports.kept.values().map(|kept| kept.report.epoch);
        epochs.max().unwrap_or(0).cast_unsigned() >> 40
    }

    /// The life goes on: nobody who was asked knows of what it lost, if it was put back.
    pub fn forget_lost_grants(&mut self) {
        let (kept, own) = (&self.reports.kept, &self.name);
        self.granted.retain(|(resource, epoch)| {
            let last = kept.get(&(resource.clone(), own.clone()));
            last.is_some_and(|last| *epoch <= last.report.epoch)
        });
    }

    /// Remembers what a transaction that commits has granted: no epoch twice in all lives.
    pub fn note_grants(&mut self, written: &ReportTables) {
        let own = written
            .kept
            .values()
            .filter(|kept| kept.learned_from.is_none());
        for Kept { report, .. } in own {
            let key = (report.resource.clone(), report.node.clone());
            let before = self.reports.kept.get(&key);
            if before.is_none_or(|before| before.report.epoch < report.epoch) {
                let is_new = self.granted.insert((key.0, report.epoch));
                assert!(is_new, "{} grants {} twice", self.name, report.epoch);
            }
        }
    }

    /// Grants a lease above all epochs known of it, renews it or ends it, whichever is its turn. A node that
    /// does not know its life grants nothing.
    pub fn change_lease(&mut self, handle: Handle, resource: &str) {
        let key = (resource.to_owned(), self.name.clone());
        if self.report_locked(handle, &key) || !self.is_confirmed {
            return;
        }
        let known = self
            .reports
            .kept
            .iter()
            .chain(&self.open[&handle].reports.kept);
        let of_resource = known.filter(|(key, _)| key.0 == resource);
        let highest = of_resource
            .map(|(_, kept)| kept.report.epoch)
            .max()
            .unwrap_or(0);
        let before = self.kept(handle, &key).map(|kept| kept.report.clone());
        let is_news = before.as_ref().is_none_or(|before| before.has_ended);
        let incarnation = self.incarnation.cast_signed();
        let last = before.unwrap_or_else(|| LeaseReport {
            resource: resource.to_owned(),
            node: self.name.clone(),
            holder: "h".to_owned(),
            epoch: 0,
            has_ended: false,
            version: 0,
            time_left: 0,
        });
        let report = LeaseReport {
            epoch: if is_news {
                next_epoch(highest, incarnation).expect("an epoch in range")
            } else {
                last.epoch
            },
            has_ended: !is_news && last.version % 3 == 0,
            version: last.version + 1,
            ..last
        };
        self.keep(handle, key, report, None);
    }

    fn kept(&self, handle: Handle, key: &Key) -> Option<&Kept> {
        let own = self
            .open
            .get(&handle)
            .and_then(|own| own.reports.kept.get(key));
        own.or_else(|| self.reports.kept.get(key))
    }

    fn keep(&mut self, handle: Handle, key: Key, report: LeaseReport, giver: Option<&str>) {
        let kept = Kept {
            report,
            local_xid: self.xid(handle),
            learned_from: giver.map(str::to_owned),
        };
        self.transaction(handle).reports.kept.insert(key, kept);
    }
}

impl Session<'_> {
    pub fn stored_reports_position(&self, peer: &str) -> Position {
        let own: &Transaction = &self.node.open[&self.handle];
        let stored =
            (own.reports.positions.get(peer)).or_else(|| self.node.reports.positions.get(peer));
        stored.cloned().unwrap_or_else(nowhere)
    }

    fn space(&self) -> String {
        let snapshot = self.node.told_snapshot(self.handle, self.standpoint);
        self.node.holding(self.handle, &snapshot).space
    }

    /// Reports that a position lacks, in their order; without what came from the peer or is held by it, of which
    /// only the place is there.
    fn changed_reports(
        &self,
        peer: &str,
        start: &Position,
        until: &Snapshot,
        reader: &Reader,
    ) -> Vec<(u64, String, Option<Report>)> {
        let after =
            (start.window.as_ref()).map(|window| (window.after_xid, window.after_name.clone()));
        let is_given = |xid| start.given.as_ref().is_some_and(|given| given.sees(xid));
        let own = &self.node.open[&self.handle].reports.kept;
        let others = (self.node.reports.kept.iter()).filter(|(key, _)| !own.contains_key(*key));
        let of_peer = |kept: &Kept| {
            let is_news = start.is_full() || kept.learned_from.as_deref() != Some(peer);
            is_news.then(|| Report::Lease(kept.report.clone()))
        };
        let mut found: Vec<_> = (own.iter().chain(others))
            .map(|(key, kept)| (kept.local_xid, place(key), of_peer(kept)))
            .chain(self.changed_operations(reader))
            .filter(|(xid, name, _)| {
                !is_given(*xid) && until.sees(*xid) && Some((*xid, name.clone())) > after
            })
            .collect();
        found.sort_by(|left, right| (left.0, &left.1).cmp(&(right.0, &right.1)));
        found
    }

    pub fn report(&mut self, peer: &str, reader: &Reader) -> Result<Option<ReportBatch>> {
        let start = start(&reader.position, &self.space());
        let now = self.node.told_snapshot(self.handle, self.standpoint);
        if let Some(reason) = reaches_beyond(&start, now.xmax) {
            self.doubt(&reason)?;
            return Ok(None);
        }
        let until = match &start.window {
            Some(window) => window.until.clone(),
            None => self.node.told_snapshot(self.handle, self.standpoint),
        };
        let mut found = self.changed_reports(peer, &start, &until, reader);
        let count = found.len();
        let is_cut_off = found.len() >= self.node.limit;
        found.truncate(self.node.limit);
        let window = found
            .last()
            .filter(|_| is_cut_off)
            .map(|(xid, name, _)| Window {
                until: until.clone(),
                after_xid: *xid,
                after_name: name.clone(),
            });
        let rows = found.into_iter().filter_map(|(_, _, row)| row).collect();
        let is_all = window.is_none() && start.window.is_none();
        let next = Position {
            space: start.space.clone(),
            given: if window.is_none() {
                Some(until)
            } else {
                start.given.clone()
            },
            window,
        };
        let batch = ReportBatch {
            start,
            rows,
            next,
            frontier: is_all.then(|| self.held_operations()),
            left_out: Vec::new(),
        };
        let is_news = batch.is_worth_telling(count, &reader.frontier)?;
        Ok(Some(batch).filter(|_| is_news))
    }

    pub fn learn_reports(&mut self, peer: &str, batch: &ReportBatch) -> Result<()> {
        let stored = self.stored_reports_position(peer);
        for row in &batch.rows {
            match row {
                Report::Lease(report) => self.learn_report(peer, report)?,
                Report::Op(operation) => self.learn_operation(operation)?,
            }
        }
        if batch.continues(&stored, &[]) {
            let is_held = |other: &Transaction| other.reports.positions.contains_key(peer);
            if self.node.is_locked(self.handle, is_held) {
                return Err(error::data_corrupted("could not obtain lock on row"));
            }
            self.node.xid(self.handle);
            let own = &mut self.node.transaction(self.handle).reports;
            own.positions.insert(peer.to_owned(), batch.next.clone());
            if let Some(frontier) = &batch.frontier {
                self.raise_operations(peer, frontier);
            }
        }
        Ok(())
    }

    fn learn_report(&mut self, peer: &str, report: &LeaseReport) -> Result<()> {
        let key = (report.resource.clone(), report.node.clone());
        if report.node == self.node.name {
            return Ok(());
        }
        if self.node.report_locked(self.handle, &key) {
            return Err(error::data_corrupted("could not obtain lock on row"));
        }
        let known = self.node.kept(self.handle, &key);
        if known.is_none_or(|known| report.is_newer_than(&known.report)) {
            self.node.keep(self.handle, key, report.clone(), Some(peer));
        }
        Ok(())
    }
}
