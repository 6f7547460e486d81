//! A transaction with its savepoint, from beginning to end.

use super::Design;
use super::state::{Broken, Change, Entry, SAVEPOINT, Step, TRANSACTION, Transaction, Who};
use super::steps::Steps;
use crate::lease::savepoint::{Level, Remembered};

/// Forgets what belongs to the savepoint, as the transactions of the server do.
fn forget<T: Clone>(values: &mut Vec<(Level, T)>) -> Vec<T> {
    let mut remembered = Remembered::default();
    for (level, value) in values.iter() {
        remembered.push(*level, value.clone());
    }
    let mut forgotten = Vec::new();
    remembered.subtransaction_aborted(SAVEPOINT, |value| forgotten.push(value));
    values.truncate(remembered.values().count());
    forgotten
}

impl<const CLIENTS: usize> Steps<CLIENTS> {
    pub(super) fn begin(&mut self, who: Who) -> bool {
        let looks_back = self.model.design == Design::WriterLooksWithItsSnapshot;
        let snapshot = self.state.row.filter(|_| looks_back);
        let client = self.client(who);
        let is_possible = client.transaction.is_none();
        client.transaction.get_or_insert_with(|| Transaction {
            snapshot,
            ..Transaction::default()
        });
        is_possible
    }

    pub(super) fn savepoint(&mut self, who: Who) -> bool {
        let Some(transaction) = self.at(who, Step::Ready) else {
            return false;
        };
        !std::mem::replace(&mut transaction.has_savepoint, true)
    }

    pub(super) fn release_savepoint(&mut self, who: Who) -> bool {
        let Some(transaction) = self.at(who, Step::Ready).filter(|own| own.has_savepoint) else {
            return false;
        };
        transaction.has_savepoint = false;
        let up = |level: &mut Level| *level = TRANSACTION;
        let locks = [
            &mut transaction.writer_lock,
            &mut transaction.change_lock,
            &mut transaction.takeover_lock,
        ];
        locks.into_iter().flatten().for_each(up);
        transaction
            .changes
            .iter_mut()
            .for_each(|change| up(&mut change.0));
        transaction
            .written
            .iter_mut()
            .for_each(|write| up(&mut write.0));
        transaction.written.dedup();
        true
    }

    pub(super) fn roll_back_to_savepoint(&mut self, who: Who) -> bool {
        let design = self.model.design;
        let Some(transaction) = self.client(who).transaction.as_mut() else {
            return false;
        };
        if !transaction.has_savepoint
            || matches!(
                transaction.step,
                Step::Committed | Step::Prepared | Step::HoldingOn
            )
        {
            return false;
        }
        transaction.step = Step::Ready;
        for lock in [
            &mut transaction.writer_lock,
            &mut transaction.change_lock,
            &mut transaction.takeover_lock,
        ] {
            lock.take_if(|level| *level == SAVEPOINT);
        }
        forget(&mut transaction.written);
        let undone = forget(&mut transaction.changes);
        if undone.iter().any(|(change, _)| *change == Change::Granted) {
            let goes_on = transaction.has_granted();
            if !goes_on || design == Design::GivesBackWhatItHolds {
                if goes_on {
                    transaction.step = Step::HoldingOn;
                }
                self.give_back();
            }
        }
        true
    }

    /// The takeover is undone: renewals may go on.
    fn give_back(&mut self) {
        if let Some(entry) = &mut self.state.entry {
            entry.is_taken = false;
        }
    }

    pub(super) fn hold_on(&mut self, who: Who) -> bool {
        let Some(transaction) = self.at(who, Step::HoldingOn) else {
            return false;
        };
        transaction.step = Step::Ready;
        if let Some(entry) = &mut self.state.entry {
            entry.is_taken = true;
        }
        true
    }

    pub(super) fn roll_back(&mut self, who: Who) -> bool {
        let client = self.client(who);
        let Some(transaction) = client
            .transaction
            .take_if(|own| !matches!(own.step, Step::Committed | Step::HoldingOn))
        else {
            return false;
        };
        if transaction.has_granted() {
            self.give_back();
        }
        true
    }

    /// Refused to whoever has changed a lease. What is left are locks and writes.
    pub(super) fn prepare(&mut self, who: Who) -> bool {
        let Some(transaction) = self.at(who, Step::Ready) else {
            return false;
        };
        if transaction.written.is_empty()
            || !transaction.changes.is_empty()
            || transaction.has_savepoint
        {
            return false;
        }
        transaction.step = Step::Prepared;
        true
    }

    pub(super) fn commit(&mut self, who: Who) -> bool {
        let current = self.state.row.map_or(0, |row| row.epoch);
        let highest = self.state.highest;
        let client = self.client(who);
        let Some(transaction) = client
            .transaction
            .as_mut()
            .filter(|own| matches!(own.step, Step::Ready | Step::Prepared))
        else {
            return false;
        };
        let granted: Vec<i64> = transaction
            .changes
            .iter()
            .filter(|(_, (change, _))| *change == Change::Granted)
            .map(|(_, (_, row))| row.epoch)
            .collect();
        let is_own = |epoch: i64| {
            granted.contains(&epoch) || epoch == client.token && !client.is_impersonated
        };
        let mut broken = None;
        if transaction
            .written
            .iter()
            .any(|(_, epoch)| *epoch < current)
        {
            broken = Some(Broken::StaleWrite);
        } else if transaction.written.iter().any(|(_, epoch)| !is_own(*epoch)) {
            broken = Some(Broken::WriteOfAnother);
        } else if granted.iter().any(|epoch| *epoch <= highest) {
            broken = Some(Broken::EpochNotAbove);
        }
        let row = transaction.own_row();
        if row.is_some() {
            transaction.step = Step::Committed;
            // Nothing but the changes and the locks counts any more.
            transaction.has_savepoint = false;
            transaction.was_locked = false;
            transaction.written.clear();
            transaction.snapshot = None;
        } else {
            client.transaction = None;
        }
        let others = self.state.clients.iter_mut().enumerate();
        for (_, other) in others.filter(|(other, _)| *other != usize::from(who)) {
            other.is_impersonated |= granted.contains(&other.token);
        }
        if row.is_some() {
            self.state.row = row;
        }
        self.state.highest = granted.into_iter().fold(highest, i64::max);
        self.state.broken = broken;
        true
    }

    pub(super) fn finish_commit(&mut self, who: Who) -> bool {
        if self.at(who, Step::Committed).is_none() {
            return false;
        }
        let Some(transaction) = self.client(who).transaction.take() else {
            return false;
        };
        for (_, (change, row)) in transaction.changes {
            let entry = &mut self.state.entry;
            match change {
                Change::Granted => {
                    *entry = Some(Entry {
                        epoch: row.epoch,
                        expires_in: row.expires_in,
                        ttl: row.ttl,
                        is_taken: false,
                    });
                    let client = self.client(who);
                    client.token = row.epoch;
                    client.told = row.expires_in;
                    client.is_impersonated = false;
                }
                Change::Ended => {
                    let held = entry.as_mut().filter(|entry| entry.epoch == row.epoch);
                    if let Some(entry) = held.filter(|entry| !entry.is_taken)
                        && self.model.design != Design::EndUntold
                    {
                        entry.epoch = 0;
                    }
                    self.disregard(row);
                }
            }
        }
        true
    }
}
