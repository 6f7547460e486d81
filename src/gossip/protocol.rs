//! The rules of an exchange, driven by messages and without a server, so that a simulator can run
//! them under any network.
//!
//! Both directions speak the same [`Message`]: who I am, what I hold (a [`Claim`]), how far I have
//! been given your changes (a [`Position`]), and a [`Batch`] of my changes for you. The reader keeps
//! the position, in the transaction that stores the rows, so nothing is taken as known that the
//! peer did not say itself and a crash on either side repeats rows at worst.
//!
//! Two clocks say what a node holds, per origin in transaction numbers of that origin:
//! - the *frontier*: every change below it is held;
//! - the *ceiling*: no change at or above it is held.
//!
//! A node is exact when the two are equal: its content is then a function of its frontier, which is
//! what makes digests of two nodes comparable. Completeness travels as in Golding's timestamped
//! anti-entropy (1992): who gives everything it holds gives its frontier with it.

use serde::{Deserialize, Serialize};

use super::report::{Reader, ReportBatch, Reports};
use super::snapshot::Snapshot;
use crate::clock::vclock::{self, Vclock};
use crate::crdt::constraint_state::{self, ConstraintState};
use crate::error::{self, Result, malformed_binary};
use crate::node::detector::Heartbeats;
use crate::node::identity::{self, Hello};
use crate::node::incarnation::{self, Admission, Past, Testimony};
use crate::stream::offer::Streams;

/// Raised when a message can no longer be read by the version before. 2 added heartbeats and reports.
pub const VERSION: u8 = 2;

/// The version before, which a node still reads, and speaks to whoever does not know its own.
pub const OLDEST_VERSION: u8 = 1;

/// Messages of one round, so that one peer with much to say does not starve the others.
pub const MAX_STEPS: u32 = 64;

const MAX_SPACE_BYTES: usize = 128;

/// What a node says that it holds, durably.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    pub frontier: Vec<u8>,
    pub ceiling: Vec<u8>,
    /// Over the content of every state.
    pub digest: [u8; 32],
}

/// How far a reader has been given an origin's changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The transaction-number space of the snapshots; in any other space the position is void.
    pub space: String,
    /// Everything this snapshot sees has been given.
    pub given: Option<Snapshot>,
    /// A larger snapshot that is being given in parts.
    pub window: Option<Window>,
}

/// A snapshot being given in parts, and the last row given so far, in order of (xid, name).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    pub until: Snapshot,
    pub after_xid: u64,
    pub after_name: String,
}

impl Position {
    pub fn beginning(space: &str) -> Self {
        Self {
            space: space.to_owned(),
            given: None,
            window: None,
        }
    }

    pub fn is_beginning(&self) -> bool {
        self.given.is_none() && self.window.is_none()
    }

    /// Whether a giving from the beginning is to begin or under way.
    pub fn is_full(&self) -> bool {
        self.given.is_none()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    pub name: String,
    pub value: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// Where these rows go on from.
    pub start: Position,
    /// What the sender held at `start`, when the reader's own claim covered it: a reader that
    /// covers it still has no gap, whatever position it stored.
    pub covered_below: Option<Vec<u8>>,
    pub rows: Vec<Row>,
    /// Where the reader is once it has stored these rows.
    pub next: Position,
    pub ceiling: Vec<u8>,
    /// Present when nothing the sender holds is missing after these rows.
    pub frontier: Option<Vec<u8>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    pub hello: Hello,
    /// Absent while the speaker holds uncommitted changes and cannot speak for its content.
    pub claim: Option<Claim>,
    pub position: Option<Position>,
    /// Give me everything, whatever I claim: what I hold turned out to be wrong.
    pub resync: bool,
    /// The speaker leaves the mesh.
    pub leaving: bool,
    pub batch: Option<Batch>,
    /// Where the speaker's transaction log was flushed to when it said this.
    pub log_position: u64,
    /// What the speaker knows of a node that asks which life it is in, or whose life is over.
    pub about_you: Option<Testimony>,
    /// Who is alive. Follows the rest from version 2 on.
    #[serde(skip)]
    pub heartbeats: Heartbeats,
    /// Leases and operations; follows the heartbeats. Absent from a speaker that takes none now.
    #[serde(skip)]
    pub reports: Option<Reports>,
}

impl Message {
    /// The message in a version that this node speaks.
    pub fn encode(&self, version: u8) -> Result<Vec<u8>> {
        let mut bytes = postcard::to_extend(self, vec![version]);
        if version >= 2 {
            let about = self.about_you.as_ref();
            let epoch_range = about.map_or(0, |about| about.epoch_range);
            let added = (&self.heartbeats, &self.reports, epoch_range);
            bytes = bytes.and_then(|bytes| postcard::to_extend(&added, bytes));
        }
        bytes.map_err(|error| malformed_binary("gossip message", format!("{error}.")))
    }

    /// The reports that it gives, if any.
    pub fn report_batch(&self) -> Option<&ReportBatch> {
        self.reports.as_ref()?.batch.as_ref()
    }

    /// The version of an encoded message.
    pub fn version(bytes: &[u8]) -> Result<u8> {
        let version = *bytes
            .first()
            .ok_or_else(|| malformed("The message is empty."))?;
        if (OLDEST_VERSION..=VERSION).contains(&version) {
            Ok(version)
        } else {
            Err(error::protocol_unknown(version, OLDEST_VERSION, VERSION))
        }
    }

    /// Reads and checks a message as strictly as user input.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let version = Self::version(bytes)?;
        let (mut message, mut rest): (Self, &[u8]) = take(&bytes[1..])?;
        if version >= 2 {
            let epoch_range: u64;
            ((message.heartbeats, message.reports, epoch_range), rest) = take(rest)?;
            if let Some(about) = &mut message.about_you {
                about.epoch_range = epoch_range;
            }
        }
        if !rest.is_empty() {
            return Err(malformed("Bytes follow the message."));
        }
        message.check()?;
        Ok(message)
    }

    fn check(&self) -> Result<()> {
        identity::check_name(&self.hello.name)?;
        if self.hello.incarnation == 0 || self.hello.incarnation > vclock::MAX_COUNTER {
            return Err(malformed("The incarnation is out of range."));
        }
        check_place(&self.hello.place)?;
        if let Some(about) = &self.about_you {
            check_place(&about.place)?;
            if about.epoch_range > incarnation::MAX_EPOCH_RANGE {
                return Err(malformed("The range of epochs is too high."));
            }
        }
        if let Some(claim) = &self.claim {
            Vclock::validate(&claim.frontier)?;
            Vclock::validate(&claim.ceiling)?;
        }
        self.heartbeats.check()?;
        self.reports.as_ref().map_or(Ok(()), Reports::check)?;
        self.position.as_ref().map_or(Ok(()), check_position)?;
        self.batch.as_ref().map_or(Ok(()), check_batch)
    }
}

fn take<'b, T: Deserialize<'b>>(bytes: &'b [u8]) -> Result<(T, &'b [u8])> {
    postcard::take_from_bytes(bytes).map_err(|_| malformed("The message cannot be read."))
}

fn malformed(detail: impl Into<String>) -> error::Error {
    malformed_binary("gossip message", detail)
}

fn check_place(place: &str) -> Result<()> {
    if place.len() > incarnation::MAX_PLACE_BYTES || place.contains('\0') {
        return Err(malformed("The place is too long or has a NUL."));
    }
    Ok(())
}

pub fn check_position(position: &Position) -> Result<()> {
    if position.space.len() > MAX_SPACE_BYTES || position.space.contains('\0') {
        return Err(malformed(
            "The space of a position is too long or has a NUL.",
        ));
    }
    if let Some(given) = &position.given {
        given.check()?;
    }
    if let Some(window) = &position.window {
        window.until.check()?;
        constraint_state::check_state_name(&window.after_name)?;
    }
    Ok(())
}

fn check_batch(batch: &Batch) -> Result<()> {
    check_position(&batch.start)?;
    check_position(&batch.next)?;
    Vclock::validate(&batch.ceiling)?;
    for clock in [&batch.covered_below, &batch.frontier]
        .into_iter()
        .flatten()
    {
        Vclock::validate(clock)?;
    }
    for row in &batch.rows {
        constraint_state::check_state_name(&row.name)?;
        ConstraintState::validate(&row.value)?;
    }
    Ok(())
}

fn covers(left: &[u8], right: &[u8]) -> Result<bool> {
    Ok(vclock::covers(Vclock::parse(left)?, Vclock::parse(right)?))
}

/// Whether the frontier of `actor` covers what a clock says of the others. Its own changes it holds
/// by definition, though its frontier stays below them while a transaction is open there.
fn covers_of_others(actor: &str, frontier: &[u8], clock: &[u8]) -> Result<bool> {
    let frontier = Vclock::parse(frontier)?;
    Ok(Vclock::parse(clock)?
        .entries()
        .all(|entry| entry.actor == actor.as_bytes() || frontier.get(entry.actor) >= entry.counter))
}

/// What a node holds, as read under one snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    pub space: String,
    pub frontier: Vec<u8>,
    pub ceiling: Vec<u8>,
    /// The node's own changes lie below; what others tell of them does not count here.
    pub own_ceiling: u64,
}

/// A node's place at a moment when a peer was known to hold all that it held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Covered {
    pub position: Position,
    pub ceiling: Vec<u8>,
}

impl Covered {
    /// Whether a batch from here is the shorter one. A window that was begun is carried through.
    fn goes_beyond(&self, stored: Option<&Position>, space: &str) -> bool {
        let end = |position: &Position| position.given.as_ref().map(|given| given.xmax);
        self.position.space == space
            && stored
                .is_none_or(|stored| stored.window.is_none() && end(&self.position) > end(stored))
    }
}

/// From where, and how, a batch is to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    pub position: Position,
    pub covered_below: Option<Vec<u8>>,
}

impl Start {
    /// From the beginning nothing is left out, not even what came from the reader itself.
    pub fn is_full(&self) -> bool {
        self.position.is_full()
    }
}

/// What one peer has said about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    pub claim: Option<Claim>,
    pub position: Option<Position>,
    pub resync: bool,
    /// The life the peer is in: it holds its own changes by definition.
    pub actor: String,
    /// Where this node was when the peer last covered it: spares the peer what others gave it.
    pub covered: Option<Covered>,
    /// This node has asked for everything because of what the peer claims.
    pub is_mistrusted: bool,
    /// The peer does not know its life yet, and takes nothing.
    pub is_asking: bool,
    /// Where it stands as a reader of this node's reports; None while it takes none.
    pub reports: Option<Reader>,
}

impl Heard {
    pub fn has_spoken(&self) -> bool {
        !self.actor.is_empty()
    }

    /// Whether it is known from where to give. Before a giving from the beginning the peer is asked
    /// anew: it may have been given everything meanwhile, in an exchange that it began.
    fn is_placed(&self) -> bool {
        let is_placed = self
            .position
            .as_ref()
            .is_some_and(|position| !position.is_full());
        !self.resync && (is_placed || self.covered.is_some())
    }

    /// Takes in what a message says. The memory of having been covered stays for this life of the
    /// peer: the next one may lack what this one held.
    pub fn listen(&mut self, message: &Message) {
        if self.actor != message.hello.actor() {
            self.covered = None;
        }
        self.actor = message.hello.actor();
        self.is_asking = !message.hello.is_confirmed;
        if message.claim.is_some() {
            self.claim.clone_from(&message.claim);
        }
        self.position.clone_from(&message.position);
        self.resync = message.resync;
        let reports = message.reports.as_ref();
        self.reports = reports.map(|reports| reports.reader.clone());
    }

    /// Decides whether the peer is to be given changes, and from where.
    pub fn plan(&self, holding: &Holding) -> Result<Option<Start>> {
        let from = |position: Position| {
            Ok(Some(Start {
                position,
                covered_below: None,
            }))
        };
        if self.is_asking {
            return Ok(None);
        }
        if self.resync {
            return from(Position::beginning(&holding.space));
        }
        let position = self
            .position
            .as_ref()
            .filter(|position| position.space == holding.space);
        // Whatever the peer claims, a giving from the beginning is carried through.
        if let Some(position) = position
            && position.given.is_none()
        {
            return from(position.clone());
        }
        if self.holds(holding)? {
            return Ok(None);
        }
        if let Some(covered) = &self.covered
            && covered.goes_beyond(position, &holding.space)
        {
            return Ok(Some(Start {
                position: covered.position.clone(),
                covered_below: Some(covered.ceiling.clone()),
            }));
        }
        from(
            position
                .cloned()
                .unwrap_or_else(|| Position::beginning(&holding.space)),
        )
    }

    /// Whether the peer has said that it holds everything this node holds.
    pub fn holds(&self, holding: &Holding) -> Result<bool> {
        self.reaches(&holding.ceiling)
    }

    /// Whether the peer's frontier covers a clock, its own changes aside.
    fn reaches(&self, clock: &[u8]) -> Result<bool> {
        let Some(claim) = &self.claim else {
            return Ok(false);
        };
        covers_of_others(&self.actor, &claim.frontier, clock)
    }

    /// Whether a batch would tell the peer anything. While a transaction is open here, the ceiling
    /// stays above the frontier, and a batch without rows would be written down for nothing.
    pub fn is_news(&self, batch: &Batch) -> Result<bool> {
        let tells_more = match &batch.frontier {
            Some(frontier) => !self.reaches(frontier)?,
            None => true,
        };
        // A giving from the beginning is carried through to its end, rows or none.
        Ok(tells_more || !batch.rows.is_empty() || batch.start.is_full())
    }
}

/// Whether storing a batch moves the reader's position: only without a gap before it.
/// `frontier` is what the reader, `actor`, holds.
pub fn continues(
    batch: &Batch,
    stored: Option<&Position>,
    frontier: &[u8],
    actor: &str,
) -> Result<bool> {
    if batch.start.is_beginning() || stored == Some(&batch.start) {
        return Ok(true);
    }
    batch.covered_below.as_ref().map_or(Ok(false), |ceiling| {
        covers_of_others(actor, frontier, ceiling)
    })
}

/// How the contents of two nodes compare, by what each says it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// Each holds all of the other and the digests agree.
    Converged,
    /// Something is still on its way.
    Unfinished,
    /// Both are exact at the same frontier, yet the digests differ: one content is wrong.
    Corrupt,
}

/// Compares what two nodes claim; `speakers` are their own actors.
pub fn compare(mine: &Claim, theirs: &Claim, speakers: [&str; 2]) -> Result<Comparison> {
    let covered =
        covers(&theirs.frontier, &mine.ceiling)? && covers(&mine.frontier, &theirs.ceiling)?;
    Ok(if covered && mine.digest != theirs.digest {
        // Covered both ways, each frontier lies at or above both ceilings, so both are exact.
        Comparison::Corrupt
    } else if covered || (mine == theirs && have_finished(mine, speakers)?) {
        Comparison::Converged
    } else {
        Comparison::Unfinished
    })
}

/// Whether nothing of these actors is still on its way. What a third node has begun to tell and may
/// never finish, because it is gone, keeps nobody from agreeing on what both hold of it.
fn have_finished(claim: &Claim, actors: [&str; 2]) -> Result<bool> {
    let (frontier, ceiling) = (
        Vclock::parse(&claim.frontier)?,
        Vclock::parse(&claim.ceiling)?,
    );
    Ok(actors
        .iter()
        .all(|actor| frontier.get(actor.as_bytes()) >= ceiling.get(actor.as_bytes())))
}

/// What storing a message's batch came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Absorbed {
    pub received: u64,
    pub changed: u64,
    /// The node's claim moved, so the peer should hear of it.
    pub learned: bool,
}

/// What a node tells a peer: its claim and, where the plan wants one, a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feed {
    pub holding: Holding,
    /// The position of the snapshot everything here was read under.
    pub position: Position,
    pub claim: Claim,
    /// Whether the claim may be told: it may not while it counts in changes that can roll back.
    pub is_durable: bool,
    pub batch: Option<Batch>,
    /// Everything here is on disk, up to this position of the transaction log.
    pub log_position: u64,
}

/// What the rules need of a node. The database implements it, and so does the simulator.
pub trait Replica {
    fn hello(&mut self) -> Result<Hello>;

    /// Admits the speaker of a message, or refuses a name that belongs to another uuid.
    fn admit(&mut self, hello: &Hello) -> Result<Admission>;

    /// What this node knows of another; `None` when it has not met it.
    fn testimony(&mut self, name: &str) -> Result<Option<Testimony>>;

    /// What a peer says is more than this node knows of itself: it is to ask which life it is in.
    fn doubt(&mut self, reason: &str) -> Result<()>;

    /// How far this node has been given the peer's changes, and whether it wants them all anew.
    fn position(&mut self, peer: &str) -> Result<(Option<Position>, bool)>;

    /// Merges the rows and, where the batch continues what is stored, moves position and frontier
    /// in the same transaction. Remembers where the peer's transaction log stood.
    fn absorb(&mut self, peer: &str, batch: &Batch, log_position: u64) -> Result<Absorbed>;

    /// Remembers what the peer says it holds, and where its transaction log stood.
    fn acknowledge(&mut self, peer: &str, claim: &Claim, log_position: u64) -> Result<()>;

    /// Reads, under one snapshot, what this node holds and, for a reader that has been heard, the
    /// batch it lacks.
    fn feed(&mut self, peer: &str, reader: Option<&Heard>) -> Result<Feed>;

    /// Both contents are exact at one frontier and differ: counts it and asks for everything.
    fn mistrust(&mut self, peer: &str) -> Result<()>;

    /// A peer asks which life it is in: what was on its way from it is overtaken from now on.
    fn overtake(&mut self, peer: &str);

    /// Whether a peer's message was not overtaken. If so remembers, in the same breath, where the
    /// peer's transaction log stood.
    fn takes(&mut self, peer: &str, log_position: u64) -> bool;

    /// Who this node knows to be alive.
    fn heartbeats(&mut self) -> Result<Heartbeats>;

    /// A peer has said who is alive; itself it is.
    fn hear(&mut self, peer: &str, heartbeats: &Heartbeats) -> Result<()>;

    /// Where this node stands as a reader of the peer's reports; None where it has no place for any.
    fn reports_reader(&mut self, peer: &str) -> Result<Option<Reader>>;

    /// The reports that a reader lacks; None when it lacks none. To be called before `feed`,
    /// which makes sure that what was visible until then is on disk. A reader that has been given more than
    /// there is shows that this node was put back.
    fn report(&mut self, peer: &str, reader: &Reader) -> Result<Option<ReportBatch>>;

    /// Keeps what is newer than what is known, and moves the position with it in the same transaction
    /// where the batch continues it. Remembers where the peer's transaction log stood. Returns how many
    /// operations were new.
    fn learn_reports(&mut self, peer: &str, batch: &ReportBatch, log_position: u64) -> Result<u64>;

    /// A peer has said which operations it holds completely.
    fn acknowledge_operations(&mut self, peer: &str, frontier: &[u8]) -> Result<()>;

    /// Which streams this node wants of a peer, and which it has for it.
    fn streams(&mut self, peer: &str) -> Result<Streams>;

    /// A peer has said the same.
    fn hear_streams(&mut self, peer: &Hello, streams: &Streams) -> Result<()>;

    /// The highest range of epochs that this node knows of any lease.
    fn epoch_range(&mut self) -> Result<u64>;

    /// The peer has left the mesh.
    fn part(&mut self, peer: &str) -> Result<()>;
}

/// What a message says of reports, for a reader that stands at `reader`, if it takes any.
fn speak_of_reports(
    replica: &mut dyn Replica,
    peer: &str,
    reader: Option<&Reader>,
) -> Result<Option<Reports>> {
    if !replica.hello()?.is_confirmed {
        return Ok(None);
    }
    let Some(own) = replica.reports_reader(peer)? else {
        return Ok(None);
    };
    let batch = reader.map_or(Ok(None), |reader| replica.report(peer, reader))?;
    Ok(Some(Reports {
        reader: own,
        batch,
        admitted: 0,
        streams: replica.streams(peer)?,
    }))
}

/// Takes in the reports of a message. Where this node stands afterwards, it says in its own. Returns how many
/// operations were new.
pub fn receive_reports(replica: &mut dyn Replica, message: &Message) -> Result<u64> {
    let peer = &message.hello.name;
    let Some(reports) = &message.reports else {
        return Ok(0);
    };
    if !replica.hello()?.is_confirmed {
        return Ok(0);
    }
    replica.acknowledge_operations(peer, &reports.reader.frontier)?;
    replica.hear_streams(&message.hello, &reports.streams)?;
    match &reports.batch {
        Some(batch) => replica.learn_reports(peer, batch, message.log_position),
        None => Ok(0),
    }
}

/// Takes in a message, whoever spoke first. A node that does not know its life takes nothing: what
/// it has lost would come back, and hide from it that it was lost.
fn receive(replica: &mut dyn Replica, message: &Message) -> Result<Absorbed> {
    let peer = &message.hello.name;
    if !replica.hello()?.is_confirmed {
        return Ok(Absorbed::default());
    }
    let absorbed = match &message.batch {
        Some(batch) => replica.absorb(peer, batch, message.log_position)?,
        None => Absorbed::default(),
    };
    if let Some(claim) = &message.claim {
        replica.acknowledge(peer, claim, message.log_position)?;
    }
    Ok(absorbed)
}

pub fn speak(replica: &mut dyn Replica, peer: &str, feed: &Feed) -> Result<Message> {
    let (position, resync) = replica.position(peer)?;
    Ok(Message {
        hello: replica.hello()?,
        claim: feed.is_durable.then(|| feed.claim.clone()),
        position,
        resync,
        leaving: false,
        batch: feed.batch.clone(),
        log_position: feed.log_position,
        about_you: None,
        heartbeats: replica.heartbeats()?,
        reports: None,
    })
}

/// To a node whose life is over: that it is, and nothing else.
fn speak_to_superseded(replica: &mut dyn Replica, peer: &str) -> Result<Message> {
    Ok(Message {
        hello: replica.hello()?,
        claim: None,
        position: None,
        resync: false,
        leaving: false,
        batch: None,
        log_position: 0,
        about_you: replica.testimony(peer)?,
        heartbeats: Heartbeats::default(),
        reports: None,
    })
}

/// Admits the speaker of a message. Whether one that asks which life it is in is the node or a copy of
/// it, is not known yet, and so neither that the node is alive.
///
/// A request can be carried out after the server that sent it has ended. If its node was told before
/// that what is known of it, and went on in its life, it uses again the numbers the request tells of.
/// So a message is either counted in what the node is told when it asks, or refused afterwards.
pub fn admit(replica: &mut dyn Replica, message: &Message) -> Result<Admission> {
    let hello = &message.hello;
    let admission = replica.admit(hello)?;
    match admission {
        Admission::Welcome { .. } => {
            if !replica.takes(&hello.name, message.log_position) {
                return Err(error::message_overtaken(&hello.name));
            }
            replica.hear(&hello.name, &message.heartbeats)?;
        }
        Admission::Asking => {
            if !lived_elsewhere(replica, hello)? {
                replica.overtake(&hello.name);
            }
        }
        Admission::Superseded => {}
    }
    Ok(admission)
}

/// A copy that asks must not silence the node it was made of.
fn lived_elsewhere(replica: &mut dyn Replica, hello: &Hello) -> Result<bool> {
    let lived = replica.testimony(&hello.name)?;
    Ok(lived.is_some_and(|lived| lived.place != hello.place))
}

/// Whether a peer knows more of this node than it does itself.
fn notices_cut(
    replica: &mut dyn Replica,
    own: &Hello,
    holding: &Holding,
    message: &Message,
) -> Result<bool> {
    let actor = own.actor();
    let past = Past {
        incarnation: own.incarnation,
        life: own.life,
        own_ceiling: holding.own_ceiling,
        log_position: u64::MAX,
    };
    let known = match &message.claim {
        Some(claim) => Vclock::parse(&claim.ceiling)?.get(actor.as_bytes()),
        None => 0,
    };
    let cut = if known > past.own_ceiling {
        Some(incarnation::is_ahead(known, past.own_ceiling))
    } else {
        (message.about_you.as_ref()).and_then(|about| incarnation::cut(about, &past))
    };
    if let Some(reason) = &cut {
        replica.doubt(reason)?;
    }
    Ok(cut.is_some())
}

/// Compares a claim with the peer's and acts on a contradiction.
fn judge(
    replica: &mut dyn Replica,
    feed: &Feed,
    message: &Message,
    heard: &mut Heard,
) -> Result<bool> {
    let own = replica.hello()?;
    if !own.is_confirmed || notices_cut(replica, &own, &feed.holding, message)? {
        return Ok(false);
    }
    let Some(theirs) = &message.claim else {
        return Ok(false);
    };
    match compare(&feed.claim, theirs, [&own.actor(), &message.hello.actor()])? {
        Comparison::Converged => {
            heard.is_mistrusted = false;
            Ok(true)
        }
        Comparison::Unfinished => Ok(false),
        Comparison::Corrupt => {
            if !is_under_repair(replica, message, heard)? {
                replica.mistrust(&message.hello.name)?;
                heard.is_mistrusted = true;
            }
            Ok(false)
        }
    }
}

/// Whether a contradiction is being dealt with: each side asks for everything once, and takes it in
/// as many batches as that needs. Asking again at every claim until then would begin anew each
/// time and never come to the end.
fn is_under_repair(replica: &mut dyn Replica, message: &Message, heard: &Heard) -> Result<bool> {
    let is_taking =
        |position: Option<&Position>, resync| resync || position.is_some_and(Position::is_full);
    let (position, resync) = replica.position(&message.hello.name)?;
    let peer_is_taking = is_taking(message.position.as_ref(), message.resync);
    Ok(is_taking(position.as_ref(), resync) || (peer_is_taking && heard.is_mistrusted))
}

/// What a responder did, beside its answer.
#[derive(Debug)]
pub struct Response {
    pub message: Message,
    pub absorbed: Absorbed,
}

/// Answers a message: stores what it brings, then says what this node holds and gives what the
/// speaker lacks.
pub fn respond(
    replica: &mut dyn Replica,
    request: &Message,
    heard: &mut Heard,
) -> Result<Response> {
    let peer = &request.hello.name;
    let admission = admit(replica, request)?;
    if admission == Admission::Superseded {
        return Ok(Response {
            message: speak_to_superseded(replica, peer)?,
            absorbed: Absorbed::default(),
        });
    }
    let absorbed = receive(replica, request)?;
    let admitted = receive_reports(replica, request)?;
    heard.listen(request);
    if request.leaving {
        replica.part(peer)?;
    }
    let reports = match &heard.reports {
        Some(reader) => speak_of_reports(replica, peer, Some(reader))?,
        None => None,
    };
    let feed = replica.feed(peer, Some(heard))?;
    note_covered(heard, &feed)?;
    judge(replica, &feed, request, heard)?;
    let mut message = speak(replica, peer, &feed)?;
    message.reports = reports.map(|reports| Reports {
        admitted,
        ..reports
    });
    if admission == Admission::Asking {
        message.about_you = replica.testimony(peer)?;
        if let Some(about) = &mut message.about_you {
            about.epoch_range = replica.epoch_range()?;
        }
    }
    Ok(Response { message, absorbed })
}

fn note_covered(heard: &mut Heard, feed: &Feed) -> Result<()> {
    if heard.holds(&feed.holding)? {
        heard.covered = Some(Covered {
            position: feed.position.clone(),
            ceiling: feed.holding.ceiling.clone(),
        });
    }
    Ok(())
}

/// Whether the steps of a round commit one by one, or are parts of one transaction that may still
/// roll back and of which nothing may be told yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Commitment {
    EachStep,
    AtTheEnd,
}

/// What comes after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    Again,
    Done,
}

/// One exchange with one peer, as its initiator sees it: `compose`, send, `receive`, until done.
#[derive(Debug)]
pub struct Round {
    peer: String,
    commitment: Commitment,
    steps: u32,
    /// What was told first; with `AtTheEnd` nothing else may be claimed later.
    told: Option<Claim>,
    /// What this node holds may roll back from now on.
    has_taken: bool,
    /// The last message gave nothing, because the peer is to say first where it stands.
    asks: bool,
    gave_all: bool,
    gave_anew: bool,
    /// Where the peer stands if it has stored what it was given.
    expected: Option<Position>,
    /// The last reports it was given.
    reported: Option<ReportBatch>,
    pub sent: u64,
    pub received: u64,
    pub changed: u64,
    pub converged: bool,
    /// This node has asked in which life it is; what the peer knows of it, if they have met.
    pub has_asked: bool,
    pub testimony: Option<Testimony>,
}

impl Round {
    pub fn new(peer: &str, commitment: Commitment) -> Self {
        Self {
            peer: peer.to_owned(),
            commitment,
            steps: 0,
            told: None,
            has_taken: false,
            asks: false,
            gave_all: true,
            gave_anew: false,
            expected: None,
            reported: None,
            sent: 0,
            received: 0,
            changed: 0,
            converged: false,
            has_asked: false,
            testimony: None,
        }
    }

    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// The next message to the peer.
    pub fn compose(&mut self, replica: &mut dyn Replica, heard: &mut Heard) -> Result<Message> {
        self.asks = !heard.has_spoken() || (self.steps == 0 && !heard.is_placed());
        let reports = self.speak_of_reports(replica, heard)?;
        let is_given = !self.asks && (self.steps == 0 || self.may_give());
        let feed = replica.feed(&self.peer, is_given.then_some(&*heard))?;
        note_covered(heard, &feed)?;
        let mut message = speak(replica, &self.peer, &feed)?;
        if self.commitment == Commitment::EachStep || self.steps == 0 {
            self.told.clone_from(&message.claim);
        } else {
            message.claim.clone_from(&self.told);
        }
        message.batch = message.batch.filter(|_| self.may_give());
        self.reported = reports.as_ref().and_then(|reports| reports.batch.clone());
        message.reports = reports;
        self.steps += 1;
        self.has_asked = !message.hello.is_confirmed;
        self.note_given(message.batch.as_ref(), heard);
        Ok(message)
    }

    /// Reports are no part of a round in somebody's transaction: the rows it would write are written by
    /// every other exchange as well, and these would wait for its end.
    fn speak_of_reports(
        &self,
        replica: &mut dyn Replica,
        heard: &Heard,
    ) -> Result<Option<Reports>> {
        match self.commitment {
            Commitment::EachStep => speak_of_reports(replica, &self.peer, heard.reports.as_ref()),
            Commitment::AtTheEnd => Ok(None),
        }
    }

    /// Of a row changed by a transaction that may still roll back neither version can be given: not
    /// the new one, and the old one cannot be read. A batch would pass over the row, and the peer
    /// would count it as given.
    fn may_give(&self) -> bool {
        self.commitment == Commitment::EachStep || (self.told.is_some() && !self.has_taken)
    }

    fn note_given(&mut self, batch: Option<&Batch>, heard: &Heard) {
        self.gave_all = batch.is_none_or(|batch| batch.frontier.is_some());
        self.gave_anew |= batch.is_some_and(|batch| batch.start.is_beginning());
        self.expected =
            batch.map_or_else(|| heard.position.clone(), |batch| Some(batch.next.clone()));
        self.sent += batch.map_or(0, |batch| batch.rows.len() as u64);
    }

    /// Takes in the peer's answer.
    pub fn receive(
        &mut self,
        replica: &mut dyn Replica,
        heard: &mut Heard,
        reply: &Message,
    ) -> Result<Next> {
        if reply.hello.name != self.peer {
            return Err(error::peer_misnamed(&self.peer, &reply.hello.name));
        }
        if admit(replica, reply)? == Admission::Superseded {
            return Err(error::peer_superseded(&self.peer, reply.hello.incarnation));
        }
        heard.listen(reply);
        self.testimony.clone_from(&reply.about_you);
        // In one transaction all giving comes before any taking (see `may_give`). The peer gives
        // again with its next answer what is left aside here.
        if self.commitment == Commitment::AtTheEnd && self.gives_more(replica, heard)? {
            return Ok(Next::Again);
        }
        self.has_taken = true;
        let absorbed = receive(replica, reply)?;
        receive_reports(replica, reply)?;
        self.received += absorbed.received;
        self.changed += absorbed.changed;
        let feed = replica.feed(&self.peer, None)?;
        self.converged = judge(replica, &feed, reply, heard)?;
        self.next(replica, heard, reply, absorbed)
    }

    fn next(
        &self,
        replica: &mut dyn Replica,
        heard: &Heard,
        reply: &Message,
        absorbed: Absorbed,
    ) -> Result<Next> {
        let takes_more = match reply
            .batch
            .as_ref()
            .filter(|batch| batch.frontier.is_none())
        {
            // A batch that did not move this node would come again.
            Some(batch) => replica.position(&self.peer)?.0.as_ref() == Some(&batch.next),
            None => false,
        };
        let has_news = absorbed.learned && self.commitment == Commitment::EachStep;
        let goes_on = self.steps < MAX_STEPS
            && (takes_more
                || has_news
                || self.gives_more(replica, heard)?
                || self.takes_more_reports(replica, reply)?
                || self.gives_more_reports(replica, heard)?);
        Ok(if goes_on { Next::Again } else { Next::Done })
    }

    fn takes_more_reports(&self, replica: &mut dyn Replica, reply: &Message) -> Result<bool> {
        match reply.report_batch().filter(|batch| batch.is_cut_off()) {
            Some(batch) => {
                let reader = replica.reports_reader(&self.peer)?;
                Ok(reader.is_some_and(|reader| reader.position == batch.next))
            }
            None => Ok(false),
        }
    }

    fn gives_more_reports(&self, replica: &mut dyn Replica, heard: &Heard) -> Result<bool> {
        match (&self.reported, &heard.reports) {
            (Some(given), Some(reader)) => Ok(given.is_cut_off() && given.next == reader.position),
            // Where the peer stands was not known before it answered.
            (None, Some(reader)) if self.asks => Ok(replica.report(&self.peer, reader)?.is_some()),
            _ => Ok(false),
        }
    }

    /// Whether the peer lacks what it has not been given in this round. That it lacks something is
    /// not enough: while a transaction is open it does, and can be given nothing.
    fn gives_more(&self, replica: &mut dyn Replica, heard: &Heard) -> Result<bool> {
        let wants_all = heard.resync && !self.gave_anew;
        // A peer that stands elsewhere was given something else meanwhile, or refused a batch and
        // will refuse it again.
        let has_more = self.asks
            || wants_all
            || if heard.position == self.expected {
                !self.gave_all
            } else {
                self.steps == 1
            };
        if !has_more || !self.may_give() || self.steps >= MAX_STEPS {
            return Ok(false);
        }
        let feed = replica.feed(&self.peer, None)?;
        Ok(heard.plan(&feed.holding)?.is_some())
    }
}
