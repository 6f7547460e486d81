//! One exchange of operations with one peer, now, in a transaction of its own: first this node gives what the
//! peer lacks, then it takes what the peer gives. So it holds no lock while it waits for an answer, and tells
//! the peer nothing that it may yet forget.

use super::protocol::{Message, Replica, admit, receive_reports, speak};
use super::report::{Reader, ReportBatch, Reports};
use crate::clock::vclock::{self, Vclock};
use crate::error::{self, Result};
use crate::is_preloaded;
use crate::node::incarnation::Admission;

/// A peer that lacks more is given the rest by the next exchange.
const MAX_STEPS: usize = 1_000;

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pumped {
    /// Operations given that were new to the peer.
    pub pushed: u64,
    /// Operations given that it had already, or refused.
    pub deduped: u64,
    /// Operations taken that were new here.
    pub folded: u64,
    /// Whether the peer has said that it holds all that this node held before.
    pub is_acknowledged: bool,
}

pub fn pump(
    replica: &mut dyn Replica,
    peer: &str,
    mut call: impl FnMut(Message) -> Result<Message>,
) -> Result<Pumped> {
    let mut pumped = Pumped::default();
    let own = reader(replica, peer)?;
    let mut answer = ask(replica, peer, &own, None, &mut call)?;
    for _ in 0..MAX_STEPS {
        let Some(batch) = give(replica, peer, &answer)? else {
            break;
        };
        let (given, is_last) = (batch.operations(), !batch.is_cut_off());
        answer = ask(replica, peer, &own, Some(batch), &mut call)?;
        let admitted = answer
            .reports
            .as_ref()
            .map_or(0, |reports| reports.admitted);
        pumped.pushed += admitted;
        pumped.deduped += given.saturating_sub(admitted);
        if is_last {
            break;
        }
    }
    if let Some(reports) = &answer.reports {
        let (theirs, ours) = (&reports.reader.frontier, &own.frontier);
        pumped.is_acknowledged = vclock::covers(Vclock::parse(theirs)?, Vclock::parse(ours)?);
    }
    pumped.folded = receive_reports(replica, &answer)?;
    Ok(pumped)
}

/// What this node holds, to be told while it takes more that may yet be rolled back.
pub fn held(replica: &mut dyn Replica, peer: &str) -> Result<Vec<u8>> {
    Ok(reader(replica, peer)?.frontier)
}

/// Takes everything that the peer holds and this node lacks, and tells it no more than was `held` before.
pub fn pull(
    replica: &mut dyn Replica,
    peer: &str,
    held: &[u8],
    mut call: impl FnMut(Message) -> Result<Message>,
) -> Result<()> {
    let mut taken_from = None;
    loop {
        let own = Reader {
            frontier: held.to_vec(),
            ..reader(replica, peer)?
        };
        // Where this node does not move on it would be given the same again.
        if taken_from.replace(own.position.clone()).as_ref() == Some(&own.position) {
            return Ok(());
        }
        let answer = ask(replica, peer, &own, None, &mut call)?;
        receive_reports(replica, &answer)?;
        // The last one of a window does not say yet that this is all.
        let batch = answer.reports.and_then(|reports| reports.batch);
        if batch.is_none_or(|batch| batch.frontier.is_some()) {
            return Ok(());
        }
    }
}

/// This node as a reader of the peer's operations, by gossip alone.
fn reader(replica: &mut dyn Replica, peer: &str) -> Result<Reader> {
    let own = replica.reports_reader(peer)?.map(Reader::without_streams);
    own.filter(|_| replica.hello().is_ok_and(|hello| hello.is_confirmed))
        .ok_or_else(|| error::life_unknown(is_preloaded()))
}

fn give(replica: &mut dyn Replica, peer: &str, answer: &Message) -> Result<Option<ReportBatch>> {
    match &answer.reports {
        Some(reports) => replica.report(peer, &reports.reader.clone().without_streams()),
        None => Ok(None),
    }
}

fn ask(
    replica: &mut dyn Replica,
    peer: &str,
    own: &Reader,
    batch: Option<ReportBatch>,
    call: &mut impl FnMut(Message) -> Result<Message>,
) -> Result<Message> {
    // Also makes sure that what is given is on disk.
    let feed = replica.feed(peer, None)?;
    let mut message = speak(replica, peer, &feed)?;
    message.reports = Some(Reports {
        reader: own.clone(),
        batch,
        admitted: 0,
        streams: replica.streams(peer)?,
    });
    let answer = call(message)?;
    if answer.hello.name != peer {
        return Err(error::peer_misnamed(peer, &answer.hello.name));
    }
    match admit(replica, &answer)? {
        Admission::Superseded => Err(error::peer_superseded(peer, answer.hello.incarnation)),
        Admission::Welcome { .. } | Admission::Asking => Ok(answer),
    }
}
