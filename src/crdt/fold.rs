//! Counting the events of one actor as another's.
//!
//! A node that does not know yet which of its lives it is in counts under an actor of its own, of
//! which nobody else hears. Once it knows, those events follow the last one of the actor it is: the
//! result is, byte for byte, what that actor would have written itself.

use super::constraint_state::{ConstraintState, HEADER_BYTES, TYPE_NAME};
use super::context::{Actor, Dot, Known, Run, normalise};
use super::lww::Position;
use super::writer::Writer;
use crate::clock::vclock::MAX_COUNTER;
use crate::error::{Result, out_of_range};

/// The table of actors after folding, and where the dots of the old one went.
struct Table<'a> {
    actors: Vec<Actor<'a>>,
    /// Per old place the new one.
    places: Vec<u16>,
    folded: u16,
    /// Events that come before those folded.
    offset: u64,
}

impl<'a> Table<'a> {
    /// `None` when there is nothing to fold.
    fn new(state: ConstraintState<'a>, from: &[u8], into: &'a [u8]) -> Result<Option<Self>> {
        let old: Vec<Actor> = state.actors().collect();
        let Some(folded) = old.iter().position(|actor| actor.name == from) else {
            return Ok(None);
        };
        let known = |name: &[u8]| {
            let found = old.iter().find(|actor| actor.name == name);
            found.map_or(Known::default(), |actor| actor.known)
        };
        let mut actors: Vec<Actor> = (old.iter().copied())
            .filter(|actor| actor.name != from && actor.name != into)
            .collect();
        let place = actors.partition_point(|actor| actor.name < into);
        actors.insert(
            place,
            Actor {
                name: into,
                known: sum(known(into), known(from))?,
            },
        );
        let new_place = |actor: &Actor| {
            let name = if actor.name == from { into } else { actor.name };
            actors.partition_point(|new| new.name < name) as u16
        };
        Ok(Some(Self {
            places: old.iter().map(new_place).collect(),
            folded: folded as u16,
            offset: known(into).context,
            actors,
        }))
    }

    fn counter(&self, actor: u16, counter: u64) -> u64 {
        counter + if actor == self.folded { self.offset } else { 0 }
    }

    fn dot(&self, dot: Dot) -> Dot {
        Dot {
            actor: self.places[usize::from(dot.actor)],
            counter: self.counter(dot.actor, dot.counter),
        }
    }

    fn run(&self, run: Run) -> Run {
        Run {
            actor: self.places[usize::from(run.actor)],
            first: self.counter(run.actor, run.first),
            last: self.counter(run.actor, run.last),
        }
    }
}

fn sum(left: Known, right: Known) -> Result<Known> {
    let add = |left: u64, right: u64| {
        (left.checked_add(right))
            .filter(|sum| *sum <= MAX_COUNTER)
            .ok_or_else(|| {
                out_of_range(
                    &format!("{TYPE_NAME} counter"),
                    format!("The events of one actor, {left} and {right}, exceed {MAX_COUNTER}."),
                )
            })
    };
    Ok(Known {
        context: add(left.context, right.context)?,
        satisfied: add(left.satisfied, right.satisfied)?,
        violated: add(left.violated, right.violated)?,
    })
}

/// The state in which `into` has done, after all it did, what `from` did. Only where nobody else
/// has seen an event of `from` is the result one that merges.
pub fn fold(state: ConstraintState, from: &str, into: &str) -> Result<Vec<u8>> {
    let (from, into) = (from.as_bytes(), into.as_bytes());
    let position = state.position().map(|position| Position {
        actor: if position.actor == from {
            into
        } else {
            position.actor
        },
        ..position
    });
    let Some(table) = Table::new(state, from, into)? else {
        return Ok(state.bytes().to_vec());
    };
    let mut out = Writer::new(state.bytes().len() + HEADER_BYTES, position);
    for actor in &table.actors {
        out.actor(actor);
    }
    let mut holes: Vec<Run> = state.holes().map(|run| table.run(run)).collect();
    normalise(&mut holes);
    for hole in holes {
        out.hole(hole);
    }
    for element in state.elements() {
        let mut dots: Vec<Dot> = element.dots().map(|dot| table.dot(dot)).collect();
        dots.sort_unstable();
        out.begin_element(element.id);
        for dot in dots {
            out.dot(dot);
        }
        out.end_element();
    }
    out.finish()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::crdt::constraint_state as state;
    use crate::error::SqlState;

    #[derive(Clone, Debug)]
    enum Operation {
        Satisfy(i64),
        Violate(i64),
        Add(u8),
        Remove(u8),
        Move(i32),
    }

    fn operation() -> impl Strategy<Value = Operation> {
        prop_oneof![
            (0..4_i64).prop_map(Operation::Satisfy),
            (0..4_i64).prop_map(Operation::Violate),
            (0..4_u8).prop_map(Operation::Add),
            (0..4_u8).prop_map(Operation::Remove),
            (0..4_i32).prop_map(Operation::Move),
        ]
    }

    fn read(bytes: &[u8]) -> ConstraintState<'_> {
        ConstraintState::validate(bytes).unwrap()
    }

    fn run<'o>(
        start: Vec<u8>,
        mut at: u64,
        operations: impl IntoIterator<Item = (&'o str, &'o Operation)>,
    ) -> Vec<u8> {
        operations
            .into_iter()
            .fold(start, |bytes, (actor, operation)| {
                let old = read(&bytes);
                at += 1;
                match operation {
                    Operation::Satisfy(n) => state::record_satisfied(old, actor, *n),
                    Operation::Violate(n) => state::record_violations(old, actor, *n),
                    Operation::Add(id) => state::add(old, &format!("c{id}"), actor),
                    Operation::Remove(id) => state::remove(old, &format!("c{id}")),
                    Operation::Move(x) => state::move_to(old, *x, 0, at, actor),
                }
                .unwrap()
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn folding_is_having_counted_as_the_other(
            before in prop::collection::vec((0..3_usize, operation()), 0..12),
            since in prop::collection::vec((0..3_usize, operation()), 0..12),
            into in 0..3_usize,
        ) {
            const ACTORS: [&str; 3] = ["a", "a#2", "b"];
            let history = run(state::empty(), 0, before.iter().map(|(who, what)| (ACTORS[*who], what)));
            // What another node has told meanwhile stays as it is; only "into" waits for its name.
            let told = |who: usize| if who == into { "b#9" } else { ACTORS[who] };
            let as_provisional = |who: usize| if who == into { "a#0" } else { told(who) };
            let provisional = run(history.clone(), 100, since.iter().map(|(who, what)| (as_provisional(*who), what)));
            let as_known = |who: usize| if who == into { ACTORS[into] } else { told(who) };
            let known = run(history, 100, since.iter().map(|(who, what)| (as_known(*who), what)));
            prop_assert_eq!(fold(read(&provisional), "a#0", ACTORS[into]).unwrap(), known);
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let full = state::record_satisfied(read(&state::empty()), "a", i64::MAX).unwrap();
        let more = state::record_satisfied(read(&full), "a#0", 1).unwrap();
        let error = fold(read(&more), "a#0", "a").unwrap_err();
        assert_eq!(error.state, SqlState::NumericValueOutOfRange);
    }
}
