//! A conversation as a model can be given it. Models refuse two turns of one role in a row, a result without
//! its call, and a call without its result; a conversation that several agents wrote on several nodes, and
//! that was interrupted here and there, has all of these.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

#[derive(Clone, Debug, Default, Deserialize)]
pub struct Turn {
    pub role: Option<String>,
    pub content: Option<String>,
    pub tool_calls: Option<Box<RawValue>>,
    pub tool_use_id: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    User,
    Assistant,
    Tool,
}

#[derive(Clone, Debug, Serialize)]
pub struct Message {
    pub role: Role,
    pub content: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_use_id: Option<String>,
}

impl Turn {
    /// Whoever is neither the model nor a tool speaks to the model.
    fn role(&self) -> Role {
        match self.role.as_deref() {
            Some("assistant") => Role::Assistant,
            Some("tool") => Role::Tool,
            _ => Role::User,
        }
    }

    fn content(&self) -> &str {
        self.content.as_deref().unwrap_or_default()
    }

    fn calls(&self) -> Vec<Call> {
        #[derive(Deserialize)]
        struct Named {
            id: String,
        }
        let json = self.tool_calls.as_deref().map_or("[]", RawValue::get);
        let calls: Vec<Box<RawValue>> = serde_json::from_str(json).unwrap_or_default();
        let with_id = calls.into_iter().filter_map(|json| {
            let Named { id } = serde_json::from_str(json.get()).ok()?;
            Some(Call { id, json })
        });
        with_id.collect()
    }
}

struct Call {
    id: String,
    json: Box<RawValue>,
}

/// Turns of one role in a row.
struct Group<'a> {
    role: Role,
    contents: Vec<&'a str>,
    calls: Vec<Call>,
    /// Where the first result of its calls is among the turns.
    first_result: usize,
}

/// The first result of each call, by the call's id: where it is among the turns.
type Results<'a> = HashMap<&'a str, usize>;

/// Merges adjacent turns of one role, and puts each result after its call; what has no counterpart is left
/// out, and so is a second result of a call, or a second call of that id.
pub fn resume(turns: &[Turn]) -> Vec<Message> {
    let results = results(turns);
    let mut answered = HashSet::new();
    let mut groups: Vec<Group> = Vec::new();
    for (place, turn) in turns.iter().enumerate() {
        let role = turn.role();
        if role == Role::Tool {
            continue;
        }
        let mut calls = turn.calls();
        calls.retain(|call| {
            role == Role::Assistant
                && results.contains_key(call.id.as_str())
                && answered.insert(call.id.clone())
        });
        if calls.is_empty() && turn.content().is_empty() {
            continue;
        }
        let goes_on = groups
            .last()
            .is_some_and(|group| group.role == role && place < group.first_result);
        if !goes_on {
            groups.push(Group::of(role));
        }
        if let Some(group) = groups.last_mut() {
            group.add(turn.content(), calls, &results);
        }
    }
    groups
        .into_iter()
        .flat_map(|group| group.messages(turns, &results))
        .collect()
}

fn results(turns: &[Turn]) -> Results<'_> {
    let mut results = Results::new();
    for (place, turn) in turns.iter().enumerate() {
        if let (Role::Tool, Some(id)) = (turn.role(), turn.tool_use_id.as_deref()) {
            results.entry(id).or_insert(place);
        }
    }
    results
}

impl<'a> Group<'a> {
    fn of(role: Role) -> Self {
        Self {
            role,
            contents: Vec::new(),
            calls: Vec::new(),
            first_result: usize::MAX,
        }
    }

    fn add(&mut self, content: &'a str, calls: Vec<Call>, results: &Results) {
        if !content.is_empty() {
            self.contents.push(content);
        }
        let places = calls.iter().map(|call| results[call.id.as_str()]);
        self.first_result = places.fold(self.first_result, usize::min);
        self.calls.extend(calls);
    }

    fn messages(self, turns: &[Turn], results: &Results) -> Vec<Message> {
        let mut messages = Vec::with_capacity(1 + self.calls.len());
        let mut tool_calls = Vec::with_capacity(self.calls.len());
        let mut answers = Vec::with_capacity(self.calls.len());
        for call in self.calls {
            answers.push(Message {
                role: Role::Tool,
                content: turns[results[call.id.as_str()]].content().to_owned(),
                tool_calls: Vec::new(),
                tool_use_id: Some(call.id),
            });
            tool_calls.push(call.json);
        }
        messages.push(Message {
            role: self.role,
            content: self.contents.join("\n\n"),
            tool_calls,
            tool_use_id: None,
        });
        messages.extend(answers);
        messages
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn turn(role: &str, content: &str, calls: &[&str], result_of: Option<&str>) -> Turn {
        let calls: Vec<_> = calls
            .iter()
            .map(|id| json!({"id": id, "name": "f", "arguments": {}}))
            .collect();
        Turn {
            role: Some(role.to_owned()),
            content: Some(content.to_owned()),
            tool_calls: RawValue::from_string(json!(calls).to_string()).ok(),
            tool_use_id: result_of.map(str::to_owned),
        }
    }

    /// `u:` user, `a:` assistant, `a(1,2):` with calls, `t1:` result of call 1.
    fn read(text: &str) -> Vec<Turn> {
        let read_one = |part: &str| {
            let (head, content) = part.split_once(':').unwrap();
            match head.split_at(1) {
                ("u", _) => turn("user", content, &[], None),
                ("t", id) => turn("tool", content, &[], Some(id)),
                (_, "") => turn("assistant", content, &[], None),
                (_, calls) => {
                    let ids: Vec<_> = calls.trim_matches(['(', ')']).split(',').collect();
                    turn("assistant", content, &ids, None)
                }
            }
        };
        text.split_whitespace().map(read_one).collect()
    }

    fn id_of(call: &RawValue) -> String {
        serde_json::from_str::<serde_json::Value>(call.get()).unwrap()["id"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    fn show(messages: &[Message]) -> String {
        let show_one = |message: &Message| {
            let ids: Vec<_> = message.tool_calls.iter().map(|call| id_of(call)).collect();
            let head = match (message.role, &message.tool_use_id) {
                (Role::User, _) => "u".to_owned(),
                (Role::Tool, id) => format!("t{}", id.as_deref().unwrap()),
                (Role::Assistant, _) if ids.is_empty() => "a".to_owned(),
                (Role::Assistant, _) => format!("a({})", ids.join(",")),
            };
            format!("{head}:{}", message.content.replace("\n\n", "+"))
        };
        messages.iter().map(show_one).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn known_conversations() {
        for (given, expected) in [
            ("", ""),
            ("u:hi a:yes", "u:hi a:yes"),
            ("u:a u:b a:c a:d u:e", "u:a+b a:c+d u:e"),
            // A call and its result; several at once; one after the other.
            ("u:x a(1):y t1:r a:z", "u:x a(1):y t1:r a:z"),
            ("a(1,2): t2:s t1:r a:z", "a(1,2): t1:r t2:s a:z"),
            ("a(1):x a(2):y t1:r t2:s", "a(1,2):x+y t1:r t2:s"),
            ("a(1): t1:r a(2): t2:s", "a(1): t1:r a(2): t2:s"),
            // A result without a call, a call without a result, and what then becomes adjacent.
            ("u:x t9:r u:y", "u:x+y"),
            ("u:x a(1): u:y", "u:x+y"),
            ("u:x a(1):w u:y", "u:x a:w u:y"),
            ("a:x t9:r a:y", "a:x+y"),
            // Late results after an interruption.
            ("a(1): u:stop t1:r a:ok", "a(1): t1:r u:stop a:ok"),
            ("a(1): u:stop t1:r u:on", "a(1): t1:r u:stop+on"),
            ("t1:r a(1):x", "a(1):x t1:r"),
            // Said twice, on two nodes.
            ("a(1): t1:r t1:again", "a(1): t1:r"),
            ("a(1):x t1:r a(1):y", "a(1):x t1:r a:y"),
        ] {
            assert_eq!(show(&resume(&read(given))), expected, "{given}");
        }
    }

    #[test]
    fn whoever_else_speaks_is_a_user() {
        let turns: Vec<Turn> = serde_json::from_value(json!([
            {"role": "alice", "content": "a"}, {"content": "b"}, {"role": "tool", "content": "c"},
            {"role": "assistant", "content": null, "tool_calls": "none"},
        ]))
        .unwrap();
        assert_eq!(show(&resume(&turns)), "u:a+b");
    }

    #[test]
    fn calls_are_passed_on_as_they_are() {
        let call = r#"{"id": "1", "name": "f", "arguments": {"n": 12345678901234567890.10}}"#;
        let mut turns = read("a(1): t1:r");
        turns[0].tool_calls = RawValue::from_string(format!("[{call}]")).ok();
        assert_eq!(resume(&turns)[0].tool_calls[0].get(), call);
    }

    fn any_turn() -> impl Strategy<Value = Turn> {
        let id = || prop::sample::select(vec!["1", "2", "3"]);
        prop_oneof![
            "[xy]?".prop_map(|content| turn("user", &content, &[], None)),
            ("[xy]?", prop::collection::vec(id(), 0..3)).prop_map(|(content, ids)| turn(
                "assistant",
                &content,
                &ids,
                None
            )),
            ("[xy]", prop::option::of(id())).prop_map(|(content, id)| turn(
                "tool",
                &content,
                &[],
                id
            )),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        /// Whatever was written: what is resumed keeps the rules of models, and loses no word of users and
        /// assistants.
        #[test]
        fn models_take_it(turns in prop::collection::vec(any_turn(), 0..12)) {
            let messages = resume(&turns);
            let mut expected: Vec<String> = Vec::new();
            let mut last = None;
            for message in &messages {
                if message.role == Role::Tool {
                    prop_assert!(!expected.is_empty(), "a result without its call");
                    let id = expected.remove(0);
                    prop_assert_eq!(message.tool_use_id.as_ref(), Some(&id));
                } else {
                    prop_assert!(expected.is_empty(), "a call without its result");
                    prop_assert_ne!(last, Some(message.role), "two in a row");
                    prop_assert!(!message.content.is_empty() || !message.tool_calls.is_empty());
                    expected = message.tool_calls.iter().map(|call| id_of(call)).collect();
                }
                last = Some(message.role);
            }
            prop_assert!(expected.is_empty());
            for role in [Role::User, Role::Assistant] {
                let said = |parts: Vec<&str>| parts.concat().replace("\n\n", "");
                prop_assert_eq!(
                    said(messages.iter().filter(|message| message.role == role).map(|message| message.content.as_str()).collect()),
                    said(turns.iter().filter(|turn| turn.role() == role).map(Turn::content).collect())
                );
            }
        }

        /// Resumed once more it is the same.
        #[test]
        fn it_is_idempotent(turns in prop::collection::vec(any_turn(), 0..12)) {
            let once = resume(&turns);
            let again: Vec<Turn> = serde_json::from_str(&serde_json::to_string(&once).unwrap()).unwrap();
            prop_assert_eq!(show(&resume(&again)), show(&once));
        }
    }
}
