//! What a turn may say.

use std::borrow::Cow;

use chrono::DateTime;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::error::{Result, bad_argument};
use crate::json;

/// The role of a turn as it is kept. `tool_result` is another name of `tool`.
pub fn role(name: &str) -> Result<&'static str> {
    match name {
        "user" => Ok("user"),
        "assistant" => Ok("assistant"),
        "tool" | "tool_result" => Ok("tool"),
        _ => Err(bad_argument(
            "invalid role of a turn",
            format!("The role \"{name}\" is not one of user, assistant, tool, tool_result."),
        )),
    }
}

pub fn check_conversation(conversation_id: &str) -> Result<()> {
    if conversation_id.is_empty() {
        return Err(bad_argument(
            "invalid name of a conversation",
            "It is empty.",
        ));
    }
    Ok(())
}

#[derive(Deserialize)]
struct ToolCall<'a> {
    #[serde(rename = "id")]
    _id: String,
    #[serde(rename = "name")]
    _name: String,
    #[serde(rename = "arguments", borrow)]
    _arguments: &'a RawValue,
}

/// Refuses what is not an array of `{"id", "name", "arguments"}`.
pub fn check_tool_calls(json: &str) -> Result<()> {
    serde_json::from_str::<Vec<ToolCall>>(json)
        .map(drop)
        .map_err(|error| {
            bad_argument(
                "invalid tool calls",
                format!("They are not an array of {{\"id\", \"name\", \"arguments\"}}: {error}."),
            )
        })
}

/// What a turn may say, as JSON has it; also under the names `speaker` and `text`.
#[derive(Default, Deserialize)]
struct Fields<'a> {
    #[serde(borrow)]
    conversation_id: Option<&'a RawValue>,
    role: Option<&'a RawValue>,
    speaker: Option<&'a RawValue>,
    content: Option<&'a RawValue>,
    text: Option<&'a RawValue>,
    tool_calls: Option<&'a RawValue>,
    tool_use_id: Option<&'a RawValue>,
    at: Option<&'a RawValue>,
}

/// What the payload of a turn says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Said<'a> {
    /// Empty when it says none.
    pub conversation_id: Cow<'a, str>,
    pub role: Option<Cow<'a, str>>,
    pub content: Option<Cow<'a, str>>,
    pub has_tool_calls: bool,
    pub tool_use_id: Option<Cow<'a, str>>,
    /// Microseconds since 1970.
    pub at: Option<i64>,
}

impl<'a> Said<'a> {
    /// Reads the text of a jsonb. Anything but an object says nothing.
    pub fn parse(payload: &'a str) -> Self {
        let fields: Fields = json::parse_object(payload).unwrap_or_default();
        let role = fields.role.or(fields.speaker).map(as_text);
        Self {
            conversation_id: fields.conversation_id.map(as_text).unwrap_or_default(),
            role: role.map(|role| {
                if role == "tool_result" {
                    "tool".into()
                } else {
                    role
                }
            }),
            content: fields.content.or(fields.text).map(as_text),
            has_tool_calls: fields.tool_calls.is_some(),
            tool_use_id: fields.tool_use_id.map(as_text),
            at: fields.at.map(as_text).and_then(|at| time(&at)),
        }
    }
}

/// A field as the operator `->>` gives it: what a string says, and anything else as it is written.
fn as_text(value: &RawValue) -> Cow<'_, str> {
    let written = value.get();
    let inside = written
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'));
    match inside {
        Some(inside) if !inside.contains('\\') => inside.into(),
        Some(_) => serde_json::from_str::<String>(written)
            .unwrap_or_default()
            .into(),
        None => written.into(),
    }
}

/// Microseconds since 1970 of a time by RFC 3339.
pub fn time(text: &str) -> Option<i64> {
    let time = DateTime::parse_from_rfc3339(text).ok()?;
    Some(time.timestamp_micros())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles() {
        assert_eq!(role("tool_result"), Ok("tool"));
        for name in ["user", "assistant", "tool"] {
            assert_eq!(role(name), Ok(name));
        }
        for name in ["", "User", "system", "agent"] {
            assert!(role(name).is_err(), "{name}");
        }
    }

    #[test]
    fn calls_have_an_id_a_name_and_arguments() {
        for good in [
            "[]",
            r#"[{"id": "1", "name": "f", "arguments": {}}]"#,
            r#"[{"id": "1", "name": "f", "arguments": "{}", "more": 1}]"#,
            r#"[{"id": "1", "name": "f", "arguments": null}]"#,
        ] {
            assert_eq!(check_tool_calls(good), Ok(()));
        }
        for bad in [
            "{}",
            "null",
            r#"["f"]"#,
            r#"[{"id": 1, "name": "f", "arguments": {}}]"#,
            r#"[{"id": "1", "name": "f"}]"#,
            r#"[{"name": "f", "arguments": {}}]"#,
        ] {
            assert!(check_tool_calls(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_turn_is_read_as_postgresql_reads_it() {
        let said = Said::parse(
            r#"{"at": "1970-01-01T00:00:01Z", "role": "tool_result", "text": "x", "content": "a\n\"b\" \u0001 ä", "tool_calls": [{}], "tool_use_id": 7, "conversation_id": {"a": [1.0, null]}}"#,
        );
        let expected = Said {
            conversation_id: r#"{"a": [1.0, null]}"#.into(),
            role: Some("tool".into()),
            content: Some("a\n\"b\" \u{1} ä".into()),
            has_tool_calls: true,
            tool_use_id: Some("7".into()),
            at: Some(1_000_000),
        };
        assert_eq!(said, expected);
    }

    #[test]
    fn other_names_and_nothing() {
        let said =
            Said::parse(r#"{"role": null, "text": "", "speaker": "user", "tool_calls": null}"#);
        let expected = Said {
            role: Some("user".into()),
            content: Some("".into()),
            ..Said::default()
        };
        assert_eq!(said, expected);
        for payload in ["{}", "[]", r#"["c", "user"]"#, "null", "1", r#""c""#] {
            assert_eq!(Said::parse(payload), Said::default(), "{payload}");
        }
    }

    #[test]
    fn times() {
        assert_eq!(time("1970-01-01T00:00:01.5Z"), Some(1_500_000));
        assert_eq!(time("1970-01-01T02:00:00+02:00"), Some(0));
        for text in [
            "",
            "yesterday",
            "1970-01-01",
            "infinity",
            "1970-13-01T00:00:00Z",
        ] {
            assert_eq!(time(text), None, "{text}");
        }
    }
}
