//! Nodes that crash, are put back, and find out in which life they are.

use super::super::node::{Change, Handle, Node};
use super::{Lingering, Mesh, Parcel, Request};
use crate::node::incarnation::Testimony;

impl Mesh {
    /// Puts a node back to an earlier copy.
    ///
    /// What it has told arrives before, or once it knows its life again, when it is too late. So it is
    /// known what the others have of it. Whatever others say to it or to each other stays on its way.
    pub fn restore(&mut self, node: usize, copy: Node) {
        self.end_what_was_told_by(node);
        self.put_back(node, copy);
    }

    /// Puts a node back while others may have open transactions in which they have heard it.
    pub fn put_back(&mut self, node: usize, copy: Node) {
        self.crash(node);
        self.has_restored = true;
        self.nodes[node].restore(copy);
        self.forget_what_nobody_knows(node);
    }

    fn end_what_was_told_by(&mut self, node: usize) {
        for request in self.take_requests(|request| request.from == node) {
            if self.random.percent(50) {
                self.deliver_request(&request);
            } else {
                self.overtake(request);
            }
        }
        for answer in self.take_answers(|answer| answer.from == node) {
            if self.random.percent(50) {
                self.deliver_answer(&answer);
            } else {
                self.fail(answer.exchange);
            }
        }
        let name = self.nodes[node].name.clone();
        for place in (0..self.nodes.len()).filter(|place| *place != node) {
            for handle in self.nodes[place].handles_that_heard(&name) {
                self.end_transaction(place, handle);
            }
        }
    }

    fn overtake(&mut self, request: Request) {
        self.overtaken.push(Request {
            is_copy: true,
            ..request
        });
    }

    /// Whatever a node has asked comes after it was put back and knows its life again.
    pub fn overtake_all_of(&mut self, node: usize) {
        for request in self.take_requests(|request| request.from == node) {
            self.overtake(request);
        }
    }

    /// Ends an open transaction, that of a responder or of a session.
    fn end_transaction(&mut self, node: usize, handle: Handle) {
        let is_it = |open: &Lingering| (open.node, open.handle) == (node, handle);
        if let Some(place) = self.lingering.iter().position(is_it) {
            let response = self.lingering.swap_remove(place);
            return self.end_response(response);
        }
        self.exchanges
            .retain(|_, exchange| (exchange.from, exchange.whole) != (node, Some(handle)));
        self.commit(node, handle);
    }

    fn forget_what_nobody_knows(&mut self, restored: usize) {
        let before = self.nodes.clone();
        let is_known = |change: &Change| before.iter().any(|node| node.has_heard(change));
        for node in &mut self.nodes {
            node.forget_changes(is_known);
        }
        self.nodes[restored].forget_when_it_removed();
        self.ledger.forget_what_nobody_knows(&self.nodes);
    }

    /// The peers decide once all have answered. A node that asks only some may be told less than is
    /// known.
    pub(super) fn resolve_life(&mut self, node: usize) {
        let peers = (0..self.nodes.len()).filter(|peer| *peer != node);
        let answers: Option<Vec<_>> = peers.map(|peer| self.asked.get(&(node, peer))).collect();
        let Some(answers) = answers.filter(|_| !self.nodes[node].is_confirmed) else {
            return;
        };
        let testimonies: Vec<Testimony> = answers.into_iter().flatten().cloned().collect();
        let actor = self.nodes[node].actor();
        if let Some(committed) = self.nodes[node].resolve_life(&testimonies) {
            // What the node was told before is about another life.
            self.heard.retain(|memory, _| memory.0 != node);
            if self.is_checked {
                self.check_changes(node, &committed);
                self.check_node(node);
            }
            self.deliver_overtaken(node, &actor);
        }
        self.asked.retain(|(asker, _), _| *asker != node);
    }

    /// To a life that goes on they are a danger. What belongs to one that is over may come or not; it
    /// does not here, so that it is known what the others have of it.
    fn deliver_overtaken(&mut self, node: usize, actor: &str) {
        let late: Vec<Request> = (self.overtaken)
            .extract_if(.., |request| request.from == node)
            .collect();
        if self.nodes[node].actor() != actor {
            return;
        }
        for request in late {
            self.deliver_request(&request);
        }
    }

    pub fn crash(&mut self, node: usize) {
        self.nodes[node].crash();
        self.overtaken.retain(|request| request.to != node);
        self.asked.retain(|(asker, _), _| *asker != node);
        self.heard.retain(|memory, _| memory.0 != node);
        self.exchanges.retain(|_, exchange| exchange.from != node);
        let (gone, lingering) = std::mem::take(&mut self.lingering)
            .into_iter()
            .partition(|open| open.node == node);
        self.lingering = lingering;
        let gone: Vec<Lingering> = gone;
        for open in gone {
            self.fail_unless_copy(open.answer.exchange, open.is_copy);
        }
        self.lose_connections_to(node);
    }

    /// A request that had a connection is lost with it; one that had none yet finds the next server.
    fn lose_connections_to(&mut self, node: usize) {
        for request in self.take_requests(|request| request.to == node) {
            if self.random.percent(50) {
                self.fail_unless_copy(request.exchange, request.is_copy);
            } else {
                self.send(Parcel::Request(request));
            }
        }
    }
}
