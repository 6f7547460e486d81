//! Vector clocks as flat values (Fidge 1988, Mattern 1989).
//!
//! Bytes: `[u8 version = 1][u8 flags = 0][u16 reserved = 0][u32 count]`, then per entry, sorted
//! bytewise by actor, `[u8 length][actor][u64 counter]`; integers are little-endian and unaligned.
//! No entry is zero, so clocks of equal meaning are equal bytes.

use std::cmp::Ordering;

use crate::error::{
    Result, bad_argument, malformed_binary, malformed_text, out_of_range, too_large,
};
use crate::json::{self, Value};

pub const TYPE_NAME: &str = "vclock";
pub const MAX_ENTRIES: usize = 65_535;
pub const MAX_ACTOR_BYTES: usize = 255;
pub const MAX_COUNTER: u64 = i64::MAX as u64;

const HEADER: [u8; 4] = [1, 0, 0, 0];
const HEADER_BYTES: usize = 8;
const COUNTER_BYTES: usize = 8;
const WORD_BYTES: usize = COUNTER_BYTES;

/// How two clocks relate. The names are the labels of `coord.causality`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Causality {
    Equal,
    Before,
    After,
    Concurrent,
}

impl Causality {
    pub const fn label(self) -> &'static str {
        match self {
            Self::Equal => "equal",
            Self::Before => "before",
            Self::After => "after",
            Self::Concurrent => "concurrent",
        }
    }
}

/// One actor and what has been counted of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    pub actor: &'a [u8],
    pub counter: u64,
}

/// A clock borrowed from its bytes. Holding one means that the lengths add up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vclock<'a> {
    bytes: &'a [u8],
    count: u32,
}

impl<'a> Vclock<'a> {
    /// Reads a clock that this extension wrote. Structure is checked, order and ranges are not:
    /// [`Vclock::validate`] is for bytes from outside.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        let malformed = |detail: &str| malformed_binary(TYPE_NAME, detail);
        let (header, rest) = bytes
            .split_first_chunk::<4>()
            .ok_or_else(|| malformed("The value is shorter than its header."))?;
        if *header != HEADER {
            return Err(malformed(
                "The format version or a reserved bit is unknown.",
            ));
        }
        let (count, entries) = rest
            .split_first_chunk::<4>()
            .ok_or_else(|| malformed("The value is shorter than its header."))?;
        let count = u32::from_le_bytes(*count);
        let mut walk = Entries { rest: entries };
        for _ in 0..count {
            walk.next()
                .ok_or_else(|| malformed("An entry reaches beyond the end of the value."))?;
        }
        if !walk.rest.is_empty() {
            return Err(malformed("Bytes follow the last entry."));
        }
        Ok(Self { bytes, count })
    }

    /// Reads a clock from outside (`recv`, a peer): everything the format promises is checked.
    pub fn validate(bytes: &'a [u8]) -> Result<Self> {
        let clock = Self::parse(bytes)?;
        check_count(clock.len())?;
        let mut previous: Option<&[u8]> = None;
        for entry in clock.entries() {
            check_actor_bytes(entry.actor)?;
            if previous.is_some_and(|previous| previous >= entry.actor) {
                return Err(malformed_binary(
                    TYPE_NAME,
                    "Actors are not in strict order.",
                ));
            }
            if entry.counter == 0 || entry.counter > MAX_COUNTER {
                return Err(malformed_binary(
                    TYPE_NAME,
                    format!("Counter {} is outside 1 to {MAX_COUNTER}.", entry.counter),
                ));
            }
            previous = Some(entry.actor);
        }
        Ok(clock)
    }

    pub fn len(&self) -> usize {
        self.count as usize
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    pub fn entries(&self) -> Entries<'a> {
        Entries {
            rest: &self.bytes[HEADER_BYTES..],
        }
    }

    /// The counter of an actor, 0 when it has none.
    pub fn get(&self, actor: &[u8]) -> u64 {
        self.entries()
            .take_while(|entry| entry.actor <= actor)
            .find(|entry| entry.actor == actor)
            .map_or(0, |entry| entry.counter)
    }
}

/// The entries of a clock, in order.
#[derive(Clone)]
pub struct Entries<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Entries<'a> {
    type Item = Entry<'a>;

    #[inline]
    fn next(&mut self) -> Option<Entry<'a>> {
        let (&length, rest) = self.rest.split_first()?;
        let (actor, rest) = rest.split_at_checked(usize::from(length))?;
        let (counter, rest) = rest.split_first_chunk::<COUNTER_BYTES>()?;
        self.rest = rest;
        Some(Entry {
            actor,
            counter: u64::from_le_bytes(*counter),
        })
    }
}

/// Writes a clock whose entries arrive in order.
struct Builder {
    bytes: Vec<u8>,
    count: u32,
}

impl Builder {
    fn with_capacity(capacity: usize) -> Self {
        let mut bytes = Vec::with_capacity(capacity.max(HEADER_BYTES));
        bytes.extend_from_slice(&HEADER);
        bytes.extend_from_slice(&0_u32.to_le_bytes());
        Self { bytes, count: 0 }
    }

    #[inline]
    fn push(&mut self, actor: &[u8], counter: u64) {
        // Callers hold actors of at most 255 bytes: checked on every way in.
        self.bytes.push(actor.len() as u8);
        self.bytes.extend_from_slice(actor);
        self.bytes.extend_from_slice(&counter.to_le_bytes());
        self.count += 1;
    }

    fn finish(mut self) -> Result<Vec<u8>> {
        check_count(self.count as usize)?;
        self.bytes[4..HEADER_BYTES].copy_from_slice(&self.count.to_le_bytes());
        Ok(self.bytes)
    }
}

fn check_count(count: usize) -> Result<()> {
    if count > MAX_ENTRIES {
        return Err(too_large(
            TYPE_NAME,
            format!("It has {count} entries; the limit is {MAX_ENTRIES}."),
        ));
    }
    Ok(())
}

fn check_actor_bytes(actor: &[u8]) -> Result<()> {
    match std::str::from_utf8(actor) {
        Ok(actor) => check_actor(actor, |detail| malformed_binary(TYPE_NAME, detail)),
        Err(_) => Err(malformed_binary(TYPE_NAME, "An actor is not valid UTF-8.")),
    }
}

/// An actor's name is 1 to 255 bytes without NUL; `error` is raised when it is not.
pub fn check_actor<E>(actor: &str, error: impl FnOnce(String) -> E) -> std::result::Result<(), E> {
    if actor.is_empty() {
        return Err(error("An actor must not be empty.".into()));
    }
    if actor.len() > MAX_ACTOR_BYTES {
        return Err(error(format!(
            "An actor of {} bytes is longer than {MAX_ACTOR_BYTES}.",
            actor.len()
        )));
    }
    if actor.contains('\0') {
        return Err(error("An actor must not contain a NUL character.".into()));
    }
    Ok(())
}

/// The clock without entries.
pub fn empty() -> Vec<u8> {
    let mut bytes = HEADER.to_vec();
    bytes.extend_from_slice(&0_u32.to_le_bytes());
    bytes
}

/// A clock of the given entries in any order; zero counters are dropped, of equal actors the
/// highest counter counts. Actors must be 1 to 255 bytes.
pub fn from_entries<'a>(entries: impl IntoIterator<Item = (&'a str, u64)>) -> Result<Vec<u8>> {
    let mut sorted: Vec<(&str, u64)> = entries.into_iter().filter(|entry| entry.1 > 0).collect();
    sorted.sort_unstable_by(|a, b| a.0.cmp(b.0).then(b.1.cmp(&a.1)));
    sorted.dedup_by(|later, earlier| later.0 == earlier.0);
    let mut clock = Builder::with_capacity(HEADER_BYTES + sorted.len() * 24);
    for (actor, counter) in sorted {
        check_actor(actor, |detail| malformed_text(TYPE_NAME, detail))?;
        if counter > MAX_COUNTER {
            return Err(counter_out_of_range(actor));
        }
        clock.push(actor.as_bytes(), counter);
    }
    clock.finish()
}

fn counter_out_of_range(actor: &str) -> crate::error::Error {
    out_of_range(
        "vclock counter",
        format!("The counter of actor \"{actor}\" must lie between 0 and {MAX_COUNTER}."),
    )
}

/// Adds one to an actor's counter. 22003 at 2^63 - 1.
pub fn increment(clock: Vclock, actor: &str) -> Result<Vec<u8>> {
    check_actor(actor, |detail| bad_argument("invalid actor", detail))?;
    let name = actor.as_bytes();
    let next = clock.get(name) + 1;
    if next > MAX_COUNTER {
        return Err(counter_out_of_range(actor));
    }
    let mut out = Builder::with_capacity(clock.bytes.len() + 1 + name.len() + COUNTER_BYTES);
    let mut pending = Some(next);
    for entry in clock.entries() {
        if entry.actor >= name
            && let Some(counter) = pending.take()
        {
            out.push(name, counter);
        }
        if entry.actor != name {
            out.push(entry.actor, entry.counter);
        }
    }
    if let Some(counter) = pending {
        out.push(name, counter);
    }
    out.finish()
}

/// One step of walking two clocks side by side: an actor with its counter on either side, 0 where
/// it is absent.
struct Paired<'a> {
    actor: &'a [u8],
    left: u64,
    right: u64,
}

struct Pairs<'a> {
    left: Entries<'a>,
    right: Entries<'a>,
    next_left: Option<Entry<'a>>,
    next_right: Option<Entry<'a>>,
}

impl<'a> Pairs<'a> {
    fn new(left: Vclock<'a>, right: Vclock<'a>) -> Self {
        let (mut left, mut right) = (left.entries(), right.entries());
        let (next_left, next_right) = (left.next(), right.next());
        Self {
            left,
            right,
            next_left,
            next_right,
        }
    }
}

impl<'a> Iterator for Pairs<'a> {
    type Item = Paired<'a>;

    #[inline]
    fn next(&mut self) -> Option<Paired<'a>> {
        let order = match (self.next_left, self.next_right) {
            (None, None) => return None,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(left), Some(right)) => left.actor.cmp(right.actor),
        };
        let left = if order == Ordering::Greater {
            None
        } else {
            std::mem::replace(&mut self.next_left, self.left.next())
        };
        let right = if order == Ordering::Less {
            None
        } else {
            std::mem::replace(&mut self.next_right, self.right.next())
        };
        left.or(right).map(|entry| Paired {
            actor: entry.actor,
            left: left.map_or(0, |entry| entry.counter),
            right: right.map_or(0, |entry| entry.counter),
        })
    }
}

/// The result of a merge that may be one of its inputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Merged<B> {
    /// The left side covers the right one.
    Left,
    New(B),
}

/// Least upper bound: per actor the higher counter. Takes the bytes, because clocks of the same
/// actors, the usual case, merge in one pass that checks the structure as it goes. `B` is the memory
/// the result is written to.
pub fn merge_bytes<B>(left: &[u8], right: &[u8]) -> Result<Merged<B>>
where
    B: for<'a> From<&'a [u8]> + AsMut<[u8]>,
{
    if let Some(merged) = merge_of_same_actors(left, right) {
        return Ok(merged);
    }
    let (left, right) = (Vclock::parse(left)?, Vclock::parse(right)?);
    if covers(left, right) {
        return Ok(Merged::Left);
    }
    let mut out = Builder::with_capacity(left.bytes.len() + right.bytes.len());
    for pair in Pairs::new(left, right) {
        out.push(pair.actor, pair.left.max(pair.right));
    }
    Ok(Merged::New(B::from(&out.finish()?)))
}

/// Least upper bound of two clocks as a clock of its own.
pub fn merge(left: Vclock, right: Vclock) -> Result<Vec<u8>> {
    Ok(match merge_bytes(left.bytes, right.bytes)? {
        Merged::Left => left.bytes.to_vec(),
        Merged::New(merged) => merged,
    })
}

/// Clocks of the same actors differ in counters only, so a copy of one side with the higher counters
/// written over it is the result. `None` when the actors differ or the structure is not sound.
fn merge_of_same_actors<B>(left: &[u8], right: &[u8]) -> Option<Merged<B>>
where
    B: for<'a> From<&'a [u8]> + AsMut<[u8]>,
{
    if left.len() != right.len()
        || left.get(..HEADER_BYTES)? != right.get(..HEADER_BYTES)?
        || left[..HEADER.len()] != HEADER
    {
        return None;
    }
    let mut merged: Option<B> = None;
    let (mut place, mut count) = (HEADER_BYTES, 0_u32);
    while let Some(&length) = left.get(place) {
        let counter = place + 1 + usize::from(length);
        let end = counter + COUNTER_BYTES;
        let (mine, theirs) = (left.get(place..end)?, right.get(place..end)?);
        let (mine_actor, mine_counter) = mine.split_last_chunk::<COUNTER_BYTES>()?;
        let (_, theirs_counter) = theirs.split_last_chunk::<COUNTER_BYTES>()?;
        if !starts_alike(mine, theirs, mine_actor.len()) {
            return None;
        }
        if u64::from_le_bytes(*theirs_counter) > u64::from_le_bytes(*mine_counter) {
            merged
                .get_or_insert_with(|| B::from(left))
                .as_mut()
                .get_mut(counter..end)?
                .copy_from_slice(theirs_counter);
        }
        place = end;
        count += 1;
    }
    if left[HEADER.len()..HEADER_BYTES] != count.to_le_bytes() {
        return None;
    }
    Some(merged.map_or(Merged::Left, Merged::New))
}

/// Whether two entries agree in their first `length` bytes, compared a word at a time: names are
/// short, and calling `memcmp` for each costs more than comparing them. The counter behind the name
/// makes sure that the word in which the name ends is a whole one.
#[inline]
fn starts_alike(mine: &[u8], theirs: &[u8], length: usize) -> bool {
    let (mine, theirs) = (
        mine.as_chunks::<WORD_BYTES>().0,
        theirs.as_chunks::<WORD_BYTES>().0,
    );
    let differing = |(mine, theirs): (&[u8; WORD_BYTES], &[u8; WORD_BYTES])| {
        u64::from_le_bytes(*mine) ^ u64::from_le_bytes(*theirs)
    };
    let mut words = mine.iter().zip(theirs).map(differing);
    let behind = u64::MAX << (8 * (length % WORD_BYTES));
    words
        .by_ref()
        .take(length / WORD_BYTES)
        .all(|differing| differing == 0)
        && words
            .next()
            .is_some_and(|differing| differing & !behind == 0)
}

/// Greatest lower bound: per actor the lower counter; an actor absent on either side is zero.
pub fn meet(left: Vclock, right: Vclock) -> Result<Vec<u8>> {
    let mut out = Builder::with_capacity(left.bytes.len().min(right.bytes.len()));
    for pair in Pairs::new(left, right) {
        let counter = pair.left.min(pair.right);
        if counter > 0 {
            out.push(pair.actor, counter);
        }
    }
    out.finish()
}

/// Whether `left` dominates or equals `right`.
pub fn covers(left: Vclock, right: Vclock) -> bool {
    left.len() >= right.len() && Pairs::new(left, right).all(|pair| pair.left >= pair.right)
}

/// How `left` relates to `right` in happened-before (Lamport 1978).
pub fn compare(left: Vclock, right: Vclock) -> Causality {
    let (mut less, mut greater) = (false, false);
    for pair in Pairs::new(left, right) {
        less |= pair.left < pair.right;
        greater |= pair.left > pair.right;
        if less && greater {
            return Causality::Concurrent;
        }
    }
    match (less, greater) {
        (false, false) => Causality::Equal,
        (true, false) => Causality::Before,
        _ => Causality::After,
    }
}

/// Reads `{"actor":counter,…}`.
pub fn from_text(text: &str) -> Result<Vec<u8>> {
    let Value::Object(members) = json::parse_strict(TYPE_NAME, text)? else {
        return Err(malformed_text(
            TYPE_NAME,
            "A clock is a JSON object of actors and counters.",
        ));
    };
    let mut entries = Vec::with_capacity(members.len());
    for (actor, value) in &members {
        check_actor(actor, |detail| malformed_text(TYPE_NAME, detail))?;
        let counter = json::counter(TYPE_NAME, &format!("actor \"{actor}\""), value)?;
        entries.push((actor.as_str(), counter));
    }
    from_entries(entries)
}

/// Writes the text form: keys sorted, no spaces.
pub fn to_text(clock: Vclock) -> String {
    let mut text = String::with_capacity(clock.bytes.len() * 2);
    text.push('{');
    for (index, entry) in clock.entries().enumerate() {
        if index > 0 {
            text.push(',');
        }
        json::write_string(&mut text, &String::from_utf8_lossy(entry.actor));
        text.push(':');
        text.push_str(&entry.counter.to_string());
    }
    text.push('}');
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::error::SqlState;

    type Model = BTreeMap<String, u64>;

    fn clock(model: &Model) -> Vec<u8> {
        from_entries(
            model
                .iter()
                .map(|(actor, counter)| (actor.as_str(), *counter)),
        )
        .unwrap()
    }

    fn read(bytes: &[u8]) -> Vclock<'_> {
        Vclock::validate(bytes).unwrap()
    }

    fn model(bytes: &[u8]) -> Model {
        read(bytes)
            .entries()
            .map(|entry| {
                (
                    String::from_utf8(entry.actor.to_vec()).unwrap(),
                    entry.counter,
                )
            })
            .collect()
    }

    /// Few actors and small counters, so that clocks often meet; some names end about where a word
    /// of eight bytes does.
    fn models() -> impl Strategy<Value = Model> {
        prop::collection::btree_map("[a-d]{1,2}|é|a{5,7}[ab]{0,2}|b{14}[ab]", 1..5_u64, 0..8)
    }

    fn state(text: &str) -> SqlState {
        from_text(text).unwrap_err().state
    }

    #[test]
    fn bytes_are_known() {
        let bytes = from_text(r#"{"b":7, "a":3, "zero":0}"#).unwrap();
        let mut expected = vec![1, 0, 0, 0, 2, 0, 0, 0];
        expected.extend_from_slice(&[1, b'a', 3, 0, 0, 0, 0, 0, 0, 0]);
        expected.extend_from_slice(&[1, b'b', 7, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes, expected);
        assert_eq!(to_text(read(&bytes)), r#"{"a":3,"b":7}"#);
        assert_eq!(to_text(read(&empty())), "{}");
    }

    #[test]
    fn malformed_text_is_refused() {
        for text in [
            "",
            "[]",
            "3",
            "{",
            r#"{"a"}"#,
            r#"{"a":"1"}"#,
            r#"{"a":-1}"#,
            r#"{"a":1.5}"#,
            r#"{"a":1e1}"#,
            r#"{"a":1,"a":2}"#,
            r#"{"":1}"#,
            r#"{"a":null}"#,
            r#"{"a":1}x"#,
        ] {
            assert_eq!(state(text), SqlState::InvalidTextRepresentation, "{text}");
        }
        let long = format!(r#"{{"{}":1}}"#, "x".repeat(MAX_ACTOR_BYTES + 1));
        assert_eq!(state(&long), SqlState::InvalidTextRepresentation);
        assert_eq!(
            state(r#"{"a":9223372036854775808}"#),
            SqlState::NumericValueOutOfRange
        );
        assert!(from_text(r#"{"a":9223372036854775807}"#).is_ok());
    }

    #[test]
    fn counters_and_entries_have_an_end() {
        let full = from_entries([("a", MAX_COUNTER)]).unwrap();
        assert_eq!(
            increment(read(&full), "a").unwrap_err().state,
            SqlState::NumericValueOutOfRange
        );
        let names: Vec<String> = (0..=MAX_ENTRIES).map(|n| n.to_string()).collect();
        let many = from_entries(names[1..].iter().map(|name| (name.as_str(), 1))).unwrap();
        assert_eq!(read(&many).len(), MAX_ENTRIES);
        assert_eq!(
            increment(read(&many), "0").unwrap_err().state,
            SqlState::ProgramLimitExceeded
        );
        let other = from_entries([("0", 1)]).unwrap();
        assert_eq!(
            merge(read(&many), read(&other)).unwrap_err().state,
            SqlState::ProgramLimitExceeded
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn merge_and_meet_are_lattice_operations(a in models(), b in models(), c in models()) {
            let (a, b, c) = (clock(&a), clock(&b), clock(&c));
            for operation in [merge, meet] {
                let of = |x: &[u8], y: &[u8]| operation(read(x), read(y)).unwrap();
                prop_assert_eq!(of(&a, &b), of(&b, &a));
                prop_assert_eq!(of(&of(&a, &b), &c), of(&a, &of(&b, &c)));
                prop_assert_eq!(of(&a, &a), a.clone());
            }
            let join = merge(read(&a), read(&b)).unwrap();
            prop_assert_eq!(&meet(read(&a), read(&join)).unwrap(), &a);
            prop_assert!(covers(read(&join), read(&a)) && covers(read(&join), read(&b)));
            // The least one: whatever covers both covers it.
            let above = merge(read(&join), read(&c)).unwrap();
            prop_assert!(covers(read(&above), read(&join)));
        }

        #[test]
        fn agrees_with_a_map(a in models(), b in models(), actor in "[a-d]{1,2}") {
            let (left, right) = (clock(&a), clock(&b));
            let mut merged = a.clone();
            for (name, counter) in &b {
                let slot = merged.entry(name.clone()).or_default();
                *slot = (*slot).max(*counter);
            }
            prop_assert_eq!(model(&merge(read(&left), read(&right)).unwrap()), merged.clone());
            let at = |map: &Model, name: &str| map.get(name).copied().unwrap_or(0);
            let less = merged.keys().any(|name| at(&a, name) < at(&b, name));
            let greater = merged.keys().any(|name| at(&a, name) > at(&b, name));
            let expected = match (less, greater) {
                (false, false) => Causality::Equal,
                (true, false) => Causality::Before,
                (false, true) => Causality::After,
                (true, true) => Causality::Concurrent,
            };
            prop_assert_eq!(compare(read(&left), read(&right)), expected);
            prop_assert_eq!(covers(read(&left), read(&right)), !less);
            let mut counted = a.clone();
            *counted.entry(actor.clone()).or_default() += 1;
            prop_assert_eq!(model(&increment(read(&left), &actor).unwrap()), counted);
            prop_assert_eq!(read(&left).get(actor.as_bytes()), at(&a, &actor));
        }

        #[test]
        fn round_trips(a in models()) {
            let bytes = clock(&a);
            prop_assert_eq!(from_text(&to_text(read(&bytes))).unwrap(), bytes);
        }

        #[test]
        fn any_bytes_are_an_error_or_a_value(mut bytes: Vec<u8>, a in models(), place: prop::sample::Index, with: u8) {
            let _ = Vclock::parse(&bytes);
            prop_assert!(Vclock::validate(&bytes).is_err() || !bytes.is_empty());
            bytes = clock(&a);
            let place = place.index(bytes.len());
            bytes[place] = with;
            if let Ok(read) = Vclock::validate(&bytes) {
                prop_assert_eq!(from_text(&to_text(read)).unwrap(), bytes.clone());
            }
        }

        #[test]
        fn any_text_is_an_error_or_a_value(text in r#"[{}":,a0-9 .\-]{0,16}"#) {
            if let Ok(bytes) = from_text(&text) {
                prop_assert_eq!(to_text(read(&bytes)).parse::<serde_json::Value>().is_ok(), true);
            }
        }
    }
}
