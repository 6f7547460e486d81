//! A mesh in one process: the rules of gossip under loss, duplication, reordering, partition and
//! crashes, from a seed. The same seed is the same run.

mod detector;
mod ledger;
mod links;
mod mesh;
mod node;
mod scale;
mod scenario;

use mesh::Mesh;
use node::Operation::{Add, Satisfy};

use crate::node::incarnation::SILENCE_MILLISECONDS;

const EVERYBODY: usize = usize::MAX;

/// Every exchange is one request and one answer without a batch, and nothing is written.
fn assert_idle(mesh: &mut Mesh) {
    for (from, to) in pairs(mesh.nodes.len()) {
        let (traffic, converged) = mesh.exchange(from, to);
        assert!(converged, "n{from} and n{to} agree");
        assert_eq!(
            (traffic.requests, traffic.batches, traffic.writes),
            (1, 0, 0),
            "n{from} to n{to}"
        );
    }
}

fn pairs(size: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..size).flat_map(move |from| {
        (0..size)
            .filter(move |to| *to != from)
            .map(move |to| (from, to))
    })
}

/// A node records `n` checks of a state that held.
fn record(mesh: &mut Mesh, node: usize, name: &str, n: i64) {
    assert!(mesh.change(node, name, Satisfy(n)));
}

fn total(mesh: &Mesh, node: usize, name: &str) -> u128 {
    let value = mesh.nodes[node].value(name);
    value.map_or(0, |value| node::parsed(value).satisfied_total())
}

/// A mesh in which every node has its state, all know all and all is quiet.
fn settled(size: usize, states: usize) -> Mesh {
    let mut mesh = Mesh::new(size, 1);
    for state in 0..states {
        record(&mut mesh, state % size, &format!("s{state:04}"), 1);
    }
    settle(&mut mesh);
    mesh
}

fn settle(mesh: &mut Mesh) {
    mesh.rounds_to_converge(EVERYBODY, 6);
    mesh.round(EVERYBODY);
    assert_idle(mesh);
}

#[test]
fn empty_nodes_agree_in_their_first_exchange() {
    let mut mesh = Mesh::new(2, 1);
    let (traffic, converged) = mesh.exchange(0, 1);
    assert!(converged);
    assert_eq!((traffic.requests, traffic.batches), (1, 0));
}

#[test]
fn counts_add_up() {
    let mut mesh = Mesh::new(2, 1);
    for _ in 0..100 {
        record(&mut mesh, 0, "s", 1);
        record(&mut mesh, 1, "s", 1);
    }
    assert!(!mesh.agrees());
    let (traffic, converged) = mesh.exchange(0, 1);
    assert!(converged);
    assert_eq!((total(&mesh, 0, "s"), total(&mesh, 1, "s")), (200, 200));
    // Hello and what the other holds; what this node holds; that it has arrived.
    assert!(traffic.requests <= 3, "{traffic:?}");
    settle(&mut mesh);
    mesh.check_end();
}

#[test]
fn one_node_relays_between_two_that_are_cut_off() {
    let mut mesh = Mesh::new(3, 1);
    mesh.links.cut(0, 1);
    record(&mut mesh, 0, "s", 1);
    record(&mut mesh, 1, "s", 2);
    record(&mut mesh, 2, "t", 4);
    for _ in 0..3 {
        mesh.exchange(2, 0);
        mesh.exchange(2, 1);
    }
    assert!(mesh.agrees() && mesh.is_complete());
    assert_eq!(total(&mesh, 0, "s"), 3);
    // What the two hold reached them by the third: there is nothing to give when they meet.
    mesh.links.heal();
    let (traffic, converged) = mesh.exchange(0, 1);
    assert!(converged);
    assert_eq!((traffic.requests, traffic.batches), (1, 0));
}

/// A node grants, renews or ends a lease.
fn change_lease(mesh: &mut Mesh, node: usize, resource: &str) {
    let handle = mesh.nodes[node].begin();
    mesh.nodes[node].change_lease(handle, resource);
    mesh.commit(node, handle);
}

#[test]
fn reports_of_leases_are_passed_on() {
    let mut mesh = settled(3, 3);
    mesh.links.cut(0, 1);
    for resource in ["r0", "r1", "r0"] {
        change_lease(&mut mesh, 0, resource);
    }
    mesh.exchange(2, 0);
    mesh.exchange(2, 1);
    assert!(mesh.agrees_on_reports());
    // A lease that is known from elsewhere is granted above it, and both are known.
    change_lease(&mut mesh, 1, "r0");
    let epochs: Vec<i64> = mesh.nodes[1]
        .reports()
        .map(|(_, report)| report.epoch)
        .collect();
    assert_eq!(epochs, [1, 2, 1]);
    mesh.links.heal();
    // From the beginning all is given, and given back once.
    mesh.round(EVERYBODY);
    mesh.round(EVERYBODY);
    settle(&mut mesh);
    assert!(mesh.agrees_on_reports());
}

#[test]
fn many_reports_go_in_parts_and_once() {
    let mut mesh = settled(2, 1);
    change_lease(&mut mesh, 0, "first");
    mesh.round(EVERYBODY);
    settle(&mut mesh);
    mesh.nodes[0].limit = 2;
    for resource in 0..9 {
        change_lease(&mut mesh, 0, &format!("r{resource}"));
    }
    let (traffic, _) = mesh.exchange(1, 0);
    assert!(mesh.agrees_on_reports());
    assert_eq!(traffic.reports, 9);
    settle(&mut mesh);
    // One of nine is renewed.
    change_lease(&mut mesh, 0, "r4");
    let (traffic, _) = mesh.exchange(0, 1);
    assert!(mesh.agrees_on_reports());
    assert_eq!((traffic.reports, traffic.requests), (1, 1));
}

#[test]
fn windows_go_on_while_rows_change() {
    let mut mesh = Mesh::new(2, 1);
    mesh.nodes[0].limit = 2;
    for state in 0..20 {
        record(&mut mesh, 0, &format!("s{state:02}"), 1);
    }
    let open = mesh.nodes[0].begin();
    mesh.nodes[0].write(open, "s03", Satisfy(1));
    mesh.begin_exchange(1, 0);
    let mut delivered = 0;
    while mesh.deliver_one() {
        delivered += 1;
        // Rows that were given, are still to come, or change between two batches of theirs.
        if delivered <= 20 {
            record(&mut mesh, 0, &format!("s{:02}", delivered * 7 % 20), 1);
        }
        if delivered == 8 {
            mesh.commit(0, open);
        }
    }
    settle(&mut mesh);
    mesh.check_end();
}

#[test]
fn an_open_transaction_delays_what_is_called_complete_and_nothing_else() {
    let mut mesh = settled(3, 6);
    let open = mesh.nodes[0].begin();
    mesh.nodes[0].write(open, "open", Satisfy(1));
    for state in 0..6 {
        record(&mut mesh, state % 3, &format!("s{state:04}"), 1);
    }
    for _ in 0..3 {
        mesh.round(EVERYBODY);
    }
    assert!(mesh.agrees() && !mesh.is_complete());
    for (from, to) in pairs(3) {
        let (traffic, converged) = mesh.exchange(from, to);
        // Who still has something under way is converged with nobody; the others hold the same.
        assert_eq!(converged, from != 0 && to != 0, "n{from} and n{to}");
        assert_eq!(
            (traffic.requests, traffic.batches, traffic.writes),
            (1, 0, 0),
            "n{from} to n{to}"
        );
    }
    // Another change is given once, not with all that came before it.
    record(&mut mesh, 0, "s0000", 1);
    let before = mesh.traffic;
    for _ in 0..4 {
        mesh.round(EVERYBODY);
    }
    let traffic = mesh.traffic.since(before);
    assert!(mesh.agrees());
    assert!(traffic.rows <= 8, "{traffic:?}");
    mesh.commit(0, open);
    settle(&mut mesh);
    mesh.check_end();
}

#[test]
fn learned_rows_are_not_sent_back() {
    let mut mesh = Mesh::new(2, 1);
    for state in 0..10 {
        record(&mut mesh, 0, &format!("s{state}"), 1);
    }
    for _ in 0..3 {
        mesh.exchange(0, 1);
        mesh.exchange(1, 0);
    }
    assert!(mesh.is_complete());
    assert_eq!(mesh.traffic.rows, 10);
}

#[test]
fn a_peer_that_moved_on_is_not_given_everything_from_memory() {
    let mut mesh = Mesh::new(2, 1);
    // The caller hears that the peer has been given nothing, and is not told when that changes.
    mesh.exchange(0, 1);
    for state in 0..10 {
        record(&mut mesh, 0, &format!("s{state}"), 1);
    }
    mesh.exchange(1, 0);
    record(&mut mesh, 0, "s3", 1);
    let (traffic, converged) = mesh.exchange(0, 1);
    assert!(converged);
    assert_eq!(traffic.rows, 1);
}

#[test]
fn a_peer_with_an_open_transaction_goes_on_from_where_it_covered() {
    let mut mesh = settled(3, 6);
    let open = mesh.nodes[1].begin();
    mesh.nodes[1].write(open, "open", Satisfy(1));
    record(&mut mesh, 1, "s0001", 1);
    record(&mut mesh, 2, "s0002", 1);
    // The first two hold all of the third without each other's help, and the first sees that.
    for _ in 0..2 {
        mesh.exchange(2, 0);
        mesh.exchange(2, 1);
    }
    mesh.exchange(0, 1);
    record(&mut mesh, 0, "s0000", 1);
    let (traffic, _) = mesh.exchange(0, 1);
    assert_eq!(traffic.rows, 1);
    let (traffic, _) = mesh.exchange(0, 1);
    assert_eq!(
        (traffic.requests, traffic.batches, traffic.writes),
        (1, 0, 0)
    );
    mesh.commit(1, open);
    settle(&mut mesh);
    mesh.check_end();
}

#[test]
fn a_late_joiner_gets_everything() {
    let mut mesh = Mesh::new(4, 1);
    for node in &mut mesh.nodes {
        node.limit = 3;
    }
    for other in 0..3 {
        mesh.links.cut(other, 3);
        record(&mut mesh, other, &format!("s{other}"), 1);
    }
    for state in 0..20 {
        record(&mut mesh, state % 3, &format!("t{state}"), 1);
    }
    mesh.round(EVERYBODY);
    mesh.round(EVERYBODY);
    record(&mut mesh, 3, "s0", 1);
    mesh.links.heal();
    let (_, converged) = mesh.exchange(3, 0);
    assert!(converged);
    settle(&mut mesh);
    mesh.check_end();
}

/// Drops a constraint from a state on one node behind the rules' back: nothing that they have
/// written down tells of it but the digest.
fn corrupt(mesh: &mut Mesh, node: usize, name: &str) {
    let value = mesh.nodes[node].value(name).expect("a state");
    let removed =
        crate::crdt::constraint_state::remove(node::parsed(value), "zone").expect("a removal");
    assert_ne!(removed, value);
    mesh.nodes[node].corrupt(name, removed);
    mesh.allows_mistrust = true;
    mesh.is_checked = false;
}

fn mistrusted(mesh: &Mesh) -> Vec<u64> {
    mesh.nodes.iter().map(node::Node::mistrusted).collect()
}

#[test]
fn a_corrupted_content_is_found_and_repaired() {
    for (size, limit) in [(2, node::NO_LIMIT), (2, 2), (4, node::NO_LIMIT), (4, 3)] {
        let mut mesh = settled(size, 20);
        for state in 0..20 {
            mesh.change(0, &format!("s{state:04}"), Add("zone"));
        }
        settle(&mut mesh);
        for node in &mut mesh.nodes {
            node.limit = limit;
        }
        // The last state, which comes with the last of the batches; and again, once repaired.
        for (times, state) in [(1, "s0019"), (2, "s0007")] {
            corrupt(&mut mesh, 1, state);
            let before = mistrusted(&mesh);
            mesh.exchange(0, 1);
            let counted = [
                mistrusted(&mesh)[0] - before[0],
                mistrusted(&mesh)[1] - before[1],
            ];
            assert_eq!(counted, [1, 1], "size {size}, limit {limit}");
            settle(&mut mesh);
            // Once per pair, or twice where both had begun an exchange.
            let bound = times * 2 * (size as u64 - 1);
            assert!(
                mistrusted(&mesh).iter().all(|count| *count <= bound),
                "{:?}",
                mistrusted(&mesh)
            );
        }
    }
}

#[test]
fn a_refused_row_is_not_sent_over_and_over() {
    let mut mesh = Mesh::new(2, 1);
    for state in 0..10 {
        record(&mut mesh, 0, &format!("s{state}"), 1);
    }
    mesh.nodes[0].limit = 4;
    mesh.nodes[1].refused = Some("s2");
    for (from, to) in [(0, 1), (1, 0), (0, 1), (1, 0)] {
        let (traffic, converged) = mesh.exchange(from, to);
        assert!(!converged && traffic.requests <= 3, "{traffic:?}");
    }
    mesh.nodes[1].refused = None;
    settle(&mut mesh);
    mesh.check_end();
}

#[test]
fn a_round_within_one_transaction_goes_both_ways() {
    for (limit, commits) in [
        (node::NO_LIMIT, true),
        (3, true),
        (node::NO_LIMIT, false),
        (3, false),
    ] {
        let mut mesh = Mesh::new(2, 1);
        for node in &mut mesh.nodes {
            node.limit = limit;
        }
        for state in 0..10 {
            record(&mut mesh, 0, &format!("s{state}"), 100);
            record(&mut mesh, 1, &format!("s{state}"), 100);
        }
        let handle = mesh.nodes[0].begin();
        mesh.begin_user_exchange(0, 1, handle);
        mesh.deliver_all();
        assert_eq!(total(&mesh, 1, "s9"), 200, "limit {limit}");
        if commits {
            mesh.commit(0, handle);
            assert_eq!(total(&mesh, 0, "s9"), 200, "limit {limit}");
        } else {
            mesh.nodes[0].rollback(handle);
            assert_eq!(total(&mesh, 0, "s9"), 100, "limit {limit}");
        }
        settle(&mut mesh);
        mesh.check_end();
    }
}

#[test]
fn a_round_within_a_transaction_that_has_written_tells_nothing_of_it() {
    let mut mesh = Mesh::new(2, 1);
    record(&mut mesh, 0, "s", 1);
    record(&mut mesh, 1, "s", 2);
    let handle = mesh.nodes[0].begin();
    mesh.nodes[0].write(handle, "s", Satisfy(10));
    mesh.begin_user_exchange(0, 1, handle);
    mesh.deliver_all();
    assert_eq!(total(&mesh, 1, "s"), 2);
    mesh.commit(0, handle);
    assert_eq!(total(&mesh, 0, "s"), 13);
    settle(&mut mesh);
    mesh.check_end();
}

#[test]
fn a_message_that_comes_late_does_not_hide_how_far_its_sender_was() {
    let mut mesh = Mesh::new(2, 1);
    record(&mut mesh, 0, "own", 1);
    let copy = mesh.nodes[0].clone();
    // Its sender waits no longer for it, and says more in a later one.
    mesh.faults.delay = 100;
    mesh.begin_exchange(0, 1);
    mesh.give_up_one();
    mesh.faults.delay = 0;
    record(&mut mesh, 1, "learned", 1);
    mesh.round(EVERYBODY);
    mesh.round(EVERYBODY);
    mesh.deliver_all();
    // Nobody knows of a later change of its own. That it held more shows by its log alone.
    mesh.restore(0, copy);
    mesh.round(EVERYBODY);
    assert_eq!(mesh.nodes[0].actor(), "n0#2");
    record(&mut mesh, 0, "later", 1);
    mesh.rounds_to_converge(EVERYBODY, 6);
    mesh.check_end();
}

#[test]
fn a_restored_node_grants_no_epoch_again_that_it_granted_above_hearsay() {
    let mut mesh = Mesh::new(3, 1);
    record(&mut mesh, 1, "own", 1);
    let copy = mesh.nodes[1].clone();
    change_lease(&mut mesh, 1, "other");
    mesh.round(EVERYBODY);
    mesh.restore(1, copy);
    mesh.round(EVERYBODY);
    assert_eq!(mesh.nodes[1].actor(), "n1#2");
    // Another node has heard of an epoch of life 2, and grants above it in its life 1.
    let copy = mesh.nodes[0].clone();
    change_lease(&mut mesh, 1, "r");
    mesh.exchange(1, 0);
    change_lease(&mut mesh, 0, "r");
    mesh.exchange(0, 2);
    // This grant nobody hears of.
    change_lease(&mut mesh, 0, "r");
    change_lease(&mut mesh, 0, "r");
    mesh.restore(0, copy);
    mesh.round(EVERYBODY);
    mesh.round(EVERYBODY);
    assert_eq!(mesh.nodes[0].actor(), "n0#3");
    // Asserts that no epoch is granted twice.
    change_lease(&mut mesh, 0, "r");
    mesh.round(EVERYBODY);
    mesh.round(EVERYBODY);
    assert!(mesh.agrees_on_reports());
}

#[test]
fn a_restored_node_is_told_again_what_it_knew_even_from_whom_it_came() {
    // In a line: what the middle has lost comes back from one end, though it came from the middle.
    let mut mesh = settled(3, 3);
    mesh.links.cut(0, 2);
    let copy = mesh.nodes[1].clone();
    change_lease(&mut mesh, 0, "r");
    mesh.exchange(0, 1);
    mesh.exchange(1, 2);
    record(&mut mesh, 1, "own", 1);
    mesh.exchange(1, 2);
    mesh.restore(1, copy);
    // Both say which life it is in; then one end is gone.
    mesh.exchange(1, 0);
    mesh.exchange(1, 2);
    assert_eq!(mesh.nodes[1].actor(), "n1#2");
    mesh.links.cut(0, 1);
    for _ in 0..3 {
        mesh.round(EVERYBODY);
    }
    assert!(mesh.agrees_on_reports());
}

#[test]
fn a_request_that_was_overtaken_by_a_restore_is_refused() {
    let mut mesh = Mesh::new(2, 1);
    record(&mut mesh, 0, "own", 1);
    mesh.round(EVERYBODY);
    mesh.round(EVERYBODY);
    let copy = mesh.nodes[0].clone();
    record(&mut mesh, 0, "lost", 1);
    mesh.begin_exchange(0, 1);
    mesh.overtake_all_of(0);
    mesh.put_back(0, copy);
    // Nobody knows that there was more, so the life goes on, and with it its transaction numbers.
    mesh.round(EVERYBODY);
    assert_eq!(mesh.nodes[0].actor(), "n0");
    assert_eq!(total(&mesh, 1, "lost"), 0);
    record(&mut mesh, 0, "later", 1);
    mesh.rounds_to_converge(EVERYBODY, 6);
    assert_eq!(total(&mesh, 1, "later"), 1);
    mesh.satisfied.remove("lost");
    mesh.check_end();
}

#[test]
fn an_open_transaction_that_heard_a_node_tells_it_of_its_past() {
    let mut mesh = Mesh::new(2, 1);
    record(&mut mesh, 0, "own", 1);
    let copy = mesh.nodes[0].clone();
    record(&mut mesh, 0, "lost", 1);
    let open = mesh.nodes[1].begin();
    mesh.begin_user_exchange(1, 0, open);
    mesh.deliver_all();
    // What the transaction has stored nobody sees yet, and it may still commit.
    mesh.put_back(0, copy);
    mesh.round(EVERYBODY);
    assert_eq!(mesh.nodes[0].actor(), "n0#2");
    record(&mut mesh, 0, "later", 1);
    mesh.commit(1, open);
    mesh.rounds_to_converge(EVERYBODY, 6);
    for node in 0..2 {
        let totals = ["own", "lost", "later"].map(|name| total(&mesh, node, name));
        assert_eq!(totals, [1, 1, 1], "n{node}");
    }
}

#[test]
fn a_moved_node_waits_until_its_old_life_is_silent() {
    let mut mesh = settled(3, 3);
    let copy = mesh.nodes[0].clone();
    mesh.nodes[0].move_elsewhere();
    mesh.restore(0, copy);
    mesh.pass_time(SILENCE_MILLISECONDS - 1);
    mesh.round(EVERYBODY);
    assert!(!mesh.nodes[0].is_confirmed, "its old life may go on");
    mesh.pass_time(1);
    mesh.round(EVERYBODY);
    assert_eq!(mesh.nodes[0].actor(), "n0#2");
    mesh.rounds_to_converge(EVERYBODY, 6);
    mesh.check_end();
}
