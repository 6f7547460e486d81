//! Nodes and the network between them.

mod checks;
mod lives;

use std::collections::{BTreeMap, BTreeSet};

use super::ledger::Ledger;
use super::links::{Leg, Links};
use super::node::operations::is_doubtful;
use super::node::{Committed, Handle, Node, Operation, Session, Standpoint, clock};
use crate::crdt::digest::Digest;
use crate::gossip::protocol::{Commitment, Heard, Message, Next, Round, VERSION, respond};
use crate::node::incarnation::Testimony;

/// `SplitMix64` (Steele, Lea, Flood 2014): small, and the same on every machine.
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).expect("a number below a usize")
    }

    pub fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }
}

/// Chances in percent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    pub lose_request: usize,
    pub lose_reply: usize,
    pub duplicate: usize,
    /// A step's transaction rolls back at its end.
    pub roll_back: usize,
    /// A responder's transaction stays open for a while.
    pub linger: usize,
    /// A message takes long: up to [`LONGEST_DELAY`] others are delivered before it.
    pub delay: usize,
}

const LONGEST_DELAY: usize = 400;

/// A worker's connection, or that of a session that calls `gossip_round` by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Caller {
    Worker,
    User,
}

/// Who remembers what about whom: a process keeps it, and a crash loses it.
type Memory = (usize, usize, Caller, Side);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Side {
    Initiator,
    Responder,
}

#[derive(Debug)]
struct Exchange {
    from: usize,
    to: usize,
    round: Round,
    caller: Caller,
    /// The transaction that a user's whole round is in.
    whole: Option<Handle>,
    /// When the request under way was sent.
    sent_at: u64,
}

#[derive(Clone, Debug)]
struct Request {
    exchange: u64,
    from: usize,
    to: usize,
    caller: Caller,
    sent_at: u64,
    bytes: Vec<u8>,
    /// A copy is answered to nobody.
    is_copy: bool,
}

#[derive(Debug)]
enum Parcel {
    Request(Request),
    Answer(Answer),
}

#[derive(Debug)]
struct Answer {
    exchange: u64,
    from: usize,
    bytes: Vec<u8>,
    /// What the responder's claim spoke of.
    content: Digest,
}

/// A responder's transaction that has not ended.
#[derive(Debug)]
struct Lingering {
    node: usize,
    handle: Handle,
    answer: Answer,
    message: Message,
    is_copy: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub requests: u64,
    pub bytes: u64,
    pub batches: u64,
    pub rows: u64,
    pub reports: u64,
    /// Commits of gossip that wrote something.
    pub writes: u64,
    pub converged: u64,
}

#[derive(Debug)]
pub struct Mesh {
    pub nodes: Vec<Node>,
    pub random: Random,
    pub faults: Faults,
    pub traffic: Traffic,
    /// Times that all waiting messages were delivered at once: a round trip each.
    pub waves: u32,
    pub allows_mistrust: bool,
    /// Checks of frontier and ceiling, which large meshes are too slow for.
    pub is_checked: bool,
    pub satisfied: BTreeMap<String, u128>,
    pub links: Links,
    /// Milliseconds since the simulation began.
    now: u64,
    ledger: Ledger,
    heard: BTreeMap<Memory, Heard>,
    exchanges: BTreeMap<u64, Exchange>,
    next_exchange: u64,
    requests: Vec<Request>,
    answers: Vec<Answer>,
    /// Messages that take long, by the number of deliveries that come before them and their own.
    delayed: BTreeMap<(usize, u64), Parcel>,
    next_delayed: u64,
    deliveries: usize,
    lingering: Vec<Lingering>,
    /// Requests of nodes that were put back since.
    overtaken: Vec<Request>,
    /// Counts what is sent and what is delivered.
    moment: u64,
    last_converged: bool,
    /// What peers answered to a node that asks which life it is in.
    asked: BTreeMap<(usize, usize), Option<Testimony>>,
    pub has_restored: bool,
}

impl Mesh {
    pub fn new(size: usize, seed: u64) -> Self {
        Self {
            nodes: (0..size)
                .map(|place| Node::new(&format!("n{place}")))
                .collect(),
            random: Random(seed),
            faults: Faults::default(),
            traffic: Traffic::default(),
            waves: 0,
            allows_mistrust: false,
            is_checked: true,
            satisfied: BTreeMap::new(),
            links: Links::default(),
            now: 0,
            ledger: Ledger::default(),
            heard: BTreeMap::new(),
            exchanges: BTreeMap::new(),
            next_exchange: 0,
            requests: Vec::new(),
            answers: Vec::new(),
            delayed: BTreeMap::new(),
            next_delayed: 0,
            deliveries: 0,
            lingering: Vec::new(),
            overtaken: Vec::new(),
            moment: 0,
            last_converged: false,
            asked: BTreeMap::new(),
            has_restored: false,
        }
    }

    // Applications ---------------------------------------------------------------------------

    /// One change in a transaction of its own.
    pub fn change(&mut self, node: usize, name: &str, operation: Operation) -> bool {
        let handle = self.nodes[node].begin();
        let is_written = self.nodes[node].write(handle, name, operation);
        self.commit(node, handle);
        is_written
    }

    pub fn commit(&mut self, node: usize, handle: Handle) -> Committed {
        if self.is_checked {
            self.check_elements(node, handle);
        }
        let committed = self.nodes[node].commit(handle);
        for (name, n) in &committed.satisfied {
            let n = u128::try_from(*n).expect("a count");
            *self.satisfied.entry(name.clone()).or_default() += n;
        }
        if self.is_checked && committed.wrote {
            self.check_changes(node, &committed);
            self.check_node(node);
        }
        committed
    }

    /// A node that is new joins the mesh.
    pub fn join(&mut self) {
        let mut node = Node::new(&format!("n{}", self.nodes.len()));
        node.set_time(self.now);
        self.nodes.push(node);
    }

    pub fn pass_time(&mut self, milliseconds: u64) {
        self.now += milliseconds;
        for node in &mut self.nodes {
            node.set_time(self.now);
        }
    }

    // The network ----------------------------------------------------------------------------

    /// What the worker does on its timer: merges what waited, and begins rounds with random peers.
    pub fn tick(&mut self, node: usize, fanout: usize) {
        self.retry_waiting(node);
        let is_own =
            |exchange: &&Exchange| (exchange.from, exchange.caller) == (node, Caller::Worker);
        let busy: BTreeSet<usize> = self
            .exchanges
            .values()
            .filter(is_own)
            .map(|exchange| exchange.to)
            .collect();
        let mut peers: Vec<usize> = (0..self.nodes.len()).collect();
        peers.retain(|peer| *peer != node && !busy.contains(peer));
        let fanout = if self.nodes[node].is_confirmed {
            fanout
        } else {
            usize::MAX
        };
        for _ in 0..fanout.min(peers.len()) {
            let peer = peers.swap_remove(self.random.below(peers.len()));
            self.begin_exchange(node, peer);
        }
    }

    pub fn retry_waiting(&mut self, node: usize) {
        let handle = self.nodes[node].begin();
        let session = &mut self.session(node, handle, Standpoint::BeforeCommit);
        match session.retry_waiting() {
            Ok(()) => drop(self.commit(node, handle)),
            Err(_) => self.nodes[node].rollback(handle),
        }
    }

    fn next_moment(&mut self) -> u64 {
        self.moment += 1;
        self.moment
    }

    fn session(&mut self, node: usize, handle: Handle, standpoint: Standpoint) -> Session<'_> {
        let moment = self.next_moment();
        Session {
            node: &mut self.nodes[node],
            handle,
            standpoint,
            moment,
            spoken_since: moment,
        }
    }

    fn remembered(&mut self, memory: Memory) -> Heard {
        self.heard.get(&memory).cloned().unwrap_or_default()
    }

    pub fn begin_exchange(&mut self, from: usize, to: usize) -> u64 {
        self.begin(from, to, Caller::Worker, None)
    }

    /// A user's round, within a transaction that may have written.
    pub fn begin_user_exchange(&mut self, from: usize, to: usize, handle: Handle) -> u64 {
        self.heard
            .remove(&(from, to, Caller::User, Side::Initiator));
        self.begin(from, to, Caller::User, Some(handle))
    }

    fn begin(&mut self, from: usize, to: usize, caller: Caller, whole: Option<Handle>) -> u64 {
        let commitment = whole.map_or(Commitment::EachStep, |_| Commitment::AtTheEnd);
        let id = self.next_exchange;
        self.next_exchange += 1;
        let round = Round::new(&self.nodes[to].name, commitment);
        let exchange = Exchange {
            from,
            to,
            round,
            caller,
            whole,
            sent_at: 0,
        };
        self.compose(id, exchange);
        id
    }

    fn compose(&mut self, id: u64, mut exchange: Exchange) {
        let (from, to, caller) = (exchange.from, exchange.to, exchange.caller);
        let memory = (from, to, caller, Side::Initiator);
        let mut heard = self.remembered(memory);
        let handle = exchange.whole.unwrap_or_else(|| self.nodes[from].begin());
        exchange.sent_at = self.next_moment();
        let mut session = self.session(from, handle, Standpoint::BeforeCommit);
        let message = exchange
            .round
            .compose(&mut session, &mut heard)
            .expect("a message");
        if exchange.whole.is_none() {
            let committed = self.commit(from, handle);
            assert!(!committed.wrote, "composing writes nothing");
        }
        self.heard.insert(memory, heard);
        self.check_told(from, &message);
        self.count_message(&message);
        self.traffic.requests += 1;
        let bytes = self.encode(&message);
        let request = Request {
            exchange: id,
            from,
            to,
            caller,
            sent_at: exchange.sent_at,
            bytes,
            is_copy: false,
        };
        if self.random.percent(self.faults.duplicate) {
            self.send(Parcel::Request(Request {
                is_copy: true,
                ..request.clone()
            }));
        }
        self.send(Parcel::Request(request));
        self.exchanges.insert(id, exchange);
    }

    fn send(&mut self, parcel: Parcel) {
        if self.random.percent(self.faults.delay) {
            let due = self.deliveries + 1 + self.random.below(LONGEST_DELAY);
            self.delayed.insert((due, self.next_delayed), parcel);
            self.next_delayed += 1;
        } else {
            self.arrive(parcel);
        }
    }

    fn arrive(&mut self, parcel: Parcel) {
        match parcel {
            Parcel::Request(request) => self.requests.push(request),
            Parcel::Answer(answer) => self.answers.push(answer),
        }
    }

    /// What was delayed until now is delivered among the rest; with no rest, the next of it.
    fn arrive_late(&mut self) {
        let is_idle = self.requests.is_empty() && self.answers.is_empty();
        if let Some(next) = self.delayed.first_entry()
            && (is_idle || next.key().0 <= self.deliveries)
        {
            let parcel = next.remove();
            self.arrive(parcel);
        }
    }

    /// Takes requests out of the network.
    fn take_requests(&mut self, is_meant: impl Fn(&Request) -> bool) -> Vec<Request> {
        let is_late = |parcel: &Parcel| matches!(parcel, Parcel::Request(late) if is_meant(late));
        self.hurry(is_late);
        (self.requests)
            .extract_if(.., |request| is_meant(request))
            .collect()
    }

    fn take_answers(&mut self, is_meant: impl Fn(&Answer) -> bool) -> Vec<Answer> {
        let is_late = |parcel: &Parcel| matches!(parcel, Parcel::Answer(late) if is_meant(late));
        self.hurry(is_late);
        (self.answers)
            .extract_if(.., |answer| is_meant(answer))
            .collect()
    }

    /// Ends the delay of some messages.
    fn hurry(&mut self, is_meant: impl Fn(&Parcel) -> bool) {
        let late: Vec<_> = (self.delayed)
            .extract_if(.., |_, parcel| is_meant(parcel))
            .collect();
        for (_, parcel) in late {
            self.arrive(parcel);
        }
    }

    /// A caller waits no longer: its connection is gone and with it the answer. The request, if it
    /// is on its way, may still be carried out.
    pub fn give_up_one(&mut self) {
        if !self.exchanges.is_empty() {
            let place = self.random.below(self.exchanges.len());
            let id = *self.exchanges.keys().nth(place).expect("an exchange");
            self.fail(id);
        }
    }

    fn encode(&mut self, message: &Message) -> Vec<u8> {
        let bytes = message.encode(VERSION).expect("an encodable message");
        self.traffic.bytes += bytes.len() as u64;
        bytes
    }

    fn count_message(&mut self, message: &Message) {
        if let Some(batch) = &message.batch {
            self.traffic.batches += 1;
            self.traffic.rows += batch.rows.len() as u64;
        }
        if let Some(batch) = message.report_batch() {
            self.traffic.batches += 1;
            self.traffic.reports += batch.rows.len() as u64;
        }
    }

    /// The caller sees an error: its round is over, and so is the transaction around it.
    fn fail(&mut self, id: u64) {
        if let Some(exchange) = self.exchanges.remove(&id)
            && let Some(whole) = exchange.whole
        {
            self.nodes[exchange.from].rollback(whole);
        }
    }

    fn deliver_request(&mut self, request: &Request) {
        let is_lost = self.random.percent(self.faults.lose_request);
        if is_lost || self.links.is_cut(request.from, request.to, Leg::Request) {
            return self.fail_unless_copy(request.exchange, request.is_copy);
        }
        let message = Message::decode(&request.bytes).expect("a readable request");
        let node = request.to;
        let memory = (node, request.from, request.caller, Side::Responder);
        let mut heard = self.remembered(memory);
        let handle = self.nodes[node].begin();
        let mut session = Session {
            spoken_since: request.sent_at,
            ..self.session(node, handle, Standpoint::AfterCommit)
        };
        let answer = respond(&mut session, &message, &mut heard);
        self.heard.insert(memory, heard);
        let Ok(response) = answer else {
            self.nodes[node].rollback(handle);
            return self.fail_unless_copy(request.exchange, request.is_copy);
        };
        let lingering = Lingering {
            node,
            handle,
            answer: Answer {
                exchange: request.exchange,
                from: node,
                bytes: Vec::new(),
                content: response
                    .message
                    .claim
                    .as_ref()
                    .map_or([0; 32], |claim| claim.digest),
            },
            message: response.message,
            is_copy: request.is_copy,
        };
        if self.random.percent(self.faults.linger) {
            self.lingering.push(lingering);
        } else {
            self.end_response(lingering);
        }
    }

    fn fail_unless_copy(&mut self, exchange: u64, is_copy: bool) {
        if !is_copy {
            self.fail(exchange);
        }
    }

    fn end_response(&mut self, mut response: Lingering) {
        let id = response.answer.exchange;
        if self.random.percent(self.faults.roll_back) {
            self.nodes[response.node].rollback(response.handle);
            return self.fail_unless_copy(id, response.is_copy);
        }
        let committed = self.commit(response.node, response.handle);
        self.traffic.writes += u64::from(committed.wrote);
        if response.is_copy {
            return;
        }
        self.check_told(response.node, &response.message);
        self.count_message(&response.message);
        response.answer.bytes = self.encode(&response.message);
        if self.random.percent(self.faults.lose_reply) {
            self.fail(id);
        } else {
            self.send(Parcel::Answer(response.answer));
        }
    }

    fn deliver_answer(&mut self, answer: &Answer) {
        // The initiator may have crashed meanwhile.
        let Some(mut exchange) = self.exchanges.remove(&answer.exchange) else {
            return;
        };
        if self.links.is_cut(exchange.from, exchange.to, Leg::Answer) {
            self.exchanges.insert(answer.exchange, exchange);
            return self.fail(answer.exchange);
        }
        let message = Message::decode(&answer.bytes).expect("a readable answer");
        let from = exchange.from;
        let memory = (from, exchange.to, exchange.caller, Side::Initiator);
        let mut heard = self.remembered(memory);
        let handle = exchange.whole.unwrap_or_else(|| self.nodes[from].begin());
        let standpoint = match exchange.whole {
            Some(_) => Standpoint::BeforeCommit,
            None => Standpoint::AfterCommit,
        };
        let mut session = Session {
            spoken_since: exchange.sent_at,
            ..self.session(from, handle, standpoint)
        };
        let next = exchange.round.receive(&mut session, &mut heard, &message);
        let content = session.digest();
        self.heard.insert(memory, heard);
        if exchange.whole.is_some() {
            self.exchanges.insert(answer.exchange, exchange);
            return self.go_on(answer, next.ok(), content);
        }
        if next.is_err() || self.random.percent(self.faults.roll_back) {
            return self.nodes[from].rollback(handle);
        }
        let committed = self.commit(from, handle);
        self.traffic.writes += u64::from(committed.wrote);
        self.exchanges.insert(answer.exchange, exchange);
        self.go_on(answer, next.ok(), content);
    }

    fn go_on(&mut self, answer: &Answer, next: Option<Next>, content: Digest) {
        let id = answer.exchange;
        let Some(next) = next else {
            return self.fail(id);
        };
        let exchange = self.exchanges.remove(&id).expect("an exchange");
        self.last_converged = exchange.round.converged;
        if exchange.round.converged {
            assert_eq!(content, answer.content, "converged means equal contents");
        }
        if next == Next::Again {
            return self.compose(id, exchange);
        }
        self.traffic.converged += u64::from(exchange.round.converged);
        if exchange.round.has_asked {
            self.asked
                .insert((exchange.from, exchange.to), exchange.round.testimony);
            self.resolve_life(exchange.from);
        }
    }

    /// Delivers one message, or ends one lingering transaction, at random. False when there is none.
    pub fn deliver_one(&mut self) -> bool {
        self.deliveries += 1;
        self.arrive_late();
        let (requests, answers) = (self.requests.len(), self.answers.len());
        let waiting = requests + answers + self.lingering.len();
        if waiting == 0 {
            return false;
        }
        let place = self.random.below(waiting);
        if place < requests {
            let request = self.requests.swap_remove(place);
            self.deliver_request(&request);
        } else if place < requests + answers {
            let answer = self.answers.swap_remove(place - requests);
            self.deliver_answer(&answer);
        } else {
            let response = self.lingering.swap_remove(place - requests - answers);
            self.end_response(response);
        }
        true
    }

    /// Exchanges begun. A round is an exchange that one node begins with another, carried to its end:
    /// done, failed or given up.
    pub fn rounds(&self) -> u64 {
        self.next_exchange
    }

    pub fn deliver_all(&mut self) {
        while self.deliver_one() {}
    }

    /// One exchange by itself; returns its traffic and whether it was judged converged.
    pub fn exchange(&mut self, from: usize, to: usize) -> (Traffic, bool) {
        let before = self.traffic;
        self.begin_exchange(from, to);
        self.deliver_all();
        (self.traffic.since(before), self.last_converged)
    }

    /// One tick of every node, all at once; every message takes the same time.
    pub fn round(&mut self, fanout: usize) {
        for node in 0..self.nodes.len() {
            self.tick(node, fanout);
        }
        while !self.exchanges.is_empty() {
            self.waves += 1;
            for request in std::mem::take(&mut self.requests) {
                self.deliver_request(&request);
            }
            for answer in std::mem::take(&mut self.answers) {
                self.deliver_answer(&answer);
            }
        }
    }

    /// Rounds until all nodes hold the same and know that they hold it completely.
    pub fn rounds_to_converge(&mut self, fanout: usize, limit: u32) -> u32 {
        for round in 1..=limit {
            self.round(fanout);
            if self.agrees() && (self.is_complete() || (self.has_restored && self.is_settled())) {
                return round;
            }
        }
        panic!("not converged after {limit} rounds");
    }

    /// Whether all contents are equal.
    pub fn agrees(&self) -> bool {
        let first = self.nodes[0].digest();
        self.nodes.iter().all(|node| node.digest() == first)
    }

    /// Whether every report is held by all in its newest form. A node that was put back believes nobody
    /// about itself.
    pub fn agrees_on_reports(&self) -> bool {
        let mut newest = BTreeMap::new();
        for (key, report) in self.nodes.iter().flat_map(Node::reports) {
            let known = newest.entry(key).or_insert(report);
            if report.is_newer_than(known) {
                *known = report;
            }
        }
        self.nodes.iter().all(|node| {
            let kept: BTreeMap<_, _> = node.reports().collect();
            newest.iter().all(|(key, report)| {
                kept.get(key) == Some(report) || (self.has_restored && key.1 == node.name)
            })
        })
    }

    /// Whether every node holds the operations that any holds.
    pub fn agrees_on_operations(&self) -> bool {
        let held = |node: &Node| -> BTreeSet<String> {
            let operations = node
                .operations()
                .filter(|operation| !is_doubtful(operation));
            operations
                .map(|operation| operation.op_id.clone() + &operation.origin)
                .collect()
        };
        let all: BTreeSet<String> = self.nodes.iter().flat_map(held).collect();
        self.nodes.iter().all(|node| held(node) == all)
    }

    /// Whether every node is exact and all hold the same.
    pub fn is_complete(&mut self) -> bool {
        let first = self.nodes[0].held().frontier;
        self.nodes.iter_mut().all(|node| {
            let held = node.held();
            held.frontier == first && held.ceiling == first
        })
    }

    /// Whether all say the same, and have finished saying what is their own. What a life that is over
    /// had begun to tell, nobody finishes.
    fn is_settled(&mut self) -> bool {
        let first = self.nodes[0].held();
        self.nodes.iter_mut().all(|node| {
            let held = node.held();
            let own = |clock_of: &[u8]| clock(clock_of).get(node.actor().as_bytes());
            let is_finished = own(&held.frontier) == own(&held.ceiling);
            is_finished
                && (held.frontier, held.ceiling) == (first.frontier.clone(), first.ceiling.clone())
        })
    }

    pub fn open_handles(&self, node: usize) -> Vec<Handle> {
        let is_gossip = |handle: &Handle| {
            self.lingering
                .iter()
                .any(|open| (open.node, open.handle) == (node, *handle))
                || self
                    .exchanges
                    .values()
                    .any(|exchange| exchange.from == node && exchange.whole == Some(*handle))
        };
        let mut handles = self.nodes[node].open_handles();
        handles.retain(|handle| !is_gossip(handle));
        handles
    }
}

impl Traffic {
    pub fn plus(self, other: Self) -> Self {
        Self {
            requests: self.requests + other.requests,
            bytes: self.bytes + other.bytes,
            batches: self.batches + other.batches,
            rows: self.rows + other.rows,
            reports: self.reports + other.reports,
            writes: self.writes + other.writes,
            converged: self.converged + other.converged,
        }
    }

    pub fn since(self, before: Self) -> Self {
        Self {
            requests: self.requests - before.requests,
            bytes: self.bytes - before.bytes,
            batches: self.batches - before.batches,
            rows: self.rows - before.rows,
            reports: self.reports - before.reports,
            writes: self.writes - before.writes,
            converged: self.converged - before.converged,
        }
    }
}
