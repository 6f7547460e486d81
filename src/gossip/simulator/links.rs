//! Which ways between nodes are cut.
//!
//! An exchange has two legs, and each can be cut by itself: a firewall lets one side call and not
//! the other, and a broken route carries what is asked but not what is answered.

use std::collections::BTreeSet;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Leg {
    Request,
    Answer,
}

/// Legs that are cut, each of the exchanges that one node begins with another.
#[derive(Debug, Default)]
pub struct Links {
    cut: BTreeSet<(usize, usize, Leg)>,
}

impl Links {
    pub fn is_cut(&self, caller: usize, called: usize, leg: Leg) -> bool {
        self.cut.contains(&(caller, called, leg))
    }

    pub fn cut_leg(&mut self, caller: usize, called: usize, leg: Leg) {
        self.cut.insert((caller, called, leg));
    }

    /// Nothing that one node sends reaches the other: neither what it asks nor what it answers.
    pub fn cut_one_way(&mut self, from: usize, to: usize) {
        self.cut_leg(from, to, Leg::Request);
        self.cut_leg(to, from, Leg::Answer);
    }

    pub fn cut(&mut self, a: usize, b: usize) {
        self.cut_one_way(a, b);
        self.cut_one_way(b, a);
    }

    /// Cuts every link between a group and the others.
    pub fn divide(&mut self, size: usize, group: &BTreeSet<usize>) {
        for &inside in group {
            for outside in (0..size).filter(|node| !group.contains(node)) {
                self.cut(inside, outside);
            }
        }
    }

    pub fn heal(&mut self) {
        self.cut.clear();
    }
}
