//! Binds conversations to SQL; the declarations are in `sql/conversation.sql` and `sql/fold.sql`.

use pgrx::prelude::*;

use super::resume::{self, Turn};
use super::turn;
use crate::clock::sql::timestamp_since_1970;
use crate::error;
use crate::varlena::SqlResult;

#[pg_extern(sql = false)]
fn turn_time(text: &str) -> Option<TimestampWithTimeZone> {
    timestamp_since_1970(turn::time(text)?)
}

#[pg_extern(sql = false)]
fn turn_role(role: &str) -> SqlResult<&'static str> {
    Ok(turn::role(role)?)
}

#[pg_extern(sql = false)]
fn turn_check(conversation_id: &str, tool_calls: &str) -> SqlResult<bool> {
    turn::check_conversation(conversation_id)?;
    turn::check_tool_calls(tool_calls)?;
    Ok(true)
}

/// From a JSON array of turns in their order to one of messages.
#[pg_extern(sql = false)]
fn turns_resume(turns: &str) -> SqlResult<String> {
    let corrupted = |failure: serde_json::Error| {
        error::data_corrupted(format!("coord.turn cannot be read: {failure}"))
    };
    let turns: Vec<Turn> = serde_json::from_str(turns).map_err(corrupted)?;
    Ok(serde_json::to_string(&resume::resume(&turns)).map_err(corrupted)?)
}
