//! A write to a protected table.

use super::Design;
use super::state::{Broken, NOW, Row, Step, Who};
use super::steps::Steps;
use crate::lease::grant;

impl<const CLIENTS: usize> Steps<CLIENTS> {
    pub(super) fn lock_for_writing(&mut self, who: Who) -> bool {
        let epoch = self.own_epoch(who);
        let is_free = self.nobody_takes_over(who);
        let design = self.model.design;
        let Some(transaction) = self.at(who, Step::Ready) else {
            return false;
        };
        let is_locked = match design {
            Design::WriterTakesNoLock => true,
            Design::CheckRememberedOverSavepoint => transaction.was_locked,
            _ => transaction.writer_lock.is_some(),
        };
        if epoch == 0 || !(is_locked || is_free) {
            return false;
        }
        if !is_locked {
            transaction.writer_lock = Some(transaction.level());
            transaction.was_locked = design == Design::CheckRememberedOverSavepoint;
        }
        transaction.step = Step::Looking;
        true
    }

    pub(super) fn write(&mut self, who: Who) -> bool {
        let Some(transaction) = self.at(who, Step::Looking) else {
            return false;
        };
        transaction.step = Step::Ready;
        let epoch = self.own_epoch(who);
        if !self.is_current_by_memory(who, epoch) {
            if !self.is_current_by_table(who, epoch) {
                // An error undoes the savepoint, and without one the transaction.
                return self.roll_back_to_savepoint(who) || self.roll_back(who);
            }
            self.make_entry(who);
        }
        self.note_end(who, epoch);
        self.record_write(who, epoch);
        true
    }

    fn has_changed(&self, who: Who) -> bool {
        self.transaction_of(who)
            .is_some_and(|own| !own.changes.is_empty())
    }

    fn is_current_by_memory(&self, who: Who, epoch: i64) -> bool {
        let is_believed = match self.model.design {
            Design::OwnChangeOverlooked => true,
            Design::WriterLooksWithItsSnapshot => false,
            _ => !self.has_changed(who),
        };
        let entry = self.state.entry.filter(|entry| entry.epoch == epoch);
        is_believed
            && entry.is_some_and(|entry| grant::is_before_expiry(NOW, entry.expires_in.into()))
    }

    fn is_current_by_table(&self, who: Who, epoch: i64) -> bool {
        let found = if self.model.design == Design::WriterLooksWithItsSnapshot {
            self.transaction_of(who).and_then(|own| own.snapshot)
        } else {
            self.latest(who)
        };
        let lease = found.map(|row| self.lease(row));
        grant::check_token(lease.as_ref(), epoch, NOW).is_ok()
    }

    fn make_entry(&mut self, who: Who) {
        if self.has_changed(who) {
            return;
        }
        let found = self.state.row;
        if self.model.design != Design::EntryOfOldLook {
            if self.nobody_changes(who) {
                self.pin(found);
            }
        } else if let Some(transaction) = &mut self.client(who).transaction {
            transaction.step = Step::Making;
            transaction.snapshot = found;
        }
    }

    pub(super) fn make_entry_late(&mut self, who: Who) -> bool {
        let Some(transaction) = self.at(who, Step::Making) else {
            return false;
        };
        transaction.step = Step::Ready;
        let found = transaction.snapshot.take();
        self.pin(found);
        true
    }

    /// Whoever ends a grant is not done before shared memory has been told, and until then a write may pass.
    fn note_end(&mut self, who: Who, epoch: i64) {
        let is_ended = |row: Row| row.epoch == epoch && row.ended.is_some();
        let is_done = self.others(who).all(|other| other.step != Step::Committed);
        if self.latest(who).is_some_and(is_ended) && is_done {
            self.state.broken = Some(Broken::WriteAfterEnd);
        }
    }

    fn record_write(&mut self, who: Who, epoch: i64) {
        let Some(transaction) = &mut self.client(who).transaction else {
            return;
        };
        let mut written = transaction.written.iter();
        if !written.any(|(_, written)| *written == epoch) {
            let level = transaction.level();
            transaction.written.push((level, epoch));
        }
    }
}
