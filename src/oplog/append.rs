//! Appending turns without the executor: to start and end statements is most of what a short one costs. This writes
//! what the statements in `sql.rs` write for other surfaces.

use std::sync::OnceLock;

use pgrx::{IntoDatum, pg_sys};

use super::op::{self, Content};
use super::payload::Payload;
use crate::clock::server;
use crate::conversation::turn::Said;
use crate::error::Result;
use crate::fold::turn::{Turn as FoldedTurn, Turns};
use crate::heap::{self, Access, Table};

/// Triggers and indexes that the extension has on its tables. Where there are more, they are somebody's own:
/// statements fire triggers, and know indexes of expressions and of a part of the rows.
const TRIGGERS_OF_LOG: i32 = 5;
const TRIGGERS_OF_PARTITION: i32 = 4;
const INDEXES_OF_PARTITION: i32 = 3;

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

/// What was appended, for its receipt.
pub struct Appended {
    pub op_id: String,
    pub seq: i64,
    pub hlc: u64,
}

/// The tables, locked for writing.
pub struct Log {
    op: Table,
    turns: Turns,
}

/// A turn with its number, its stamp and its name.
struct Numbered<'a> {
    turn: &'a Turn<'a>,
    said: Said<'a>,
    appended: Appended,
}

impl Log {
    /// None where statements must write, for somebody else's triggers or indexes.
    pub fn open() -> Option<Self> {
        let op = Table::open(c"op", Access::Write);
        let turns = Turns::open()?;
        (op.triggers() == TRIGGERS_OF_LOG).then_some(Self { op, turns })
    }

    /// Appends turns in their order; refuses what no log can have, before anything is written. Returns what each
    /// was appended as, or None where a partition has somebody else's triggers or indexes.
    pub fn append(&self, actor: &str, turns: &[Turn]) -> Result<Option<Vec<Appended>>> {
        let texts: Vec<String> = turns.iter().map(|turn| turn.payload.text()).collect();
        let numbered = (turns.iter().zip(&texts))
            .map(|(turn, text)| number(actor, turn, text))
            .collect::<Result<Vec<_>>>()?;
        Ok(self.write(actor, &numbered).then(|| {
            numbered
                .into_iter()
                .map(|numbered| numbered.appended)
                .collect()
        }))
    }

    /// In the order of numbers, and turns in that of their conversations: an index is quickest to grow at its end, or
    /// from one place to the next. No order of locks is to be kept, as with records: no two operations are one turn.
    fn write(&self, actor: &str, turns: &[Numbered]) -> bool {
        let mut rest = turns;
        while let Some(first) = rest.first() {
            // Nearly always all of them.
            let (partition, beyond) = self.op.partition(first.appended.seq);
            if partition.triggers() != TRIGGERS_OF_PARTITION
                || partition.indexes() != INDEXES_OF_PARTITION
            {
                assert!(
                    rest.len() == turns.len(),
                    "a partition has other triggers or indexes than the one before"
                );
                return false;
            }
            let count = rest.partition_point(|turn| turn.appended.seq < beyond);
            let (here, later) = rest.split_at(count);
            let rows: Vec<_> = here.iter().map(|turn| op_row(actor, turn)).collect();
            partition.insert_all(&rows);
            rest = later;
        }
        let mut folded: Vec<_> = turns.iter().map(|turn| turn.folded(actor)).collect();
        folded.sort_by_key(|turn| (&turn.said.conversation_id, turn.hlc));
        self.turns.put_new(&folded);
        if let Some(told) = AT_APPEND.get() {
            told();
        }
        true
    }
}

impl Numbered<'_> {
    fn folded<'a>(&'a self, actor: &'a str) -> FoldedTurn<'a> {
        FoldedTurn {
            scope: self.turn.scope,
            hlc: self.appended.hlc,
            op_id: &self.appended.op_id,
            origin: actor,
            payload: self.turn.payload,
            said: &self.said,
        }
    }
}

fn number<'a>(actor: &str, turn: &'a Turn<'a>, text: &'a str) -> Result<Numbered<'a>> {
    let said = Said::parse(text);
    let size = i64::try_from(text.len()).unwrap_or(i64::MAX);
    op::check_appended(turn.scope, "conversation", &said.conversation_id, size)?;
    let seq = heap::next_number(heap::relation_oid(c"op_seq"));
    let hlc = server::now()?;
    let tenant = turn.tenant.map(|tenant| tenant.to_string());
    let content = Content {
        origin: actor,
        seq,
        hlc,
        scope: turn.scope,
        surface: "conversation",
        payload: text,
        tenant: tenant.as_deref().unwrap_or_default(),
    };
    let appended = Appended {
        op_id: content.name(),
        seq,
        hlc,
    };
    Ok(Numbered {
        turn,
        said,
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
        Some(turn.payload.datum()),
        time.into_datum(),
        turn.tenant.into_datum(),
    ]
}
