//! A write to a protected table.

use super::Design;
use super::state::{NOW, Row, Step, Who};
use super::steps::Steps;
use crate::lease::grant;
use crate::lease::savepoint::Level;

/// Values by level, at most one for each: a later one of the same level hides the earlier for good.
pub fn put<T: PartialEq>(values: &mut Vec<(Level, T)>, level: Level, value: T) {
    match values.last_mut() {
        Some(last) if last.0 == level => last.1 = value,
        Some(last) if last.1 == value => {}
        _ => values.push((level, value)),
    }
}

impl<const CLIENTS: usize> Steps<CLIENTS> {
    fn remembered(&self, who: Who) -> Option<Row> {
        self.transaction_of(who)?.admitted.last()?.1
    }

    fn passes(&self, row: Option<Row>, epoch: i64) -> bool {
        let lease = row.map(|row| self.lease(row));
        grant::check_token(lease.as_ref(), epoch, NOW).is_ok()
    }

    pub(super) fn lock_for_writing(&mut self, who: Who) -> bool {
        let epoch = self.own_epoch(who);
        let is_admitted = self
            .remembered(who)
            .is_some_and(|row| self.passes(Some(row), epoch));
        let is_free = self.nobody_takes_over(who);
        let design = self.model.design;
        let Some(transaction) = self.at(who, Step::Ready) else {
            return false;
        };
        let is_locked = !transaction.admitted.is_empty() || design == Design::WriterTakesNoLock;
        if epoch == 0 || is_admitted || !(is_locked || is_free) {
            return false;
        }
        if !is_locked {
            transaction.writer_lock.get_or_insert(transaction.level());
        }
        transaction.step = Step::Looking;
        true
    }

    pub(super) fn write(&mut self, who: Who) -> bool {
        let Some(transaction) = self.at(who, Step::Looking) else {
            return false;
        };
        transaction.step = Step::Ready;
        let snapshot = transaction.snapshot;
        let found = if self.model.design == Design::WriterLooksWithItsSnapshot {
            snapshot
        } else {
            self.latest(who)
        };
        let epoch = self.own_epoch(who);
        if !self.passes(found, epoch) {
            // An error undoes the savepoint, and without one the transaction.
            return self.roll_back_to_savepoint(who) || self.roll_back(who);
        }
        // Where there is no lock there is nothing to remember.
        if self.model.design != Design::WriterTakesNoLock
            && let Some(transaction) = &mut self.client(who).transaction
        {
            let level = transaction.level();
            put(&mut transaction.admitted, level, found);
        }
        self.record_write(who, epoch);
        true
    }

    pub(super) fn write_again(&mut self, who: Who) -> bool {
        let epoch = self.own_epoch(who);
        let found = self.remembered(who);
        if found.is_none() || !self.passes(found, epoch) || self.at(who, Step::Ready).is_none() {
            return false;
        }
        self.record_write(who, epoch)
    }

    /// False when the transaction has written under this epoch already.
    fn record_write(&mut self, who: Who, epoch: i64) -> bool {
        let Some(transaction) = &mut self.client(who).transaction else {
            return false;
        };
        let is_new = !transaction
            .written
            .iter()
            .any(|(_, written)| *written == epoch);
        if is_new {
            let level = transaction.level();
            transaction.written.push((level, epoch));
        }
        is_new
    }
}
