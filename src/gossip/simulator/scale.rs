//! How time and traffic grow with the mesh, and who waits for whom.

use std::collections::BTreeSet;

use super::mesh::Mesh;
use super::{EVERYBODY, pairs, record, settled, total};
use crate::gossip::protocol::MAX_STEPS;

const FANOUT: usize = 3;

/// Rounds in which everything is to be known everywhere, without loss.
fn bound(size: usize) -> u32 {
    (2.0 * (size as f64).log2() + 4.0).floor() as u32
}

/// What it takes until all nodes hold the same and know it.
struct Spread {
    rounds: u32,
    /// An exchange goes on while it brings news, so one round can carry a change far; what takes time
    /// is its round trips.
    round_trips: u32,
    messages: u64,
    bytes: u64,
}

/// Rounds with three random peers each until all is known to be equal.
fn spread(size: usize, seed: u64, writers: usize) -> Spread {
    let mut mesh = Mesh::new(size, seed);
    mesh.is_checked = size < 100;
    for node in 0..writers {
        record(&mut mesh, node, "s", 1);
    }
    let rounds = mesh.rounds_to_converge(FANOUT, bound(size));
    assert_eq!(total(&mesh, size - 1, "s"), writers as u128);
    Spread {
        rounds,
        round_trips: mesh.waves,
        // Nothing is lost: each request has its answer.
        messages: 2 * mesh.traffic.requests,
        bytes: mesh.traffic.bytes,
    }
}

/// Prints the worst of some runs.
fn measure(size: usize, writers: usize, seeds: u64) {
    let runs: Vec<Spread> = (0..seeds).map(|seed| spread(size, seed, writers)).collect();
    let worst = |of: fn(&Spread) -> u64| runs.iter().map(of).max().unwrap_or(0);
    let bytes = worst(|run| run.bytes);
    println!(
        "nodes={size} rounds={} bound={} messages={} bytes={bytes} bytes_per_node={} writers={writers} round_trips={}",
        worst(|run| run.rounds.into()),
        bound(size),
        worst(|run| run.messages),
        bytes / size as u64,
        worst(|run| run.round_trips.into()),
    );
    assert!(runs.iter().all(|run| run.round_trips <= bound(size)));
}

#[test]
fn time_grows_with_the_logarithm_of_the_mesh() {
    for (size, writers, seeds) in [
        (3, 3, 20),
        (10, 10, 20),
        (30, 30, 5),
        (100, 100, 3),
        (100, 1, 3),
        (300, 1, 1),
        (1_000, 1, 1),
    ] {
        measure(size, writers, seeds);
    }
}

#[test]
#[ignore = "takes minutes; make soak runs it"]
fn time_grows_with_the_logarithm_of_a_large_mesh() {
    for size in [300, 1_000] {
        measure(size, size, 1);
    }
}

/// One node that changes a state at every delivery, many of them in turn, and gives few at a time.
struct BusyMesh {
    mesh: Mesh,
    changes: usize,
}

impl BusyMesh {
    const SIZE: usize = 8;
    const STATES: usize = 400;
    const LIMIT: usize = 2;
    const BUSY: usize = 0;
    /// What is being given when the change is made, and then what it is given with, take so many
    /// rounds; and then it is to spread.
    const WINDOW: u32 = (Self::STATES / Self::LIMIT) as u32 / MAX_STEPS + 1;

    fn new(seed: u64) -> Self {
        let mut mesh = Mesh::new(Self::SIZE, seed);
        // The checks look at every change there was.
        mesh.is_checked = false;
        for node in &mut mesh.nodes {
            node.limit = Self::LIMIT;
        }
        let mut busy = Self { mesh, changes: 0 };
        for _ in 0..3 {
            busy.round();
        }
        busy
    }

    fn round(&mut self) {
        for node in 0..Self::SIZE {
            self.mesh.tick(node, FANOUT);
        }
        while self.mesh.deliver_one() {
            let state = format!("busy{:03}", self.changes % Self::STATES);
            record(&mut self.mesh, Self::BUSY, &state, 1);
            self.changes += 1;
        }
    }

    /// Rounds until a change that one node makes is known everywhere.
    fn rounds_until_known(&mut self, node: usize) -> u32 {
        record(&mut self.mesh, node, "quiet", 1);
        for round in 1..=2 * Self::WINDOW + bound(Self::SIZE) {
            self.round();
            assert!(!self.mesh.agrees(), "the busy node is not busy");
            if (0..Self::SIZE).all(|node| total(&self.mesh, node, "quiet") == 1) {
                return round;
            }
        }
        panic!("n{node} is starved");
    }
}

#[test]
fn neither_a_quiet_node_nor_a_small_state_is_starved_by_busy_ones() {
    for seed in 0..2 {
        let quiet_node = BusyMesh::new(seed).rounds_until_known(5);
        let quiet_state = BusyMesh::new(seed).rounds_until_known(BusyMesh::BUSY);
        println!("beside busy ones: a quiet node {quiet_node}, a quiet state {quiet_state} rounds");
    }
}

/// Rounds until all but the last node hold the same.
fn rounds_without_the_last(mesh: &mut Mesh) -> u32 {
    let dead = mesh.nodes.len() - 1;
    for round in 1..=bound(dead) {
        mesh.round(FANOUT);
        let first = mesh.nodes[0].digest();
        if mesh.nodes[..dead].iter().all(|node| node.digest() == first) {
            return round;
        }
    }
    panic!("a dead node keeps the others apart");
}

#[test]
fn a_dead_node_does_not_keep_the_others_apart() {
    const SIZE: usize = 11;
    const DEAD: usize = SIZE - 1;
    for seed in 0..20 {
        let mut mesh = Mesh::new(SIZE, seed);
        mesh.nodes[DEAD].limit = 2;
        for node in 0..SIZE {
            record(&mut mesh, node, &format!("s{node}"), 1);
            record(&mut mesh, DEAD, &format!("dead{node}"), 1);
        }
        // It dies in the middle of what it has to tell.
        mesh.begin_exchange(DEAD, 0);
        for _ in 0..6 {
            mesh.deliver_one();
        }
        mesh.crash(DEAD);
        mesh.links.divide(SIZE, &BTreeSet::from([DEAD]));
        let rounds = rounds_without_the_last(&mut mesh);
        assert!(rounds <= bound(DEAD), "{rounds} rounds");
        mesh.round(EVERYBODY);
        mesh.round(EVERYBODY);
        for (from, to) in pairs(DEAD) {
            assert!(mesh.exchange(from, to).1, "n{from} and n{to} agree");
        }
    }
}

#[test]
fn traffic_grows_with_what_changed() {
    const STATES: usize = 1_000;
    const NODES: usize = 5;
    // What a change costs when each node gets it from each other.
    const MOST_BYTES: u64 = 250 * (NODES as u64 - 1);
    let mut idle = 0;
    for changed in [0, 10, 20, 40] {
        let mut mesh = settled(NODES, STATES);
        for state in 0..changed {
            record(&mut mesh, state % NODES, &format!("s{state:04}"), 1);
        }
        let before = mesh.traffic;
        for _ in 0..3 {
            mesh.round(EVERYBODY);
        }
        assert!(mesh.is_complete());
        let traffic = mesh.traffic.since(before);
        let bytes = traffic.bytes / NODES as u64;
        println!("{changed} of {STATES} states changed: {bytes} bytes per node, {traffic:?}");
        if changed == 0 {
            idle = bytes;
        } else {
            // The exchanges in which there is something to say cost twice an idle one, with claims.
            let bound = 3 * idle + changed as u64 * MOST_BYTES;
            assert!(bytes <= bound, "{bytes} bytes, {bound} expected at most");
        }
    }
}
