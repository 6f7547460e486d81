//! The worker of one database: gossips with the peers, at commits and on a timer.
//!
//! The main thread owns SPI and waits on its latch; the network is on the transport's thread.
//! Every step of an exchange is a transaction of its own.

use std::collections::{HashMap, HashSet};
use std::ffi::CStr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use pgrx::prelude::*;
use pgrx::{FromDatum, pg_sys};

use super::background::{self, transaction};
use super::control;
use super::detector;
use super::peers::{self, Peer};
use super::protocol::{Commitment, Heard, Message, Next, Round};
use super::replica::{Database, Standpoint};
use super::reporter::Reporter;
use super::retention::Retention;
use super::statistics;
use super::streams::Streams;
use super::transport::{Outcome, Request, Transport};
use crate::lease::writeback::{self, Keeper};
use crate::node::detector::Liveness;
use crate::node::incarnation::{Resolution, Testimony};
use crate::spi::{Session, Value};
use crate::{guc, heap};

/// How long DROP EXTENSION or a removed peer can go unnoticed, however long the interval.
const LONGEST_UNAWARE: Duration = Duration::from_secs(5);

/// How long a node that does not know its life waits before it asks again.
const LONGEST_UNASKED: Duration = Duration::from_secs(1);

/// How long it waits for a peer that swallows the question, when another has answered.
const PATIENCE: Duration = Duration::from_secs(3);

/// A peer as this worker knows it. What it has heard is forgotten when the worker ends: the peer
/// says it again.
struct Contact {
    peer: Peer,
    heard: Heard,
    round: Option<Round>,
    /// When the message that is under way was sent.
    sent_at: i64,
    /// Something changed while a round was under way.
    is_behind: bool,
    /// Rounds that failed since the last one that did not.
    failures: u32,
    last_failure: Option<Instant>,
    /// The last reason of those failures that went to the log.
    logged_reason: String,
    /// It has been asked in which life this node is, and has answered or failed to.
    asked: Option<Asked>,
}

/// What came of asking a peer in which life this node is.
enum Asked {
    Silent,
    Answered(Option<Testimony>),
}

impl Contact {
    /// When the last attempt failed, if the peer has not spoken to this node since.
    fn failing_since(&self) -> Option<Instant> {
        self.last_failure.filter(|last| {
            let silent = statistics::silent_milliseconds(&self.peer.name);
            silent.map_or(Duration::MAX, Duration::from_millis) >= last.elapsed()
        })
    }

    fn is_failing(&self) -> bool {
        self.failing_since().is_some()
    }

    fn is_dead(&self) -> bool {
        detector::liveness(&self.peer.name) == Liveness::Dead
    }

    /// Whether a stream brings it the operations of this origin, as it has said.
    fn has_by_stream(&self, origin: &str) -> bool {
        let reader = self.heard.reports.as_ref();
        reader.is_some_and(|reader| reader.streamed.iter().any(|actor| actor == origin))
    }

    /// A peer that keeps failing is tried less often, up to every sixteenth interval.
    fn is_due(&self) -> bool {
        let doublings = self.failures.saturating_sub(1).min(4);
        self.failing_since()
            .is_none_or(|last| last.elapsed() >= interval() * (1 << doublings))
    }
}

struct Worker {
    database: &'static control::Database,
    transport: Transport,
    contacts: HashMap<String, Contact>,
    extension: Option<pg_sys::Oid>,
    /// What this node's operations are told as.
    actor: String,
    random: u64,
    /// Whether the node knows in which life it is. Until then it asks.
    is_confirmed: bool,
    asking_since: Instant,
    /// Why this node was last told that it is a copy.
    refused_because: Option<String>,
    /// When the peers were last judged.
    last_judged: Instant,
    /// What the peers have been told to expect.
    told_interval: Duration,
    leases: Keeper,
    reporter: Reporter,
    streams: Streams,
    retention: Retention,
}

#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn pg_test_worker_main(argument: pg_sys::Datum) {
    background::accept_signals();
    // SAFETY: the launcher passes a database's oid; no name makes this a superuser.
    let oid = unsafe {
        let oid = pg_sys::Oid::from_datum(argument, false).map_or(0, pg_sys::Oid::to_u32);
        pg_sys::BackgroundWorkerInitializeConnectionByOid(oid.into(), pg_sys::InvalidOid, 0);
        oid
    };
    let Some(database) = control::database(oid) else {
        return;
    };
    // SAFETY: registered once; the callback only writes shared memory.
    unsafe { pg_sys::before_shmem_exit(Some(announce_exit), argument) };
    control::worker_is_here(database);
    background::set_options(SETTINGS);
    Worker {
        database,
        transport: start_transport(),
        contacts: HashMap::new(),
        extension: None,
        actor: String::new(),
        is_confirmed: false,
        asking_since: Instant::now(),
        refused_because: None,
        last_judged: Instant::now(),
        told_interval: interval(),
        leases: Keeper::new(run_transaction),
        reporter: Reporter::new(),
        streams: Streams::new(),
        retention: Retention::new(),
        random: Instant::now().elapsed().as_nanos() as u64
            ^ u64::from(oid) << 32
            ^ u64::from(std::process::id()),
    }
    .run();
}

#[pg_guard]
unsafe extern "C-unwind" fn announce_exit(_code: i32, argument: pg_sys::Datum) {
    // SAFETY: the argument is the database's oid, as above.
    if let Some(oid) = unsafe { pg_sys::Oid::from_datum(argument, false) }
        && let Some(database) = control::database(oid.to_u32())
    {
        // SAFETY: as PostgreSQL itself does to drop temporary tables (src/backend/catalog/namespace.c):
        // the process may have been in a transaction, and ends in any case.
        unsafe { pg_sys::AbortOutOfAnyTransaction() };
        writeback::close(run_transaction);
        control::worker_is_gone(database);
    }
}

fn run_transaction(
    work: &mut dyn FnMut(&Session) -> crate::error::Result<()>,
) -> Result<(), String> {
    transaction(|spi| work(spi))
}

fn start_transport() -> Transport {
    match Transport::start() {
        Ok(transport) => transport,
        Err(failure) => {
            ereport!(
                FATAL,
                PgSqlErrorCode::ERRCODE_SYSTEM_ERROR,
                format!("could not start the gossip transport: {failure}")
            );
        }
    }
}

/// Bookkeeping need not wait for the disk, and what must is flushed by `flush_at_commit`. A row that
/// a session's transaction holds must not hold the worker; and where that is DROP EXTENSION, which waits for the
/// worker in turn, the worker gives way well before `deadlock_timeout`. Each statement sees what has just
/// committed, whatever the database takes as a default.
const SETTINGS: &[(&CStr, &CStr)] = &[
    (c"synchronous_commit", c"off"),
    (c"lock_timeout", c"500ms"),
    (c"search_path", c"pg_catalog"),
    (c"default_transaction_isolation", c"read committed"),
];

fn report_activity(what: Option<&str>) {
    let text = what.and_then(|what| std::ffi::CString::new(what).ok());
    // SAFETY: the text is copied.
    unsafe {
        pg_sys::pgstat_report_activity(
            if text.is_some() {
                pg_sys::BackendState::STATE_RUNNING
            } else {
                pg_sys::BackendState::STATE_IDLE
            },
            text.as_ref().map_or(std::ptr::null(), |text| text.as_ptr()),
        );
    }
}

impl Worker {
    fn run(mut self) {
        let mut last_tick = None;
        let mut last_look = Instant::now();
        while self.is_needed() {
            for outcome in self.transport.take() {
                self.answered(outcome);
            }
            // The interval is read each time, so that a shorter one takes effect at once.
            if last_tick.is_none_or(|last: Instant| last.elapsed() >= self.pace()) {
                self.tick();
                last_tick = Some(Instant::now());
                last_look = Instant::now();
            }
            if last_look.elapsed() >= LONGEST_UNAWARE {
                self.refresh_peers();
                last_look = Instant::now();
            }
            let is_dirty = self.database.is_dirty.swap(false, Ordering::AcqRel);
            let is_appended = self.database.is_appended.swap(false, Ordering::AcqRel);
            if is_dirty || self.told_interval != interval() {
                self.told_interval = interval();
                self.refresh_peers();
                self.push();
            } else if is_appended {
                self.push_operations();
            }
            self.watch_peers();
            if self.extension.is_some() && self.is_needed() {
                self.attend_to_leases();
                if self.is_confirmed {
                    self.streams.attend(interval());
                }
            }
            report_activity(None);
            let elapsed = last_tick.map_or(Duration::ZERO, |last| last.elapsed());
            background::wait(
                Some(self.transport.wake_fd()),
                self.pace()
                    .saturating_sub(elapsed)
                    .min(watch_interval())
                    .min(self.leases.due().unwrap_or(Duration::MAX))
                    .min(self.streams.due()),
            );
        }
    }

    fn attend_to_leases(&mut self) {
        let changed = self.leases.attend();
        // What was granted before the memory was opened is reported with all there is.
        if !self.leases.is_open() {
            return;
        }
        let pace = interval().min(LONGEST_UNAWARE);
        if self.reporter.attend(&changed, pace) {
            self.push();
        }
    }

    /// Judges the peers, and tells what has changed since.
    fn watch_peers(&mut self) {
        let taken = self.last_judged.elapsed();
        if taken < watch_interval() {
            return;
        }
        self.last_judged = Instant::now();
        let late = i64::try_from((taken - watch_interval()).as_micros()).unwrap_or(i64::MAX);
        detector::note_lateness(self.database, late);
        let changes = detector::judge(self.database, self.contacts.keys());
        for change in &changes {
            pgrx::log!(
                "pg_test: peer \"{}\" is {} (was {}): {}",
                change.peer,
                change.to.name(),
                change.from.name(),
                change.reason
            );
        }
        if changes.is_empty() {
            return;
        }
        let announced = transaction(|spi| {
            changes.iter().for_each(|change| {
                announce(
                    spi,
                    &change.peer,
                    change.from,
                    change.to.name(),
                    Some(change.phi),
                    &change.reason,
                );
            });
            Ok(())
        });
        if let Err(reason) = announced {
            pgrx::log!("pg_test: could not notify of peers: {reason}");
        }
    }

    fn pace(&self) -> Duration {
        if self.is_confirmed {
            interval()
        } else {
            interval().min(LONGEST_UNASKED)
        }
    }

    /// What the timer does: looks whether there still is a node, and repairs.
    fn tick(&mut self) {
        detector::beat(self.database);
        self.refresh_peers();
        let retried =
            transaction(|spi| Database::open(spi, Standpoint::BeforeCommit)?.retry_waiting());
        self.tend_log();
        if self.is_confirmed && self.extension.is_some() {
            self.retention.attend();
        }
        if self.is_needed() {
            if let Err(reason) = retried {
                pgrx::log!("pg_test: could not merge what waited: {reason}");
            }
            if self.is_confirmed {
                self.gossip();
            } else {
                self.ask_all();
            }
        }
    }

    /// What the operation log needs from time to time; none of it is to keep the others from being done.
    fn tend_log(&self) {
        let tasks = [
            (self.is_confirmed, c"SELECT coord.intent_log()"),
            (true, c"SELECT coord.fold_retry()"),
            (true, c"SELECT coord.conflict_retry()"),
            (true, c"SELECT coord.trim_settle()"),
            (true, c"SELECT coord.fold_digest_compact(1000)"),
        ];
        for (_, task) in tasks.into_iter().filter(|(is_due, _)| *is_due) {
            let done = transaction(|spi| {
                // An extension of an earlier version has no operation log.
                if heap::is_there(c"fold_digest") {
                    spi.write(task, &[]);
                }
                Ok(())
            });
            if let Err(reason) = done {
                pgrx::log!("pg_test: could not tend the operation log: {reason}");
            }
        }
    }

    /// Reads peers anew. Without extension or node there is nothing to do here any more.
    fn refresh_peers(&mut self) {
        report_activity(Some("reading peers"));
        let wanted_times = self.database.wanted_times();
        let found = transaction(|spi| {
            let extension = spi.read(
                c"SELECT e.oid FROM pg_catalog.pg_extension e
                   WHERE e.extname = 'pg_test' AND to_regclass('coord.local_node') IS NOT NULL",
                &[],
            );
            let Some(extension) = (!extension.is_empty())
                .then(|| extension.get(0, 0))
                .flatten()
            else {
                return Ok(None);
            };
            let named = spi.read(c"SELECT actor FROM coord.local_node", &[]);
            if named.is_empty() {
                return Ok(None);
            }
            let actor: String = named.get(0, 0).unwrap_or_default();
            Self::remove_left(spi);
            let is_confirmed = Database::open(spi, Standpoint::BeforeCommit)?.looks_at_life();
            Ok(Some((
                extension,
                actor,
                peers::peers(spi, None)?,
                is_confirmed,
            )))
        });
        match found {
            Ok(Some((extension, actor, peers, is_confirmed))) => {
                self.actor = actor;
                // Dropped and created again: what was heard before is about other tables.
                if self
                    .extension
                    .replace(extension)
                    .is_some_and(|previous| previous != extension)
                {
                    self.streams.clear();
                    self.contacts.clear();
                    self.transport = start_transport();
                    self.leases.reopen();
                    self.reporter = Reporter::new();
                }
                self.update_contacts(peers);
                self.set_confirmed(is_confirmed);
            }
            Ok(None) => {
                self.contacts.clear();
                // Whose streams they are is remembered: the next extension here is another one.
                if self.extension.is_none() || self.streams.clear() {
                    self.database.give_up(wanted_times);
                }
            }
            Err(reason) => pgrx::log!("pg_test: could not read the peers: {reason}"),
        }
    }

    fn remove_left(spi: &Session) {
        let left = spi.write(
            c"SELECT p.name, coord.remove_peer(p.name)
                FROM coord.peer p JOIN coord.roster r ON r.name = p.name
               WHERE r.status = 'left'",
            &[],
        );
        for name in (0..left.len()).filter_map(|row| left.get::<String>(row, 0)) {
            announce(
                spi,
                &name,
                detector::liveness(&name),
                "left",
                None,
                "said that it leaves the mesh",
            );
        }
    }

    fn is_needed(&self) -> bool {
        self.database.is_wanted() && !self.database.is_dismissed()
    }

    fn update_contacts(&mut self, peers: Vec<Peer>) {
        let names: HashSet<String> = peers.iter().map(|peer| peer.name.clone()).collect();
        self.contacts.retain(|name, _| {
            let is_peer = names.contains(name);
            if !is_peer {
                detector::forget(name);
            }
            is_peer
        });
        for peer in peers {
            match self.contacts.get_mut(&peer.name) {
                Some(contact) => contact.peer = peer,
                None => {
                    self.contacts.insert(
                        peer.name.clone(),
                        Contact {
                            peer,
                            heard: Heard::default(),
                            round: None,
                            sent_at: 0,
                            is_behind: false,
                            failures: 0,
                            last_failure: None,
                            logged_reason: String::new(),
                            asked: None,
                        },
                    );
                }
            }
        }
    }

    fn names(&self, is_meant: impl Fn(&Contact) -> bool) -> Vec<String> {
        self.contacts
            .iter()
            .filter(|(_, contact)| is_meant(contact))
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// Begins a round with every peer: something was changed here. A peer that fails is left to
    /// the timer.
    fn push(&mut self) {
        for name in self.names(|contact| !contact.is_failing() && !contact.is_dead()) {
            self.begin_round(&name);
        }
    }

    /// The same for peers that streams do not bring this node's operations to.
    fn push_operations(&mut self) {
        let is_meant = |contact: &Contact| !contact.is_failing() && !contact.is_dead();
        for name in self.names(|contact| is_meant(contact) && !contact.has_by_stream(&self.actor)) {
            self.begin_round(&name);
        }
    }

    fn set_confirmed(&mut self, is_confirmed: bool) {
        if self.is_confirmed != is_confirmed {
            self.is_confirmed = is_confirmed;
            self.ask_anew();
        }
    }

    fn ask_anew(&mut self) {
        self.asking_since = Instant::now();
        for contact in self.contacts.values_mut() {
            contact.asked = None;
        }
    }

    /// Asks every peer that has not answered in which life this node is; then what they know decides.
    fn ask_all(&mut self) {
        for name in self.names(|contact| !matches!(contact.asked, Some(Asked::Answered(_)))) {
            self.begin_round(&name);
        }
        self.resolve_life();
    }

    /// Once every peer has answered or failed to, and one has answered, or there is none: a node
    /// that nobody answers goes on under its provisional actor.
    fn resolve_life(&mut self) {
        let is_waited_for = self.contacts.values().any(|peer| peer.asked.is_none())
            && self.asking_since.elapsed() < PATIENCE;
        if self.is_confirmed || is_waited_for {
            return;
        }
        let mut testimonies = Vec::new();
        let mut has_answer = self.contacts.is_empty();
        for contact in self.contacts.values() {
            if let Some(Asked::Answered(testimony)) = &contact.asked {
                has_answer = true;
                testimonies.extend(testimony.clone());
            }
        }
        if !has_answer {
            return;
        }
        report_activity(Some("finding out the incarnation"));
        let resolved = transaction(|spi| {
            Database::open(spi, Standpoint::BeforeCommit)?.resolve_life(&testimonies)
        });
        match resolved {
            Ok(Resolution::Wait { reason }) => {
                if self.refused_because.replace(reason.clone()).as_ref() != Some(&reason) {
                    pgrx::log!("pg_test: this node is refused as a copy: {reason}");
                }
                for name in self.names(|contact| matches!(contact.asked, Some(Asked::Answered(_))))
                {
                    statistics::failed(&name, &reason);
                }
                self.ask_anew();
                return;
            }
            Ok(Resolution::Begin {
                incarnation,
                reason,
            }) => {
                pgrx::log!("pg_test: life {incarnation} of this node begins: {reason}");
                // What peers were heard to say was said to another life.
                for contact in self.contacts.values_mut() {
                    contact.heard = Heard::default();
                }
            }
            Ok(Resolution::Confirm) => {}
            Err(reason) => {
                pgrx::log!("pg_test: could not settle the incarnation of this node: {reason}");
                return;
            }
        }
        self.refresh_peers();
        self.push();
    }

    /// Begins a round with up to `coord.gossip_fanout` peers chosen at random, and beside them with one
    /// that is dead: whoever is gone takes nobody's place, and is found when it is back.
    fn gossip(&mut self) {
        let fanout = guc::GOSSIP_FANOUT.get().unsigned_abs() as usize;
        let living = self.names(|contact| contact.is_due() && !contact.is_dead());
        let dead = self.names(|contact| contact.is_due() && contact.is_dead());
        let mut chosen = self.choose(living, fanout);
        chosen.extend(self.choose(dead, 1));
        for name in chosen {
            self.begin_round(&name);
        }
    }

    fn choose(&mut self, mut names: Vec<String>, count: usize) -> Vec<String> {
        for place in 0..names.len().min(count) {
            let other = place + self.below(names.len() - place);
            names.swap(place, other);
        }
        names.truncate(count);
        names
    }

    /// A number below `bound`, by xorshift (Marsaglia 2003): choosing peers needs no more.
    fn below(&mut self, bound: usize) -> usize {
        self.random |= 1;
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) as usize % bound.max(1)
    }

    fn begin_round(&mut self, name: &str) {
        let Some(contact) = self.contacts.get_mut(name) else {
            return;
        };
        if contact.round.is_some() {
            contact.is_behind = true;
            return;
        }
        contact.is_behind = false;
        contact.round = Some(Round::new(name, Commitment::EachStep));
        self.send_next(name);
    }

    fn send_next(&mut self, name: &str) {
        let Some(contact) = self.contacts.get_mut(name) else {
            return;
        };
        let Some(round) = &mut contact.round else {
            return;
        };
        report_activity(Some(&format!("gossip with {name}")));
        let heard = &mut contact.heard;
        let composed = transaction(|spi| {
            let mut database = Database::open(spi, Standpoint::BeforeCommit)?;
            round.compose(&mut database, heard)
        });
        match composed {
            Ok(message) => {
                statistics::step_done();
                contact.sent_at = statistics::now();
                let is_sent = self.transport.send(Request {
                    peer: name.to_owned(),
                    access: Arc::clone(&contact.peer.access),
                    message,
                    timeout: Duration::from_millis(guc::PEER_TIMEOUT.get().unsigned_abs().into()),
                });
                if !is_sent {
                    ereport!(
                        FATAL,
                        PgSqlErrorCode::ERRCODE_SYSTEM_ERROR,
                        "the gossip transport has ended"
                    );
                }
            }
            Err(reason) => self.round_failed(name, &reason),
        }
    }

    fn answered(&mut self, outcome: Outcome) {
        let name = outcome.peer;
        let answer = match outcome.answer {
            Ok(answer) => answer,
            Err(reason) => return self.round_failed(&name, &reason),
        };
        let taken = i64::try_from(outcome.taken.as_micros()).unwrap_or(i64::MAX);
        statistics::heard(&name, answer.bytes.len(), answer.sent_bytes, Some(taken));
        let Some(contact) = self.contacts.get_mut(&name) else {
            return;
        };
        let Some(round) = &mut contact.round else {
            return;
        };
        report_activity(Some(&format!("gossip with {name}")));
        let (heard, sent_at) = (&mut contact.heard, contact.sent_at);
        let received = transaction(|spi| {
            let reply = Message::decode(&answer.bytes)?;
            let mut database = Database::open_for_message(spi, Standpoint::BeforeCommit, sent_at)?;
            let next = round.receive(&mut database, heard, &reply)?;
            if round.received > 0 {
                background::flush_at_commit();
            }
            Ok(next)
        });
        match received {
            Ok(Next::Again) => {
                statistics::step_done();
                self.send_next(&name);
            }
            Ok(Next::Done) => {
                statistics::step_done();
                self.round_done(&name);
            }
            Err(reason) => self.round_failed(&name, &reason),
        }
    }

    fn round_done(&mut self, name: &str) {
        statistics::round_done(name);
        let Some(contact) = self.contacts.get_mut(name) else {
            return;
        };
        if let Some(round) = contact.round.take()
            && round.has_asked
        {
            contact.asked = Some(Asked::Answered(round.testimony));
        }
        contact.last_failure = None;
        contact.logged_reason.clear();
        if std::mem::take(&mut contact.failures) > 0 {
            pgrx::log!("pg_test: peer \"{name}\" answers again");
        }
        if contact.is_behind {
            self.begin_round(name);
        }
        self.resolve_life();
    }

    /// Counts the failure; the next round with this peer comes with the timer. Of a series of failures
    /// each reason is logged when it is another one than before.
    fn round_failed(&mut self, name: &str, reason: &str) {
        statistics::step_failed();
        statistics::failed(name, reason);
        let Some(contact) = self.contacts.get_mut(name) else {
            return;
        };
        contact.round = None;
        contact.is_behind = false;
        contact.failures += 1;
        contact.asked = Some(Asked::Silent);
        contact.last_failure = Some(Instant::now());
        if contact.logged_reason != reason {
            reason.clone_into(&mut contact.logged_reason);
            pgrx::log!("pg_test: gossip with peer \"{name}\" failed: {reason}");
        }
        self.resolve_life();
    }
}

/// Tells whoever listens that a node's standing has changed.
fn announce(spi: &Session, node: &str, from: Liveness, to: &str, phi: Option<f64>, reason: &str) {
    let payload = serde_json::json!({
        "node": node, "state": to, "previous": from.name(), "phi": phi, "reason": reason,
    });
    spi.write(
        c"SELECT pg_catalog.pg_notify('coord_node', $1)",
        &[Value::Text(Some(&payload.to_string()))],
    );
}

/// Often enough that a peer is judged soon after its phi has crossed the threshold.
fn watch_interval() -> Duration {
    (interval() / 4).min(LONGEST_UNAWARE)
}

fn interval() -> Duration {
    Duration::from_millis(guc::GOSSIP_INTERVAL.get().unsigned_abs().into())
}
