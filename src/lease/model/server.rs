//! What happens to the server as a whole.

use super::Design;
use super::state::{Change, Row, Step, Who};
use super::steps::Steps;
use super::tenure::ticks;

impl<const CLIENTS: usize> Steps<CLIENTS> {
    pub(super) fn pass_time(&mut self) -> bool {
        let longest = self.model.longest();
        self.state.pass_time(longest);
        true
    }

    /// Leaves out a row that a transaction is changing, and an entry that is being taken over.
    pub(super) fn write_back(&mut self) -> bool {
        let is_changed = self
            .state
            .clients
            .iter()
            .filter_map(|client| client.transaction.as_ref())
            .any(|own| own.step != Step::Committed && !own.changes.is_empty());
        let (Some(row), Some(entry)) = (&mut self.state.row, self.state.entry) else {
            return false;
        };
        let before = *row;
        if !is_changed && !entry.is_taken && entry.epoch == row.epoch {
            row.expires_in = entry.expires_in;
            row.ttl = row.ttl.max(entry.ttl);
            row.is_of_this_memory = true;
        }
        *row != before
    }

    /// What has been told of, and what is prepared, is on disk. Nothing else is left.
    fn stop(&mut self) {
        for who in 0..CLIENTS {
            let client = &mut self.state.clients[who];
            client.renewal = None;
            let lost = client.transaction.take_if(|own| own.step != Step::Prepared);
            let committed = lost.filter(|own| own.step == Step::Committed);
            for (_, (change, row)) in committed.into_iter().flat_map(|own| own.changes) {
                if change == Change::Ended {
                    self.disregard(row);
                }
            }
        }
        self.state.entry = None;
        self.state.memory_age = 0;
        if let Some(row) = &mut self.state.row {
            row.is_of_this_memory = false;
        }
    }

    pub(super) fn crash(&mut self) -> bool {
        self.stop();
        self.state.predecessor_was_closed = false;
        true
    }

    /// Sessions end first, then the worker writes back.
    pub(super) fn restart_cleanly(&mut self) -> bool {
        for who in Who::MIN..CLIENTS as Who {
            self.end_session(who);
        }
        self.write_back();
        let run = self.run();
        if self.model.design != Design::CleanStopForgetsGrace
            && let Some(row) = &mut self.state.row
        {
            row.expires_in = ticks(row.stored(run).expiry(run));
        }
        self.stop();
        self.state.predecessor_was_closed = true;
        true
    }

    fn end_session(&mut self, who: Who) {
        let step = self.transaction_of(who).map(|own| own.step);
        match step {
            Some(Step::Committed) => {
                self.finish_commit(who);
            }
            Some(Step::HoldingOn) => {
                self.hold_on(who);
                self.roll_back(who);
            }
            Some(Step::Prepared) | None => {}
            Some(_) => {
                self.roll_back(who);
            }
        }
    }

    pub(super) fn back_up(&mut self) -> bool {
        let is_possible = self.state.backup.is_none() && self.state.incarnation == 1;
        if is_possible {
            self.state.backup = Some(self.state.row.map(|row| Row {
                is_of_this_memory: false,
                ..row
            }));
        }
        is_possible
    }

    /// Who was told what by a history that is now cut off, this server cannot know; it is told anew
    /// only by what the backup has. So this is where two clients may both believe to hold the lease.
    pub(super) fn restore(&mut self) -> bool {
        let Some(row) = self.state.backup.take() else {
            return false;
        };
        self.stop();
        self.state.row = row;
        self.state.predecessor_was_closed = true;
        self.state.incarnation += 1;
        for client in &mut self.state.clients {
            client.transaction = None;
            client.told = 0;
        }
        true
    }
}
