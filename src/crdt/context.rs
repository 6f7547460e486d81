//! The causal context: which events a state has seen.
//!
//! An event is a dot, the n-th of its actor. What has been seen of an actor is every counter up to
//! a maximum, less the holes. Local operations leave no holes; a delta has them, for it must not
//! claim the events whose effect it does not carry.

use std::cmp::Ordering;

use super::paired::paired;
use super::wire::{put_varint, take, take_u8, take_u64, take_varint};
use crate::clock::vclock::MAX_COUNTER;
use crate::error::{Error, Result, too_large};

pub const MAX_ACTORS: usize = 65_535;

/// One event. Actors are numbered by their place in the state's table, which is sorted, so dots
/// sort alike by number and by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Dot {
    pub actor: u16,
    pub counter: u64,
}

/// What is known of one actor: the highest counter seen and the counts of its grow-only counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Known {
    pub context: u64,
    pub satisfied: u64,
    pub violated: u64,
}

impl Known {
    fn covers(&self, other: &Self) -> bool {
        self.context >= other.context
            && self.satisfied >= other.satisfied
            && self.violated >= other.violated
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Actor<'a> {
    pub name: &'a [u8],
    pub known: Known,
}

impl Actor<'_> {
    #[allow(
        clippy::cast_possible_truncation,
        reason = "actors have at most 255 bytes: checked on every way in"
    )]
    pub fn put(&self, out: &mut Vec<u8>) {
        out.push(self.name.len() as u8);
        out.extend_from_slice(self.name);
        out.extend_from_slice(&self.known.context.to_le_bytes());
        out.extend_from_slice(&self.known.satisfied.to_le_bytes());
        out.extend_from_slice(&self.known.violated.to_le_bytes());
    }
}

/// The table of actors: `[u8 length][name][u64 context][u64 satisfied][u64 violated]` each.
#[derive(Clone)]
pub struct Actors<'a> {
    pub rest: &'a [u8],
}

impl<'a> Iterator for Actors<'a> {
    type Item = Actor<'a>;

    #[inline]
    fn next(&mut self) -> Option<Actor<'a>> {
        let length = take_u8(&mut self.rest)?;
        let name = take(&mut self.rest, usize::from(length))?;
        let known = Known {
            context: take_u64(&mut self.rest)?,
            satisfied: take_u64(&mut self.rest)?,
            violated: take_u64(&mut self.rest)?,
        };
        Some(Actor { name, known })
    }
}

/// Holes of one actor, from the first counter missing to the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Run {
    pub actor: u16,
    pub first: u64,
    pub last: u64,
}

/// The holes, sorted. A run is three varints: how many actors further than the run before, how
/// many counters were seen since that run (since 0 for another actor), how many are missing.
///
/// An actor that mostly records and sometimes adds leaves one hole per element in a delta. Counters
/// of full width would make that delta as large as the state; a hole takes about four bytes.
#[derive(Clone)]
pub struct Runs<'a> {
    pub rest: &'a [u8],
    previous: Option<Run>,
}

impl<'a> Runs<'a> {
    pub fn new(rest: &'a [u8]) -> Self {
        Self {
            rest,
            previous: None,
        }
    }
}

impl Iterator for Runs<'_> {
    type Item = Run;

    /// Yields only disjoint runs in order that do not touch, and no counter beyond the maximum.
    fn next(&mut self) -> Option<Run> {
        let step = take_varint(&mut self.rest)?;
        let seen = take_varint(&mut self.rest)?;
        let missing = take_varint(&mut self.rest)?;
        let (actor, base) = match self.previous {
            Some(previous) if step == 0 => (previous.actor, previous.last),
            Some(previous) => (u16::try_from(step).ok()?.checked_add(previous.actor)?, 0),
            None => (u16::try_from(step).ok()?, 0),
        };
        let touches = seen == 0 && base > 0;
        let last = base.checked_add(seen)?.checked_add(missing)?;
        if touches || missing == 0 || last > MAX_COUNTER {
            return None;
        }
        let first = last - missing + 1;
        let run = Run { actor, first, last };
        self.previous = Some(run);
        Some(run)
    }
}

/// Writes `run`, which follows `previous`.
pub fn put_run(out: &mut Vec<u8>, previous: Option<Run>, run: Run) {
    let (step, base) = match previous {
        Some(previous) if previous.actor == run.actor => (0, previous.last),
        Some(previous) => (run.actor - previous.actor, 0),
        None => (run.actor, 0),
    };
    put_varint(out, u64::from(step));
    put_varint(out, run.first - base - 1);
    put_varint(out, run.last - run.first + 1);
}

/// The run of sorted, disjoint ones that reaches to the dot or beyond it, if it holds the dot.
pub fn run_of(runs: &[Run], dot: Dot) -> Option<&Run> {
    let before = |run: &Run| (run.actor, run.last) < (dot.actor, dot.counter);
    runs.get(runs.partition_point(before))
        .filter(|run| run.actor == dot.actor && run.first <= dot.counter)
}

/// Sorts runs and joins those that touch or overlap.
pub fn normalise(runs: &mut Vec<Run>) {
    runs.sort_unstable();
    runs.dedup_by(|later, earlier| {
        let joins = later.actor == earlier.actor && later.first <= earlier.last.saturating_add(1);
        if joins {
            earlier.last = earlier.last.max(later.last);
        }
        joins
    });
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Left,
    Right,
}

impl Side {
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Left => Self::Right,
            Self::Right => Self::Left,
        }
    }
}

struct JoinedActor<'a> {
    name: &'a [u8],
    known: [Known; 2],
}

/// The contexts of two states over one table of the actors of both.
pub struct Joined<'a> {
    actors: Vec<JoinedActor<'a>>,
    /// Per side, from a place in that state's table to the place in the joined one.
    places: [Vec<u16>; 2],
    keeps_places: [bool; 2],
    holes: [Vec<Run>; 2],
}

impl<'a> Joined<'a> {
    pub fn new(actors: [Actors<'a>; 2], counts: [usize; 2], runs: [Runs<'a>; 2]) -> Result<Self> {
        let mut joined = Self {
            actors: Vec::with_capacity(counts[0] + counts[1]),
            places: counts.map(Vec::with_capacity),
            keeps_places: [true; 2],
            holes: [Vec::new(), Vec::new()],
        };
        let [left, right] = actors;
        for (left, right) in paired(left, right, |left, right| left.name.cmp(right.name)) {
            joined.push(left, right)?;
        }
        for ((holes, runs), places) in joined.holes.iter_mut().zip(runs).zip(&joined.places) {
            let to_joined = |run: Run| Run {
                actor: places[usize::from(run.actor)],
                ..run
            };
            holes.extend(runs.map(to_joined));
        }
        Ok(joined)
    }

    #[allow(
        clippy::cast_possible_truncation,
        reason = "the place is below MAX_ACTORS"
    )]
    fn push(&mut self, left: Option<Actor<'a>>, right: Option<Actor<'a>>) -> Result<()> {
        if self.actors.len() >= MAX_ACTORS {
            return Err(too_many_actors());
        }
        let place = self.actors.len() as u16;
        for (side, actor) in [(Side::Left, left), (Side::Right, right)] {
            let places = &mut self.places[side as usize];
            if actor.is_some() {
                self.keeps_places[side as usize] &= places.len() == usize::from(place);
                places.push(place);
            }
        }
        let known = |actor: Option<Actor>| actor.map_or(Known::default(), |actor| actor.known);
        if let Some(actor) = left.or(right) {
            self.actors.push(JoinedActor {
                name: actor.name,
                known: [known(left), known(right)],
            });
        }
        Ok(())
    }

    /// Whether a state's own places are those of the joined table.
    #[inline]
    pub fn keeps_places(&self, side: Side) -> bool {
        self.keeps_places[side as usize]
    }

    /// A dot of one state in places of the joined table.
    #[inline]
    pub fn dot(&self, side: Side, dot: Dot) -> Dot {
        Dot {
            actor: self.places[side as usize][usize::from(dot.actor)],
            counter: dot.counter,
        }
    }

    /// Whether the state on that side has seen a dot, given in places of the joined table.
    #[inline]
    pub fn has_seen(&self, side: Side, dot: Dot) -> bool {
        let known = &self.actors[usize::from(dot.actor)].known[side as usize];
        let holes = &self.holes[side as usize];
        dot.counter <= known.context && (holes.is_empty() || run_of(holes, dot).is_none())
    }

    /// Whether the left state knows of every actor what the right one knows: events and counts.
    pub fn left_covers_right(&self) -> bool {
        let [left_holes, right_holes] = &self.holes;
        self.actors
            .iter()
            .all(|actor| actor.known[0].covers(&actor.known[1]))
            && left_holes.iter().all(|hole| {
                let right_context = self.actors[usize::from(hole.actor)].known[1].context;
                let first = Dot {
                    actor: hole.actor,
                    counter: hole.first,
                };
                hole.first > right_context
                    || run_of(right_holes, first)
                        .is_some_and(|run| run.last >= hole.last.min(right_context))
            })
    }

    /// The actors of the union, with `merge` applied to what is known of each.
    pub fn actors(&self, merge: impl Fn(Known, Known) -> Known) -> impl Iterator<Item = Actor<'a>> {
        self.actors.iter().map(move |actor| Actor {
            name: actor.name,
            known: merge(actor.known[0], actor.known[1]),
        })
    }

    /// The holes of the union: what neither state has seen below the highest counter of either.
    pub fn common_holes(&self) -> Vec<Run> {
        let mut common = Vec::new();
        if self.holes.iter().all(Vec::is_empty) {
            return common;
        }
        for (_, place) in self.actors.iter().zip(0..) {
            let left = self.missing(Side::Left, place);
            let right = self.missing(Side::Right, place);
            intersect(left, right, |first, last| {
                // The last stretch, beyond both, is no hole.
                if last != u64::MAX {
                    common.push(Run {
                        actor: place,
                        first,
                        last,
                    });
                }
            });
        }
        common
    }

    /// The stretches of an actor's counters that one state has not seen, the endless one included.
    fn missing(&self, side: Side, place: u16) -> impl Iterator<Item = (u64, u64)> {
        let holes = &self.holes[side as usize];
        let start = holes.partition_point(|run| run.actor < place);
        let beyond = self.actors[usize::from(place)].known[side as usize]
            .context
            .saturating_add(1);
        holes[start..]
            .iter()
            .take_while(move |run| run.actor == place)
            .map(|run| (run.first, run.last))
            .chain([(beyond, u64::MAX)])
    }
}

/// The stretches common to two sorted sequences of disjoint stretches. Where neither sequence has
/// stretches that touch, the result has none either.
fn intersect(
    mut left: impl Iterator<Item = (u64, u64)>,
    mut right: impl Iterator<Item = (u64, u64)>,
    mut found: impl FnMut(u64, u64),
) {
    let (mut next_left, mut next_right) = (left.next(), right.next());
    while let (Some(l), Some(r)) = (next_left, next_right) {
        let (first, last) = (l.0.max(r.0), l.1.min(r.1));
        if first <= last {
            found(first, last);
        }
        match l.1.cmp(&r.1) {
            Ordering::Less => next_left = left.next(),
            Ordering::Greater => next_right = right.next(),
            Ordering::Equal => (next_left, next_right) = (left.next(), right.next()),
        }
    }
}

pub fn too_many_actors() -> Error {
    too_large(
        "constraint_state",
        format!("It has more than {MAX_ACTORS} actors."),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(actor: u16, first: u64, last: u64) -> Run {
        Run { actor, first, last }
    }

    #[test]
    fn runs_round_trip() {
        let runs = [
            run(0, 1, 1),
            run(0, 3, 900),
            run(7, 2, 2),
            run(65_534, MAX_COUNTER, MAX_COUNTER),
        ];
        let mut bytes = Vec::new();
        let mut previous = None;
        for run in runs {
            put_run(&mut bytes, previous, run);
            previous = Some(run);
        }
        assert_eq!(Runs::new(&bytes).collect::<Vec<_>>(), runs);
        assert_eq!(&bytes[..6], [0, 0, 1, 0, 1, 0x82]);
    }

    #[test]
    fn runs_that_touch_are_refused() {
        // After 1..=1 of actor 0: nothing seen, nothing missing, an actor too far, an end too far.
        let mut too_far = vec![0, 0, 1, 0];
        put_varint(&mut too_far, MAX_COUNTER);
        too_far.push(1);
        for bytes in [
            &[0, 0, 1, 0, 0, 1][..],
            &[0, 0, 1, 0, 1, 0],
            &[0, 0, 1, 0xff, 0xff, 0x07, 0, 1],
            &too_far,
        ] {
            assert_eq!(Runs::new(bytes).collect::<Vec<_>>(), [run(0, 1, 1)]);
        }
    }

    #[test]
    fn normalised_runs_are_maximal() {
        let mut runs = vec![
            run(1, 5, 5),
            run(0, 4, 6),
            run(0, 1, 3),
            run(0, 8, 9),
            run(0, 8, 8),
        ];
        normalise(&mut runs);
        assert_eq!(runs, [run(0, 1, 6), run(0, 8, 9), run(1, 5, 5)]);
    }

    #[test]
    fn stretches_intersect() {
        let mut found = Vec::new();
        intersect(
            [(1, 4), (6, 9), (12, u64::MAX)].into_iter(),
            [(2, 2), (4, 7), (20, u64::MAX)].into_iter(),
            |first, last| found.push((first, last)),
        );
        assert_eq!(found, [(2, 2), (4, 4), (6, 7), (20, u64::MAX)]);
    }
}
