//! `constraint_state`: the constraints in force, how often they held, and a position, as one value
//! that merges.
//!
//! It is a product of CRDTs over one causal context: an add-wins set of constraint ids, two
//! grow-only counters and a last-writer-wins position. Removing a constraint leaves nothing but the
//! context, so the size follows what the state holds and never what it once held.
//!
//! Bytes, integers little-endian and unaligned:
//!
//! ```text
//! [u8 version = 1][u8 flags][u16 reserved = 0][u32 actors][u32 elements][u32 holes]
//! position, if flag 1:  [u64 at][i32 x][i32 y][u8 length][actor]
//! actors, by name:      [u8 length][name][u64 context][u64 satisfied][u64 violated]
//! holes:                [varint actors further][varint seen between][varint missing]
//! elements, by id:      [u16 length][u16 dots][id]([u16 place of the actor][u64 counter])…
//! ```
//!
//! Equal meaning is equal bytes. Every operation is a merge with a small delta (a delta mutator),
//! so what is proved of the merge holds for all of them.

use std::borrow::Cow;

use super::context::{Actor, Actors, Dot, Joined, Known, MAX_ACTORS, Run, Runs, normalise, run_of};
use super::digest::{self, Digest};
use super::gcounter;
use super::lww::{self, Position};
use super::orset::{self, Element, Elements};
use super::wire::take_array;
use super::writer::{Writer, check_size};
use crate::clock::vclock::{self, Entry, MAX_COUNTER, check_actor};
use crate::error::{self, Result, bad_argument, malformed_binary, out_of_range};

pub const TYPE_NAME: &str = "constraint_state";
pub const MAX_ID_BYTES: usize = 65_535;

/// Of the name under which a state is kept.
pub const MAX_NAME_BYTES: usize = 255;

pub(super) const FORMAT_VERSION: u8 = 1;
pub(super) const HAS_POSITION: u8 = 1;
pub(super) const HEADER_BYTES: usize = 16;

/// A dot with the name of its actor instead of a place.
type NamedDot<'a> = (&'a [u8], u64);

const DIGEST_DOMAIN: &[u8] = b"pg_test constraint_state 1";

/// Checks the name of a state: 1 to 255 bytes without NUL.
pub fn check_state_name(name: &str) -> Result<()> {
    if name.is_empty() {
        return Err(error::state_name_invalid("The name must not be empty."));
    }
    if name.len() > MAX_NAME_BYTES {
        return Err(error::state_name_invalid(format!(
            "The name has {} bytes; the limit is {MAX_NAME_BYTES}.",
            name.len()
        )));
    }
    if name.contains('\0') {
        return Err(error::state_name_invalid(
            "The name contains a NUL character.",
        ));
    }
    Ok(())
}

/// A state borrowed from its bytes. Holding one means that the lengths add up and that every place
/// of an actor exists.
#[derive(Clone, Copy)]
pub struct ConstraintState<'a> {
    bytes: &'a [u8],
    position: Option<Position<'a>>,
    actors: &'a [u8],
    actor_count: usize,
    holes: &'a [u8],
    elements: &'a [u8],
    element_count: usize,
}

impl<'a> ConstraintState<'a> {
    /// Reads a state that this extension wrote. Structure is checked, order and meaning are not:
    /// [`ConstraintState::validate`] is for bytes from outside.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        check_size(bytes.len())?;
        Self::read(bytes).map_err(|detail| malformed_binary(TYPE_NAME, detail))
    }

    /// Reads a state from outside (`recv`, a peer): everything the format promises is checked.
    pub fn validate(bytes: &'a [u8]) -> Result<Self> {
        let state = Self::parse(bytes)?;
        state
            .check()
            .map_err(|detail| malformed_binary(TYPE_NAME, detail))?;
        Ok(state)
    }

    fn read(bytes: &'a [u8]) -> std::result::Result<Self, &'static str> {
        const SHORT: &str = "The value is shorter than its header says.";
        let mut rest = bytes;
        let [version, flags, reserved @ ..] = take_array::<4>(&mut rest).ok_or(SHORT)?;
        if version != FORMAT_VERSION || flags & !HAS_POSITION != 0 || reserved != [0; 2] {
            return Err("The format version or a reserved bit is unknown.");
        }
        let mut count = || take_array(&mut rest).map(|count| u32::from_le_bytes(count) as usize);
        let actor_count = count().ok_or(SHORT)?;
        let element_count = count().ok_or(SHORT)?;
        let hole_count = count().ok_or(SHORT)?;
        if actor_count > MAX_ACTORS {
            return Err("It has too many actors.");
        }
        let position = match flags {
            0 => None,
            _ => Some(Position::take(&mut rest).ok_or(SHORT)?),
        };

        let mut actors = Actors { rest };
        if actor_count > 0 {
            actors.nth(actor_count - 1).ok_or(SHORT)?;
        }
        let table = up_to(rest, actors.rest);
        let mut holes = Runs::new(actors.rest);
        read_holes(&mut holes, hole_count, Actors { rest: table })?;
        read_elements(Elements { rest: holes.rest }, element_count, actor_count)?;
        Ok(Self {
            bytes,
            position,
            actors: table,
            actor_count,
            holes: up_to(actors.rest, holes.rest),
            elements: holes.rest,
            element_count,
        })
    }

    /// Checks what the structure leaves open. The error is the DETAIL.
    pub(super) fn check(&self) -> std::result::Result<(), String> {
        if let Some(position) = self.position {
            check_name(position.actor)?;
        }
        let contexts = self.check_actors()?;
        let holes: Vec<Run> = self.holes().collect();
        let mut dots: Vec<Dot> = Vec::with_capacity(self.element_count);
        let mut previous: &[u8] = &[];
        for element in self.elements() {
            if previous >= element.id {
                return Err("Constraints are not in strict order.".into());
            }
            previous = element.id;
            let id = std::str::from_utf8(element.id)
                .map_err(|_| "The id of a constraint is not valid UTF-8.")?;
            check_id(id)?;
            for dot in element.dots() {
                let context = contexts[usize::from(dot.actor)];
                if dot.counter > context || run_of(&holes, dot).is_some() {
                    return Err(format!(
                        "A dot of constraint \"{id}\" is not in the context."
                    ));
                }
                dots.push(dot);
            }
        }
        dots.sort_unstable();
        if !dots.is_sorted_by(|earlier, later| earlier < later) {
            return Err("Two constraints share a dot.".into());
        }
        Ok(())
    }

    /// Checks the table of actors and returns the highest counter seen of each.
    fn check_actors(&self) -> std::result::Result<Vec<u64>, String> {
        let mut contexts = Vec::with_capacity(self.actor_count);
        let mut previous: Option<&[u8]> = None;
        for Actor { name, known } in self.actors() {
            check_name(name)?;
            if previous.is_some_and(|previous| previous >= name) {
                return Err("Actors are not in strict order.".into());
            }
            let highest = known.context.max(known.satisfied).max(known.violated);
            if known.context == 0 || highest > MAX_COUNTER {
                return Err(format!(
                    "A counter of actor \"{}\" is out of range.",
                    String::from_utf8_lossy(name)
                ));
            }
            contexts.push(known.context);
            previous = Some(name);
        }
        Ok(contexts)
    }

    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The number of constraints in force.
    pub fn count(&self) -> usize {
        self.element_count
    }

    pub fn contains(&self, id: &str) -> bool {
        self.elements().find(id.as_bytes()).is_some()
    }

    /// The ids of the constraints in force, sorted bytewise.
    pub fn ids(&self) -> impl Iterator<Item = Cow<'a, str>> + use<'a> {
        self.elements()
            .map(|element| String::from_utf8_lossy(element.id))
    }

    pub fn satisfied_total(&self) -> u128 {
        gcounter::total(self.actors().map(|actor| actor.known.satisfied))
    }

    pub fn violations_total(&self) -> u128 {
        gcounter::total(self.actors().map(|actor| actor.known.violated))
    }

    /// The share of checks that held; `None` before the first.
    // Counts above 2^53 lose digits that a rate does not show.
    #[allow(clippy::cast_precision_loss)]
    pub fn satisfaction_rate(&self) -> Option<f64> {
        let satisfied = self.satisfied_total();
        let checks = satisfied + self.violations_total();
        (checks > 0).then(|| satisfied as f64 / checks as f64)
    }

    pub fn position(&self) -> Option<Position<'a>> {
        self.position
    }

    /// What the state covers completely, per actor in order: the counter before the first hole.
    /// An actor of which not even the first event has been seen is left out.
    pub fn context(&self) -> impl Iterator<Item = Entry<'a>> + use<'a> {
        let mut holes = self.holes().peekable();
        self.actors().zip(0..).filter_map(move |(actor, place)| {
            let first = holes.next_if(|hole: &Run| hole.actor == place);
            while holes.next_if(|hole| hole.actor == place).is_some() {}
            let counter = first.map_or(actor.known.context, |hole| hole.first - 1);
            (counter > 0).then_some(Entry {
                actor: actor.name,
                counter,
            })
        })
    }

    /// The context as a `vclock`.
    pub fn context_clock(&self) -> Result<Vec<u8>> {
        let entries: Vec<_> = self
            .context()
            .map(|entry| (String::from_utf8_lossy(entry.actor), entry.counter))
            .collect();
        vclock::from_entries(entries.iter().map(|(actor, counter)| (&**actor, *counter)))
    }

    pub fn digest(&self) -> Digest {
        digest::fields(&[DIGEST_DOMAIN, self.bytes])
    }

    pub(super) fn actors(&self) -> Actors<'a> {
        Actors { rest: self.actors }
    }

    pub(super) fn holes(&self) -> Runs<'a> {
        Runs::new(self.holes)
    }

    pub(super) fn elements(&self) -> Elements<'a> {
        Elements {
            rest: self.elements,
        }
    }

    fn known(&self, name: &[u8]) -> Known {
        let actor = self.actors().find(|actor| actor.name == name);
        actor.map_or(Known::default(), |actor| actor.known)
    }

    /// The events that keep a constraint in force.
    #[cfg(test)]
    pub fn dots_of(&self, id: &str) -> Vec<(&'a [u8], u64)> {
        let element = self.elements().find(id.as_bytes());
        element.map_or(Vec::new(), |element| self.named_dots(element))
    }

    /// Whether an event lies in the causal context.
    #[cfg(test)]
    pub fn has_seen(&self, (name, counter): (&[u8], u64)) -> bool {
        let holes: Vec<Run> = self.holes().collect();
        (self.actors().zip(0..)).any(|(known, actor)| {
            known.name == name
                && counter <= known.known.context
                && run_of(&holes, Dot { actor, counter }).is_none()
        })
    }

    /// The dots of an element, with names instead of places.
    fn named_dots(&self, element: Element<'a>) -> Vec<NamedDot<'a>> {
        let names: Vec<&[u8]> = self.actors().map(|actor| actor.name).collect();
        element
            .dots()
            .map(|dot| (names[usize::from(dot.actor)], dot.counter))
            .collect()
    }
}

/// What has been read of `whole` when `rest` is what follows.
fn up_to<'a>(whole: &'a [u8], rest: &[u8]) -> &'a [u8] {
    &whole[..whole.len() - rest.len()]
}

/// Every hole lies below the highest counter of an actor there is.
fn read_holes(
    holes: &mut Runs,
    count: usize,
    mut actors: Actors,
) -> std::result::Result<(), &'static str> {
    const MISPLACED: &str = "A hole is not below the context of an actor.";
    let mut places_read = 0;
    let mut context = 0;
    for _ in 0..count {
        let hole = holes.next().ok_or("A hole is malformed.")?;
        let place = usize::from(hole.actor);
        if place >= places_read {
            let actor = actors.nth(place - places_read).ok_or(MISPLACED)?;
            context = actor.known.context;
            places_read = place + 1;
        }
        if hole.last >= context {
            return Err(MISPLACED);
        }
    }
    Ok(())
}

/// Every element is complete and has dots in order, every dot an actor; nothing follows the last.
fn read_elements(
    mut elements: Elements,
    count: usize,
    actor_count: usize,
) -> std::result::Result<(), &'static str> {
    for _ in 0..count {
        let element = elements
            .next()
            .ok_or("A constraint reaches beyond the end of the value.")?;
        let mut dots = element.dots();
        if dots.len() == 0 {
            return Err("A constraint has no dot.");
        }
        if !dots.clone().is_sorted_by(|earlier, later| earlier < later) {
            return Err("The dots of a constraint are not in strict order.");
        }
        if dots.any(|dot| usize::from(dot.actor) >= actor_count || dot.counter == 0) {
            return Err("A dot has no actor or no counter.");
        }
    }
    if !elements.rest.is_empty() {
        return Err("Bytes follow the last constraint.");
    }
    Ok(())
}

fn check_name(name: &[u8]) -> std::result::Result<(), String> {
    let name = std::str::from_utf8(name).map_err(|_| "An actor is not valid UTF-8.")?;
    check_actor(name, |detail| detail)
}

pub(super) fn check_id(id: &str) -> std::result::Result<(), String> {
    if id.is_empty() {
        return Err("The id of a constraint must not be empty.".into());
    }
    if id.len() > MAX_ID_BYTES {
        return Err(format!(
            "The id of a constraint has {} bytes; the limit is {MAX_ID_BYTES}.",
            id.len()
        ));
    }
    if id.contains('\0') {
        return Err("The id of a constraint must not contain a NUL character.".into());
    }
    Ok(())
}

/// The state that has seen nothing: neutral in every merge.
pub fn empty() -> Vec<u8> {
    let mut bytes = vec![0; HEADER_BYTES];
    bytes[0] = FORMAT_VERSION;
    bytes
}

/// Puts a constraint in force. Adding one that is in force renews it: a concurrent removal, which
/// has not seen the new dot, no longer removes it.
pub fn add(state: ConstraintState, id: &str, actor: &str) -> Result<Vec<u8>> {
    check_id(id).map_err(|detail| bad_argument("invalid constraint id", detail))?;
    let dot = next_dot(state, actor)?;
    let observed = state.elements().find(id.as_bytes());
    let mut seen = observed.map_or(Vec::new(), |element| state.named_dots(element));
    seen.push(dot);
    Mutation {
        seen,
        element: Some((id.as_bytes(), dot)),
        ..Mutation::default()
    }
    .apply(state)
}

/// Removes what has been observed of a constraint; it stays in force where it is added
/// concurrently.
pub fn remove(state: ConstraintState, id: &str) -> Result<Vec<u8>> {
    let Some(observed) = state.elements().find(id.as_bytes()) else {
        return Ok(state.bytes.to_vec());
    };
    Mutation {
        seen: state.named_dots(observed),
        ..Mutation::default()
    }
    .apply(state)
}

/// Counts `n` checks that held.
pub fn record_satisfied(state: ConstraintState, actor: &str, n: i64) -> Result<Vec<u8>> {
    let known = state.known(actor.as_bytes());
    let satisfied = gcounter::increment(known.satisfied, n, "satisfied checks")?;
    record(state, actor, n, Known { satisfied, ..known })
}

/// Counts `n` checks that failed.
pub fn record_violations(state: ConstraintState, actor: &str, n: i64) -> Result<Vec<u8>> {
    let known = state.known(actor.as_bytes());
    let violated = gcounter::increment(known.violated, n, "violations")?;
    record(state, actor, n, Known { violated, ..known })
}

fn record(state: ConstraintState, actor: &str, n: i64, counts: Known) -> Result<Vec<u8>> {
    let dot = next_dot(state, actor)?;
    if n == 0 {
        return Ok(state.bytes.to_vec());
    }
    Mutation {
        seen: vec![dot],
        counts,
        ..Mutation::default()
    }
    .apply(state)
}

/// Sets the position as of a stamp. A write that loses against the present one changes nothing.
pub fn move_to(state: ConstraintState, x: i32, y: i32, at: u64, actor: &str) -> Result<Vec<u8>> {
    let dot = next_dot(state, actor)?;
    let position = Some(Position {
        at,
        actor: actor.as_bytes(),
        x,
        y,
    });
    if position <= state.position {
        return Ok(state.bytes.to_vec());
    }
    Mutation {
        seen: vec![dot],
        position,
        ..Mutation::default()
    }
    .apply(state)
}

/// The event an operation of this actor becomes.
fn next_dot<'a>(state: ConstraintState, actor: &'a str) -> Result<NamedDot<'a>> {
    check_actor(actor, |detail| bad_argument("invalid actor", detail))?;
    let context = state.known(actor.as_bytes()).context;
    if context >= MAX_COUNTER {
        return Err(out_of_range(
            "constraint_state counter",
            format!("Actor \"{actor}\" has used up its {MAX_COUNTER} events."),
        ));
    }
    Ok((actor.as_bytes(), context + 1))
}

/// The delta of one operation: a state that has seen only the given events and carries their
/// effect.
#[derive(Default)]
struct Mutation<'a> {
    seen: Vec<NamedDot<'a>>,
    /// Counts of the acting actor. No other actor is in `seen` when there are any.
    counts: Known,
    position: Option<Position<'a>>,
    element: Option<(&'a [u8], NamedDot<'a>)>,
}

impl Mutation<'_> {
    fn apply(mut self, state: ConstraintState) -> Result<Vec<u8>> {
        self.seen.sort_unstable();
        merge(state, ConstraintState::parse(&self.write()?)?)
    }

    fn write(&self) -> Result<Vec<u8>> {
        let mut out = Writer::new(HEADER_BYTES * 8, self.position);
        let by_actor = || self.seen.chunk_by(|left, right| left.0 == right.0);
        for seen in by_actor() {
            out.actor(&Actor {
                name: seen[0].0,
                known: Known {
                    context: seen[seen.len() - 1].1,
                    ..self.counts
                },
            });
        }
        for (seen, place) in by_actor().zip(0..) {
            let mut previous = 0;
            for &(_, counter) in seen {
                if counter.saturating_sub(previous) > 1 {
                    out.hole(Run {
                        actor: place,
                        first: previous + 1,
                        last: counter - 1,
                    });
                }
                previous = counter;
            }
        }
        if let Some((id, (name, counter))) = self.element {
            out.begin_element(id);
            let mut places = by_actor().zip(0..);
            if let Some((_, actor)) = places.find(|(seen, _)| seen[0].0 == name) {
                out.dot(Dot { actor, counter });
            }
            out.end_element();
        }
        out.finish()
    }
}

fn joined<'a>(left: ConstraintState<'a>, right: ConstraintState<'a>) -> Result<Joined<'a>> {
    Joined::new(
        [left.actors(), right.actors()],
        [left.actor_count, right.actor_count],
        [left.holes(), right.holes()],
    )
}

/// Least upper bound of two states.
pub fn merge(left: ConstraintState, right: ConstraintState) -> Result<Vec<u8>> {
    let joined = joined(left, right)?;
    let position = lww::merge(left.position, right.position);
    let mut out = Writer::new(left.bytes.len() + right.bytes.len(), position);
    for actor in joined.actors(merge_known) {
        out.actor(&actor);
    }
    for hole in joined.common_holes() {
        out.hole(hole);
    }
    orset::merge(&mut out, left.elements(), right.elements(), &joined);
    out.finish()
}

fn merge_known(left: Known, right: Known) -> Known {
    Known {
        context: left.context.max(right.context),
        satisfied: gcounter::merge(left.satisfied, right.satisfied),
        violated: gcounter::merge(left.violated, right.violated),
    }
}

/// Whether merging `right` into `left` would change nothing.
pub fn covers(left: ConstraintState, right: ConstraintState) -> bool {
    if left.bytes == right.bytes {
        return true;
    }
    if left.actor_count < right.actor_count || left.position < right.position {
        return false;
    }
    // States of too many actors to be joined: the left one lacks some of the right one's.
    joined(left, right).is_ok_and(|joined| {
        joined.left_covers_right()
            && orset::left_covers_right(left.elements(), right.elements(), &joined)
    })
}

/// What of `new` a state lacks that has seen everything up to `since`, in order of actors:
/// merging the delta into such a state gives what merging `new` would.
///
/// A removal is no event; it shows by a dot that has been seen and is not held. So the delta has
/// seen all that `new` has, except the events up to `since` whose dots `new` still holds: those it
/// leaves out, and says so by holes. Merging it thus removes exactly what `new` has removed. As it
/// claims no event whose effect it lacks, it is a state like any other: merged elsewhere, late or
/// twice, it does no harm.
pub fn delta<'s>(
    new: ConstraintState,
    since: impl IntoIterator<Item = Entry<'s>>,
) -> Result<Vec<u8>> {
    let covered = covered(new, since);
    let is_covered = |dot: &Dot| dot.counter <= covered[usize::from(dot.actor)];
    let left_out = (new.elements())
        .flat_map(|element| element.dots())
        .filter(is_covered)
        .map(|dot| Run {
            actor: dot.actor,
            first: dot.counter,
            last: dot.counter,
        });
    let mut missing: Vec<Run> = new.holes().chain(left_out).collect();
    normalise(&mut missing);

    let mut out = Writer::new(HEADER_BYTES, new.position);
    let places = write_delta_context(&mut out, new, &missing);
    for element in new.elements() {
        if element.dots().all(|dot| is_covered(&dot)) {
            continue;
        }
        out.begin_element(element.id);
        for dot in element.dots().filter(|dot| !is_covered(dot)) {
            out.dot(Dot {
                actor: places[usize::from(dot.actor)],
                ..dot
            });
        }
        out.end_element();
    }
    out.finish()
}

/// Per actor of `new` the counter up to which `since` covers it. An actor that `since` names out
/// of order counts as not covered, which makes a delta larger and never wrong.
fn covered<'s>(new: ConstraintState, since: impl IntoIterator<Item = Entry<'s>>) -> Vec<u64> {
    let mut since = since.into_iter().peekable();
    new.actors()
        .map(|actor| {
            while since.next_if(|entry| entry.actor < actor.name).is_some() {}
            let entry = since.next_if(|entry| entry.actor == actor.name);
            entry.map_or(0, |entry| entry.counter)
        })
        .collect()
}

/// Writes the actors and holes of a delta; returns where each actor of `new` stands in it.
fn write_delta_context(out: &mut Writer, new: ConstraintState, mut missing: &[Run]) -> Vec<u16> {
    let mut places = Vec::with_capacity(new.actor_count);
    let mut holes = Vec::with_capacity(missing.len());
    let mut place = 0;
    for (mut actor, place_in_new) in new.actors().zip(0..) {
        places.push(place);
        let (mut runs, rest) =
            missing.split_at(missing.partition_point(|run| run.actor <= place_in_new));
        missing = rest;
        // What is missing at the end is no hole: the context ends before it.
        if let Some((last, others)) = runs.split_last()
            && last.last == actor.known.context
        {
            actor.known.context = last.first - 1;
            runs = others;
        }
        if actor.known.context == 0 {
            continue;
        }
        out.actor(&actor);
        holes.extend(runs.iter().map(|run| Run {
            actor: place,
            ..*run
        }));
        place += 1;
    }
    for hole in holes {
        out.hole(hole);
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crdt::text::{from_text, to_text};
    use crate::error::SqlState;

    fn state(bytes: &[u8]) -> ConstraintState<'_> {
        ConstraintState::validate(bytes).unwrap()
    }

    fn merged(left: &[u8], right: &[u8]) -> Vec<u8> {
        merge(state(left), state(right)).unwrap()
    }

    fn ids(bytes: &[u8]) -> Vec<String> {
        state(bytes).ids().map(Cow::into_owned).collect()
    }

    fn read(text: &str) -> Vec<u8> {
        from_text(text).unwrap()
    }

    /// A small state with every part in it.
    fn sample() -> Vec<u8> {
        read(
            r#"{"constraints":{"cost":[["a",4],["b#2",1]]},"context":{"a":5,"b#2":2},"missing":{"a":[[1,2]]},"position":{"actor":"a","at":"1970-01-01T00:00:00.001Z/2","x":-1,"y":7},"satisfied":{"a":300},"violated":{"b#2":1}}"#,
        )
    }

    #[test]
    fn bytes_and_digest_are_known() {
        let bytes = sample();
        let expected: [&[u8]; 8] = [
            &[1, 1, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0],
            &[
                2, 0, 1, 0, 0, 0, 0, 0, 255, 255, 255, 255, 7, 0, 0, 0, 1, b'a',
            ],
            &[1, b'a', 5, 0, 0, 0, 0, 0, 0, 0, 44, 1, 0, 0, 0, 0, 0, 0],
            &[0, 0, 0, 0, 0, 0, 0, 0],
            &[3, b'b', b'#', b'2', 2, 0, 0, 0, 0, 0, 0, 0],
            &[0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0],
            &[0, 0, 2],
            &[
                4, 0, 2, 0, b'c', b'o', b's', b't', // id and number of dots
                0, 0, 4, 0, 0, 0, 0, 0, 0, 0, // a, 4
                1, 0, 1, 0, 0, 0, 0, 0, 0, 0, // b#2, 1
            ],
        ];
        assert_eq!(bytes, expected.concat());
        let digest = blake3::Hash::from_bytes(state(&bytes).digest());
        assert_eq!(
            digest.to_hex().as_str(),
            "98f274e756bab5f1467ea593f622b536cc21df06870a7bcfd92c57c2567c263a"
        );
    }

    #[test]
    fn empty_is_a_header() {
        assert_eq!(empty(), [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let bytes = empty();
        let empty = state(&bytes);
        assert_eq!(to_text(empty), "{}");
        assert_eq!(read("{}"), bytes);
        assert_eq!(empty.count(), 0);
        assert_eq!(empty.satisfaction_rate(), None);
        assert_eq!(empty.position(), None);
        assert_eq!(empty.context().count(), 0);
    }

    #[test]
    fn every_event_counts() {
        let mut bytes = empty();
        bytes = add(state(&bytes), "x", "a").unwrap();
        bytes = add(state(&bytes), "x", "a").unwrap();
        bytes = record_satisfied(state(&bytes), "a", 3).unwrap();
        bytes = record_violations(state(&bytes), "b", 1).unwrap();
        bytes = move_to(state(&bytes), 4, -5, 1 << 16, "a").unwrap();
        assert_eq!(
            to_text(state(&bytes)),
            r#"{"constraints":{"x":[["a",2]]},"context":{"a":4,"b":1},"position":{"actor":"a","at":"1970-01-01T00:00:00.001Z/0","x":4,"y":-5},"satisfied":{"a":3},"violated":{"b":1}}"#
        );
        let removed = remove(state(&bytes), "x").unwrap();
        assert!(!state(&removed).contains("x"));
        assert!(state(&removed).context().eq(state(&bytes).context()));
        assert_eq!(state(&bytes).satisfaction_rate(), Some(0.75));
    }

    #[test]
    fn what_changes_nothing_returns_the_same_bytes() {
        let bytes = sample();
        let now = state(&bytes);
        assert_eq!(record_satisfied(now, "new", 0), Ok(bytes.clone()));
        assert_eq!(record_violations(now, "new", 0), Ok(bytes.clone()));
        assert_eq!(remove(now, "absent"), Ok(bytes.clone()));
        assert_eq!(move_to(now, 9, 9, 1, "z"), Ok(bytes.clone()));
    }

    #[test]
    fn concurrent_addition_wins() {
        let old = add(state(&empty()), "x", "a").unwrap();
        let removed = remove(state(&old), "x").unwrap();
        let renewed = add(state(&old), "x", "b").unwrap();
        assert_eq!(ids(&merged(&removed, &renewed)), ["x"]);
        // The removal was of what had been observed, and stays.
        assert!(ids(&merged(&removed, &old)).is_empty());
        assert!(covers(state(&removed), state(&old)));
        assert!(!covers(state(&old), state(&removed)));
    }

    #[test]
    fn removal_leaves_nothing_behind() {
        let mut bytes = add(state(&empty()), "kept", "a").unwrap();
        let fresh = record_satisfied(state(&bytes), "b", 1).unwrap();
        bytes.clone_from(&fresh);
        for round in 0..10_000 {
            let id = format!("constraint {round}");
            let actor = ["a", "b"][round % 2];
            bytes = add(state(&bytes), &id, actor).unwrap();
            bytes = remove(state(&bytes), &id).unwrap();
        }
        assert_eq!(bytes.len(), fresh.len());
        assert_eq!(ids(&bytes), ["kept"]);
    }

    #[test]
    fn delta_is_small() {
        let actors = ["node-a", "node-b", "node-c"];
        let mut old = empty();
        for n in 0..1_000 {
            let actor = actors[n % 3];
            old = add(state(&old), &format!("constraint {n}"), actor).unwrap();
            // No two additions are consecutive events, so every constraint is a hole of its own.
            old = record_satisfied(state(&old), actor, 1).unwrap();
        }
        let mut new = add(state(&old), "one more", "node-a").unwrap();
        new = remove(state(&new), "constraint 500").unwrap();
        let message = delta(state(&new), state(&old).context()).unwrap();
        assert_eq!(merged(&old, &message), new);
        assert!(
            message.len() * 8 < new.len(),
            "{} of {}",
            message.len(),
            new.len()
        );

        // Holes that follow each other are one, and those at the end shorten the context.
        let mut old = empty();
        for n in 0..1_000 {
            old = add(state(&old), &format!("constraint {n}"), "node-a").unwrap();
        }
        let message = delta(state(&old), state(&old).context()).unwrap();
        assert_eq!(message, empty());
        let new = add(state(&old), "one more", "node-a").unwrap();
        let message = delta(state(&new), state(&old).context()).unwrap();
        assert_eq!(
            to_text(state(&message)),
            r#"{"constraints":{"one more":[["node-a",1001]]},"context":{"node-a":1001},"missing":{"node-a":[[1,1000]]}}"#
        );
    }

    #[test]
    fn delta_carries_the_new_dot_of_an_old_element() {
        let old = add(state(&empty()), "x", "a").unwrap();
        let elsewhere = add(state(&empty()), "x", "b").unwrap();
        let new = merged(&old, &elsewhere);
        let message = delta(state(&new), state(&old).context()).unwrap();
        assert_eq!(
            to_text(state(&message)),
            r#"{"constraints":{"x":[["b",1]]},"context":{"b":1}}"#
        );
        assert_eq!(merged(&old, &message), new);
        // An old value that has removed its dot meanwhile loses nothing of the new one.
        let removed = remove(state(&old), "x").unwrap();
        assert_eq!(merged(&removed, &message), merged(&removed, &new));
        // `since` may know more than `new`.
        let further = [b"a", b"b", b"c"].map(|actor| Entry {
            actor,
            counter: MAX_COUNTER,
        });
        assert_eq!(delta(state(&new), further).unwrap(), empty());
    }

    #[test]
    fn a_delta_claims_no_more_than_it_carries() {
        let start = record_satisfied(state(&empty()), "a", 5).unwrap();
        let new = add(state(&start), "x", "a").unwrap();
        let message = delta(state(&new), state(&start).context()).unwrap();
        // Taken by one who never saw the start: the count came along with the event.
        assert_eq!(state(&merged(&empty(), &message)).satisfied_total(), 5);
        let message = delta(state(&new), state(&new).context()).unwrap();
        let taken = merged(&empty(), &message);
        assert_eq!(merged(&taken, &new), new);
    }

    #[test]
    fn context_ends_before_the_first_hole() {
        let bytes =
            read(r#"{"context":{"a":9,"b":3,"c":7},"missing":{"a":[[4,5],[7,8]],"c":[[1,1]]}}"#);
        let context: Vec<_> = (state(&bytes).context())
            .map(|entry| (entry.actor, entry.counter))
            .collect();
        assert_eq!(context, [(&b"a"[..], 3), (b"b", 3)]);
    }

    #[test]
    fn arguments_are_checked() {
        let bytes = empty();
        let now = state(&bytes);
        let long_actor = "a".repeat(256);
        let long_id = "i".repeat(MAX_ID_BYTES + 1);
        for result in [
            add(now, "", "a"),
            add(now, "x\0", "a"),
            add(now, &long_id, "a"),
            add(now, "x", ""),
            add(now, "x", "a\0"),
            add(now, "x", &long_actor),
            record_satisfied(now, "", 0),
            record_satisfied(now, "a", -1),
            record_violations(now, "a", i64::MIN),
            move_to(now, 0, 0, 0, ""),
        ] {
            assert_eq!(result.unwrap_err().state, SqlState::InvalidParameterValue);
        }
        assert!(add(now, &long_id[1..], &long_actor[1..]).is_ok());
    }

    #[test]
    fn counters_do_not_overflow() {
        let bytes = read(
            r#"{"context":{"a":9223372036854775807,"b":1},"satisfied":{"b":9223372036854775807}}"#,
        );
        let now = state(&bytes);
        for result in [
            add(now, "x", "a"),
            record_violations(now, "a", 1),
            move_to(now, 0, 0, 0, "a"),
            record_satisfied(now, "b", 1),
        ] {
            assert_eq!(result.unwrap_err().state, SqlState::NumericValueOutOfRange);
        }
        let more = record_satisfied(now, "c", i64::MAX).unwrap();
        let total = state(&more).satisfied_total();
        assert_eq!(total, 2 * u128::from(MAX_COUNTER));
    }

    #[test]
    fn an_actor_too_many_is_refused() {
        let table = |prefix: &str| {
            let mut out = Writer::new(HEADER_BYTES, None);
            for n in 0..MAX_ACTORS {
                let name = format!("{prefix}{n:05}");
                out.actor(&Actor {
                    name: name.as_bytes(),
                    known: Known {
                        context: 1,
                        ..Known::default()
                    },
                });
            }
            out.finish().unwrap()
        };
        let (left, right) = (table("a"), table("b"));
        assert_eq!(merged(&left, &left), left);
        let one_more = to_text(state(&left)).replace("}}", ",\"b\":1}}");
        for result in [
            merge(state(&left), state(&right)),
            add(state(&left), "x", "b"),
            from_text(&one_more),
        ] {
            assert_eq!(result.err().unwrap().state, SqlState::ProgramLimitExceeded);
        }
        assert!(!covers(state(&left), state(&right)));
        let last = add(state(&left), "x", "a65534").unwrap();
        let message = delta(state(&last), state(&left).context()).unwrap();
        assert_eq!(merged(&left, &message), last);
        assert_eq!(read(&to_text(state(&last))), last);
    }

    #[test]
    fn a_value_too_large_is_refused() {
        let bytes = vec![0; crate::crdt::writer::MAX_BYTES + 1];
        let error = ConstraintState::parse(&bytes).err().unwrap();
        assert_eq!(error.state, SqlState::ProgramLimitExceeded);
    }

    #[test]
    fn every_rule_of_the_format_is_checked() {
        let bytes = sample();
        let change = |at: usize, new: &[u8]| {
            let mut changed = bytes.clone();
            changed[at..at + new.len()].copy_from_slice(new);
            changed
        };
        let max = MAX_COUNTER.to_le_bytes();
        let beyond = (MAX_COUNTER + 1).to_le_bytes();
        // Offsets: position 16, its actor 32; actor a 34, context 36, counts 44 and 52; actor b#2
        // 60, context 64; holes 88; element 91, id 95, dots 99 and 109.
        for (what, damaged) in [
            ("version", change(0, &[2])),
            ("flag", change(1, &[3])),
            ("reserved", change(2, &[1])),
            ("actors", change(4, &[3])),
            ("too many actors", change(4, &[255, 255, 255, 255])),
            ("elements", change(8, &[2])),
            ("fewer elements", change(8, &[0])),
            ("holes", change(12, &[2])),
            ("fewer holes", change(12, &[0])),
            (
                "position actor empty",
                [&bytes[..32], &bytes[33..]].concat(),
            ),
            ("position actor NUL", change(33, &[0])),
            ("position actor UTF-8", change(33, &[0xff])),
            ("actor NUL", change(35, &[0])),
            ("actor UTF-8", change(35, &[0xc3])),
            ("actor order", change(35, b"c")),
            ("context 0", change(64, &[0])),
            ("context out of range", change(36, &beyond)),
            ("satisfied out of range", change(44, &beyond)),
            ("violated out of range", change(52, &beyond)),
            ("hole at the end", change(90, &[5])),
            ("hole of no actor", change(88, &[2])),
            ("hole of another actor", change(88, &[1])),
            ("empty hole", change(90, &[0])),
            ("dot in a hole", change(101, &[2])),
            ("dot beyond the context", change(101, &[6])),
            ("dot zero", change(101, &[0])),
            ("dot of no actor", change(109, &[2])),
            ("dots out of order", change(109, &[0])),
            ("id NUL", change(95, &[0])),
            ("id UTF-8", change(95, &[0xff])),
            ("more dots", change(93, &[3])),
            ("fewer dots", change(93, &[1])),
            ("no dots", [&change(93, &[0])[..99]].concat()),
            ("trailing byte", [&bytes[..], &[0]].concat()),
        ] {
            let error = ConstraintState::validate(&damaged).err();
            let error = error.unwrap_or_else(|| panic!("{what} was not checked"));
            assert_eq!(error.state, SqlState::InvalidBinaryRepresentation, "{what}");
            assert!(error.detail.is_some());
        }
        state(&change(36, &max));
        for length in 0..bytes.len() {
            assert!(ConstraintState::parse(&bytes[..length]).is_err());
        }
    }

    #[test]
    fn holes_end_below_the_context() {
        let write = |actor, first, last| {
            let mut out = Writer::new(HEADER_BYTES, None);
            out.actor(&Actor {
                name: b"a",
                known: Known {
                    context: 5,
                    ..Known::default()
                },
            });
            out.hole(Run { actor, first, last });
            out.finish().unwrap()
        };
        state(&write(0, 1, 4));
        for damaged in [
            write(0, 1, 5),
            write(0, 5, 5),
            write(0, 6, 7),
            write(1, 1, 1),
        ] {
            let error = ConstraintState::parse(&damaged).err().unwrap();
            assert_eq!(error.state, SqlState::InvalidBinaryRepresentation);
        }
    }

    #[test]
    fn elements_are_sorted_and_share_no_dot() {
        let write = |elements: &[(&str, u64)]| {
            let mut out = Writer::new(HEADER_BYTES, None);
            out.actor(&Actor {
                name: b"a",
                known: Known {
                    context: 2,
                    ..Known::default()
                },
            });
            for (id, counter) in elements {
                out.begin_element(id.as_bytes());
                out.dot(Dot {
                    actor: 0,
                    counter: *counter,
                });
                out.end_element();
            }
            out.finish().unwrap()
        };
        state(&write(&[("x", 2), ("y", 1)]));
        for elements in [
            &[("y", 1), ("x", 2)][..],
            &[("x", 1), ("x", 2)],
            &[("x", 1), ("y", 1)],
            &[("", 1)],
        ] {
            let error = ConstraintState::validate(&write(elements)).err().unwrap();
            assert_eq!(error.state, SqlState::InvalidBinaryRepresentation);
        }
    }
}
