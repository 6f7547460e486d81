//! What nodes tell each other beside their states: the leases they grant and the runs they have
//! committed. Each report is about one thing of one node, which alone renews it; the others keep the
//! newest and pass it on.
//!
//! Nothing merges here and nothing is claimed to be complete, so the exchange needs no more than a
//! reader's [`Position`] in the giver's table of reports, and rows that may come twice.

use serde::{Deserialize, Serialize};

use super::protocol::{Position, check_position};
use super::snapshot::Snapshot;
use crate::error::Result;
use crate::intent::report::CommittedRun;
use crate::lease::report::LeaseReport;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    Lease(LeaseReport),
    Run(CommittedRun),
}

impl Report {
    /// Refuses what this node would not have stored itself.
    fn check(&self) -> Result<()> {
        match self {
            Self::Lease(lease) => lease.check(),
            Self::Run(run) => run.check(),
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
}

impl ReportBatch {
    /// Whether the reader is to be told, when `count` reports were read to make it.
    pub fn is_worth_telling(&self, count: usize) -> bool {
        let ends_window = self.start.window.is_some();
        !self.rows.is_empty() || ends_window || self.is_cut_off() || count >= SKIPPED
    }

    /// Whether there is more than fitted in.
    pub fn is_cut_off(&self) -> bool {
        self.next.window.is_some()
    }

    /// Whether storing it moves the position of a reader: only without a gap before it.
    pub fn continues(&self, stored: &Position) -> bool {
        self.start.is_beginning() || self.start == *stored
    }
}

/// The part of a message that is about reports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reports {
    /// How far the speaker has been given the listener's reports.
    pub position: Position,
    pub batch: Option<ReportBatch>,
}

impl Reports {
    pub fn check(&self) -> Result<()> {
        check_position(&self.position)?;
        let Some(batch) = &self.batch else {
            return Ok(());
        };
        check_position(&batch.start)?;
        check_position(&batch.next)?;
        batch.rows.iter().try_for_each(Report::check)
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
