//! A mesh in one process: the rules of gossip under loss, duplication, reordering, partition and
//! crashes, from a seed. The same seed is the same run.

mod mesh;
mod node;

use std::ops::Range;

use mesh::{Faults, Mesh, Random};
use node::Operation::{Add, Move, Remove, Satisfy, Violate};
use node::{Handle, Node, Operation};

const EVERYBODY: usize = usize::MAX;
const SEEDS: u64 = 1_200;

/// Names the seed of a run that fails.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("again with SIMULATION_SEED={}", self.0);
        }
    }
}

/// Nodes, operations and faults drawn from a seed, until all has ended and is held by all.
struct Scenario {
    mesh: Mesh,
    random: Random,
    states: usize,
    now: u64,
    /// A copy of a node, for scenarios in which one is put back.
    backup: Option<(usize, Node)>,
    puts_back: bool,
}

impl Scenario {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let size = 3 + random.below(4);
        let mut mesh = Mesh::new(size, random.next());
        let limit = [1, 2, 3, 10, node::NO_LIMIT][random.below(5)];
        for node in &mut mesh.nodes {
            node.limit = limit;
        }
        let mut chance = |bound| {
            if random.percent(40) {
                0
            } else {
                random.below(bound)
            }
        };
        mesh.faults = Faults {
            lose_request: chance(30),
            lose_reply: chance(30),
            duplicate: chance(30),
            roll_back: chance(20),
            linger: chance(40),
        };
        Self {
            states: 1 + random.below(8),
            backup: None,
            puts_back: random.percent(30),
            mesh,
            random,
            now: 1,
        }
    }

    fn node(&mut self) -> usize {
        self.random.below(self.mesh.nodes.len())
    }

    fn pair(&mut self) -> (usize, usize) {
        let (from, step) = (
            self.node(),
            1 + self.random.below(self.mesh.nodes.len() - 1),
        );
        (from, (from + step) % self.mesh.nodes.len())
    }

    fn operation(&mut self) -> Operation {
        const IDS: [&str; 3] = ["speed", "budget", "zone"];
        let id = IDS[self.random.below(IDS.len())];
        let n = self.random.below(5);
        self.now += 1;
        match self.random.below(5) {
            0 => Satisfy(n.try_into().expect("a small number")),
            1 => Violate(n.try_into().expect("a small number")),
            2 => Add(id),
            3 => Remove(id),
            _ => Move {
                x: n.try_into().expect("a small number"),
                at: self.now,
            },
        }
    }

    fn write(&mut self, node: usize, handle: Handle) {
        let name = format!("s{}", self.random.below(self.states));
        let operation = self.operation();
        self.mesh.nodes[node].write(handle, &name, operation);
    }

    fn end(&mut self, node: usize, handle: Handle) {
        if self.random.percent(80) {
            self.mesh.commit(node, handle);
        } else {
            self.mesh.nodes[node].rollback(handle);
        }
    }

    /// A session begins a transaction, goes on with one or ends one.
    fn work(&mut self) {
        let node = self.node();
        let open = self.mesh.open_handles(node);
        if open.is_empty() || (open.len() < 3 && self.random.percent(40)) {
            let handle = self.mesh.nodes[node].begin();
            self.write(node, handle);
            if self.random.percent(60) {
                self.end(node, handle);
            }
            return;
        }
        let handle = open[self.random.below(open.len())];
        if self.random.percent(60) {
            self.write(node, handle);
        } else {
            self.end(node, handle);
        }
    }

    /// A session calls for a round within its transaction, which ends at some later time.
    fn call(&mut self) {
        let (from, to) = self.pair();
        let handle = self.mesh.nodes[from].begin();
        if self.random.percent(20) {
            self.write(from, handle);
        }
        self.mesh.begin_user_exchange(from, to, handle);
    }

    fn step(&mut self) {
        match self.random.below(100) {
            0..30 => self.work(),
            30..45 => {
                let (node, fanout) = (self.node(), 1 + self.random.below(3));
                self.mesh.tick(node, fanout);
            }
            45..92 => drop(self.mesh.deliver_one()),
            92..96 => self.call(),
            96 => {
                let node = self.node();
                self.mesh.crash(node);
            }
            97 => {
                let (a, b) = self.pair();
                self.mesh.cut(a, b);
            }
            98 if self.puts_back => self.back_up_or_put_back(),
            _ => self.mesh.heal(),
        }
    }

    fn back_up_or_put_back(&mut self) {
        if let Some((node, copy)) = self.backup.take() {
            self.mesh.restore(node, copy);
        } else {
            let node = self.node();
            self.backup = Some((node, self.mesh.nodes[node].clone()));
        }
    }

    fn end_all(&mut self) {
        self.mesh.heal();
        self.mesh.faults = Faults::default();
        self.mesh.deliver_all();
        for node in 0..self.mesh.nodes.len() {
            for handle in self.mesh.open_handles(node) {
                self.end(node, handle);
            }
        }
        self.mesh.rounds_to_converge(EVERYBODY, 6);
        assert!(self.mesh.nodes.iter().all(|node| !node.is_waiting()));
        self.mesh.check_end();
        // Everybody hears once more from everybody; then there is nothing left to say.
        self.mesh.round(EVERYBODY);
        // What a life that is over had begun to tell, nobody holds completely: a peer whose place one
        // remembers wrongly is then given an empty batch, which sets it right.
        if !self.mesh.has_restored {
            assert_idle(&mut self.mesh);
        }
    }

    fn run(mut self) {
        for _ in 0..300 {
            self.step();
        }
        self.end_all();
    }
}

/// Every exchange is one request and one answer without a batch, and nothing is written.
fn assert_idle(mesh: &mut Mesh) {
    for (from, to) in pairs(mesh.nodes.len()) {
        let (traffic, converged) = mesh.exchange(from, to);
        assert!(converged, "n{from} and n{to} agree");
        assert_eq!(
            (traffic.requests, traffic.batches, traffic.writes),
            (1, 0, 0),
            "n{from} to n{to}"
        );
    }
}

fn pairs(size: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..size).flat_map(move |from| {
        (0..size)
            .filter(move |to| *to != from)
            .map(move |to| (from, to))
    })
}

/// SIMULATION_SEED is one seed to run again, SIMULATION_SEEDS how many to run.
fn seeds() -> Range<u64> {
    let number = |name| {
        std::env::var(name)
            .ok()
            .map(|text| text.parse::<u64>().expect("a number"))
    };
    match number("SIMULATION_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SIMULATION_SEEDS").unwrap_or(SEEDS),
    }
}

#[test]
fn random_scenarios_hold() {
    for seed in seeds() {
        let _named = Seed(seed);
        Scenario::new(seed).run();
    }
}

/// A node records `n` checks of a state that held.
fn record(mesh: &mut Mesh, node: usize, name: &str, n: i64) {
    assert!(mesh.change(node, name, Satisfy(n)));
}

fn total(mesh: &Mesh, node: usize, name: &str) -> u128 {
    let value = mesh.nodes[node].value(name);
    value.map_or(0, |value| node::parsed(value).satisfied_total())
}

/// A mesh in which every node has its state, all know all and all is quiet.
fn settled(size: usize, states: usize) -> Mesh {
    let mut mesh = Mesh::new(size, 1);
    for state in 0..states {
        record(&mut mesh, state % size, &format!("s{state:04}"), 1);
    }
    settle(&mut mesh);
    mesh
}

fn settle(mesh: &mut Mesh) {
    mesh.rounds_to_converge(EVERYBODY, 6);
    mesh.round(EVERYBODY);
    assert_idle(mesh);
}

#[test]
fn empty_nodes_agree_in_their_first_exchange() {
    let mut mesh = Mesh::new(2, 1);
    let (traffic, converged) = mesh.exchange(0, 1);
    assert!(converged);
    assert_eq!((traffic.requests, traffic.batches), (1, 0));
}

#[test]
fn counts_add_up() {
    let mut mesh = Mesh::new(2, 1);
    for _ in 0..100 {
        record(&mut mesh, 0, "s", 1);
        record(&mut mesh, 1, "s", 1);
    }
    assert!(!mesh.agrees());
    let (traffic, converged) = mesh.exchange(0, 1);
    assert!(converged);
    assert_eq!((total(&mesh, 0, "s"), total(&mesh, 1, "s")), (200, 200));
    // Hello and what the other holds; what this node holds; that it has arrived.
    assert!(traffic.requests <= 3, "{traffic:?}");
    settle(&mut mesh);
    mesh.check_end();
}

#[test]
fn one_node_relays_between_two_that_are_cut_off() {
    let mut mesh = Mesh::new(3, 1);
    mesh.cut(0, 1);
    record(&mut mesh, 0, "s", 1);
    record(&mut mesh, 1, "s", 2);
    record(&mut mesh, 2, "t", 4);
    for _ in 0..3 {
        mesh.exchange(2, 0);
        mesh.exchange(2, 1);
    }
    assert!(mesh.agrees() && mesh.is_complete());
    assert_eq!(total(&mesh, 0, "s"), 3);
    // What the two hold reached them by the third: there is nothing to give when they meet.
    mesh.heal();
    let (traffic, converged) = mesh.exchange(0, 1);
    assert!(converged);
    assert_eq!((traffic.requests, traffic.batches), (1, 0));
}

#[test]
fn windows_go_on_while_rows_change() {
    let mut mesh = Mesh::new(2, 1);
    mesh.nodes[0].limit = 2;
    for state in 0..20 {
        record(&mut mesh, 0, &format!("s{state:02}"), 1);
    }
    let open = mesh.nodes[0].begin();
    mesh.nodes[0].write(open, "s03", Satisfy(1));
    mesh.begin_exchange(1, 0);
    let mut delivered = 0;
    while mesh.deliver_one() {
        delivered += 1;
        // Rows that were given, are still to come, or change between two batches of theirs.
        if delivered <= 20 {
            record(&mut mesh, 0, &format!("s{:02}", delivered * 7 % 20), 1);
        }
        if delivered == 8 {
            mesh.commit(0, open);
        }
    }
    settle(&mut mesh);
    mesh.check_end();
}

#[test]
fn an_open_transaction_delays_what_is_called_complete_and_nothing_else() {
    let mut mesh = settled(3, 6);
    let open = mesh.nodes[0].begin();
    mesh.nodes[0].write(open, "open", Satisfy(1));
    for state in 0..6 {
        record(&mut mesh, state % 3, &format!("s{state:04}"), 1);
    }
    for _ in 0..3 {
        mesh.round(EVERYBODY);
    }
    assert!(mesh.agrees() && !mesh.is_complete());
    for (from, to) in pairs(3) {
        let (traffic, converged) = mesh.exchange(from, to);
        // Who still has something under way is converged with nobody; the others hold the same.
        assert_eq!(converged, from != 0 && to != 0, "n{from} and n{to}");
        assert_eq!(
            (traffic.requests, traffic.batches, traffic.writes),
            (1, 0, 0),
            "n{from} to n{to}"
        );
    }
    // Another change is given once, not with all that came before it.
    record(&mut mesh, 0, "s0000", 1);
    let before = mesh.traffic;
    for _ in 0..4 {
        mesh.round(EVERYBODY);
    }
    let traffic = mesh.traffic.since(before);
    assert!(mesh.agrees());
    assert!(traffic.rows <= 8, "{traffic:?}");
    mesh.commit(0, open);
    settle(&mut mesh);
    mesh.check_end();
}

#[test]
fn learned_rows_are_not_sent_back() {
    let mut mesh = Mesh::new(2, 1);
    for state in 0..10 {
        record(&mut mesh, 0, &format!("s{state}"), 1);
    }
    for _ in 0..3 {
        mesh.exchange(0, 1);
        mesh.exchange(1, 0);
    }
    assert!(mesh.is_complete());
    assert_eq!(mesh.traffic.rows, 10);
}

#[test]
fn a_peer_that_moved_on_is_not_given_everything_from_memory() {
    let mut mesh = Mesh::new(2, 1);
    // The caller hears that the peer has been given nothing, and is not told when that changes.
    mesh.exchange(0, 1);
    for state in 0..10 {
        record(&mut mesh, 0, &format!("s{state}"), 1);
    }
    mesh.exchange(1, 0);
    record(&mut mesh, 0, "s3", 1);
    let (traffic, converged) = mesh.exchange(0, 1);
    assert!(converged);
    assert_eq!(traffic.rows, 1);
}

#[test]
fn a_peer_with_an_open_transaction_goes_on_from_where_it_covered() {
    let mut mesh = settled(3, 6);
    let open = mesh.nodes[1].begin();
    mesh.nodes[1].write(open, "open", Satisfy(1));
    record(&mut mesh, 1, "s0001", 1);
    record(&mut mesh, 2, "s0002", 1);
    // The first two hold all of the third without each other's help, and the first sees that.
    for _ in 0..2 {
        mesh.exchange(2, 0);
        mesh.exchange(2, 1);
    }
    mesh.exchange(0, 1);
    record(&mut mesh, 0, "s0000", 1);
    let (traffic, _) = mesh.exchange(0, 1);
    assert_eq!(traffic.rows, 1);
    let (traffic, _) = mesh.exchange(0, 1);
    assert_eq!(
        (traffic.requests, traffic.batches, traffic.writes),
        (1, 0, 0)
    );
    mesh.commit(1, open);
    settle(&mut mesh);
    mesh.check_end();
}

#[test]
fn a_late_joiner_gets_everything() {
    let mut mesh = Mesh::new(4, 1);
    for node in &mut mesh.nodes {
        node.limit = 3;
    }
    for other in 0..3 {
        mesh.cut(other, 3);
        record(&mut mesh, other, &format!("s{other}"), 1);
    }
    for state in 0..20 {
        record(&mut mesh, state % 3, &format!("t{state}"), 1);
    }
    mesh.round(EVERYBODY);
    mesh.round(EVERYBODY);
    record(&mut mesh, 3, "s0", 1);
    mesh.heal();
    let (_, converged) = mesh.exchange(3, 0);
    assert!(converged);
    settle(&mut mesh);
    mesh.check_end();
}

/// Drops a constraint from a state on one node behind the rules' back: nothing that they have
/// written down tells of it but the digest.
fn corrupt(mesh: &mut Mesh, node: usize, name: &str) {
    let value = mesh.nodes[node].value(name).expect("a state");
    let removed =
        crate::crdt::constraint_state::remove(node::parsed(value), "zone").expect("a removal");
    assert_ne!(removed, value);
    mesh.nodes[node].corrupt(name, removed);
    mesh.allows_mistrust = true;
    mesh.is_checked = false;
}

fn mistrusted(mesh: &Mesh) -> Vec<u64> {
    mesh.nodes.iter().map(node::Node::mistrusted).collect()
}

#[test]
fn a_corrupted_content_is_found_and_repaired() {
    for (size, limit) in [(2, node::NO_LIMIT), (2, 2), (4, node::NO_LIMIT), (4, 3)] {
        let mut mesh = settled(size, 20);
        for state in 0..20 {
            mesh.change(0, &format!("s{state:04}"), Add("zone"));
        }
        settle(&mut mesh);
        for node in &mut mesh.nodes {
            node.limit = limit;
        }
        // The last state, which comes with the last of the batches; and again, once repaired.
        for (times, state) in [(1, "s0019"), (2, "s0007")] {
            corrupt(&mut mesh, 1, state);
            let before = mistrusted(&mesh);
            mesh.exchange(0, 1);
            let counted = [
                mistrusted(&mesh)[0] - before[0],
                mistrusted(&mesh)[1] - before[1],
            ];
            assert_eq!(counted, [1, 1], "size {size}, limit {limit}");
            settle(&mut mesh);
            // Once per pair, or twice where both had begun an exchange.
            let bound = times * 2 * (size as u64 - 1);
            assert!(
                mistrusted(&mesh).iter().all(|count| *count <= bound),
                "{:?}",
                mistrusted(&mesh)
            );
        }
    }
}

#[test]
fn a_refused_row_is_not_sent_over_and_over() {
    let mut mesh = Mesh::new(2, 1);
    for state in 0..10 {
        record(&mut mesh, 0, &format!("s{state}"), 1);
    }
    mesh.nodes[0].limit = 4;
    mesh.nodes[1].refused = Some("s2");
    for (from, to) in [(0, 1), (1, 0), (0, 1), (1, 0)] {
        let (traffic, converged) = mesh.exchange(from, to);
        assert!(!converged && traffic.requests <= 3, "{traffic:?}");
    }
    mesh.nodes[1].refused = None;
    settle(&mut mesh);
    mesh.check_end();
}

#[test]
fn a_round_within_one_transaction_goes_both_ways() {
    for (limit, commits) in [
        (node::NO_LIMIT, true),
        (3, true),
        (node::NO_LIMIT, false),
        (3, false),
    ] {
        let mut mesh = Mesh::new(2, 1);
        for node in &mut mesh.nodes {
            node.limit = limit;
        }
        for state in 0..10 {
            record(&mut mesh, 0, &format!("s{state}"), 100);
            record(&mut mesh, 1, &format!("s{state}"), 100);
        }
        let handle = mesh.nodes[0].begin();
        mesh.begin_user_exchange(0, 1, handle);
        mesh.deliver_all();
        assert_eq!(total(&mesh, 1, "s9"), 200, "limit {limit}");
        if commits {
            mesh.commit(0, handle);
            assert_eq!(total(&mesh, 0, "s9"), 200, "limit {limit}");
        } else {
            mesh.nodes[0].rollback(handle);
            assert_eq!(total(&mesh, 0, "s9"), 100, "limit {limit}");
        }
        settle(&mut mesh);
        mesh.check_end();
    }
}

#[test]
fn a_round_within_a_transaction_that_has_written_tells_nothing_of_it() {
    let mut mesh = Mesh::new(2, 1);
    record(&mut mesh, 0, "s", 1);
    record(&mut mesh, 1, "s", 2);
    let handle = mesh.nodes[0].begin();
    mesh.nodes[0].write(handle, "s", Satisfy(10));
    mesh.begin_user_exchange(0, 1, handle);
    mesh.deliver_all();
    assert_eq!(total(&mesh, 1, "s"), 2);
    mesh.commit(0, handle);
    assert_eq!(total(&mesh, 0, "s"), 13);
    settle(&mut mesh);
    mesh.check_end();
}

/// Rounds with three random peers each until all is known to be equal. An exchange goes on while it
/// brings news, so one round can carry a change far; what takes time is its round trips.
fn spread(size: usize, seed: u64, writers: usize) -> (u32, u32) {
    let mut mesh = Mesh::new(size, seed);
    mesh.is_checked = size < 100;
    for node in 0..writers {
        record(&mut mesh, node, "s", 1);
    }
    let bound = 2 * size.next_power_of_two().ilog2() + 4;
    let rounds = mesh.rounds_to_converge(3, bound);
    assert!(
        mesh.waves <= bound,
        "{} round trips for {size} nodes",
        mesh.waves
    );
    assert_eq!(total(&mesh, size - 1, "s"), writers as u128);
    (rounds, mesh.waves)
}

#[test]
fn time_grows_with_the_logarithm_of_the_mesh() {
    for (size, writers, seeds) in [
        (3, 3, 20),
        (10, 10, 20),
        (100, 100, 3),
        (100, 1, 3),
        (1_000, 1, 1),
    ] {
        let runs = (0..seeds).map(|seed| spread(size, seed, writers));
        let (rounds, trips) = runs.fold((0, 0), |most, run| (most.0.max(run.0), most.1.max(run.1)));
        println!(
            "{writers} of {size} nodes write: all know after {rounds} rounds, {trips} round trips"
        );
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
