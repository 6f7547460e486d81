//! Binds gossip to SQL; the declarations are in `sql/gossip.sql`.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use pgrx::pg_sys::panic::{ErrorReport, ErrorReportable};
use pgrx::prelude::*;
use pgrx::{JsonB, PgTrigger, pg_sys};
use serde_json::json;

use super::control::News;
use super::peers::{self, Peer};
use super::protocol::{self, Commitment, Heard, Message, Next, Replica, Round};
use super::replica::{Database, Standpoint};
use super::transport::{Request, Transport};
use super::{background, control, detector, pump, statistics};
use crate::error::{self, Error};
use crate::guc;
use crate::node::sql as node;
use crate::process;
use crate::spi;
use crate::varlena::{FlatResult, SqlResult};

thread_local! {
    /// Who has called `gossip_exchange` in this session.
    static CALLERS: RefCell<HashMap<String, Caller>> = RefCell::default();
}

struct Caller {
    heard: Heard,
    /// When this session last spoke for it, or began.
    last_spoke: i64,
}

impl Caller {
    fn new() -> Self {
        Self {
            heard: Heard::default(),
            // SAFETY: set when the session began.
            last_spoke: unsafe { pg_sys::MyStartTimestamp },
        }
    }
}

/// Answers a message, and remembers what its sender has said.
fn answer(spi: &spi::Session, request: &Message) -> error::Result<Message> {
    let peer = request.hello.name.clone();
    CALLERS.with_borrow_mut(|callers| {
        let caller = callers.entry(peer).or_insert_with(Caller::new);
        let mut database =
            Database::open_for_message(spi, Standpoint::AfterCommit, caller.last_spoke)?;
        let response = protocol::respond(&mut database, request, &mut caller.heard);
        // Who asks may go on on this connection.
        caller.last_spoke = statistics::now();
        Ok(response?.message)
    })
}

/// What peers call: stores what a message brings and answers it.
///
/// The answer speaks for what this transaction stores, so it must reach the peer only if the
/// transaction commits: hence no transaction block, and a flush at commit.
#[pg_extern(sql = false)]
fn gossip_exchange(message: &[u8]) -> SqlResult<Vec<u8>> {
    check_no_transaction_block("coord.gossip_exchange")?;
    statistics::step_failed();
    let request = Message::decode(message)?;
    // Whoever speaks the version before reads only that.
    let version = Message::version(message)?;
    let peer = request.hello.name.clone();
    let answer = spi::connect(|spi| answer(spi, &request)?.encode(version))
        .inspect_err(|failure| statistics::failed(&peer, &failure.to_string()))?;
    background::flush_at_commit();
    if background::own_xid().is_some() {
        control::answered();
    }
    statistics::step_done();
    statistics::heard(&peer, message.len(), answer.len(), None);
    Ok(answer)
}

fn check_no_transaction_block(function: &str) -> error::Result<()> {
    // SAFETY: a plain getter.
    if unsafe { pg_sys::IsTransactionBlock() } {
        Err(error::in_transaction_block(function))
    } else {
        Ok(())
    }
}

/// Sends one message and waits for the answer, open to cancel and shutdown.
fn call(transport: &mut Transport, peer: &Peer, message: Message) -> error::Result<Vec<u8>> {
    let request = Request {
        peer: peer.name.clone(),
        access: Arc::clone(&peer.access),
        message,
        timeout: Duration::from_millis(guc::PEER_TIMEOUT.get().unsigned_abs().into()),
    };
    if !transport.send(request) {
        return Err(error::peer_unreachable(
            &peer.name,
            "the transport has ended",
        ));
    }
    let outcome = loop {
        if let Some(outcome) = transport.take().pop() {
            break outcome;
        }
        background::wait(Some(transport.wake_fd()), Duration::from_secs(1));
    };
    match outcome.answer {
        Ok(answer) => {
            let taken = i64::try_from(outcome.taken.as_micros()).unwrap_or(i64::MAX);
            statistics::heard(
                &peer.name,
                answer.bytes.len(),
                answer.sent_bytes,
                Some(taken),
            );
            Ok(answer.bytes)
        }
        Err(reason) => {
            statistics::failed(&peer.name, &reason);
            Err(error::peer_unreachable(&peer.name, &reason))
        }
    }
}

fn start_transport() -> error::Result<Transport> {
    Transport::start().map_err(|failure| error::transport_not_started(&failure))
}

/// One exchange with a peer, within the caller's transaction.
#[pg_extern(sql = false)]
fn gossip_round(
    peer: &str,
) -> Result<
    TableIterator<
        'static,
        (
            name!(sent, i64),
            name!(received, i64),
            name!(changed, i64),
            name!(converged, bool),
        ),
    >,
    ErrorReport,
> {
    let round = spi::connect(|spi| {
        let known = peers::peers(spi, Some(peer))?
            .pop()
            .ok_or_else(|| error::peer_unknown(peer))?;
        run_round(spi, &known)
    })?;
    let row = (
        round.sent.cast_signed(),
        round.received.cast_signed(),
        round.changed.cast_signed(),
        round.converged,
    );
    Ok(TableIterator::once(row))
}

fn run_round(spi: &spi::Session, peer: &Peer) -> error::Result<Round> {
    statistics::step_failed();
    let mut transport = start_transport()?;
    let mut database = Database::open(spi, Standpoint::BeforeCommit)?;
    let mut heard = Heard::default();
    let mut round = Round::new(&peer.name, Commitment::AtTheEnd);
    loop {
        let message = round.compose(&mut database, &mut heard)?;
        let answer = Message::decode(&call(&mut transport, peer, message)?)?;
        if round.receive(&mut database, &mut heard, &answer)? == Next::Done {
            statistics::step_done();
            statistics::round_done(&peer.name);
            return Ok(round);
        }
    }
}

/// One exchange of operations with a peer. Its rows are written by every other exchange as well, and these
/// would wait for the end of a longer transaction.
#[pg_extern(sql = false)]
fn sync_pump(peer: &str) -> SqlResult<JsonB> {
    check_no_transaction_block("coord.sync_pump")?;
    let (pumped, state_hash) = spi::connect(|spi| {
        let known = peers::peers(spi, Some(peer))?
            .pop()
            .ok_or_else(|| error::peer_unknown(peer))?;
        statistics::step_failed();
        let mut transport = start_transport()?;
        let mut database = Database::open(spi, Standpoint::BeforeCommit)?;
        let pumped = pump::pump(&mut database, peer, |message| {
            Message::decode(&call(&mut transport, &known, message)?)
        })?;
        statistics::step_done();
        let hash = spi.write(c"SELECT coord.state_hash()", &[]);
        Ok::<_, Error>((pumped, hash.get::<String>(0, 0)))
    })?;
    Ok(JsonB(json!({
        "pushed": pumped.pushed,
        "push_deduped": pumped.deduped,
        "folded": pumped.folded,
        "acked": pumped.is_acknowledged,
        "state_hash": state_hash,
    })))
}

/// Takes what this node lacks from every peer that answers, and then the latest checkpoint of those it knows. For
/// the reasons of `sync_pump` in a transaction of its own.
#[pg_extern(sql = false)]
fn rebase() -> SqlResult<FlatResult> {
    check_no_transaction_block("coord.rebase")?;
    let taken = spi::connect(|spi| {
        let mut transport = start_transport()?;
        let mut database = Database::open(spi, Standpoint::BeforeCommit)?;
        // In the order of coord.checkpoint, which changes what is taken here after this.
        spi.write(c"LOCK TABLE coord.op_base IN SHARE ROW EXCLUSIVE MODE", &[]);
        let held = pump::held(&mut database, "")?;
        for peer in peers::peers(spi, None)? {
            statistics::step_failed();
            let pulled = pump::pull(&mut database, &peer.name, &held, |message| {
                Message::decode(&call(&mut transport, &peer, message)?)
            });
            match pulled {
                Ok(()) => statistics::step_done(),
                Err(failure) => {
                    pgrx::warning!("not everything was taken from \"{}\": {failure}", peer.name)
                }
            }
        }
        Ok::<_, Error>(spi.write(c"SELECT coord.checkpoint_take()", &[]).flat(0, 0))
    })?;
    Ok(taken)
}

/// Tells every peer that this node leaves; those that cannot be told are named in warnings.
#[pg_extern(sql = false)]
fn gossip_farewell() -> SqlResult<()> {
    spi::connect(|spi| {
        let mut transport = start_transport()?;
        let mut database = Database::open(spi, Standpoint::BeforeCommit)?;
        for peer in peers::peers(spi, None)? {
            let mut message = Round::new(&peer.name, Commitment::AtTheEnd)
                .compose(&mut database, &mut Heard::default())?;
            message.leaving = true;
            if let Err(failure) = call(&mut transport, &peer, message) {
                pgrx::warning!("peer \"{}\" was not told: {failure}", peer.name);
            }
        }
        Ok::<(), Error>(())
    })?;
    Ok(())
}

/// What this node holds now.
#[pg_extern(sql = false)]
#[allow(clippy::type_complexity)] // pgrx reads the columns off the signature
fn gossip_claim() -> Result<
    TableIterator<
        'static,
        (
            name!(frontier, Vec<u8>),
            name!(ceiling, Vec<u8>),
            name!(digest, Vec<u8>),
        ),
    >,
    ErrorReport,
> {
    let claim = spi::connect(|spi| {
        Ok::<_, Error>(
            Database::open(spi, Standpoint::BeforeCommit)?
                .feed("", None)?
                .claim,
        )
    })?;
    Ok(TableIterator::once((
        claim.frontier,
        claim.ceiling,
        claim.digest.to_vec(),
    )))
}

#[pg_extern(sql = false)]
#[allow(clippy::type_complexity)] // as above
fn peer_statistics() -> TableIterator<
    'static,
    (
        name!(peer, String),
        name!(last_contact, Option<TimestampWithTimeZone>),
        name!(last_answer, Option<TimestampWithTimeZone>),
        name!(last_failure, Option<TimestampWithTimeZone>),
        name!(round_trip, i64),
        name!(rounds, i64),
        name!(failures, i64),
        name!(full_syncs, i64),
        name!(rows_in, i64),
        name!(rows_out, i64),
        name!(bytes_in, i64),
        name!(bytes_out, i64),
        name!(refused, i64),
        name!(last_error, Option<String>),
    ),
> {
    TableIterator::new(statistics::rows())
}

#[pg_extern(sql = false)]
fn peer_liveness() -> TableIterator<
    'static,
    (
        name!(peer, String),
        name!(state, &'static str),
        name!(phi, f64),
        name!(reason, String),
    ),
> {
    TableIterator::new(detector::rows())
}

/// Wakes the worker when the transaction commits: something changed that peers wait for.
#[pg_trigger(sql = false)]
fn gossip_wake<'a>(
    trigger: &'a PgTrigger<'a>,
) -> Result<Option<PgHeapTuple<'a, impl WhoAllocated>>, Error> {
    tell_at_commit(News::Anything);
    Ok(trigger.new())
}

fn tell_at_commit(news: News) {
    if control::has_answered() {
        Err::<(), ErrorReport>(error::change_after_answer().into()).unwrap_or_report();
    }
    control::tell_at_commit(news);
}

/// The same where only operations were appended.
#[pg_trigger(sql = false)]
fn gossip_wake_appended<'a>(
    trigger: &'a PgTrigger<'a>,
) -> Result<Option<PgHeapTuple<'a, impl WhoAllocated>>, Error> {
    tell_appended();
    Ok(trigger.new())
}

/// Wakes the worker when the transaction commits: operations were appended.
pub fn tell_appended() {
    tell_at_commit(News::Operations);
}

/// Asks for a worker when the transaction commits: this database has become a node.
#[pg_trigger(sql = false)]
fn gossip_launch<'a>(
    trigger: &'a PgTrigger<'a>,
) -> Result<Option<PgHeapTuple<'a, impl WhoAllocated>>, Error> {
    control::launch_at_commit();
    Ok(trigger.new())
}

/// Refuses a change counted under the provisional actor when the life has been confirmed since this
/// transaction's snapshot was taken: the row would be told under an actor that does not exist. Else
/// asks for a worker, which settles the life: a database made from a template has none yet.
#[pg_trigger(sql = false)]
fn life_check<'a>(
    trigger: &'a PgTrigger<'a>,
) -> Result<Option<PgHeapTuple<'a, impl WhoAllocated>>, Error> {
    let local = spi::connect(|spi| spi.with_latest_snapshot(node::local_node))?;
    if local.is_confirmed {
        Err::<(), ErrorReport>(error::life_confirmed_meanwhile().into()).unwrap_or_report();
    }
    control::launch_at_commit();
    Ok(trigger.new())
}

/// The process of this database's worker, when one runs.
#[pg_extern(sql = false)]
fn gossip_worker() -> Option<i32> {
    control::worker_of(process::own_database())
}
