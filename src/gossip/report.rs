//! What nodes tell each other beside their states: the leases they grant and the operations of their logs. Each is
//! about one thing of one node; the others keep it, or the newest of it, and pass it on.
//!
//! Nothing merges here, so the exchange needs no more than a reader's [`Position`] among the giver's rows, and
//! rows that may come twice. Of operations a node also says which it holds completely: its frontier has, for
//! each origin, a number below which every transaction there has ended and none of its operations is missing
//! here. Who has been given everything of a giver holds what that holds.

use serde::{Deserialize, Serialize};

use super::protocol::{Position, check_position};
use super::snapshot::Snapshot;
use crate::clock::vclock::{self, Vclock};
use crate::error::{Result, malformed_binary};
use crate::lease::report::LeaseReport;
use crate::oplog::report::{Operation, is_actor};
use crate::stream::offer::Streams;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    Lease(LeaseReport),
    Op(Operation),
}

impl Report {
    /// Refuses what this node would not have stored itself.
    fn check(&self) -> Result<()> {
        match self {
            Self::Lease(lease) => lease.check(),
            Self::Op(op) => op.check(),
        }
    }
}

/// How many reports that came from a reader itself are read again each time rather than told to be left
/// out: telling makes the reader write.
const SKIPPED: usize = 100;

/// Reports that a reader lacks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportBatch {
    pub start: Position,
    pub rows: Vec<Report>,
    /// Where the reader is once it has stored these rows.
    pub next: Position,
    /// Present when no operation the giver holds is missing after these rows, but for those of `left_out`.
    pub frontier: Option<Vec<u8>>,
    /// Origins whose operations were not given, because the reader has them by streams.
    pub left_out: Vec<String>,
}

impl ReportBatch {
    /// Whether the reader, which holds this frontier, is to be told, when `count` reports were read to
    /// make it.
    pub fn is_worth_telling(&self, count: usize, held: &[u8]) -> Result<bool> {
        let ends_window = self.start.window.is_some();
        let raises = match &self.frontier {
            Some(frontier) => !vclock::covers(Vclock::parse(held)?, Vclock::parse(frontier)?),
            None => false,
        };
        Ok(!self.rows.is_empty() || ends_window || self.is_cut_off() || count >= SKIPPED || raises)
    }

    /// How many operations there are among the rows.
    pub fn operations(&self) -> u64 {
        let operations = self.rows.iter().filter(|row| matches!(row, Report::Op(_)));
        operations.count() as u64
    }

    /// Whether there is more than fitted in.
    pub fn is_cut_off(&self) -> bool {
        self.next.window.is_some()
    }

    /// Whether storing it moves the position of a reader: only without a gap before it. What was left out must
    /// still be on its way by a stream.
    pub fn continues(&self, stored: &Position, streamed: &[String]) -> bool {
        let is_gapless = self.start.is_beginning() || self.start == *stored;
        is_gapless && self.left_out.iter().all(|origin| streamed.contains(origin))
    }
}

/// Where a node stands as a reader of another one's reports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reader {
    /// How far it has been given them.
    pub position: Position,
    /// The operations that it holds completely, whoever gave them.
    pub frontier: Vec<u8>,
    /// Origins whose operations streams bring it.
    pub streamed: Vec<String>,
}

impl Reader {
    /// The same, waiting for no stream.
    pub fn without_streams(self) -> Self {
        Self {
            streamed: Vec::new(),
            ..self
        }
    }
}

/// What a giver holds, as far as it gives that to a reader who has these origins by streams. What was left out
/// before may still be on its way.
pub fn given_of(frontier: &[u8], streamed: &[String]) -> Result<Vec<u8>> {
    let entries = Vclock::parse(frontier)?.entries();
    let named =
        entries.filter_map(|entry| Some((str::from_utf8(entry.actor).ok()?, entry.counter)));
    let is_streamed = |actor: &str| streamed.iter().any(|origin| origin == actor);
    vclock::from_entries(named.filter(|(actor, _)| !is_streamed(actor)))
}

/// The part of a message that is about reports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reports {
    /// The speaker, as a reader of the listener's reports.
    pub reader: Reader,
    pub batch: Option<ReportBatch>,
    /// How many operations of the batch that this answers were new to the speaker.
    pub admitted: u64,
    pub streams: Streams,
}

impl Reports {
    pub fn check(&self) -> Result<()> {
        check_position(&self.reader.position)?;
        Vclock::validate(&self.reader.frontier)?;
        check_origins(&self.reader.streamed)?;
        self.streams.check()?;
        let Some(batch) = &self.batch else {
            return Ok(());
        };
        check_position(&batch.start)?;
        check_position(&batch.next)?;
        check_origins(&batch.left_out)?;
        if let Some(frontier) = &batch.frontier {
            Vclock::validate(frontier)?;
        }
        batch.rows.iter().try_for_each(Report::check)
    }
}

fn check_origins(origins: &[String]) -> Result<()> {
    if origins.iter().all(|origin| is_actor(origin)) {
        Ok(())
    } else {
        Err(malformed_binary(
            "gossip message",
            "An origin is malformed.",
        ))
    }
}

/// Where to read on for a reader: its position, if that is one of this place.
pub fn start(position: &Position, space: &str) -> Position {
    if position.space == space {
        position.clone()
    } else {
        Position::beginning(space)
    }
}

/// Why a position in a space whose next transaction is `next` cannot be: it was given by a server that had
/// come further, before it was put back. The numbers of transactions that had not ended do not count: after
/// a crash they are given out again.
pub fn reaches_beyond(position: &Position, next: u64) -> Option<String> {
    let window = position.window.as_ref().map(|window| &window.until);
    let given = [position.given.as_ref(), window].into_iter().flatten();
    let last = given.filter_map(Snapshot::last_ended).max()?;
    (last >= next).then(|| {
        format!("a peer was given reports of transaction {last}, and the next one here is {next}")
    })
}

/// The position of a reader that has been given nothing.
pub fn nowhere() -> Position {
    Position::beginning("")
}
