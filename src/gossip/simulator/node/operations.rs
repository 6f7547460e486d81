//! Operations of the log in a simulated node.

use std::collections::BTreeMap;

use super::{Handle, Node, Session, Standpoint, clock, join_clocks};
use crate::clock::vclock;
use crate::error::{self, Result};
use crate::gossip::report::{Reader, Report};
use crate::gossip::snapshot::Snapshot;
use crate::oplog::report::Operation;

/// Origin and number.
pub type Key = (String, i64);

#[derive(Clone, Debug)]
struct Kept {
    operation: Operation,
    local_xid: u64,
    is_learned: bool,
}

/// What is held, and what has been said of that, committed or by a transaction.
#[derive(Clone, Debug, Default)]
pub struct OperationTables {
    kept: BTreeMap<Key, Kept>,
    /// What is held completely through each peer.
    frontiers: BTreeMap<String, Vec<u8>>,
    /// What peers were told that is held completely, if they were told anything.
    told: Option<Vec<u8>>,
    next_seq: i64,
}

impl OperationTables {
    pub fn operations(&self) -> impl Iterator<Item = &Operation> {
        self.kept.values().map(|kept| &kept.operation)
    }

    fn tell(&mut self, frontier: &[u8]) {
        self.told = Some(match &self.told {
            Some(told) => join_clocks(told, frontier),
            None => frontier.to_vec(),
        });
    }
}

/// Of a node that was put back and goes on in the life it had, because nobody who was asked knew better: what it
/// appends then has numbers that may have been given out before.
pub fn is_doubtful(operation: &Operation) -> bool {
    operation.payload == "true"
}

/// The order within a transaction.
fn place(key: &Key) -> String {
    format!("~{:020}/{}", key.1, key.0)
}

fn covers(frontier: &[u8], operation: &Operation) -> bool {
    operation.xid.cast_unsigned() < clock(frontier).get(operation.origin.as_bytes())
}

impl Node {
    /// What is committed.
    pub fn operations(&self) -> impl Iterator<Item = &Operation> {
        self.operations.operations()
    }

    /// A node that does not know its life appends nothing.
    pub fn append(&mut self, handle: Handle) {
        if !self.is_confirmed {
            return;
        }
        // As a sequence, which no rollback puts back.
        self.operations.next_seq += 1;
        let seq = ((self.incarnation.cast_signed() - 1) << 40) + self.operations.next_seq;
        let xid = self.xid(handle);
        let operation = Operation {
            origin: self.actor(),
            seq,
            xid: xid.cast_signed(),
            hlc: "2026-11-22T07:00:00.000Z/0".to_owned(),
            op_id: format!("op-{seq:016x}{:016x}", self.machine.now),
            scope: "personal".to_owned(),
            surface: "skill".to_owned(),
            payload: (self.life != self.restored).to_string(),
            recorded_at: 0,
            tenant_id: None,
        };
        self.keep_operation(handle, operation, false);
    }

    fn keep_operation(&mut self, handle: Handle, operation: Operation, is_learned: bool) {
        let local_xid = self.xid(handle);
        let key = (operation.origin.clone(), operation.seq);
        let kept = Kept {
            operation,
            local_xid,
            is_learned,
        };
        self.transaction(handle).operations.kept.insert(key, kept);
    }

    /// Nothing arrives that the node has said it holds.
    pub fn commit_operations(&mut self, written: OperationTables) {
        for (key, kept) in &written.kept {
            let is_new = kept.is_learned && !self.operations.kept.contains_key(key);
            let is_own = kept.operation.origin == self.actor();
            if let Some(told) = &self.operations.told
                && is_new
                && !is_own
                && !is_doubtful(&kept.operation)
            {
                assert!(
                    !covers(told, &kept.operation),
                    "{} has said that it holds {key:?}, which arrives",
                    self.name
                );
            }
        }
        for (key, kept) in written.kept {
            self.operations.kept.entry(key).or_insert(kept);
        }
        for (peer, frontier) in written.frontiers {
            self.operations.frontiers.insert(peer, frontier);
        }
        if let Some(told) = written.told {
            self.operations.tell(&told);
        }
    }

    /// As `coord.op_frontier_of` has it.
    fn operations_frontier(&self, handle: Handle, snapshot: &Snapshot) -> Vec<u8> {
        let own = &self.open[&handle].operations;
        let tables = [&self.operations, own];
        let kept = tables.iter().flat_map(|tables| tables.kept.values());
        let last = kept.map(|kept| kept.local_xid).max();
        let number = last.map_or(0, |last| (last + 1).min(snapshot.xmin));
        let frontiers = tables.iter().flat_map(|tables| tables.frontiers.values());
        let learned = frontiers.fold(vclock::empty(), |held, frontier| {
            join_clocks(&held, frontier)
        });
        let own = vclock::from_entries([(self.actor().as_str(), number)]).expect("one entry");
        join_clocks(&learned, &own)
    }
}

impl Session<'_> {
    pub fn held_operations(&self) -> Vec<u8> {
        let snapshot = self.node.told_snapshot(self.handle, self.standpoint);
        self.node.operations_frontier(self.handle, &snapshot)
    }

    /// The same, which is about to be told. What counts this transaction in is told only if that commits.
    pub fn tell_operations(&mut self) -> Vec<u8> {
        let held = self.held_operations();
        match self.standpoint {
            Standpoint::BeforeCommit => self.node.operations.tell(&held),
            Standpoint::AfterCommit => self.node.transaction(self.handle).operations.tell(&held),
        }
        held
    }

    /// Number of the transaction, place in it, and the operation unless the reader holds it.
    pub fn changed_operations(&self, reader: &Reader) -> Vec<(u64, String, Option<Report>)> {
        let own = &self.node.open[&self.handle].operations.kept;
        let others = (self.node.operations.kept.iter()).filter(|(key, _)| !own.contains_key(*key));
        let of_reader = |kept: &Kept| {
            let operation = &kept.operation;
            (!covers(&reader.frontier, operation)).then(|| Report::Op(operation.clone()))
        };
        (own.iter().chain(others))
            .map(|(key, kept)| (kept.local_xid, place(key), of_reader(kept)))
            .collect()
    }

    pub fn learn_operation(&mut self, operation: &Operation) -> Result<()> {
        let key = (operation.origin.clone(), operation.seq);
        let own = &self.node.open[&self.handle].operations.kept;
        if own.contains_key(&key) || self.node.operations.kept.contains_key(&key) {
            return Ok(());
        }
        let brings_it = |kept: &Kept| kept.is_learned && kept.operation.origin == operation.origin;
        let is_locked = self.node.is_locked(self.handle, |other| {
            other.operations.kept.values().any(brings_it)
        });
        if is_locked {
            return Err(error::data_corrupted("could not obtain lock on row"));
        }
        self.node
            .keep_operation(self.handle, operation.clone(), true);
        Ok(())
    }

    pub fn raise_operations(&mut self, peer: &str, frontier: &[u8]) {
        let stored = self.node.operations.frontiers.get(peer);
        let raised =
            stored.map_or_else(|| frontier.to_vec(), |stored| join_clocks(stored, frontier));
        let own = &mut self.node.transaction(self.handle).operations;
        own.frontiers.insert(peer.to_owned(), raised);
    }
}
