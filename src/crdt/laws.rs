//! The laws of `constraint_state` over random histories, against a naive model of the same type.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::TestCaseResult;

use super::constraint_state::{
    ConstraintState, add, covers, delta, empty, merge, move_to, record_satisfied,
    record_violations, remove,
};
use super::text::{from_text, to_text};
use crate::clock::hlc;
use crate::clock::vclock::{Entry, Vclock};
use crate::error::Result;

fn state(bytes: &[u8]) -> ConstraintState<'_> {
    ConstraintState::validate(bytes).unwrap()
}

fn merged(left: &[u8], right: &[u8]) -> Vec<u8> {
    merge(state(left), state(right)).unwrap()
}

fn delta_for(new: &[u8], old: &[u8]) -> Vec<u8> {
    delta(state(new), state(old).context()).unwrap()
}

/// The type as its definition reads: sets of events, no care for size or speed.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    seen: BTreeSet<(String, u64)>,
    constraints: BTreeMap<String, BTreeSet<(String, u64)>>,
    satisfied: BTreeMap<String, u64>,
    violated: BTreeMap<String, u64>,
    position: Option<(u64, String, i32, i32)>,
}

impl Model {
    fn happen(&mut self, actor: &str) -> (String, u64) {
        let highest = self.seen.iter().rfind(|(name, _)| name == actor);
        let dot = (
            actor.to_owned(),
            highest.map_or(0, |(_, counter)| *counter) + 1,
        );
        self.seen.insert(dot.clone());
        dot
    }

    fn add(&mut self, id: &str, actor: &str) {
        let dot = self.happen(actor);
        self.constraints.insert(id.into(), [dot].into());
    }

    fn move_to(&mut self, x: i32, y: i32, at: u64, actor: &str) {
        let position = Some((at, actor.to_owned(), x, y));
        if position > self.position {
            self.position = position;
            self.happen(actor);
        }
    }

    fn merge(&self, other: &Self) -> Self {
        let pairs = |model: &Self| -> BTreeSet<(String, (String, u64))> {
            (model.constraints.iter())
                .flat_map(|(id, dots)| dots.iter().map(|dot| (id.clone(), dot.clone())))
                .collect()
        };
        let (ours, theirs) = (pairs(self), pairs(other));
        let mut constraints: BTreeMap<String, BTreeSet<_>> = BTreeMap::new();
        for (id, dot) in ours.union(&theirs) {
            let pair = (id.clone(), dot.clone());
            let in_both = ours.contains(&pair) && theirs.contains(&pair);
            if in_both || !self.seen.contains(dot) || !other.seen.contains(dot) {
                constraints
                    .entry(id.clone())
                    .or_default()
                    .insert(dot.clone());
            }
        }
        Self {
            seen: self.seen.union(&other.seen).cloned().collect(),
            constraints,
            satisfied: highest(&self.satisfied, &other.satisfied),
            violated: highest(&self.violated, &other.violated),
            position: self.position.clone().max(other.position.clone()),
        }
    }

    fn delta(&self, since: &[(String, u64)]) -> Self {
        let covered = |dot: &(String, u64)| {
            since
                .iter()
                .any(|(actor, counter)| *actor == dot.0 && dot.1 <= *counter)
        };
        let mut delta = self.clone();
        for dots in delta.constraints.values_mut() {
            for dot in dots.extract_if(.., covered) {
                delta.seen.remove(&dot);
            }
        }
        delta.constraints.retain(|_, dots| !dots.is_empty());
        delta
    }

    /// What is covered completely, counted one event after the other.
    fn context(&self) -> Vec<(String, u64)> {
        let actors: BTreeSet<&String> = self.seen.iter().map(|(actor, _)| actor).collect();
        (actors.into_iter())
            .map(|actor| {
                let is_seen = |counter: &u64| self.seen.contains(&(actor.clone(), *counter));
                let counter = (1..=u64::MAX).take_while(is_seen).last().unwrap_or(0);
                (actor.clone(), counter)
            })
            .filter(|(_, counter)| *counter > 0)
            .collect()
    }

    /// The canonical text, assembled by `serde_json`, whose maps are sorted.
    fn to_text(&self) -> String {
        let mut highest: BTreeMap<&str, u64> = BTreeMap::new();
        for (actor, counter) in &self.seen {
            highest.insert(actor, *counter);
        }
        let mut missing: BTreeMap<&str, Vec<[u64; 2]>> = BTreeMap::new();
        for (actor, highest) in &highest {
            for counter in 1..*highest {
                if self.seen.contains(&((*actor).to_owned(), counter)) {
                    continue;
                }
                let runs = missing.entry(actor).or_default();
                match runs.last_mut() {
                    Some(run) if run[1] + 1 == counter => run[1] = counter,
                    _ => runs.push([counter, counter]),
                }
            }
        }
        let mut whole = serde_json::Map::new();
        let mut part = |key: &str, empty: bool, value: serde_json::Value| {
            if !empty {
                whole.insert(key.into(), value);
            }
        };
        part(
            "constraints",
            self.constraints.is_empty(),
            serde_json::json!(self.constraints),
        );
        part("context", highest.is_empty(), serde_json::json!(highest));
        part("missing", missing.is_empty(), serde_json::json!(missing));
        part(
            "satisfied",
            self.satisfied.is_empty(),
            serde_json::json!(self.satisfied),
        );
        part(
            "violated",
            self.violated.is_empty(),
            serde_json::json!(self.violated),
        );
        if let Some((at, actor, x, y)) = &self.position {
            let at = hlc::format(*at);
            let position = serde_json::json!({"actor": actor, "at": at, "x": x, "y": y});
            part("position", false, position);
        }
        serde_json::Value::from(whole).to_string()
    }
}

fn highest(left: &BTreeMap<String, u64>, right: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let mut highest = left.clone();
    for (actor, count) in right {
        let entry = highest.entry(actor.clone()).or_default();
        *entry = (*entry).max(*count);
    }
    highest
}

/// Names of different lengths whose order by bytes is not that of their lengths.
const ACTORS: [&str; 4] = ["a", "a#2", "node-b", "ñ"];
const IDS: [&str; 5] = ["c", "cost", "cost.max", "latency", "ß\n\""];

#[derive(Clone, Debug)]
enum Step {
    Add(usize, usize),
    Remove(usize, usize),
    Satisfied(usize, i64),
    Violations(usize, i64),
    Move(usize, u64, i32),
    /// One replica takes the other's whole state.
    Merge(usize, usize),
    /// One replica takes what it lacks of the other.
    Delta(usize, usize),
    /// One replica takes a delta meant for some earlier value of any replica.
    StrayDelta(usize, usize, Index),
    /// One replica takes any earlier value of any replica.
    Stale(usize, Index),
}

fn step() -> impl Strategy<Value = Step> {
    let replica = 0..ACTORS.len();
    let id = 0..IDS.len();
    let two = (replica.clone(), replica.clone());
    prop_oneof![
        4 => (replica.clone(), id.clone()).prop_map(|(r, id)| Step::Add(r, id)),
        3 => (replica.clone(), id).prop_map(|(r, id)| Step::Remove(r, id)),
        2 => (replica.clone(), 0..4_i64).prop_map(|(r, n)| Step::Satisfied(r, n)),
        1 => (replica.clone(), 0..4_i64).prop_map(|(r, n)| Step::Violations(r, n)),
        1 => (replica.clone(), 0..6_u64, -2..2).prop_map(|(r, at, x)| Step::Move(r, at, x)),
        2 => two.clone().prop_map(|(to, from)| Step::Merge(to, from)),
        3 => two.clone().prop_map(|(to, from)| Step::Delta(to, from)),
        1 => (two, any::<Index>()).prop_map(|((to, from), i)| Step::StrayDelta(to, from, i)),
        1 => (replica, any::<Index>()).prop_map(|(r, i)| Step::Stale(r, i)),
    ]
}

/// Replicas, every value they or their messages ever had, and which additions a removal or a
/// renewal has observed.
struct World {
    replicas: Vec<(Vec<u8>, Model)>,
    values: Vec<(Vec<u8>, Model)>,
    added: BTreeMap<(String, u64), String>,
    ended: BTreeSet<(String, u64)>,
}

impl World {
    fn new(replicas: usize) -> Self {
        Self {
            replicas: vec![(empty(), Model::default()); replicas],
            values: vec![(empty(), Model::default())],
            added: BTreeMap::new(),
            ended: BTreeSet::new(),
        }
    }

    fn run(replicas: usize, steps: &[Step]) -> Self {
        let mut world = Self::new(replicas);
        for step in steps {
            world.step(step);
        }
        world
    }

    fn end_observed(&mut self, replica: usize, id: &str) {
        let observed = self.replicas[replica].1.constraints.get(id);
        self.ended.extend(observed.into_iter().flatten().cloned());
    }

    fn step(&mut self, step: &Step) {
        let count = self.replicas.len();
        let to = match *step {
            Step::Add(r, _)
            | Step::Remove(r, _)
            | Step::Satisfied(r, _)
            | Step::Violations(r, _)
            | Step::Move(r, ..)
            | Step::Merge(r, _)
            | Step::Delta(r, _)
            | Step::StrayDelta(r, ..)
            | Step::Stale(r, _) => r % count,
        };
        let actor = ACTORS[to];
        match *step {
            Step::Add(_, id) | Step::Remove(_, id) => self.end_observed(to, IDS[id]),
            _ => {}
        }
        let (mut bytes, mut model) = self.replicas[to].clone();
        let now = state(&bytes);
        bytes = match step {
            Step::Add(_, id) => {
                model.add(IDS[*id], actor);
                let dot = model.constraints[IDS[*id]].first().unwrap().clone();
                self.added.insert(dot, IDS[*id].into());
                add(now, IDS[*id], actor).unwrap()
            }
            Step::Remove(_, id) => {
                model.constraints.remove(IDS[*id]);
                remove(now, IDS[*id]).unwrap()
            }
            Step::Satisfied(_, n) => {
                if *n > 0 {
                    *model.satisfied.entry(actor.into()).or_default() += n.unsigned_abs();
                    model.happen(actor);
                }
                record_satisfied(now, actor, *n).unwrap()
            }
            Step::Violations(_, n) => {
                if *n > 0 {
                    *model.violated.entry(actor.into()).or_default() += n.unsigned_abs();
                    model.happen(actor);
                }
                record_violations(now, actor, *n).unwrap()
            }
            Step::Move(_, at, x) => {
                model.move_to(*x, 7, *at, actor);
                move_to(now, *x, 7, *at, actor).unwrap()
            }
            Step::Merge(_, from) => {
                let (other, other_model) = &self.replicas[from % count];
                model = model.merge(other_model);
                merged(&bytes, other)
            }
            Step::Delta(_, from) => {
                let (other, other_model) = &self.replicas[from % count];
                let message = delta_for(other, &bytes);
                let message_model = other_model.delta(&model.context());
                model = model.merge(&message_model);
                let taken = merged(&bytes, &message);
                self.values.push((message, message_model));
                taken
            }
            Step::StrayDelta(_, from, index) => {
                let (other, other_model) = &self.replicas[from % count];
                let (old, old_model) = &self.values[index.index(self.values.len())];
                let message = delta_for(other, old);
                let message_model = other_model.delta(&old_model.context());
                model = model.merge(&message_model);
                let taken = merged(&bytes, &message);
                self.values.push((message, message_model));
                taken
            }
            Step::Stale(_, index) => {
                let (old, old_model) = &self.values[index.index(self.values.len())];
                model = model.merge(old_model);
                merged(&bytes, old)
            }
        };
        self.replicas[to] = (bytes, model);
        self.values.push(self.replicas[to].clone());
    }

    /// Everything merged into one.
    fn join(&self) -> Vec<u8> {
        (self.replicas.iter()).fold(empty(), |all, (bytes, _)| merged(&all, bytes))
    }

    fn pick(&self, index: Index) -> &[u8] {
        &self.values[index.index(self.values.len())].0
    }
}

fn check_against_model(bytes: &[u8], model: &Model) -> TestCaseResult {
    let value = state(bytes);
    let text = to_text(value);
    prop_assert_eq!(&text, &model.to_text());
    let read_back = from_text(&text);
    prop_assert_eq!(read_back.as_deref(), Ok(bytes));
    prop_assert_eq!(value.count(), model.constraints.len());
    prop_assert!(value.ids().eq(model.constraints.keys().map(String::as_str)));
    for id in IDS {
        prop_assert_eq!(value.contains(id), model.constraints.contains_key(id));
    }
    let sum =
        |counts: &BTreeMap<String, u64>| -> u128 { counts.values().map(|n| u128::from(*n)).sum() };
    prop_assert_eq!(value.satisfied_total(), sum(&model.satisfied));
    prop_assert_eq!(value.violations_total(), sum(&model.violated));
    let context: Vec<_> = value
        .context()
        .map(|entry| {
            (
                String::from_utf8(entry.actor.to_vec()).unwrap(),
                entry.counter,
            )
        })
        .collect();
    prop_assert_eq!(&context, &model.context());
    let clock = value.context_clock().unwrap();
    prop_assert!(
        Vclock::validate(&clock)
            .unwrap()
            .entries()
            .eq(value.context())
    );
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12_000))]

    #[test]
    fn merge_is_a_least_upper_bound(
        replicas in 2..=4_usize,
        steps in vec(step(), 1..40),
        picks: [Index; 3],
    ) {
        let world = World::run(replicas, &steps);
        let [a, b, c] = picks.map(|pick| world.pick(pick));
        let ab = merged(a, b);
        prop_assert_eq!(&ab, &merged(b, a));
        prop_assert_eq!(merged(&ab, c), merged(a, &merged(b, c)));
        prop_assert_eq!(merged(a, a), a);
        prop_assert_eq!(merged(a, &empty()), a);
        prop_assert!(covers(state(&ab), state(a)) && covers(state(&ab), state(b)));
        for (left, right) in [(a, b), (b, a), (a, c), (c, &ab), (&ab, c)] {
            prop_assert_eq!(covers(state(left), state(right)), merged(left, right) == left);
        }
        prop_assert_eq!(state(a).digest() == state(b).digest(), a == b);
    }

    #[test]
    fn delta_merges_like_the_whole(
        replicas in 2..=4_usize,
        steps in vec(step(), 1..40),
        picks: [Index; 3],
    ) {
        let world = World::run(replicas, &steps);
        let [old, new, other] = picks.map(|pick| world.pick(pick));
        let message = delta_for(new, old);
        prop_assert!(covers(state(new), state(&message)));
        prop_assert_eq!(merged(old, &message), merged(old, new));
        // Whatever covers `since` may take the delta, and any lower `since` will do.
        let later = merged(old, other);
        prop_assert_eq!(merged(&later, &message), merged(&later, new));
        let lower: Vec<Entry> = (state(old).context())
            .map(|entry| Entry { counter: entry.counter / 2, ..entry })
            .collect();
        let message = delta(state(new), lower).unwrap();
        prop_assert_eq!(merged(old, &message), merged(old, new));
        prop_assert_eq!(delta(state(new), []).unwrap(), new);
    }

    #[test]
    fn every_value_equals_the_model(replicas in 2..=4_usize, steps in vec(step(), 1..30)) {
        let world = World::run(replicas, &steps);
        for (bytes, model) in &world.values {
            check_against_model(bytes, model)?;
        }
    }

    /// Add wins, and nothing comes back: in force is what was added and never observed by a
    /// removal, however stale the copies on the way were.
    #[test]
    fn unobserved_additions_survive(replicas in 2..=4_usize, steps in vec(step(), 1..60)) {
        let world = World::run(replicas, &steps);
        let expected: BTreeSet<&str> = (world.added.iter())
            .filter(|(dot, _)| !world.ended.contains(*dot))
            .map(|(_, id)| id.as_str())
            .collect();
        let all = world.join();
        prop_assert!(state(&all).ids().eq(expected));
        let with_stale = (world.values.iter()).fold(all.clone(), |all, (old, _)| merged(&all, old));
        prop_assert_eq!(with_stale, all);
    }

    #[test]
    fn mutated_bytes_are_refused_or_canonical(
        steps in vec(step(), 1..20),
        mutations in vec((any::<Index>(), any::<u8>()), 1..4),
        cut: Option<Index>,
        other: Index,
    ) {
        let world = World::run(3, &steps);
        let mut bytes = world.values.last().unwrap().0.clone();
        for (index, byte) in mutations {
            let index = index.index(bytes.len());
            bytes[index] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        check_foreign_bytes(&bytes, world.pick(other))?;
    }

    #[test]
    fn random_bytes_are_refused_or_canonical(
        counts in vec(0..4_u8, 3),
        flags in 0..2_u8,
        tail in vec(prop_oneof![0..4_u8, any::<u8>()], 0..120),
    ) {
        let mut bytes = vec![1, flags, 0, 0];
        for count in counts {
            bytes.extend_from_slice(&[count, 0, 0, 0]);
        }
        bytes.extend_from_slice(&tail);
        check_foreign_bytes(&bytes, &empty())?;
        check_foreign_bytes(&tail, &empty())?;
    }

    #[test]
    fn mutated_text_is_refused_or_canonical(
        steps in vec(step(), 1..20),
        mutations in vec((any::<Index>(), "[-0-9a-c{}\\[\\],:\".]{0,3}"), 1..3),
    ) {
        let world = World::run(3, &steps);
        let mut text: Vec<char> = to_text(state(&world.values.last().unwrap().0)).chars().collect();
        for (index, replacement) in mutations {
            let index = index.index(text.len());
            text.splice(index..=index, replacement.chars());
            text.push(' ');
        }
        let text = String::from_iter(text);
        if let Ok(bytes) = from_text(&text) {
            prop_assert_eq!(from_text(&to_text(state(&bytes))), Ok(bytes));
        }
    }
}

/// Foreign bytes are refused or behave like any value; stored bytes that were damaged never make
/// an operation panic.
fn check_foreign_bytes(bytes: &[u8], other: &[u8]) -> TestCaseResult {
    let Ok(damaged) = ConstraintState::parse(bytes) else {
        prop_assert!(ConstraintState::validate(bytes).is_err());
        return Ok(());
    };
    let id = damaged.ids().next().unwrap_or("c".into());
    let all: [Result<Vec<u8>>; 8] = [
        add(damaged, &id, "a"),
        remove(damaged, &id),
        record_satisfied(damaged, "a", 1),
        move_to(damaged, 1, 1, 1, "a"),
        merge(damaged, state(other)),
        merge(state(other), damaged),
        delta(damaged, state(other).context()),
        delta(damaged, damaged.context()),
    ];
    covers(damaged, state(other));
    covers(state(other), damaged);
    to_text(damaged);
    if ConstraintState::validate(bytes).is_err() {
        return Ok(());
    }
    for result in all.into_iter().flatten() {
        state(&result);
    }
    let read_back = from_text(&to_text(damaged));
    prop_assert_eq!(read_back.as_deref(), Ok(bytes));
    prop_assert_eq!(merged(bytes, bytes), bytes);
    prop_assert_eq!(merged(bytes, other), merged(other, bytes));
    Ok(())
}
