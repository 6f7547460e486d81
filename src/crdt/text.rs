//! The text form of `constraint_state`: canonical JSON with sorted keys, without spaces and
//! without empty parts.

use std::borrow::Cow;

use super::constraint_state::{ConstraintState, TYPE_NAME, check_id};
use super::context::{Actor, Dot, Known, Run, too_many_actors};
use super::lww::Position;
use super::writer::Writer;
use crate::clock::hlc;
use crate::clock::vclock::check_actor;
use crate::error::{Error, Result, malformed_text};
use crate::json::{self, Value, write_string};

/// Writes the text form.
pub fn to_text(state: ConstraintState) -> String {
    let names: Vec<Cow<str>> = state
        .actors()
        .map(|actor| String::from_utf8_lossy(actor.name))
        .collect();
    let mut out = String::with_capacity(state.bytes().len() * 2);
    out.push('{');
    write_constraints(&mut out, state, &names);
    write_counts(&mut out, "context", state, |known| known.context);
    write_missing(&mut out, state, &names);
    if let Some(position) = state.position() {
        write_position(&mut out, position);
    }
    write_counts(&mut out, "satisfied", state, |known| known.satisfied);
    write_counts(&mut out, "violated", state, |known| known.violated);
    out.push('}');
    out
}

fn write_constraints(out: &mut String, state: ConstraintState, names: &[Cow<str>]) {
    if state.count() == 0 {
        return;
    }
    begin_member(out, "constraints");
    out.push('{');
    for element in state.elements() {
        begin_member(out, &String::from_utf8_lossy(element.id));
        out.push('[');
        for dot in element.dots() {
            begin_item(out);
            out.push('[');
            write_string(out, &names[usize::from(dot.actor)]);
            out.push(',');
            write_number(out, dot.counter);
            out.push(']');
        }
        out.push(']');
    }
    out.push('}');
}

fn write_counts(out: &mut String, key: &str, state: ConstraintState, count: fn(Known) -> u64) {
    let mut counted = state
        .actors()
        .filter(|actor| count(actor.known) > 0)
        .peekable();
    if counted.peek().is_none() {
        return;
    }
    begin_member(out, key);
    out.push('{');
    for actor in counted {
        begin_member(out, &String::from_utf8_lossy(actor.name));
        write_number(out, count(actor.known));
    }
    out.push('}');
}

fn write_missing(out: &mut String, state: ConstraintState, names: &[Cow<str>]) {
    let holes: Vec<Run> = state.holes().collect();
    if holes.is_empty() {
        return;
    }
    begin_member(out, "missing");
    out.push('{');
    for runs in holes.chunk_by(|left, right| left.actor == right.actor) {
        begin_member(out, &names[usize::from(runs[0].actor)]);
        out.push('[');
        for run in runs {
            begin_item(out);
            out.push('[');
            write_number(out, run.first);
            out.push(',');
            write_number(out, run.last);
            out.push(']');
        }
        out.push(']');
    }
    out.push('}');
}

fn write_position(out: &mut String, position: Position) {
    begin_member(out, "position");
    out.push('{');
    begin_member(out, "actor");
    write_string(out, &String::from_utf8_lossy(position.actor));
    begin_member(out, "at");
    write_string(out, &hlc::format(position.at));
    begin_member(out, "x");
    write_number(out, position.x);
    begin_member(out, "y");
    write_number(out, position.y);
    out.push('}');
}

fn begin_member(out: &mut String, key: &str) {
    if !out.ends_with('{') {
        out.push(',');
    }
    write_string(out, key);
    out.push(':');
}

fn write_number(out: &mut String, number: impl Into<i128>) {
    out.push_str(&number.into().to_string());
}

fn begin_item(out: &mut String) {
    if !out.ends_with('[') {
        out.push(',');
    }
}

/// Reads the text form.
pub fn from_text(text: &str) -> Result<Vec<u8>> {
    let whole = json::parse_strict(TYPE_NAME, text)?;
    let mut draft = Draft::default();
    // The context comes first: the other parts refer to the actors in it.
    let mut members: Vec<_> = object("a state", &whole)?.iter().collect();
    members.sort_by_key(|(key, _)| key != "context");
    for (key, value) in members {
        match key.as_str() {
            "context" => draft.context(value)?,
            "constraints" => draft.constraints(value)?,
            "missing" => draft.missing(value)?,
            "position" => draft.position = Some(position(value)?),
            "satisfied" => draft.counts(key, value, |known| &mut known.satisfied)?,
            "violated" => draft.counts(key, value, |known| &mut known.violated)?,
            _ => return Err(malformed(format!("The key \"{key}\" is unknown."))),
        }
    }
    let bytes = draft.write()?;
    ConstraintState::parse(&bytes)?.check().map_err(malformed)?;
    Ok(bytes)
}

/// A state while it is read, in the order of its bytes.
#[derive(Default)]
struct Draft<'a> {
    position: Option<Position<'a>>,
    actors: Vec<(&'a str, Known)>,
    holes: Vec<Run>,
    elements: Vec<(&'a str, Vec<Dot>)>,
}

impl<'a> Draft<'a> {
    fn context(&mut self, value: &'a Value) -> Result<()> {
        for (name, value) in object("context", value)? {
            check_actor(name, malformed)?;
            let context = counter(name, value)?;
            if context > 0 {
                let known = Known {
                    context,
                    ..Known::default()
                };
                self.actors.push((name, known));
            }
        }
        Ok(())
    }

    fn counts(
        &mut self,
        key: &str,
        value: &Value,
        count: fn(&mut Known) -> &mut u64,
    ) -> Result<()> {
        for (name, value) in object(key, value)? {
            check_actor(name, malformed)?;
            let counted = counter(name, value)?;
            if counted > 0 {
                let place = usize::from(self.place(name)?);
                *count(&mut self.actors[place].1) = counted;
            }
        }
        Ok(())
    }

    fn missing(&mut self, value: &Value) -> Result<()> {
        for (name, value) in object("missing", value)? {
            let actor = self.place(name)?;
            let context = self.actors[usize::from(actor)].1.context;
            let mut runs = Vec::new();
            for run in array("missing", value)? {
                let [first, last] = pair("missing", run)?;
                let (first, last) = (counter(name, first)?, counter(name, last)?);
                runs.push(Run { actor, first, last });
            }
            runs.sort_unstable();
            let apart = runs.is_sorted_by(|earlier, later| earlier.last + 1 < later.first);
            let within = |run: &Run| 0 < run.first && run.first <= run.last && run.last < context;
            if runs.is_empty() || !apart || !runs.iter().all(within) {
                return Err(malformed(format!(
                    "The counters missing of actor \"{name}\" must be stretches that neither \
                     touch nor reach its context."
                )));
            }
            self.holes.append(&mut runs);
        }
        Ok(())
    }

    fn constraints(&mut self, value: &'a Value) -> Result<()> {
        for (id, value) in object("constraints", value)? {
            check_id(id).map_err(malformed)?;
            let mut dots = Vec::new();
            for dot in array(id, value)? {
                dots.push(self.dot(id, dot)?);
            }
            dots.sort_unstable();
            if dots.is_empty() || !dots.is_sorted_by(|earlier, later| earlier < later) {
                return Err(malformed(format!(
                    "Constraint \"{id}\" must have dots, and none twice."
                )));
            }
            self.elements.push((id, dots));
        }
        Ok(())
    }

    fn dot(&self, id: &str, value: &Value) -> Result<Dot> {
        let [Value::Text(name), value] = pair(id, value)? else {
            return Err(malformed(format!(
                "A dot of constraint \"{id}\" must start with the name of an actor."
            )));
        };
        let dot = Dot {
            actor: self.place(name)?,
            counter: counter(name, value)?,
        };
        if dot.counter == 0 {
            return Err(malformed(format!(
                "A dot of constraint \"{id}\" must have a counter above 0."
            )));
        }
        Ok(dot)
    }

    /// Where an actor stands in the table.
    fn place(&self, name: &str) -> Result<u16> {
        let place = self
            .actors
            .binary_search_by(|(other, _)| (*other).cmp(name))
            .map_err(|_| malformed(format!("Actor \"{name}\" is not in the context.")))?;
        u16::try_from(place).map_err(|_| too_many_actors())
    }

    fn write(mut self) -> Result<Vec<u8>> {
        let mut out = Writer::new(0, self.position);
        for (name, known) in self.actors {
            out.actor(&Actor {
                name: name.as_bytes(),
                known,
            });
        }
        self.holes.sort_unstable();
        for hole in self.holes {
            out.hole(hole);
        }
        for (id, dots) in self.elements {
            out.begin_element(id.as_bytes());
            for dot in dots {
                out.dot(dot);
            }
            out.end_element();
        }
        out.finish()
    }
}

fn position(value: &Value) -> Result<Position<'_>> {
    let members = object("position", value)?;
    if !members
        .iter()
        .map(|(key, _)| key)
        .eq(["actor", "at", "x", "y"])
    {
        return Err(malformed(
            "A position has the keys \"actor\", \"at\", \"x\" and \"y\" and no others.",
        ));
    }
    let (Value::Text(actor), Value::Text(at)) = (&members[0].1, &members[1].1) else {
        return Err(malformed(
            "The actor and the stamp of a position must be texts.",
        ));
    };
    check_actor(actor, malformed)?;
    Ok(Position {
        at: hlc::parse(at)?,
        actor: actor.as_bytes(),
        x: json::int4(TYPE_NAME, "x", &members[2].1)?,
        y: json::int4(TYPE_NAME, "y", &members[3].1)?,
    })
}

fn malformed(detail: impl Into<String>) -> Error {
    malformed_text(TYPE_NAME, detail)
}

fn counter(actor: &str, value: &Value) -> Result<u64> {
    json::counter(TYPE_NAME, &format!("actor \"{actor}\""), value)
}

fn object<'a>(part: &str, value: &'a Value) -> Result<&'a [(String, Value)]> {
    match value {
        Value::Object(members) => Ok(members),
        _ => Err(malformed(format!(
            "The value for {part} must be an object."
        ))),
    }
}

fn array<'a>(part: &str, value: &'a Value) -> Result<&'a [Value]> {
    match value {
        Value::Array(items) => Ok(items),
        _ => Err(malformed(format!("The value for {part} must be an array."))),
    }
}

fn pair<'a>(part: &str, value: &'a Value) -> Result<&'a [Value; 2]> {
    match value {
        Value::Array(items) => items.as_array(),
        _ => None,
    }
    .ok_or_else(|| malformed(format!("An item of {part} must be an array of two.")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::SqlState;

    #[test]
    fn members_may_come_in_any_order() {
        let canonical = r#"{"constraints":{"x":[["a",1],["b",2]]},"context":{"a":4,"b":2},"missing":{"a":[[2,2]]},"satisfied":{"a":1}}"#;
        let loose = r#" { "satisfied" : {"b":0, "a":1, "z":0}, "violated": {},
            "missing": {"a":[[2, 2]]}, "context": {"b":2, "a":4},
            "constraints": {"x": [["b",2],["a",1]]} } "#;
        let bytes = from_text(loose).unwrap();
        assert_eq!(from_text(canonical), Ok(bytes.clone()));
        assert_eq!(
            to_text(ConstraintState::validate(&bytes).unwrap()),
            canonical
        );
    }

    #[test]
    fn malformed_texts_name_the_part() {
        let long = format!(r#"{{"context":{{"{}":1}}}}"#, "a".repeat(256));
        let long_id = format!(
            r#"{{"constraints":{{"{}":[["a",1]]}},"context":{{"a":1}}}}"#,
            "i".repeat(65_536)
        );
        for (text, part) in [
            ("", "JSON"),
            ("[]", "a state"),
            (r#"{"x":1}"#, "\"x\""),
            (r#"{"context":{"a":1,"a":2}}"#, "\"a\" is given twice"),
            (r#"{"context":{},"context":{}}"#, "\"context\""),
            (r#"{"context":[]}"#, "context"),
            (r#"{"context":{"a":1.5}}"#, "\"a\""),
            (r#"{"context":{"a":-1}}"#, "\"a\""),
            (r#"{"context":{"a":"1"}}"#, "\"a\""),
            (r#"{"context":{"":1}}"#, "actor"),
            (r#"{"context":{"\u0000":1}}"#, "actor"),
            (&long, "actor"),
            (&long_id, "constraint"),
            (r#"{"satisfied":{"b":1}}"#, "\"b\""),
            (r#"{"violated":{"b":1},"context":{"a":1}}"#, "\"b\""),
            (r#"{"constraints":{"x":[["b",1]]}}"#, "\"b\""),
            (r#"{"constraints":{"x":[]},"context":{"a":1}}"#, "\"x\""),
            (r#"{"constraints":{"x":1},"context":{"a":1}}"#, "x"),
            (r#"{"constraints":{"x":[["a"]]},"context":{"a":1}}"#, "x"),
            (
                r#"{"constraints":{"x":[[1,1]]},"context":{"a":1}}"#,
                "\"x\"",
            ),
            (
                r#"{"constraints":{"x":[["a",0]]},"context":{"a":1}}"#,
                "\"x\"",
            ),
            (
                r#"{"constraints":{"x":[["a",2]]},"context":{"a":1}}"#,
                "\"x\"",
            ),
            (
                r#"{"constraints":{"x":[["a",1],["a",1]]},"context":{"a":1}}"#,
                "\"x\"",
            ),
            (
                r#"{"constraints":{"x":[["a",1]],"y":[["a",1]]},"context":{"a":1}}"#,
                "share",
            ),
            (r#"{"constraints":{"":[["a",1]]},"context":{"a":1}}"#, "id"),
            (
                r#"{"constraints":{"x\u0000":[["a",1]]},"context":{"a":1}}"#,
                "id",
            ),
            (
                r#"{"constraints":{"x":[["a",1]]},"context":{"a":2},"missing":{"a":[[1,1]]}}"#,
                "\"x\"",
            ),
            (r#"{"context":{"a":2},"missing":{"b":[[1,1]]}}"#, "\"b\""),
            (r#"{"context":{"a":2},"missing":{"a":[]}}"#, "\"a\""),
            (r#"{"context":{"a":2},"missing":{"a":[[2,2]]}}"#, "\"a\""),
            (r#"{"context":{"a":2},"missing":{"a":[[0,1]]}}"#, "\"a\""),
            (r#"{"context":{"a":4},"missing":{"a":[[2,1]]}}"#, "\"a\""),
            (
                r#"{"context":{"a":4},"missing":{"a":[[1,1],[2,2]]}}"#,
                "\"a\"",
            ),
            (r#"{"context":{"a":4},"missing":{"a":[1,2]}}"#, "missing"),
            (r#"{"position":null}"#, "position"),
            (r#"{"position":{"actor":"a","x":1,"y":1}}"#, "position"),
            (
                r#"{"position":{"actor":"a","at":1,"x":1,"y":1}}"#,
                "position",
            ),
            (
                r#"{"position":{"actor":"","at":"1970-01-01T00:00:00.000Z/0","x":1,"y":1}}"#,
                "actor",
            ),
            (
                r#"{"position":{"actor":"a","at":"1970-01-01T00:00:00.000Z/0","x":1.5,"y":1}}"#,
                "x",
            ),
            (
                r#"{"position":{"actor":"a","at":"now","x":1,"y":1}}"#,
                "now",
            ),
        ] {
            let error = from_text(text).unwrap_err();
            assert_eq!(error.state, SqlState::InvalidTextRepresentation, "{text}");
            assert!(
                error.detail.as_ref().unwrap().contains(part),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn numbers_out_of_range_are_told_apart() {
        for text in [
            r#"{"context":{"a":9223372036854775808}}"#,
            r#"{"context":{"a":1},"satisfied":{"a":99999999999999999999}}"#,
            r#"{"context":{"a":9},"missing":{"a":[[1,9223372036854775808]]}}"#,
            r#"{"constraints":{"x":[["a",18446744073709551615]]},"context":{"a":1}}"#,
            r#"{"position":{"actor":"a","at":"1970-01-01T00:00:00.000Z/0","x":1,"y":2147483648}}"#,
            r#"{"position":{"actor":"a","at":"1970-01-01T00:00:00.000Z/0","x":-2147483649,"y":1}}"#,
        ] {
            let error = from_text(text).unwrap_err();
            assert_eq!(error.state, SqlState::NumericValueOutOfRange, "{text}");
            assert!(error.detail.is_some());
        }
    }
}
