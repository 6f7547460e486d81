//! Merging in memory: the crates a user would otherwise take. Prints `name nanoseconds` lines.

use std::hint::black_box;
use std::time::Instant;

use constraint_crdt::merge::Merge;
use constraint_crdt::state::ConstraintState;
use crdts::{CvRDT, VClock};

const ROUNDS: usize = 9;

/// Median over rounds of the time one call takes.
fn nanoseconds(calls: u32, mut work: impl FnMut()) -> f64 {
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            for _ in 0..calls {
                work();
            }
            start.elapsed().as_nanos() as f64 / f64::from(calls)
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    rounds[ROUNDS / 2]
}

/// Actors as the SQL side names them; every second counter is ahead on either side.
fn clock(entries: u64, parity: u64) -> VClock<String> {
    let mut clock = VClock::new();
    for i in 0..entries {
        let ahead = u64::from(i % 2 == parity);
        clock.apply_inc_to(&format!("actor{i:05}"), i + 1 + ahead);
    }
    clock
}

trait IncrementTo {
    fn apply_inc_to(&mut self, actor: &str, counter: u64);
}

impl IncrementTo for VClock<String> {
    fn apply_inc_to(&mut self, actor: &str, counter: u64) {
        crdts::CmRDT::apply(self, crdts::Dot::new(actor.to_owned(), counter));
    }
}

fn vclock_merge(entries: u64) -> f64 {
    let (left, right) = (clock(entries, 0), clock(entries, 1));
    nanoseconds(2_000_000 / (entries as u32 * 10), || {
        let mut merged = black_box(&left).clone();
        merged.merge(black_box(right.clone()));
        black_box(merged);
    })
}

/// 50 constraints on either side, 25 of them shared.
fn constraint_merge() -> f64 {
    let (mut left, mut right) = (ConstraintState::new("a"), ConstraintState::new("b"));
    for i in 0..25 {
        left.add_constraint(&format!("constraint{i:02}"));
    }
    right.merge(&left);
    for i in 25..50 {
        left.add_constraint(&format!("constraint{i:02}"));
        right.add_constraint(&format!("constraint{:02}", i + 25));
    }
    nanoseconds(5_000, || {
        let mut merged = black_box(&left).clone();
        merged.merge(black_box(&right));
        black_box(merged);
    })
}

fn main() {
    println!("crdts_16 {:.0}", vclock_merge(16));
    println!("crdts_256 {:.0}", vclock_merge(256));
    println!("constraint_crdt {:.0}", constraint_merge());
}
