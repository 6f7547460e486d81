//! Where this process last saw rows that are looked for again and again: agents come back to the same lease and the
//! same conversation.
//!
//! A position is only a guess. Whoever goes by it looks which row is there, and whether it is visible.

use std::collections::HashMap;

use crate::heap::Position;
use crate::varlena::hash_extended;

/// More are not remembered: some hundred kilobytes.
const MOST: usize = 4_096;

/// Positions by a hash of what the rows are called.
#[derive(Default)]
pub struct Positions(HashMap<i64, Position>);

fn hash(names: &[&str]) -> i64 {
    let seeded = |seed: i64, name: &&str| hash_extended(name.as_bytes(), seed);
    names.iter().fold(0, seeded)
}

impl Positions {
    /// Where the row of these names may be.
    pub fn of(&self, names: &[&str]) -> Option<Position> {
        self.0.get(&hash(names)).copied()
    }

    pub fn remember(&mut self, names: &[&str], position: Position) {
        if self.0.len() == MOST {
            self.0.clear();
        }
        self.0.insert(hash(names), position);
    }
}
