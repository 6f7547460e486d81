//! What was removed from sets, written down when it was removed and apart from every merge: the
//! judge of whether an element that is there has come back from the dead.

use std::collections::{BTreeMap, BTreeSet};

use super::node::{Node, Pending, parsed};
use crate::crdt::constraint_state::ConstraintState;

/// An event that put an element in force: actor and counter.
type Dot = (Vec<u8>, u64);

/// Per state and element the events that somebody who had seen them removed or renewed.
#[derive(Debug, Default)]
pub struct Ledger {
    removed: BTreeMap<(String, String), BTreeSet<Dot>>,
}

fn dots(state: ConstraintState, id: &str) -> BTreeSet<Dot> {
    let dots = state.dots_of(id).into_iter();
    dots.map(|(actor, counter)| (actor.to_vec(), counter))
        .collect()
}

impl Ledger {
    /// Writes down what a local change that is about to be committed takes out.
    pub fn note(&mut self, change: &Pending) {
        let Some(old) = change.old.filter(|_| change.is_local).map(parsed) else {
            return;
        };
        for id in old.ids() {
            let kept = dots(parsed(change.new), &id);
            let taken_out = dots(old, &id).into_iter().filter(|dot| !kept.contains(dot));
            self.removed
                .entry((change.name.to_owned(), id.to_string()))
                .or_default()
                .extend(taken_out);
        }
    }

    /// After a node was put back: a removal that no node knows of any more has not happened.
    pub fn forget_what_nobody_knows(&mut self, nodes: &[Node]) {
        for ((name, id), removed) in &mut self.removed {
            removed.retain(|dot| nodes.iter().any(|node| knows_removed(node, name, id, dot)));
        }
    }

    /// Once all agree: no element is there by an event that was removed.
    pub fn check(&self, node: &Node) {
        for ((name, id), removed) in &self.removed {
            let Some(value) = node.value(name) else {
                continue;
            };
            let back: Vec<Dot> = dots(parsed(value), id)
                .intersection(removed)
                .cloned()
                .collect();
            assert!(
                back.is_empty(),
                "{id} of {name} was removed and is back at {}: {back:?}",
                node.name
            );
        }
    }
}

fn knows_removed(node: &Node, name: &str, id: &str, dot: &Dot) -> bool {
    node.known_values(name).any(|value| {
        let state = parsed(value);
        state.has_seen((&dot.0, dot.1)) && !dots(state, id).contains(dot)
    })
}

/// An element that a node had seen and removed does not come back to it without an event that the
/// node had not seen.
pub fn check_not_resurrected(node: &str, change: &Pending) {
    let Some(old) = change.old.map(parsed) else {
        return;
    };
    let new = parsed(change.new);
    for id in new.ids().filter(|id| !old.contains(id)) {
        assert!(
            new.dots_of(&id).into_iter().all(|dot| !old.has_seen(dot)),
            "{id} of {} was removed at {node} and comes back by what it had seen",
            change.name
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::node::Operation::Add;
    use super::*;
    use crate::crdt::constraint_state::{add, empty, remove};

    fn added() -> Vec<u8> {
        add(parsed(&empty()), "zone", "n0").expect("an element")
    }

    fn removed() -> Vec<u8> {
        remove(parsed(&added()), "zone").expect("a removal")
    }

    fn pending<'v>(old: &'v [u8], new: &'v [u8]) -> Pending<'v> {
        Pending {
            name: "s",
            old: Some(old),
            new,
            is_local: true,
        }
    }

    /// A node that holds the element by its first event, which was removed.
    fn node_with_what_was_removed() -> (Node, Ledger) {
        let mut ledger = Ledger::default();
        ledger.note(&pending(&added(), &removed()));
        let mut node = Node::new("n0");
        let handle = node.begin();
        node.write(handle, "s", Add("zone"));
        node.commit(handle);
        (node, ledger)
    }

    #[test]
    #[should_panic(expected = "comes back by what it had seen")]
    fn what_was_seen_and_removed_does_not_come_back() {
        check_not_resurrected("n0", &pending(&removed(), &added()));
    }

    #[test]
    fn what_is_added_again_does() {
        let again = add(parsed(&removed()), "zone", "n0").expect("an element");
        check_not_resurrected("n0", &pending(&removed(), &again));
    }

    #[test]
    #[should_panic(expected = "was removed and is back")]
    fn the_ledger_remembers_what_was_removed() {
        let (node, ledger) = node_with_what_was_removed();
        ledger.check(&node);
    }

    #[test]
    fn the_ledger_forgets_what_nobody_knows() {
        let (node, mut ledger) = node_with_what_was_removed();
        ledger.forget_what_nobody_knows(std::slice::from_ref(&node));
        ledger.check(&node);
    }
}
