//! Random scenarios: nodes, operations and faults drawn from a seed, until all has ended and is held
//! by all. Everything that must hold is checked after every step.

use std::collections::BTreeSet;

use super::mesh::{Faults, Mesh, Random, Traffic};
use super::node::Operation::{Add, Move, Remove, Satisfy, Violate};
use super::node::{Handle, MAX_DRIFT_MILLISECONDS, NO_LIMIT, Node, Operation};
use super::{EVERYBODY, assert_idle, links::Leg};
use crate::node::incarnation::SILENCE_MILLISECONDS;

const SEEDS: u64 = 1_200;
const STEPS: usize = 300;

/// The worst clocks lie twice what is tolerated away from true time, before or after it.
const WORST_SKEW: i64 = 2 * MAX_DRIFT_MILLISECONDS.cast_signed();

/// How many rounds pass between two lines of a long run.
const ROUNDS_PER_LINE: u64 = 100_000;

/// Names the seed of a run that fails.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("again with SIMULATION_SEED={}", self.0);
        }
    }
}

struct Scenario {
    mesh: Mesh,
    random: Random,
    states: usize,
    /// The most by which a clock shows another time.
    skew: usize,
    /// A copy of a node, for scenarios in which one is put back.
    backup: Option<(usize, Node)>,
    puts_back: bool,
    /// Nodes that join while the others are at work.
    late: usize,
}

impl Scenario {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let size = 3 + random.below(4);
        let mut mesh = Mesh::new(size, random.next());
        let limit = [1, 2, 3, 10, NO_LIMIT][random.below(5)];
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
            delay: chance(40),
        };
        let skew = chance(2 * WORST_SKEW.unsigned_abs() as usize);
        let mut scenario = Self {
            states: 1 + random.below(8),
            skew,
            backup: None,
            puts_back: random.percent(30),
            late: usize::from(random.percent(30)),
            mesh,
            random,
        };
        for node in 0..size {
            scenario.step_clock(node);
        }
        scenario
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
        match self.random.below(5) {
            0 => Satisfy(n.try_into().expect("a small number")),
            1 => Violate(n.try_into().expect("a small number")),
            2 => Add(id),
            3 => Remove(id),
            _ => Move(n.try_into().expect("a small number")),
        }
    }

    fn write(&mut self, node: usize, handle: Handle) {
        if self.random.percent(20) {
            let resource = format!("r{}", self.random.below(3));
            return self.mesh.nodes[node].change_lease(handle, &resource);
        }
        if self.random.percent(20) {
            return self.mesh.nodes[node].append(handle);
        }
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
        let passed = self.random.below(500);
        self.mesh.pass_time(passed as u64);
        match self.random.below(100) {
            0..29 => self.work(),
            29..43 => {
                let (node, fanout) = (self.node(), 1 + self.random.below(3));
                self.mesh.tick(node, fanout);
            }
            43..89 => drop(self.mesh.deliver_one()),
            89..93 => self.call(),
            93 => {
                let node = self.node();
                self.mesh.crash(node);
            }
            94..96 => self.cut(),
            96 => self.mesh.give_up_one(),
            97 => self.disturb(),
            98 if self.puts_back => self.back_up_or_put_back(),
            _ => self.mesh.links.heal(),
        }
    }

    /// Cuts a link, one way of it, one leg of what one node asks another, or the mesh in two.
    fn cut(&mut self) {
        let (a, b) = self.pair();
        let links = &mut self.mesh.links;
        match self.random.below(5) {
            0 => links.cut(a, b),
            1 => links.cut_one_way(a, b),
            2 => links.cut_leg(a, b, Leg::Request),
            3 => links.cut_leg(a, b, Leg::Answer),
            _ => self.divide(),
        }
    }

    fn divide(&mut self) {
        let size = self.mesh.nodes.len();
        let group: BTreeSet<usize> = (0..size).filter(|_| self.random.percent(50)).collect();
        self.mesh.links.divide(size, &group);
    }

    /// A clock steps, or a node joins.
    fn disturb(&mut self) {
        if self.late > 0 && self.random.percent(50) {
            self.late -= 1;
            self.mesh.join();
        } else {
            let node = self.node();
            self.step_clock(node);
        }
    }

    fn step_clock(&mut self, node: usize) {
        let skew = self.random.below(self.skew + 1).cast_signed() - self.skew.cast_signed() / 2;
        self.mesh.nodes[node].set_skew(skew as i64);
    }

    fn back_up_or_put_back(&mut self) {
        if let Some((node, copy)) = self.backup.take() {
            if self.random.percent(30) {
                self.mesh.nodes[node].move_elsewhere();
            }
            self.mesh.restore(node, copy);
        } else {
            let node = self.node();
            self.backup = Some((node, self.mesh.nodes[node].clone()));
        }
    }

    /// Faults end and clocks meet: no stamp lies ahead, and no life is taken for one that goes on.
    fn end_faults(&mut self) {
        self.mesh.links.heal();
        self.mesh.faults = Faults::default();
        self.mesh.deliver_all();
        for node in &mut self.mesh.nodes {
            node.set_skew(0);
        }
        self.mesh
            .pass_time(WORST_SKEW.unsigned_abs() + SILENCE_MILLISECONDS);
    }

    fn end_all(&mut self) {
        self.end_faults();
        for node in 0..self.mesh.nodes.len() {
            for handle in self.mesh.open_handles(node) {
                self.end(node, handle);
            }
        }
        self.mesh.rounds_to_converge(EVERYBODY, 6);
        self.mesh.round(EVERYBODY);
        assert!(self.mesh.agrees_on_reports(), "reports reach everybody");
        assert!(
            self.mesh.agrees_on_operations(),
            "operations reach everybody"
        );
        assert!(self.mesh.nodes.iter().all(|node| !node.is_waiting()));
        self.mesh.check_end();
        // Everybody hears once more from everybody, and what it heard before was of a moment in the round before
        // that; then there is nothing left to say.
        self.mesh.round(EVERYBODY);
        self.mesh.round(EVERYBODY);
        // What a life that is over had begun to tell, nobody holds completely: a peer whose place one
        // remembers wrongly is then given an empty batch, which sets it right.
        if !self.mesh.has_restored {
            assert_idle(&mut self.mesh);
        }
    }

    fn run(mut self) -> Mesh {
        for _ in 0..STEPS {
            self.step();
        }
        self.end_all();
        self.mesh
    }
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().expect("a number"))
}

/// What many scenarios come to.
#[derive(Default)]
struct Total {
    scenarios: u64,
    rounds: u64,
    traffic: Traffic,
}

impl Total {
    fn add(&mut self, mesh: &Mesh) {
        let lines = self.rounds / ROUNDS_PER_LINE;
        self.scenarios += 1;
        self.rounds += mesh.rounds();
        self.traffic = self.traffic.plus(mesh.traffic);
        if self.rounds / ROUNDS_PER_LINE > lines {
            self.print();
        }
    }

    fn print(&self) {
        println!(
            "scenarios={} rounds={} requests={} rows={} reports={} bytes={}",
            self.scenarios,
            self.rounds,
            self.traffic.requests,
            self.traffic.rows,
            self.traffic.reports,
            self.traffic.bytes
        );
    }
}

fn run(seed: u64, total: &mut Total) {
    let _named = Seed(seed);
    total.add(&Scenario::new(seed).run());
}

/// SIMULATION_SEED is one seed to run again, SIMULATION_SEEDS how many to run, SIMULATION_ROUNDS how
/// many rounds they are to come to (see [`Mesh::rounds`]).
#[test]
fn random_scenarios_hold() {
    let mut total = Total::default();
    if let Some(seed) = number("SIMULATION_SEED") {
        run(seed, &mut total);
    } else if let Some(rounds) = number("SIMULATION_ROUNDS") {
        let mut seeds = 0..;
        while total.rounds < rounds {
            run(seeds.next().expect("a seed"), &mut total);
        }
    } else {
        (0..number("SIMULATION_SEEDS").unwrap_or(SEEDS)).for_each(|seed| run(seed, &mut total));
    }
    total.print();
}
