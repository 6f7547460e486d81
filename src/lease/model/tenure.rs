//! A lease is asked for, taken over, renewed and given back.

use super::Design;
use super::state::{Change, NOW, Row, Step, Ticks, Transaction, Who, name, request};
use super::steps::Steps;
use crate::lease::grant::{self, Decision, Ended};
use crate::lease::report::Elsewhere;

pub fn ticks(expires_at: i64) -> Ticks {
    Ticks::try_from(expires_at.max(NOW)).unwrap_or(Ticks::MAX)
}

impl<const CLIENTS: usize> Steps<CLIENTS> {
    fn can_change(&self, who: Who) -> bool {
        self.transaction_of(who).is_some_and(|own| {
            own.step == Step::Ready && own.changes.len() < self.model.most_changes
        })
    }

    pub(super) fn ask(&mut self, who: Who) -> bool {
        if !self.can_change(who) {
            return false;
        }
        let found = self.look(who);
        let own = self.transaction_of(who).and_then(Transaction::own_row);
        let decision = grant::decide(
            found.as_ref(),
            &Elsewhere::default(),
            request(who),
            || Ok(self.incarnation()),
            NOW,
        );
        match (decision, found) {
            (Ok(Decision::Grant { epoch }), _) => {
                // It is decided under the lock, where the life of the node is looked at too.
                let epoch = match self.model.design {
                    Design::TakeoverJudgesOnce => epoch,
                    _ => 0,
                };
                if let Some(transaction) = self.at(who, Step::Ready) {
                    transaction.step = Step::Waiting { epoch };
                }
                true
            }
            // Its own grant, whose answer it may have lost.
            (Ok(Decision::Repeat), Some(lease)) if own.is_none() => {
                let client = self.client(who);
                let told = ticks(lease.expires_at);
                let is_new = (client.token, client.told) != (lease.epoch, told);
                client.is_impersonated &= client.token == lease.epoch;
                (client.token, client.told) = (lease.epoch, told);
                is_new
            }
            _ => false,
        }
    }

    pub(super) fn lock_for_takeover(&mut self, who: Who) -> bool {
        let Some(Step::Waiting { epoch }) = self.transaction_of(who).map(|own| own.step) else {
            return false;
        };
        if !self.nobody_has_a_lock(who) {
            return false;
        }
        if let Some(transaction) = self.at(who, Step::Waiting { epoch }) {
            transaction.takeover_lock.get_or_insert(transaction.level());
            transaction.step = Step::Locked { epoch };
        }
        true
    }

    pub(super) fn judge_again(&mut self, who: Who) -> bool {
        let Some(Step::Locked { epoch: before }) = self.transaction_of(who).map(|own| own.step)
        else {
            return false;
        };
        let found = self.look(who);
        let decision = if self.model.design == Design::TakeoverJudgesOnce {
            Decision::Grant { epoch: before }
        } else {
            grant::decide(
                found.as_ref(),
                &Elsewhere::default(),
                request(who),
                || Ok(self.incarnation()),
                NOW,
            )
            .unwrap_or(Decision::Held)
        };
        match decision {
            Decision::Grant { epoch } => {
                if let Some(transaction) = self.at(who, Step::Locked { epoch: before }) {
                    transaction.step = Step::Judged { epoch, age: 0 };
                }
            }
            Decision::Held | Decision::HeldElsewhere | Decision::Repeat => self.step_back(who),
        }
        true
    }

    /// The lease has been renewed or granted meanwhile: the lock is given back, unless an earlier grant
    /// of the same transaction has it too, since the lock manager counts.
    fn step_back(&mut self, who: Who) {
        if let Some(transaction) = &mut self.client(who).transaction {
            transaction.step = Step::Ready;
            if !transaction.has_granted() {
                transaction.takeover_lock = None;
            }
        }
    }

    pub(super) fn take_over(&mut self, who: Who) -> bool {
        let Some(Step::Judged { epoch, age }) = self.transaction_of(who).map(|own| own.step) else {
            return false;
        };
        let judges = self.model.design != Design::TakeoverJudgesOnce;
        let has_ended = self.look(who).is_none_or(|lease| lease.ended.is_some());
        let ttl = self.model.ttl;
        let entry = self.pin(self.latest(who));
        // The server compares with the time of the judgement, and so refuses more.
        if judges && !has_ended && NOW < i64::from(entry.expires_in) {
            self.step_back(who);
            return true;
        }
        entry.is_taken = true;
        let row = Row {
            holder: who,
            epoch,
            expires_in: ttl.saturating_sub(age),
            ttl,
            is_of_this_memory: true,
            ended: None,
        };
        self.change(who, Change::Granted, row);
        true
    }

    fn change(&mut self, who: Who, change: Change, row: Row) {
        if let Some(transaction) = &mut self.client(who).transaction {
            let level = transaction.level();
            transaction.step = Step::Ready;
            transaction.changes.push((level, (change, row)));
        }
    }

    pub(super) fn end(&mut self, who: Who, ended: Ended) -> bool {
        if !self.can_change(who) || !self.nobody_changes(who) {
            return false;
        }
        let (Some(row), Some(lease)) = (self.latest(who), self.look(who)) else {
            return false;
        };
        let is_allowed = match ended {
            Ended::Released => {
                let epoch = self.own_epoch(who);
                grant::check_claim(Some(&lease), name(who), epoch).is_ok()
            }
            Ended::Revoked => lease.ended.is_none(),
        };
        if !is_allowed {
            return false;
        }
        if let Some(transaction) = &mut self.client(who).transaction {
            transaction.change_lock.get_or_insert(transaction.level());
        }
        let row = Row {
            ended: Some(ended),
            ..row
        };
        self.change(who, Change::Ended, row);
        true
    }

    /// Renewals come from another session of the client than its transaction, at any time.
    pub(super) fn look_for_renewal(&mut self, who: Who) -> bool {
        let longest = self.model.longest();
        let lease = self.state.row.map(|row| self.lease(row));
        let client = self.client(who);
        if client.token == 0 || client.renewal.is_some() {
            return false;
        }
        let may_renew = grant::check_claim(lease.as_ref(), name(who), client.token).is_ok();
        if may_renew {
            client.renewal = Some(longest);
        }
        may_renew
    }

    pub(super) fn renew(&mut self, who: Who) -> bool {
        let longest = self.model.longest();
        let ignores_takeover = self.model.design == Design::RenewalIgnoresTakeover;
        let client = &mut self.state.clients[usize::from(who)];
        let Some(expires_in) = client.renewal.take() else {
            return false;
        };
        let token = client.token;
        let entry = self.state.entry.as_mut();
        match entry.filter(|entry| entry.epoch == token) {
            // Made while the lock is held that changes take, and then tried again.
            None => {
                let claim = self.state.row.map(|row| self.lease(row));
                if self.nobody_at_all_changes()
                    && grant::check_claim(claim.as_ref(), name(who), token).is_ok()
                {
                    self.pin(self.state.row);
                }
            }
            Some(entry) if entry.is_taken && !ignores_takeover => {}
            Some(entry) => {
                entry.expires_in = expires_in;
                entry.ttl = longest;
                client.told = expires_in;
            }
        }
        true
    }
}
