//! Heartbeats carried by gossip: who is suspected, and how soon a crash is seen by all.

use super::mesh::Random;
use crate::node::detector::{Liveness, Pulse, SelfDoubt};

const INTERVAL: i64 = 1_000_000;
const FANOUT: usize = 3;
const THRESHOLD: f64 = 8.0;
const LOOKS_PER_INTERVAL: i64 = 4;

/// Nodes that tick at moments of their own, exchange what counts they know, and judge each other.
struct Watch {
    random: Random,
    /// What each node has heard of each.
    pulses: Vec<Vec<Pulse>>,
    is_down: Vec<bool>,
    is_cut: Option<(usize, usize)>,
    /// Percent of the exchanges that fail.
    loss: usize,
    /// Percent of an interval by which ticks come too late.
    lateness: usize,
    now: i64,
    next_ticks: Vec<i64>,
}

impl Watch {
    fn new(size: usize, seed: u64, loss: usize, lateness: usize) -> Self {
        let mut random = Random(seed);
        let next_ticks = (0..size)
            .map(|_| random.below(INTERVAL as usize) as i64)
            .collect();
        Self {
            pulses: vec![vec![Pulse::expected(0, INTERVAL); size]; size],
            is_down: vec![false; size],
            is_cut: None,
            random,
            loss,
            lateness,
            now: 0,
            next_ticks,
        }
    }

    fn size(&self) -> usize {
        self.pulses.len()
    }

    /// Runs until the given time; `is_well` is asked at every look of every node that is up.
    fn run_until(&mut self, end: i64, is_well: impl Fn(&Self) -> bool) -> bool {
        while self.now < end {
            let look = self.now + INTERVAL / LOOKS_PER_INTERVAL;
            while let Some(node) = self.next_tick_before(look) {
                self.tick(node);
            }
            self.now = look;
            if !is_well(self) {
                return false;
            }
        }
        true
    }

    fn next_tick_before(&self, end: i64) -> Option<usize> {
        let node = (0..self.size()).min_by_key(|node| self.next_ticks[*node])?;
        (self.next_ticks[node] < end).then_some(node)
    }

    fn tick(&mut self, node: usize) {
        self.now = self.next_ticks[node];
        let late = self
            .random
            .below(1 + self.lateness * INTERVAL as usize / 100);
        self.next_ticks[node] += INTERVAL + late as i64;
        if self.is_down[node] {
            return;
        }
        let count = self.pulses[node][node].count + 1;
        self.pulses[node][node].hear_count(self.now, count, THRESHOLD);
        let mut others: Vec<usize> = (0..self.size()).filter(|other| *other != node).collect();
        for _ in 0..FANOUT.min(others.len()) {
            let other = others.swap_remove(self.random.below(others.len()));
            self.exchange(node, other);
        }
    }

    fn exchange(&mut self, from: usize, to: usize) {
        let is_cut = self.is_cut == Some((from.min(to), from.max(to)));
        if self.is_down[to] || is_cut || self.random.percent(self.loss) {
            return;
        }
        for (speaker, hearer) in [(from, to), (to, from)] {
            for node in 0..self.size() {
                let count = self.pulses[speaker][node].count;
                self.pulses[hearer][node].hear_count(self.now, count, THRESHOLD);
            }
            self.pulses[hearer][speaker].hear_message(self.now, 1_000, INTERVAL);
        }
    }

    fn judges(&self, judge: usize, node: usize) -> Liveness {
        let mut pulse = self.pulses[judge][node];
        pulse.judge(self.now, SelfDoubt::NONE, THRESHOLD)
    }

    /// The worst that anybody who is up thinks of anybody who is up.
    fn suspects_nobody(&self) -> bool {
        let up = || (0..self.size()).filter(|node| !self.is_down[*node]);
        up().all(|judge| {
            up().all(|node| {
                judge == node
                    || matches!(
                        self.judges(judge, node),
                        Liveness::Alive | Liveness::Unknown
                    )
            })
        })
    }

    fn all_call_dead(&self, node: usize) -> bool {
        (0..self.size()).all(|judge| judge == node || self.judges(judge, node) == Liveness::Dead)
    }
}

#[test]
fn nobody_is_suspected_and_a_crash_is_seen_by_all() {
    for (size, loss, lateness) in [
        (3, 0, 5),
        (5, 0, 5),
        (5, 20, 50),
        (10, 0, 5),
        (30, 10, 20),
        (100, 0, 5),
    ] {
        let mut slowest = 0;
        for seed in 0..10 {
            let mut watch = Watch::new(size, seed, loss, lateness);
            assert!(
                watch.run_until(120 * INTERVAL, Watch::suspects_nobody),
                "a false suspicion among {size} nodes at {} s, seed {seed}",
                watch.now / INTERVAL
            );
            watch.is_down[0] = true;
            let crashed = watch.now;
            let is_seen_late = watch.run_until(crashed + 20 * INTERVAL, |watch| {
                assert!(watch.suspects_nobody(), "the living are accused too");
                !watch.all_call_dead(0)
            });
            assert!(!is_seen_late, "{size} nodes do not see the crash");
            slowest = slowest.max(watch.now - crashed);
        }
        println!(
            "nodes={size} loss={loss}% lateness={lateness}% dead to all after {:.2} intervals",
            slowest as f64 / INTERVAL as f64
        );
    }
}

#[test]
fn two_that_cannot_reach_each_other_hear_of_each_other() {
    for size in [3, 5, 10] {
        let mut watch = Watch::new(size, 1, 0, 5);
        watch.is_cut = Some((0, 1));
        assert!(watch.run_until(300 * INTERVAL, Watch::suspects_nobody));
    }
}

#[test]
fn a_node_that_is_back_is_alive_at_its_first_word() {
    let mut watch = Watch::new(5, 1, 0, 5);
    watch.run_until(60 * INTERVAL, |_| true);
    watch.is_down[0] = true;
    watch.run_until(90 * INTERVAL, |_| true);
    assert!(watch.all_call_dead(0));
    // It has forgotten its count, and is told it by the first that answers.
    watch.is_down[0] = false;
    watch.pulses[0] = vec![Pulse::expected(watch.now, INTERVAL); 5];
    watch.run_until(93 * INTERVAL, |_| true);
    assert!(watch.run_until(150 * INTERVAL, Watch::suspects_nobody));
}
