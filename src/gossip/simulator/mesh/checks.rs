//! What must hold after every step, and once everything has ended.

use std::collections::{BTreeMap, BTreeSet};

use super::super::ledger;
use super::super::node::{Change, Committed, Handle, Node, clock, counter_of, join_states, parsed};
use super::Mesh;
use crate::clock::vclock;
use crate::crdt::constraint_state as state;
use crate::gossip::protocol::{Holding, Message};

impl Mesh {
    /// No element that was removed comes back with what is about to be committed.
    pub(super) fn check_elements(&mut self, place: usize, handle: Handle) {
        let node = &self.nodes[place];
        for change in node.pending(handle) {
            ledger::check_not_resurrected(&node.name, &change);
            self.ledger.note(&change);
        }
    }

    /// What a message claims, the node holds durably by the time it leaves.
    pub(super) fn check_told(&mut self, node: usize, message: &Message) {
        let Some(claim) = message.claim.as_ref().filter(|_| self.is_checked) else {
            return;
        };
        let held = self.nodes[node].held();
        assert!(
            vclock::covers(clock(&held.frontier), clock(&claim.frontier)),
            "{} claims {} and holds {}",
            self.nodes[node].name,
            vclock::to_text(clock(&claim.frontier)),
            vclock::to_text(clock(&held.frontier)),
        );
    }

    /// A fresh commit lies below nobody's frontier.
    pub(super) fn check_changes(&mut self, origin: usize, committed: &Committed) {
        for change in &committed.changes {
            let actor = &change.actor;
            for place in (0..self.nodes.len()).filter(|place| *place != origin) {
                let frontier = self.nodes[place].held().frontier;
                let complete = clock(&frontier).get(actor.as_bytes());
                assert!(
                    change.xid >= complete,
                    "n{place} calls {actor} complete below {complete}; {} commits now",
                    change.xid
                );
            }
        }
    }

    /// The node holds what its frontier says, and nothing that its ceiling excludes.
    pub(super) fn check_node(&mut self, place: usize) {
        let held = self.nodes[place].held();
        let node = &self.nodes[place];
        assert!(
            vclock::covers(clock(&held.ceiling), clock(&held.frontier)),
            "ceiling below frontier"
        );
        if !self.allows_mistrust {
            assert_eq!(
                node.mistrusted(),
                0,
                "{} sees corruption where there is none",
                node.name
            );
        }
        for origin in &self.nodes {
            // Others may have done by themselves what a node that was put back has lost untold.
            if origin.name == node.name && node.was_put_back() {
                continue;
            }
            for (name, changes) in &origin.history {
                let actors: BTreeSet<&str> =
                    changes.iter().map(|change| change.actor.as_str()).collect();
                for actor in actors {
                    let changes = changes.iter().filter(|change| change.actor == actor);
                    Self::check_complete(node, &held, name, actor, changes.clone());
                    // A new life tells all it holds as one change of its own, whoever did it.
                    if !self.has_restored {
                        Self::check_nothing_above(node, &held, name, actor, changes);
                    }
                }
            }
        }
    }

    /// A node holds of the changes one actor made to a state those below its frontier.
    fn check_complete<'c>(
        node: &Node,
        held: &Holding,
        name: &str,
        actor: &str,
        mut changes: impl DoubleEndedIterator<Item = &'c Change>,
    ) {
        let frontier = clock(&held.frontier).get(actor.as_bytes());
        let value = node.value(name);
        // Later changes of a state cover earlier ones.
        if let Some(last) = changes.rfind(|change| change.xid < frontier) {
            assert!(
                value.is_some_and(|value| state::covers(parsed(value), parsed(&last.value))),
                "{} calls {actor} complete below {frontier} and lacks {name} of {}",
                node.name,
                last.xid
            );
        }
    }

    /// And none at or above its ceiling.
    fn check_nothing_above<'c>(
        node: &Node,
        held: &Holding,
        name: &str,
        actor: &str,
        mut changes: impl Iterator<Item = &'c Change>,
    ) {
        let ceiling = clock(&held.ceiling).get(actor.as_bytes());
        let value = node.value(name);
        let counter = value.map_or(0, |value| counter_of(value, actor));
        let is_above = |change: &&Change| {
            change.is_event && change.counter <= counter && change.xid >= ceiling
        };
        if let Some(above) = changes.find(is_above) {
            panic!(
                "{} has {name} of {actor} {}, above its ceiling {ceiling}",
                node.name, above.xid
            );
        }
    }

    /// After everything has ended: all hold the merge of all that was committed.
    pub fn check_end(&mut self) {
        let mut expected: BTreeMap<&str, Vec<u8>> = BTreeMap::new();
        for change in self
            .nodes
            .iter()
            .flat_map(|node| node.history.values().flatten())
        {
            let merged = expected.get(change.name.as_str()).map_or_else(
                || change.value.clone(),
                |value| join_states(value, &change.value),
            );
            expected.insert(&change.name, merged);
        }
        for node in &self.nodes {
            let content = node.content();
            assert_eq!(
                content.len(),
                expected.len(),
                "{} has other states",
                node.name
            );
            for (name, value) in &expected {
                assert_eq!(content[name], value.as_slice(), "{name} at {}", node.name);
                let satisfied = self.satisfied.get(*name).copied().unwrap_or(0);
                // What was put back may have lost some.
                assert!(
                    self.has_restored || parsed(value).satisfied_total() == satisfied,
                    "{name} at {}",
                    node.name
                );
            }
            self.ledger.check(node);
        }
    }
}
