//! Turns, put into the fold without the executor: to start and end statements is most of what a short one costs.
//! This writes what `coord.op_fold` makes of a turn.

use std::collections::BTreeSet;

use pgrx::{IntoDatum, pg_sys};

use super::sql::{add_to_digest, turn_digest};
use crate::clock::sql::{time_of, timestamp_since_1970};
use crate::conversation::turn::Said;
use crate::heap::{Access, Key, Latest, Table};
use crate::oplog::payload::Payload;
use crate::roots;

/// Triggers and indexes that the extension has on its tables. Where there are more, they are somebody's own:
/// statements fire triggers, and know indexes of expressions and of a part of the rows.
const TRIGGERS_OF_TURN: i32 = 3;
const TRIGGERS_OF_CONVERSATION: i32 = 0;
const INDEXES: i32 = 1;

/// An operation that is a turn.
pub struct Turn<'a> {
    pub scope: &'a str,
    pub hlc: u64,
    pub op_id: &'a str,
    pub origin: &'a str,
    pub payload: Payload,
    /// What the payload says.
    pub said: &'a Said<'a>,
}

/// The tables, locked for writing.
pub struct Turns {
    turn: Table,
    conversation: Table,
}

impl Turns {
    /// None where statements must write, for somebody else's triggers or indexes.
    pub fn open() -> Option<Self> {
        let turns = Self {
            turn: Table::open(c"turn", Access::Write),
            conversation: Table::open(c"conversation", Access::Write),
        };
        let is_ours = turns.turn.triggers() == TRIGGERS_OF_TURN
            && turns.conversation.triggers() == TRIGGERS_OF_CONVERSATION
            && [&turns.turn, &turns.conversation].map(Table::indexes) == [INDEXES; 2];
        is_ours.then_some(turns)
    }

    /// Puts in turns that are stamped now: none of them is there, or trimmed.
    pub fn put_new(&self, turns: &[Turn]) {
        let rows: Vec<_> = turns.iter().map(row).collect();
        self.turn.insert_all(&rows);
        add_to_digest(turns.iter().map(|turn| turn_digest(turn.op_id)));
        self.begin_conversations(turns);
    }

    /// Puts in a turn from elsewhere, unless it is there, or trimmed. Nobody else brings it at the same time.
    pub fn put(&self, turn: &Turn) {
        let seen = Latest::take();
        if !self.has(&seen, turn) && !is_trimmed(&seen, turn) {
            self.turn.insert(&row(turn));
            add_to_digest(std::iter::once(turn_digest(turn.op_id)));
        }
        self.begin_conversations(std::slice::from_ref(turn));
    }

    fn has(&self, seen: &Latest, turn: &Turn) -> bool {
        let keys = [
            Key::Text(2, &turn.said.conversation_id),
            Key::Number(3, turn.hlc.cast_signed()),
            Key::Text(4, turn.op_id),
        ];
        self.turn.find(seen, c"turn_pkey", &keys).is_some()
    }

    fn begin_conversations(&self, turns: &[Turn]) {
        let seen = Latest::take();
        let held: BTreeSet<(&str, &str)> = turns
            .iter()
            .map(|turn| (turn.scope, &*turn.said.conversation_id))
            .collect();
        for (scope, conversation_id) in held {
            if self.has_begun(&seen, scope, conversation_id) {
                continue;
            }
            self.conversation
                .insert(&[scope.into_datum(), conversation_id.into_datum()]);
        }
    }

    fn has_begun(&self, seen: &Latest, scope: &str, conversation_id: &str) -> bool {
        let keys = [Key::Text(1, scope), Key::Text(2, conversation_id)];
        let look = || self.conversation.find(seen, c"conversation_scope", &keys);
        roots::find(&self.conversation, seen, &keys, look).is_some()
    }
}

/// Whether its conversation begins later.
fn is_trimmed(seen: &Latest, turn: &Turn) -> bool {
    let trimmed = Table::open(c"trimmed", Access::Read);
    if trimmed.is_empty() {
        return false;
    }
    let keys = [
        Key::Text(1, turn.scope),
        Key::Text(2, "conversation"),
        Key::Text(3, &turn.said.conversation_id),
    ];
    let Some(row) = trimmed.find(seen, c"trimmed_pkey", &keys) else {
        return false;
    };
    // SAFETY: the types are those of sql/fold.sql.
    let (hlc, op_id) = unsafe { (row.get::<i64>(3), row.get::<&str>(4)) };
    hlc.zip(op_id)
        .is_some_and(|(hlc, op_id)| (turn.hlc, turn.op_id) < (hlc.cast_unsigned(), op_id))
}

/// As `coord.turn_of`.
fn row(turn: &Turn) -> [Option<pg_sys::Datum>; 10] {
    let said = turn.said;
    let tool_calls = said.has_tool_calls.then(|| turn.payload.part("tool_calls"));
    [
        turn.scope.into_datum(),
        said.conversation_id.into_datum(),
        turn.hlc.cast_signed().into_datum(),
        turn.op_id.into_datum(),
        turn.origin.into_datum(),
        said.role.as_deref().into_datum(),
        said.content.as_deref().into_datum(),
        tool_calls.flatten(),
        said.tool_use_id.as_deref().into_datum(),
        said.at
            .and_then(timestamp_since_1970)
            .or_else(|| time_of(turn.hlc))
            .into_datum(),
    ]
}
