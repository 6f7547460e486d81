//! What can happen, and what comes of it. The decisions are those of `grant`, and what a transaction
//! remembers is forgotten by `savepoint`; memory is here one word and one epoch, changed at once, as
//! its compare-and-swap does.

use super::state::{Change, Client, Entry, NOW, Row, State, Step, Transaction, Who};
use super::tenure::ticks;
use super::{Design, HandOver};
use crate::lease::grant::{Ended, Lease, Predecessor, Run};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Begin(Who),
    Savepoint(Who),
    ReleaseSavepoint(Who),
    RollBackToSavepoint(Who),
    RollBack(Who),
    Prepare(Who),
    Commit(Who),
    /// The transaction is seen to be over; memory is told, then the locks are released.
    FinishCommit(Who),
    /// Judges whether the lease can be had, before any lock.
    Ask(Who),
    LockForTakeover(Who),
    JudgeAgain(Who),
    /// Marks the entry and writes the row, which nobody else sees.
    TakeOver(Who),
    /// By the holder, or by an administrator. The lock, the look and the write are one step, since
    /// what they depend on cannot change in between.
    End(Who, Ended),
    LockForWriting(Who),
    /// Looks and writes to the protected table, which nobody else sees.
    Write(Who),
    MakeEntry(Who),
    HoldOn(Who),
    LookForRenewal(Who),
    Renew(Who),
    /// The worker writes the expiry to the table.
    WriteBack,
    PassTime,
    /// An unclean end, and a new start at once: a later one leaves clients less of what they were told,
    /// and the grace, which begins with it, is as long.
    Crash,
    RestartCleanly,
    BackUp,
    /// Of yesterday's table alone, as from a dump: nothing says how the memory then ended.
    Restore,
}

/// A state that is about to become another.
pub struct Steps<const CLIENTS: usize> {
    pub model: HandOver<CLIENTS>,
    pub state: State<CLIENTS>,
}

impl<const CLIENTS: usize> Steps<CLIENTS> {
    /// None where the action is not possible, or changes nothing.
    pub fn apply(mut self, action: Action) -> Option<State<CLIENTS>> {
        let is_possible = match action {
            Action::PassTime => self.pass_time(),
            Action::WriteBack => self.write_back(),
            Action::Crash => self.crash(),
            Action::RestartCleanly => self.restart_cleanly(),
            Action::BackUp => self.back_up(),
            Action::Restore => self.restore(),
            Action::Begin(who) => self.begin(who),
            Action::LookForRenewal(who) => self.look_for_renewal(who),
            Action::Renew(who) => self.renew(who),
            Action::Savepoint(who) => self.savepoint(who),
            Action::ReleaseSavepoint(who) => self.release_savepoint(who),
            Action::RollBackToSavepoint(who) => self.roll_back_to_savepoint(who),
            Action::RollBack(who) => self.roll_back(who),
            Action::Prepare(who) => self.prepare(who),
            Action::Commit(who) => self.commit(who),
            Action::FinishCommit(who) => self.finish_commit(who),
            Action::Ask(who) => self.ask(who),
            Action::LockForTakeover(who) => self.lock_for_takeover(who),
            Action::JudgeAgain(who) => self.judge_again(who),
            Action::TakeOver(who) => self.take_over(who),
            Action::End(who, ended) => self.end(who, ended),
            Action::LockForWriting(who) => self.lock_for_writing(who),
            Action::Write(who) => self.write(who),
            Action::MakeEntry(who) => self.make_entry_late(who),
            Action::HoldOn(who) => self.hold_on(who),
        };
        is_possible.then_some(self.state)
    }

    pub(super) fn client(&mut self, who: Who) -> &mut Client {
        &mut self.state.clients[usize::from(who)]
    }

    pub(super) fn transaction_of(&self, who: Who) -> Option<&Transaction> {
        self.state.clients[usize::from(who)].transaction.as_ref()
    }

    /// The transaction of a client, when it is at this point.
    pub(super) fn at(&mut self, who: Who, step: Step) -> Option<&mut Transaction> {
        let transaction = self.client(who).transaction.as_mut();
        transaction.filter(|transaction| transaction.step == step)
    }

    pub(super) fn others(&self, who: Who) -> impl Iterator<Item = &Transaction> {
        let clients = self.state.clients.iter().enumerate();
        clients
            .filter(move |(other, _)| *other != usize::from(who))
            .filter_map(|(_, client)| client.transaction.as_ref())
    }

    /// The life of the node, as the design knows it.
    pub(super) fn incarnation(&self) -> i64 {
        if self.model.design == Design::RestoreKeepsIncarnation {
            1
        } else {
            self.state.incarnation
        }
    }

    pub(super) fn nobody_takes_over(&self, who: Who) -> bool {
        self.others(who).all(|other| other.takeover_lock.is_none())
    }

    /// Whether an entry can be made beside all transactions.
    pub(super) fn nobody_at_all_changes(&self) -> bool {
        let clients = self.state.clients.iter();
        let mut transactions = clients.filter_map(|client| client.transaction.as_ref());
        transactions.all(|own| own.takeover_lock.is_none() && own.change_lock.is_none())
    }

    pub(super) fn nobody_changes(&self, who: Who) -> bool {
        self.others(who)
            .all(|other| other.takeover_lock.is_none() && other.change_lock.is_none())
    }

    pub(super) fn nobody_has_a_lock(&self, who: Who) -> bool {
        self.nobody_changes(who) && self.others(who).all(|other| other.writer_lock.is_none())
    }

    pub(super) fn run(&self) -> Run {
        let is_believed = self.state.predecessor_was_closed
            || self.model.design == Design::UncleanStartWithoutGrace;
        let memory = NOW - i64::from(self.state.memory_age);
        Run {
            memory,
            start: memory,
            predecessor: if is_believed {
                Predecessor::Closed { stepped: 0 }
            } else {
                Predecessor::Lost
            },
        }
    }

    /// The row with its expiry by memory, else by the table.
    pub(super) fn lease(&self, row: Row) -> Lease {
        let by_memory = self
            .state
            .entry
            .filter(|entry| entry.epoch == row.epoch)
            .map(|entry| entry.expires_in.into());
        row.lease(by_memory.unwrap_or_else(|| row.stored(self.run()).expiry(self.run())))
    }

    /// The latest snapshot: what is committed, and what the transaction has done itself.
    pub(super) fn latest(&self, who: Who) -> Option<Row> {
        self.transaction_of(who)
            .and_then(Transaction::own_row)
            .or(self.state.row)
    }

    pub(super) fn look(&self, who: Who) -> Option<Lease> {
        self.latest(who).map(|row| self.lease(row))
    }

    /// Memory makes an entry where there is none, and corrects one of another epoch by a grant that stands.
    pub(super) fn pin(&mut self, row: Option<Row>) -> &mut Entry {
        let takes_ended = self.model.design == Design::EntryOfEndedGrant;
        let known = row
            .filter(|row| row.ended.is_none() || takes_ended)
            .map(|row| Entry {
                epoch: row.epoch,
                expires_in: ticks(self.lease(row).expires_at),
                ttl: row.ttl,
                is_taken: false,
            });
        let entry = self.state.entry.get_or_insert(Entry {
            epoch: 0,
            expires_in: 0,
            ttl: 0,
            is_taken: false,
        });
        if let Some(known) = known
            && known.epoch != entry.epoch
            && !entry.is_taken
        {
            *entry = known;
        }
        entry
    }

    /// The token that a client uses: of the grant in its transaction, else of its last.
    pub(super) fn own_epoch(&self, who: Who) -> i64 {
        let own = self.transaction_of(who).and_then(|own| {
            let mut grants = own.changes.iter().rev();
            grants.find(|(_, (change, _))| *change == Change::Granted)
        });
        own.map_or(
            self.state.clients[usize::from(who)].token,
            |(_, (_, row))| row.epoch,
        )
    }

    /// Whoever gave the lease back does not believe to hold it, and whoever it was revoked from counts
    /// as if, since that is what revocation is for. What a renewal tells while the end commits is over
    /// when that returns, or when a crash comes before.
    pub(super) fn disregard(&mut self, ended: Row) {
        let holder = self.client(ended.holder);
        if holder.token == ended.epoch {
            holder.told = 0;
        }
    }
}
