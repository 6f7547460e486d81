//! Appending turns without the executor: to start and end statements is most of what a short one costs. This writes
//! what the statements in `sql.rs` write for other surfaces, and what `coord.op_fold` makes of a turn.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use pgrx::{IntoDatum, direct_function_call, direct_function_call_as_datum, pg_sys};

use super::op::{self, Content};
use crate::clock::server;
use crate::clock::sql::{time_of, timestamp_since_1970};
use crate::conversation::turn;
use crate::error::Result;
use crate::fold::sql::{add_to_digest, turn_digest};
use crate::heap::{self, Access, Key, Latest, Table};

/// Triggers that the extension has on its tables. Where there are more, they are somebody's own, and statements
/// fire them.
const TRIGGERS_OF_LOG: i32 = 4;
const TRIGGERS_OF_PARTITION: i32 = 3;
const TRIGGERS_OF_TURN: i32 = 3;
const TRIGGERS_OF_CONVERSATION: i32 = 0;

static AT_APPEND: OnceLock<fn()> = OnceLock::new();

/// What is to be done whenever something is appended, as the trigger `gossip_wake` does for statements.
pub fn call_at_append(told: fn()) {
    AT_APPEND.get_or_init(|| told);
}

/// A turn that is to be appended.
pub struct Turn<'a> {
    pub scope: &'a str,
    pub payload: Payload,
    pub tenant: Option<pgrx::Uuid>,
}

/// A jsonb, read by PostgreSQL's own functions.
#[derive(Clone, Copy)]
pub struct Payload(pg_sys::Datum);

impl Payload {
    /// # Safety
    /// The datum is a jsonb, which lives as long as this value.
    pub unsafe fn new(datum: pg_sys::Datum) -> Self {
        Self(datum)
    }

    /// As `payload::text`.
    fn text(self) -> String {
        // SAFETY: a jsonb, as whoever made this promises.
        let text =
            unsafe { direct_function_call::<&std::ffi::CStr>(pg_sys::jsonb_out, &[Some(self.0)]) };
        text.unwrap_or_default().to_string_lossy().into_owned()
    }

    /// As `payload ->> name`.
    fn field(self, name: &str) -> Option<String> {
        let arguments = [Some(self.0), name.into_datum()];
        // SAFETY: as above.
        unsafe { direct_function_call(pg_sys::jsonb_object_field_text, &arguments) }
    }

    /// As `nullif(payload -> name, 'null')`.
    fn part(self, name: &str) -> Option<pg_sys::Datum> {
        let arguments = [Some(self.0), name.into_datum()];
        // SAFETY: as above.
        let part =
            unsafe { direct_function_call_as_datum(pg_sys::jsonb_object_field, &arguments) }?;
        (Self(part).text() != "null").then_some(part)
    }
}

/// What was appended, for its receipt.
pub struct Appended {
    pub op_id: String,
    pub seq: i64,
    pub hlc: u64,
}

/// The tables, locked for writing.
pub struct Log {
    op: Table,
    turn: Table,
    conversation: Table,
}

/// A turn with its number, its stamp and its name.
struct Numbered<'a> {
    turn: &'a Turn<'a>,
    conversation_id: String,
    appended: Appended,
}

impl Log {
    /// None where statements must write, for somebody else's triggers.
    pub fn open() -> Option<Self> {
        let log = Self {
            op: Table::open(c"op", Access::Write),
            turn: Table::open(c"turn", Access::Write),
            conversation: Table::open(c"conversation", Access::Write),
        };
        let is_ours = log.op.triggers() == TRIGGERS_OF_LOG
            && log.turn.triggers() == TRIGGERS_OF_TURN
            && log.conversation.triggers() == TRIGGERS_OF_CONVERSATION;
        is_ours.then_some(log)
    }

    /// Appends turns in their order; refuses what no log can have, before anything is written. Returns what each
    /// was appended as, or None where a partition has somebody else's triggers.
    pub fn append(&self, actor: &str, turns: &[Turn]) -> Result<Option<Vec<Appended>>> {
        let numbered = turns
            .iter()
            .map(|turn| number(actor, turn))
            .collect::<Result<Vec<_>>>()?;
        // Replication applies rows in the order in which they were written: whoever folds several takes locks in
        // the order of what they fold into.
        let mut order: Vec<usize> = (0..numbered.len()).collect();
        order.sort_by(|left, right| {
            let key = |place: usize| {
                let Numbered {
                    turn,
                    conversation_id,
                    appended,
                } = &numbered[place];
                (turn.scope, conversation_id.as_str(), appended.seq)
            };
            key(*left).cmp(&key(*right))
        });
        Ok(self.write(actor, &numbered, &order).then(|| {
            numbered
                .into_iter()
                .map(|numbered| numbered.appended)
                .collect()
        }))
    }

    fn write(&self, actor: &str, turns: &[Numbered], order: &[usize]) -> bool {
        let mut at = 0;
        while at < order.len() {
            // Nearly always all of them.
            let (partition, beyond) = self.op.partition(turns[order[at]].appended.seq);
            if partition.triggers() != TRIGGERS_OF_PARTITION {
                assert!(
                    at == 0,
                    "a partition has other triggers than the one before"
                );
                return false;
            }
            let count = order[at..]
                .iter()
                .take_while(|place| turns[**place].appended.seq < beyond)
                .count();
            let rows: Vec<_> = order[at..at + count]
                .iter()
                .map(|place| op_row(actor, &turns[*place]))
                .collect();
            partition.insert_all(&rows);
            at += count;
        }
        let rows: Vec<_> = order
            .iter()
            .map(|place| turn_row(actor, &turns[*place]))
            .collect();
        self.turn.insert_all(&rows);
        add_to_digest(turns.iter().map(|turn| turn_digest(&turn.appended.op_id)));
        self.begin_conversations(turns);
        if let Some(told) = AT_APPEND.get() {
            told();
        }
        true
    }

    fn begin_conversations(&self, turns: &[Numbered]) {
        let seen = Latest::take();
        let held: BTreeSet<(&str, &str)> = turns
            .iter()
            .map(|turn| (turn.turn.scope, turn.conversation_id.as_str()))
            .collect();
        for (scope, conversation_id) in held {
            let keys = [Key::Text(1, scope), Key::Text(2, conversation_id)];
            if self
                .conversation
                .find(&seen, c"conversation_scope", &keys)
                .is_none()
            {
                self.conversation
                    .insert(&[scope.into_datum(), conversation_id.into_datum()]);
            }
        }
    }
}

fn number<'a>(actor: &str, turn: &'a Turn<'a>) -> Result<Numbered<'a>> {
    let text = turn.payload.text();
    let conversation_id = turn.payload.field("conversation_id").unwrap_or_default();
    let size = i64::try_from(text.len()).unwrap_or(i64::MAX);
    op::check_appended(turn.scope, "conversation", &conversation_id, size)?;
    let seq = heap::next_number(heap::relation_oid(c"op_seq"));
    let hlc = server::now()?;
    let tenant = turn.tenant.map(|tenant| tenant.to_string());
    let content = Content {
        origin: actor,
        seq,
        hlc,
        scope: turn.scope,
        surface: "conversation",
        payload: &text,
        tenant: tenant.as_deref().unwrap_or_default(),
    };
    let appended = Appended {
        op_id: content.name(),
        seq,
        hlc,
    };
    Ok(Numbered {
        turn,
        conversation_id,
        appended,
    })
}

type Values<const N: usize> = [Option<pg_sys::Datum>; N];

fn op_row(actor: &str, numbered: &Numbered) -> Values<11> {
    let Numbered { turn, appended, .. } = numbered;
    // SAFETY: a transaction that writes; plain functions.
    let (xid, time) = unsafe {
        (
            pg_sys::GetTopFullTransactionId().value,
            pg_sys::GetCurrentTimestamp(),
        )
    };
    [
        actor.into_datum(),
        appended.seq.into_datum(),
        Some(xid.into()),
        Some(xid.into()),
        appended.hlc.cast_signed().into_datum(),
        appended.op_id.as_str().into_datum(),
        turn.scope.into_datum(),
        "conversation".into_datum(),
        Some(turn.payload.0),
        time.into_datum(),
        turn.tenant.into_datum(),
    ]
}

/// As `coord.turn_of`.
fn turn_row(actor: &str, numbered: &Numbered) -> Values<10> {
    let Numbered {
        turn,
        conversation_id,
        appended,
    } = numbered;
    let payload = turn.payload;
    let role = payload.field("role").or_else(|| payload.field("speaker"));
    let role = role.map(|role| {
        if role == "tool_result" {
            "tool".to_owned()
        } else {
            role
        }
    });
    let said_at = payload.field("at").and_then(|at| turn::time(&at));
    [
        turn.scope.into_datum(),
        conversation_id.as_str().into_datum(),
        appended.hlc.cast_signed().into_datum(),
        appended.op_id.as_str().into_datum(),
        actor.into_datum(),
        role.into_datum(),
        payload
            .field("content")
            .or_else(|| payload.field("text"))
            .into_datum(),
        payload.part("tool_calls"),
        payload.field("tool_use_id").into_datum(),
        said_at
            .and_then(timestamp_since_1970)
            .or_else(|| time_of(appended.hlc))
            .into_datum(),
    ]
}
