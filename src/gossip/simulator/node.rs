//! A node in memory: rows in versions, transactions, and the [`Replica`] the rules run on.
//!
//! It does what the database does. A transaction takes a number when it first writes; what it has
//! written is seen by itself alone and is locked for others; the numbers of ended transactions are
//! read as snapshots.

pub mod operations;
mod reports;

use std::collections::{BTreeMap, BTreeSet};

use crate::clock::hlc;
use crate::clock::vclock::{self, Vclock};
use crate::crdt::constraint_state::{self as state, ConstraintState};
use crate::crdt::digest::{self, Digest};
use crate::crdt::fold;
use crate::error::{self, Result};
use crate::gossip::protocol::{
    Absorbed, Batch, Claim, Feed, Heard, Holding, Position, Replica, Row, Start, Window, continues,
};
use crate::gossip::report::{Reader, ReportBatch};
use crate::gossip::snapshot::Snapshot;
use crate::node::detector::Heartbeats;
use crate::node::identity::{self, Hello};
use crate::node::incarnation::{self, Admission, Known, Life, Past, Resolution, Testimony};
use crate::stream::offer::Streams;
use operations::OperationTables;
use reports::ReportTables;

const FIRST_XID: u64 = 3;
/// Where nothing else asks for it, no window is ever cut off.
pub const NO_LIMIT: usize = usize::MAX;

pub fn parsed(value: &[u8]) -> ConstraintState<'_> {
    ConstraintState::parse(value).expect("a state of this simulation")
}

pub fn clock(bytes: &[u8]) -> Vclock<'_> {
    Vclock::parse(bytes).expect("a clock of this simulation")
}

pub fn join_clocks(left: &[u8], right: &[u8]) -> Vec<u8> {
    vclock::merge(clock(left), clock(right)).expect("clocks of few actors")
}

pub fn join_states(left: &[u8], right: &[u8]) -> Vec<u8> {
    state::merge(parsed(left), parsed(right)).expect("states of few actors")
}

/// What an application does to a state.
#[derive(Clone, Copy, Debug)]
pub enum Operation {
    Satisfy(i64),
    Violate(i64),
    Add(&'static str),
    Remove(&'static str),
    Move(i32),
}

impl Operation {
    fn apply(self, value: &[u8], actor: &str, at: u64) -> Result<Vec<u8>> {
        let old = parsed(value);
        match self {
            Self::Satisfy(n) => state::record_satisfied(old, actor, n),
            Self::Violate(n) => state::record_violations(old, actor, n),
            Self::Add(id) => state::add(old, id, actor),
            Self::Remove(id) => state::remove(old, id),
            Self::Move(x) => state::move_to(old, x, 0, at, actor),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Version {
    pub value: Vec<u8>,
    /// The last local change.
    xid: Option<u64>,
    /// The last change, local or learned.
    local_xid: u64,
    learned_from: Option<String>,
    is_provisional: bool,
    digest: Digest,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Cursor {
    position: Option<Position>,
    resync: bool,
    frontier: Vec<u8>,
    /// A frontier that is reached once nothing waits.
    pending: Vec<u8>,
    ceiling: Vec<u8>,
    claim: Option<Claim>,
    log_position: u64,
    pub mistrusted: u64,
}

impl Cursor {
    fn new() -> Self {
        Self {
            position: None,
            resync: false,
            frontier: vclock::empty(),
            pending: vclock::empty(),
            ceiling: vclock::empty(),
            claim: None,
            log_position: 0,
            mistrusted: 0,
        }
    }
}

/// One local change as it was committed: what later checks measure a frontier and a ceiling by.
#[derive(Clone, Debug)]
pub struct Change {
    pub name: String,
    pub actor: String,
    pub xid: u64,
    pub value: Vec<u8>,
    /// The actor's counter in the state after the change. What only removes leaves it as it was,
    /// and cannot be told from the change before.
    pub counter: u64,
    pub is_event: bool,
}

/// An open transaction: what it has written, over what is committed.
#[derive(Clone, Debug, Default)]
pub struct Transaction {
    xid: Option<u64>,
    versions: BTreeMap<String, Version>,
    cursors: BTreeMap<String, Cursor>,
    /// Learned values whose row is locked; `None` is one taken out.
    waiting: BTreeMap<String, Option<Vec<u8>>>,
    changed: BTreeSet<String>,
    satisfied: Vec<(String, i64)>,
    reports: ReportTables,
    operations: OperationTables,
}

impl Transaction {
    fn has_written(&self) -> bool {
        self.xid.is_some()
    }
}

pub type Handle = u64;

/// What a commit brought.
#[derive(Debug, Default)]
pub struct Committed {
    pub wrote: bool,
    pub changes: Vec<Change>,
    pub satisfied: Vec<(String, i64)>,
}

/// Of `coord.max_clock_drift`.
pub const MAX_DRIFT_MILLISECONDS: u64 = 300_000;

/// When simulations begin, so that a clock that runs behind has a time to show.
const BEGINNING_MILLISECONDS: u64 = 10_000_000;

/// A row that an open transaction is about to replace.
pub struct Pending<'n> {
    pub name: &'n str,
    pub old: Option<&'n [u8]>,
    pub new: &'n [u8],
    pub is_local: bool,
}

/// A life that was met, as the roster has it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Met {
    incarnation: u64,
    life: [u8; 16],
    place: String,
}

/// The machine that a node runs on: no copy of the database carries it elsewhere.
#[derive(Clone, Debug)]
struct Machine {
    place: String,
    now: u64,
    /// How far its clock shows another time, in milliseconds.
    skew: i64,
}

impl Machine {
    fn wall_clock(&self) -> u64 {
        (BEGINNING_MILLISECONDS + self.now).saturating_add_signed(self.skew)
    }
}

#[derive(Clone, Debug)]
pub struct Node {
    pub name: String,
    incarnation: u64,
    life: u8,
    pub is_confirmed: bool,
    /// Where the life was last known to be lived.
    place: String,
    machine: Machine,
    /// The last stamp that was given out or observed.
    last_stamp: u64,
    met: BTreeMap<String, Met>,
    /// When each was met last, since the server started.
    last_met: BTreeMap<String, u64>,
    /// Where the log of each stood when it last spoke, also in a transaction that has not ended.
    told: BTreeMap<String, u64>,
    /// When each last asked which life it is in.
    last_asked: BTreeMap<String, u64>,
    /// How often it was put back: it may doubt its past then.
    restored: u8,
    /// Transactions that have a number and ended, and how many there were at the first start since it
    /// knew its life.
    log_position: u64,
    started_at: u64,
    /// Rows read for one batch.
    pub limit: usize,
    /// A state of which nothing is accepted, as when a stamp in it is too far ahead.
    pub refused: Option<&'static str>,
    versions: BTreeMap<String, Version>,
    pub cursors: BTreeMap<String, Cursor>,
    waiting: BTreeMap<String, Vec<u8>>,
    reports: ReportTables,
    operations: OperationTables,
    open: BTreeMap<Handle, Transaction>,
    next_handle: Handle,
    next_xid: u64,
    latest_ended: u64,
    /// The committed cursors' clocks, merged.
    learned_frontier: Vec<u8>,
    learned_ceiling: Vec<u8>,
    pub history: BTreeMap<String, Vec<Change>>,
    /// Grants of every life, by resource and epoch: whoever has such a token may come back with it.
    granted: BTreeSet<(String, i64)>,
}

impl Node {
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            incarnation: 1,
            life: 0,
            is_confirmed: true,
            place: "home".into(),
            machine: Machine {
                place: "home".into(),
                now: 0,
                skew: 0,
            },
            last_stamp: 0,
            met: BTreeMap::new(),
            last_met: BTreeMap::new(),
            told: BTreeMap::new(),
            last_asked: BTreeMap::new(),
            restored: 0,
            log_position: 0,
            started_at: 0,
            limit: NO_LIMIT,
            refused: None,
            versions: BTreeMap::new(),
            cursors: BTreeMap::new(),
            waiting: BTreeMap::new(),
            reports: ReportTables::default(),
            operations: OperationTables::default(),
            open: BTreeMap::new(),
            next_handle: 1,
            next_xid: FIRST_XID,
            latest_ended: FIRST_XID - 1,
            learned_frontier: vclock::empty(),
            learned_ceiling: vclock::empty(),
            history: BTreeMap::new(),
            granted: BTreeSet::new(),
        }
    }

    /// The actor of the life the node takes for its own.
    pub fn actor(&self) -> String {
        identity::actor(&self.name, self.incarnation)
    }

    fn counting_actor(&self) -> String {
        if self.is_confirmed {
            self.actor()
        } else {
            incarnation::provisional_actor(&self.name)
        }
    }

    /// Shows the node a time since the simulation began.
    pub fn set_time(&mut self, now: u64) {
        self.machine.now = now;
    }

    /// Steps the clock of the node's machine.
    pub fn set_skew(&mut self, skew: i64) {
        self.machine.skew = skew;
    }

    fn stamp(&mut self) -> u64 {
        self.last_stamp = hlc::tick(self.last_stamp, self.machine.wall_clock()).expect("a stamp");
        self.last_stamp
    }

    /// Takes in the stamp of a row, unless it is too far ahead.
    fn observe(&mut self, value: &[u8]) -> Result<()> {
        if let Some(position) = parsed(value).position() {
            self.last_stamp = hlc::observe(
                self.last_stamp,
                self.machine.wall_clock(),
                position.at,
                MAX_DRIFT_MILLISECONDS,
            )?;
        }
        Ok(())
    }

    fn accepts(&mut self, row: &Row) -> bool {
        self.refused != Some(row.name.as_str()) && self.observe(&row.value).is_ok()
    }

    pub fn begin(&mut self) -> Handle {
        let handle = self.next_handle;
        self.next_handle += 1;
        self.open.insert(handle, Transaction::default());
        handle
    }

    fn transaction(&mut self, handle: Handle) -> &mut Transaction {
        self.open.get_mut(&handle).expect("an open transaction")
    }

    /// The transaction's number, taken when it first writes.
    fn xid(&mut self, handle: Handle) -> u64 {
        let next = self.next_xid;
        let own = *self.transaction(handle).xid.get_or_insert(next);
        self.next_xid = next.max(own + 1);
        own
    }

    /// Whether another open transaction has written a row.
    fn is_locked(&self, handle: Handle, is_held: impl Fn(&Transaction) -> bool) -> bool {
        self.open
            .iter()
            .any(|(other, transaction)| *other != handle && is_held(transaction))
    }

    fn is_state_locked(&self, handle: Handle, name: &str) -> bool {
        self.is_locked(handle, |other| other.versions.contains_key(name))
    }

    fn version(&self, handle: Handle, name: &str) -> Option<&Version> {
        let own = self
            .open
            .get(&handle)
            .and_then(|own| own.versions.get(name));
        own.or_else(|| self.versions.get(name))
    }

    /// What a transaction sees.
    fn visible(&self, handle: Handle) -> impl Iterator<Item = (&String, &Version)> {
        let own = &self.open[&handle].versions;
        let others = self
            .versions
            .iter()
            .filter(|(name, _)| !own.contains_key(*name));
        own.iter().chain(others)
    }

    /// Makes a local change, unless another transaction holds the row.
    pub fn write(&mut self, handle: Handle, name: &str, operation: Operation) -> bool {
        if self.is_state_locked(handle, name) {
            return false;
        }
        let old = self.version(handle, name).cloned();
        let base = old
            .as_ref()
            .map_or_else(state::empty, |old| old.value.clone());
        let is_absent = |id| old.is_some() && !parsed(&base).contains(id);
        if matches!(operation, Operation::Remove(id) if is_absent(id)) {
            return true;
        }
        let at = self.stamp();
        let value = operation
            .apply(&base, &self.counting_actor(), at)
            .expect("an operation in range");
        let own = self.xid(handle);
        // A row may have been changed by a transaction with a higher number that has ended. The
        // ceiling is read off these numbers, so none may go down.
        let (before, was_provisional) =
            old.map_or((None, false), |old| (old.xid, old.is_provisional));
        let xid = self.is_confirmed.then_some(own).max(before);
        let is_provisional = was_provisional || !self.is_confirmed;
        self.put(handle, name, value, xid, None, is_provisional);
        let transaction = self.transaction(handle);
        transaction.changed.insert(name.to_owned());
        if let Operation::Satisfy(n) = operation {
            transaction.satisfied.push((name.to_owned(), n));
        }
        true
    }

    fn put(
        &mut self,
        handle: Handle,
        name: &str,
        value: Vec<u8>,
        xid: Option<u64>,
        learned_from: Option<String>,
        is_provisional: bool,
    ) {
        let version = Version {
            digest: digest::row_digest(name, &value),
            value,
            xid,
            local_xid: self.xid(handle),
            learned_from,
            is_provisional,
        };
        self.transaction(handle)
            .versions
            .insert(name.to_owned(), version);
    }

    pub fn rollback(&mut self, handle: Handle) {
        let ended = self
            .open
            .remove(&handle)
            .and_then(|transaction| transaction.xid);
        self.log_position += u64::from(ended.is_some());
        self.latest_ended = self.latest_ended.max(ended.unwrap_or(0));
    }

    pub fn commit(&mut self, handle: Handle) -> Committed {
        let transaction = self.open.remove(&handle).expect("an open transaction");
        self.log_position += u64::from(transaction.has_written());
        self.latest_ended = self.latest_ended.max(transaction.xid.unwrap_or(0));
        let committed = Committed {
            wrote: transaction.has_written(),
            changes: self.changes_of(&transaction),
            satisfied: transaction.satisfied,
        };
        for change in &committed.changes {
            self.history
                .entry(change.name.clone())
                .or_default()
                .push(change.clone());
        }
        for cursor in transaction.cursors.values() {
            self.learned_frontier = join_clocks(&self.learned_frontier, &cursor.frontier);
            self.learned_ceiling = join_clocks(&self.learned_ceiling, &cursor.ceiling);
        }
        self.versions.extend(transaction.versions);
        self.cursors.extend(transaction.cursors);
        self.note_grants(&transaction.reports);
        self.reports.extend(transaction.reports);
        self.commit_operations(transaction.operations);
        for (name, value) in transaction.waiting {
            match value {
                Some(value) => self.waiting.insert(name, value),
                None => self.waiting.remove(&name),
            };
        }
        committed
    }

    /// The rows that a transaction has written.
    pub fn pending(&self, handle: Handle) -> impl Iterator<Item = Pending<'_>> {
        let transaction = &self.open[&handle];
        transaction.versions.iter().map(|(name, new)| Pending {
            name,
            old: self.value(name),
            new: &new.value,
            is_local: transaction.changed.contains(name),
        })
    }

    fn changes_of(&self, transaction: &Transaction) -> Vec<Change> {
        let actor = self.actor();
        let change = |name: &String| {
            let value = transaction.versions[name].value.clone();
            let counter = counter_of(&value, &actor);
            let of_actor = |change: &&Change| change.actor == actor;
            let changes = self.history.get(name);
            let last = changes.and_then(|changes| changes.iter().rfind(of_actor));
            Change {
                name: name.clone(),
                actor: actor.clone(),
                xid: transaction.xid.expect("a number, as it has written"),
                is_event: counter > last.map_or(0, |last| last.counter),
                counter,
                value,
            }
        };
        // What is provisional is a change once it has been folded.
        let is_settled = |name: &&String| !transaction.versions[*name].is_provisional;
        transaction
            .changed
            .iter()
            .filter(is_settled)
            .map(change)
            .collect()
    }

    /// Open transactions are gone. Numbers that only they had used are given out again. The server
    /// that starts does not know whether it was put back.
    pub fn crash(&mut self) {
        self.open.clear();
        self.last_met.clear();
        self.told.clear();
        self.last_asked.clear();
        self.next_xid = self.latest_ended + 1;
        // A second start does not know better than the first, which asked in vain.
        if self.is_confirmed {
            self.started_at = self.log_position;
        }
        self.is_confirmed = false;
    }

    /// The machine is replaced by another one.
    pub fn move_elsewhere(&mut self) {
        self.machine.place = format!("machine {}", self.restored + 1);
    }

    /// Replaces everything but the machine by an earlier copy.
    pub fn restore(&mut self, copy: Self) {
        let history = std::mem::take(&mut self.history);
        let granted = std::mem::take(&mut self.granted);
        let machine = self.machine.clone();
        let restored = self.restored + 1;
        *self = copy;
        self.history = history;
        self.granted = granted;
        self.machine = machine;
        self.restored = restored;
        self.crash();
    }

    /// After a node was put back: a change that is known nowhere any more has not happened.
    pub fn forget_changes(&mut self, is_known: impl Fn(&Change) -> bool) {
        for changes in self.history.values_mut() {
            changes.retain(&is_known);
        }
    }

    /// Of what is no event, as removing is none, others may have done the same by themselves.
    pub fn forget_when_it_removed(&mut self) {
        let changes = self.history.values_mut().flatten();
        for change in changes.filter(|change| !change.is_event) {
            change.xid = u64::MAX;
        }
    }

    /// Whether a change has reached this node, be it that its row still waits.
    pub fn has_heard(&self, change: &Change) -> bool {
        self.known_values(&change.name)
            .any(|value| state::covers(parsed(value), parsed(&change.value)))
    }

    /// What the node holds of a state, and what waits for a transaction to end.
    pub fn known_values(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        let waiting = self.waiting.get(name).map(Vec::as_slice);
        [self.value(name), waiting].into_iter().flatten()
    }

    /// Open transactions that have stored what a peer said.
    pub fn handles_that_heard(&self, peer: &str) -> Vec<Handle> {
        let heard = self
            .open
            .iter()
            .filter(|(_, open)| open.cursors.contains_key(peer));
        heard.map(|(handle, _)| *handle).collect()
    }

    /// What was met was met, also where the transaction under way rolls back.
    fn meet(&mut self, hello: &Hello, is_news: bool) {
        if is_news {
            let met = Met {
                incarnation: hello.incarnation,
                life: hello.life,
                place: hello.place.clone(),
            };
            self.met.insert(hello.name.clone(), met);
            // Each life has a log of its own.
            if let Some(cursor) = self.cursors.get_mut(&hello.name) {
                cursor.log_position = 0;
            }
            self.told.remove(&hello.name);
        }
        self.last_met.insert(hello.name.clone(), self.machine.now);
    }

    fn takes(&mut self, peer: &str, spoken_since: u64, log_position: u64) -> bool {
        let is_overtaken =
            (self.last_asked.get(peer)).is_some_and(|last_asked| *last_asked > spoken_since);
        if is_overtaken {
            return false;
        }
        let told = self.told.entry(peer.to_owned()).or_default();
        *told = log_position.max(*told);
        true
    }

    pub fn was_put_back(&self) -> bool {
        self.restored > 0
    }

    /// Which life this is, by what the peers know; `None` while a transaction holds a row.
    pub fn resolve_life(&mut self, testimonies: &[Testimony]) -> Option<Committed> {
        let is_at_work =
            |open: &Transaction| !open.versions.is_empty() || open.reports.has_grants();
        if self.open.values().any(is_at_work) {
            return None;
        }
        let held = self.held();
        let own = Life {
            past: Past {
                incarnation: self.incarnation,
                life: [self.life; 16],
                own_ceiling: held.own_ceiling,
                log_position: self.started_at,
            },
            place: self.place.clone(),
            found: self.machine.place.clone(),
            epoch_range: self.epoch_range(),
        };
        let begins = match incarnation::resolve(&own, testimonies) {
            Resolution::Confirm => {
                self.forget_lost_grants();
                false
            }
            Resolution::Begin {
                incarnation,
                reason,
            } => {
                assert!(
                    self.restored > 0,
                    "{} has lost nothing: {reason}",
                    self.name
                );
                self.incarnation = incarnation;
                self.life = self.restored;
                for cursor in self.cursors.values_mut() {
                    cursor.position = None;
                    cursor.resync = true;
                }
                self.reports.begin_anew();
                true
            }
            Resolution::Wait { .. } => {
                assert_ne!(own.place, own.found, "{} has not moved", self.name);
                return None;
            }
        };
        self.place = own.found;
        self.is_confirmed = true;
        Some(self.settle(begins))
    }

    /// What was provisional is a change of this life, and for a new one so is everything.
    fn settle(&mut self, is_new: bool) -> Committed {
        let handle = self.begin();
        let settled: Vec<(String, Version)> = (self.versions.iter())
            .filter(|(_, version)| is_new || version.is_provisional)
            .map(|(name, version)| (name.clone(), version.clone()))
            .collect();
        let provisional = incarnation::provisional_actor(&self.name);
        for (name, version) in settled {
            let value = fold::fold(parsed(&version.value), &provisional, &self.actor())
                .expect("counts in range");
            let own = Some(self.xid(handle));
            let xid = if is_new { own } else { own.max(version.xid) };
            self.put(handle, &name, value, xid, None, false);
            self.transaction(handle).changed.insert(name);
        }
        self.commit(handle)
    }

    /// Replaces a value behind everybody's back.
    pub fn corrupt(&mut self, name: &str, value: Vec<u8>) {
        let version = self.versions.get_mut(name).expect("a state");
        version.digest = digest::row_digest(name, &value);
        version.value = value;
    }

    fn snapshot(&self, handle: Handle) -> Snapshot {
        let xmax = self.latest_ended + 1;
        // A snapshot counts its own transaction in its xmin and does not list it.
        let mut running: Vec<u64> = self.open.values().filter_map(|open| open.xid).collect();
        running.retain(|xid| *xid < xmax);
        running.sort_unstable();
        let xmin = running.first().copied().unwrap_or(xmax);
        let own = self.open[&handle].xid;
        running.retain(|xid| Some(*xid) != own);
        Snapshot {
            xmin,
            xmax,
            in_progress: running,
        }
    }

    fn told_snapshot(&self, handle: Handle, standpoint: Standpoint) -> Snapshot {
        let snapshot = self.snapshot(handle);
        match (self.open[&handle].xid, standpoint) {
            (None, _) => snapshot,
            (Some(own), Standpoint::BeforeCommit) => snapshot.with_in_progress(own),
            (Some(own), Standpoint::AfterCommit) => snapshot.with_committed(own),
        }
    }

    fn holding(&self, handle: Handle, snapshot: &Snapshot) -> Holding {
        let last = self
            .visible(handle)
            .filter_map(|(_, version)| version.xid)
            .max();
        let own_ceiling = last.map_or(0, |last| last + 1);
        let with_own = |learned: &[u8], own| {
            let own = vclock::from_entries([(self.actor().as_str(), own)]).expect("one entry");
            join_clocks(learned, &own)
        };
        let mut frontier = with_own(&self.learned_frontier, own_ceiling.min(snapshot.xmin));
        let mut ceiling = with_own(&self.learned_ceiling, own_ceiling);
        for cursor in self.open[&handle].cursors.values() {
            frontier = join_clocks(&frontier, &cursor.frontier);
            ceiling = join_clocks(&ceiling, &cursor.ceiling);
        }
        Holding {
            space: format!("{}/{}", self.name, self.incarnation),
            frontier,
            ceiling,
            own_ceiling,
        }
    }

    /// What the node holds, everything open left aside.
    pub fn held(&mut self) -> Holding {
        let handle = self.begin();
        let holding = self.holding(handle, &self.snapshot(handle));
        self.rollback(handle);
        holding
    }

    pub fn value(&self, name: &str) -> Option<&[u8]> {
        self.versions
            .get(name)
            .map(|version| version.value.as_slice())
    }

    pub fn content(&self) -> BTreeMap<&str, &[u8]> {
        let versions = self.versions.iter();
        versions
            .map(|(name, version)| (name.as_str(), version.value.as_slice()))
            .collect()
    }

    pub fn digest(&self) -> Digest {
        digest_of(self.versions.values())
    }

    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    pub fn open_handles(&self) -> Vec<Handle> {
        self.open.keys().copied().collect()
    }

    pub fn mistrusted(&self) -> u64 {
        self.cursors.values().map(|cursor| cursor.mistrusted).sum()
    }
}

fn digest_of<'v>(versions: impl Iterator<Item = &'v Version>) -> Digest {
    versions.fold([0; digest::DIGEST_BYTES], |sum, version| {
        digest::add(&sum, &version.digest)
    })
}

pub fn counter_of(value: &[u8], actor: &str) -> u64 {
    parsed(value)
        .context()
        .find(|entry| entry.actor == actor.as_bytes())
        .map_or(0, |entry| entry.counter)
}

/// When what a transaction has written counts as held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standpoint {
    BeforeCommit,
    AfterCommit,
}

/// A node within one transaction.
pub struct Session<'n> {
    pub node: &'n mut Node,
    pub handle: Handle,
    pub standpoint: Standpoint,
    pub moment: u64,
    /// What is received now was not said before this moment.
    pub spoken_since: u64,
}

impl Session<'_> {
    fn own(&self) -> &Transaction {
        &self.node.open[&self.handle]
    }

    pub fn digest(&self) -> Digest {
        digest_of(self.node.visible(self.handle).map(|(_, version)| version))
    }

    fn cursor(&self, peer: &str) -> Cursor {
        let stored = self
            .own()
            .cursors
            .get(peer)
            .or_else(|| self.node.cursors.get(peer));
        stored.cloned().unwrap_or_else(Cursor::new)
    }

    /// Stores a cursor, if it differs; refuses to wait for another transaction that holds it.
    fn put_cursor(&mut self, peer: &str, cursor: Cursor) -> Result<bool> {
        if self.cursor(peer) == cursor {
            return Ok(false);
        }
        if self
            .node
            .is_locked(self.handle, |other| other.cursors.contains_key(peer))
        {
            return Err(error::data_corrupted("could not obtain lock on row"));
        }
        self.node.xid(self.handle);
        self.node
            .transaction(self.handle)
            .cursors
            .insert(peer.to_owned(), cursor);
        Ok(true)
    }

    fn waiting(&self) -> BTreeMap<String, Vec<u8>> {
        let mut waiting = self.node.waiting.clone();
        for (name, value) in &self.own().waiting {
            match value {
                Some(value) => waiting.insert(name.clone(), value.clone()),
                None => waiting.remove(name),
            };
        }
        waiting
    }

    /// Merges rows and what waits; returns how many states changed.
    fn learn(&mut self, peer: &str, rows: &[Row]) -> Result<u64> {
        let waited = self.waiting();
        let touches_waiting = !waited.is_empty()
            || rows
                .iter()
                .any(|row| self.node.is_state_locked(self.handle, &row.name));
        if touches_waiting
            && self
                .node
                .is_locked(self.handle, |other| !other.waiting.is_empty())
        {
            return Err(error::data_corrupted("could not obtain lock on row"));
        }
        let giver = waited.is_empty().then(|| peer.to_owned());
        let mut incoming = waited.clone();
        for row in rows {
            let value = incoming.get(&row.name).map_or_else(
                || row.value.clone(),
                |waited| join_states(waited, &row.value),
            );
            incoming.insert(row.name.clone(), value);
        }
        let mut changed = 0;
        for (name, value) in &incoming {
            if self.node.is_state_locked(self.handle, name) {
                self.keep_waiting(name, Some(value.clone()), &waited);
                continue;
            }
            changed += u64::from(self.merge(name, value, giver.as_ref()));
            self.keep_waiting(name, None, &waited);
        }
        Ok(changed)
    }

    fn keep_waiting(
        &mut self,
        name: &str,
        value: Option<Vec<u8>>,
        waited: &BTreeMap<String, Vec<u8>>,
    ) {
        if waited.get(name) != value.as_ref() {
            self.node.xid(self.handle);
            self.node
                .transaction(self.handle)
                .waiting
                .insert(name.to_owned(), value);
        }
    }

    fn merge(&mut self, name: &str, value: &[u8], giver: Option<&String>) -> bool {
        let old = self.node.version(self.handle, name);
        if old.is_some_and(|old| state::covers(parsed(&old.value), parsed(value))) {
            return false;
        }
        let (xid, is_provisional) = old.map_or((None, false), |old| (old.xid, old.is_provisional));
        let merged = old.map_or_else(|| value.to_vec(), |old| join_states(&old.value, value));
        let learned_from = giver.filter(|_| merged == value).cloned();
        self.node
            .put(self.handle, name, merged, xid, learned_from, is_provisional);
        true
    }

    /// Once nothing waits, what was given is held.
    fn complete(&mut self) -> Result<bool> {
        if !self.waiting().is_empty() {
            return Ok(false);
        }
        let is_held =
            |cursor: &Cursor| vclock::covers(clock(&cursor.frontier), clock(&cursor.pending));
        let own = &self.own().cursors;
        let others = self
            .node
            .cursors
            .iter()
            .filter(|(peer, _)| !own.contains_key(*peer));
        let pending = own
            .iter()
            .chain(others)
            .filter(|(_, cursor)| !is_held(cursor));
        let pending: Vec<String> = pending.map(|(peer, _)| peer.clone()).collect();
        let mut raised = false;
        for peer in pending {
            let is_locked = self
                .node
                .is_locked(self.handle, |other| other.cursors.contains_key(&peer));
            if !is_locked {
                let mut cursor = self.cursor(&peer);
                cursor.frontier = join_clocks(&cursor.frontier, &cursor.pending);
                raised |= self.put_cursor(&peer, cursor)?;
            }
        }
        Ok(raised)
    }

    /// Merges what waited for transactions that have ended.
    pub fn retry_waiting(&mut self) -> Result<()> {
        if self.node.is_waiting() {
            self.learn("", &[])?;
            self.complete()?;
        }
        Ok(())
    }

    fn holding(&self) -> (Snapshot, Holding) {
        let snapshot = self.node.told_snapshot(self.handle, self.standpoint);
        let holding = self.node.holding(self.handle, &snapshot);
        (snapshot, holding)
    }

    fn batch(&self, peer: &str, start: Start, snapshot: &Snapshot, holding: &Holding) -> Batch {
        let window = start.position.window.as_ref();
        let until = window.map_or(snapshot, |window| &window.until).clone();
        let is_current = until == *snapshot;
        let mut found = self.changes(&start.position, &until);
        let is_cut_off = found.len() >= self.node.limit;
        found.truncate(self.node.limit);
        let last = found
            .last()
            .filter(|_| is_cut_off)
            .map(|(xid, name, _)| (*xid, (*name).clone()));
        let rows = (found.into_iter())
            .filter(|(_, _, version)| {
                start.is_full() || version.learned_from.as_deref() != Some(peer)
            })
            .map(|(_, name, version)| Row {
                name: name.clone(),
                value: version.value.clone(),
            })
            .collect();
        let is_exhausted = last.is_none();
        Batch {
            rows,
            next: Position {
                space: holding.space.clone(),
                given: if is_exhausted {
                    Some(until.clone())
                } else {
                    start.position.given.clone()
                },
                window: last.map(|(after_xid, after_name)| Window {
                    until,
                    after_xid,
                    after_name,
                }),
            },
            start: start.position,
            covered_below: start.covered_below,
            ceiling: holding.ceiling.clone(),
            frontier: (is_exhausted && is_current).then(|| holding.frontier.clone()),
        }
    }

    /// What changed since a position as far as a snapshot sees it, in order.
    fn changes(&self, start: &Position, until: &Snapshot) -> Vec<(u64, &String, &Version)> {
        let after = start
            .window
            .as_ref()
            .map(|window| (window.after_xid, &window.after_name));
        let is_given = |xid| start.given.as_ref().is_some_and(|given| given.sees(xid));
        let mut found: Vec<_> = (self.node.visible(self.handle))
            .map(|(name, version)| (version.local_xid, name, version))
            .filter(|(xid, name, _)| {
                !is_given(*xid) && until.sees(*xid) && Some((*xid, *name)) > after
            })
            .collect();
        found.sort_unstable_by_key(|(xid, name, _)| (*xid, *name));
        found
    }
}

impl Replica for Session<'_> {
    fn hello(&mut self) -> Result<Hello> {
        Ok(Hello {
            name: self.node.name.clone(),
            uuid: [0; 16],
            incarnation: self.node.incarnation,
            life: [self.node.life; 16],
            place: self.node.machine.place.clone(),
            is_confirmed: self.node.is_confirmed,
        })
    }

    fn admit(&mut self, hello: &Hello) -> Result<Admission> {
        identity::check_name(&hello.name)?;
        let known = self.node.met.get(&hello.name).map(|met| Known {
            uuid: [0; 16],
            incarnation: met.incarnation,
            life: Some(met.life),
            has_left: false,
        });
        let admission = incarnation::admit(hello, known.as_ref())?;
        if let Admission::Welcome { is_news } = admission {
            self.node.meet(hello, is_news);
        }
        Ok(admission)
    }

    fn testimony(&mut self, name: &str) -> Result<Option<Testimony>> {
        let node = &self.node;
        Ok(node.met.get(name).map(|met| {
            let actor = identity::actor(name, met.incarnation);
            let known = |learned: &[u8]| clock(learned).get(actor.as_bytes());
            let told = node.told.get(name).copied().unwrap_or(0);
            let silent = node.last_met.get(name).map(|last| node.machine.now - last);
            Testimony {
                incarnation: met.incarnation,
                life: met.life,
                place: met.place.clone(),
                epoch_range: 0,
                silent_milliseconds: silent,
                ceiling: known(&node.learned_frontier).max(known(&node.learned_ceiling)),
                log_position: self.cursor(name).log_position.max(told),
            }
        }))
    }

    fn doubt(&mut self, reason: &str) -> Result<()> {
        let node = &mut self.node;
        assert!(node.restored > 0, "{} doubts: {reason}", node.name);
        node.is_confirmed = false;
        Ok(())
    }

    fn position(&mut self, peer: &str) -> Result<(Option<Position>, bool)> {
        let cursor = self.cursor(peer);
        Ok((cursor.position, cursor.resync))
    }

    fn absorb(&mut self, peer: &str, batch: &Batch, log_position: u64) -> Result<Absorbed> {
        let accepted = batch.rows.iter().filter(|row| self.node.accepts(row));
        let rows: Vec<Row> = accepted.cloned().collect();
        let is_whole = rows.len() == batch.rows.len();
        let changed = self.learn(peer, &rows)?;
        let mut cursor = self.cursor(peer);
        let before = cursor.clone();
        cursor.ceiling = join_clocks(&cursor.ceiling, &batch.ceiling);
        cursor.log_position = cursor.log_position.max(log_position);
        let frontier = self.holding().1.frontier;
        let is_wanted = is_whole && (!cursor.resync || batch.start.is_beginning());
        if is_wanted
            && continues(
                batch,
                cursor.position.as_ref(),
                &frontier,
                &self.node.actor(),
            )?
        {
            cursor.position = Some(batch.next.clone());
            cursor.resync = false;
            if let Some(frontier) = &batch.frontier {
                cursor.pending = join_clocks(&cursor.pending, frontier);
            }
        }
        let raised_ceiling = cursor.ceiling != before.ceiling;
        self.put_cursor(peer, cursor)?;
        let completed = self.complete()?;
        Ok(Absorbed {
            received: rows.len() as u64,
            changed,
            learned: changed > 0 || completed || raised_ceiling,
        })
    }

    fn acknowledge(&mut self, peer: &str, claim: &Claim, log_position: u64) -> Result<()> {
        let mut cursor = self.cursor(peer);
        if cursor.claim.as_ref() != Some(claim) {
            cursor.claim = Some(claim.clone());
            cursor.log_position = cursor.log_position.max(log_position);
        }
        self.put_cursor(peer, cursor).map(|_| ())
    }

    fn feed(&mut self, peer: &str, reader: Option<&Heard>) -> Result<Feed> {
        let (snapshot, holding) = self.holding();
        let start = (reader.filter(|_| self.node.is_confirmed))
            .map_or(Ok(None), |reader| reader.plan(&holding))?;
        let batch = match (start, reader) {
            (Some(start), Some(reader)) => {
                let batch = self.batch(peer, start, &snapshot, &holding);
                reader.is_news(&batch)?.then_some(batch)
            }
            _ => None,
        };
        Ok(Feed {
            position: Position {
                space: holding.space.clone(),
                given: Some(snapshot),
                window: None,
            },
            claim: Claim {
                frontier: holding.frontier.clone(),
                ceiling: holding.ceiling.clone(),
                digest: digest_of(self.node.visible(self.handle).map(|(_, version)| version)),
            },
            holding,
            is_durable: self.node.is_confirmed
                && (self.standpoint == Standpoint::AfterCommit || !self.own().has_written()),
            log_position: self.node.log_position
                + u64::from(self.standpoint == Standpoint::AfterCommit && self.own().has_written()),
            batch,
        })
    }

    fn mistrust(&mut self, peer: &str) -> Result<()> {
        let mut cursor = self.cursor(peer);
        cursor.mistrusted += 1;
        cursor.resync = true;
        cursor.position = None;
        self.put_cursor(peer, cursor).map(|_| ())
    }

    fn overtake(&mut self, peer: &str) {
        self.node.last_asked.insert(peer.to_owned(), self.moment);
    }

    fn takes(&mut self, peer: &str, log_position: u64) -> bool {
        self.node.takes(peer, self.spoken_since, log_position)
    }

    fn heartbeats(&mut self) -> Result<Heartbeats> {
        Ok(Heartbeats::default())
    }

    fn hear(&mut self, _peer: &str, _heartbeats: &Heartbeats) -> Result<()> {
        Ok(())
    }

    fn reports_reader(&mut self, peer: &str) -> Result<Option<Reader>> {
        Ok(Some(Reader {
            position: self.stored_reports_position(peer),
            frontier: self.tell_operations(),
            streamed: Vec::new(),
        }))
    }

    fn report(&mut self, peer: &str, reader: &Reader) -> Result<Option<ReportBatch>> {
        Session::report(self, peer, reader)
    }

    fn acknowledge_operations(&mut self, _peer: &str, _frontier: &[u8]) -> Result<()> {
        Ok(())
    }

    fn learn_reports(&mut self, peer: &str, batch: &ReportBatch, log_position: u64) -> Result<u64> {
        Session::learn_reports(self, peer, batch)?;
        let mut cursor = self.cursor(peer);
        cursor.log_position = cursor.log_position.max(log_position);
        self.put_cursor(peer, cursor).map(|_| 0)
    }

    fn streams(&mut self, _peer: &str) -> Result<Streams> {
        Ok(Streams::default())
    }

    fn hear_streams(&mut self, _peer: &Hello, _streams: &Streams) -> Result<()> {
        Ok(())
    }

    fn epoch_range(&mut self) -> Result<u64> {
        Ok(self.node.epoch_range())
    }

    fn part(&mut self, _peer: &str) -> Result<()> {
        Ok(())
    }
}
