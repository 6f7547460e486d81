//! Where this process last saw the rows of resources: a worker asks for the same lease again and again,
//! and an acquisition looks twice.
//!
//! A position is only a guess. Whoever goes by it looks which row is there, and whether it is visible:
//! a resource has one visible row, so the row that bears its name is the one.

use std::cell::RefCell;

use crate::heap::Position;
use crate::varlena::hash_extended;

/// Resources whose rows are remembered; one pushes out another that hashes alike.
const REMEMBERED: usize = 64;

thread_local! {
    static POSITIONS: RefCell<[Option<Position>; REMEMBERED]> =
        const { RefCell::new([None; REMEMBERED]) };
}

fn slot(resource: &str) -> usize {
    hash_extended(resource.as_bytes(), 0).cast_unsigned() as usize % REMEMBERED
}

/// Where the row of the resource may be.
pub fn of(resource: &str) -> Option<Position> {
    POSITIONS.with_borrow(|positions| positions[slot(resource)])
}

pub fn remember(resource: &str, position: Position) {
    POSITIONS.with_borrow_mut(|positions| positions[slot(resource)] = Some(position));
}
