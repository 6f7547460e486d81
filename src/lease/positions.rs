//! Where this process last saw the rows of resources: a worker asks for the same lease again and again,
//! and an acquisition looks twice.
//!
//! A position is only a guess. Whoever goes by it looks which row is there, and whether it is visible:
//! a resource has one visible row, so the row that bears its name is the one.

use std::cell::RefCell;

use crate::heap::Position;
use crate::varlena::hash_extended;

/// Resources whose rows are remembered; one pushes out another of the same slot.
const REMEMBERED: usize = 64;

#[derive(Clone, Copy)]
struct Seen {
    hash: i64,
    position: Position,
}

thread_local! {
    static SEEN: RefCell<[Option<Seen>; REMEMBERED]> = const { RefCell::new([None; REMEMBERED]) };
}

fn hash(resource: &str) -> i64 {
    hash_extended(resource.as_bytes(), 0)
}

fn slot(hash: i64) -> usize {
    hash.cast_unsigned() as usize % REMEMBERED
}

/// Where the row of the resource may be.
pub fn of(resource: &str) -> Option<Position> {
    let hash = hash(resource);
    let seen = SEEN.with_borrow(|all| all[slot(hash)]);
    seen.filter(|seen| seen.hash == hash)
        .map(|seen| seen.position)
}

pub fn remember(resource: &str, position: Position) {
    let hash = hash(resource);
    SEEN.with_borrow_mut(|all| all[slot(hash)] = Some(Seen { hash, position }));
}
