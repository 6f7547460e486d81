//! What a turn may say.

use chrono::DateTime;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::error::{Result, bad_argument};

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
