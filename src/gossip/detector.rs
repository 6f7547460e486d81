//! Runs the failure detector on what shared memory has of the peers of this database.
//!
//! Every session that answers a peer hears heartbeats; the worker counts its own and judges.

use std::sync::atomic::Ordering;

use super::control;
use super::statistics::{Contact, all_contacts, contact, with_all_contacts, with_contact};
use crate::clock::vclock::{self, MAX_COUNTER, Vclock};
use crate::error::Result;
use crate::guc;
use crate::node::detector::{Heartbeats, Liveness, Pulse, SelfDoubt};
use crate::process;

/// A peer's standing has changed.
pub struct Change {
    pub peer: String,
    pub from: Liveness,
    pub to: Liveness,
    pub phi: f64,
    pub reason: String,
}

fn own_database() -> Option<&'static control::Database> {
    control::known_database(process::own_database())
}

/// Microseconds of a clock that all processes share, that never steps, and that stands still while
/// the worker does not get to run.
fn awake_now(database: &control::Database) -> i64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes the value above. This clock always exists on the systems PostgreSQL runs on.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec * 1_000_000 + time.tv_nsec / 1_000 - database.stalled.load(Ordering::Acquire)
}

fn own_doubt(database: &control::Database) -> SelfDoubt {
    SelfDoubt::from_score(database.doubt.load(Ordering::Acquire))
}

fn own_interval() -> i64 {
    i64::from(guc::GOSSIP_INTERVAL.get()) * 1_000
}

/// Counts a tick of the worker's timer.
pub fn beat(database: &control::Database) {
    let _ = database
        .heartbeat
        .fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| {
            (count < MAX_COUNTER).then_some(count + 1)
        });
}

/// What a message of this node says of who is alive.
pub fn heartbeats(own_name: &str) -> Result<Heartbeats> {
    let count = own_database().map_or(0, |database| database.heartbeat.load(Ordering::Acquire));
    if count == 0 {
        return Ok(Heartbeats::default());
    }
    let heard: Vec<(String, u64)> = all_contacts()
        .iter()
        .filter_map(|contact| Some((contact.peer.text(), contact.pulse?.count)))
        .collect();
    let heard = heard.iter().map(|(peer, count)| (peer.as_str(), *count));
    Ok(Heartbeats {
        interval_milliseconds: guc::GOSSIP_INTERVAL.get().unsigned_abs().into(),
        counts: vclock::from_entries(heard.chain([(own_name, count)]))?,
    })
}

/// More digits than these mean nothing.
fn shown(phi: f64) -> f64 {
    (phi * 100.0).round() / 100.0
}

/// Takes in what a peer's message says. The peer itself is alive; of the others a count that has risen
/// since says so.
pub fn hear(own_name: &str, peer: &str, heartbeats: &Heartbeats) -> Result<()> {
    let Some(database) = own_database() else {
        return Ok(());
    };
    let counts = Vclock::parse(&heartbeats.counts)?;
    // A server that was started again counts on from what others have heard.
    let own = counts.get(own_name.as_bytes());
    database.heartbeat.fetch_max(own, Ordering::AcqRel);
    let (now, threshold) = (awake_now(database), guc::PHI_THRESHOLD.get());
    with_all_contacts(|contact| {
        if let Some(pulse) = &mut contact.pulse {
            let name = contact.peer.bytes();
            pulse.hear_count(now, counts.get(name), threshold);
            if name == peer.as_bytes() {
                pulse.hear_message(now, heartbeats.interval_milliseconds, own_interval());
            }
        }
    });
    Ok(())
}

/// Notes that the worker looks `late` microseconds after it meant to.
pub fn note_lateness(database: &control::Database, late: i64) {
    let (doubt, stalled) = own_doubt(database).after_look(late, own_interval());
    database.doubt.store(doubt.score(), Ordering::Release);
    database.stalled.fetch_add(stalled, Ordering::AcqRel);
}

/// Judges the peers of the given names, and returns what has changed.
pub fn judge<'n>(
    database: &control::Database,
    peers: impl Iterator<Item = &'n String>,
) -> Vec<Change> {
    let (now, doubt) = (awake_now(database), own_doubt(database));
    let mut changes = Vec::new();
    for peer in peers {
        with_contact(peer, |contact| {
            let pulse = contact
                .pulse
                .get_or_insert_with(|| Pulse::expected(now, own_interval()));
            let to = pulse.judge(now, doubt, guc::PHI_THRESHOLD.get());
            let from = std::mem::replace(&mut contact.liveness, to);
            if from != to {
                changes.push(Change {
                    peer: peer.clone(),
                    from,
                    to,
                    phi: shown(pulse.phi(now, doubt)),
                    reason: pulse.reason(now),
                });
            }
        });
    }
    changes
}

/// What a peer was last judged to be.
pub fn liveness(peer: &str) -> Liveness {
    contact(peer).map_or(Liveness::Unknown, |contact| contact.liveness)
}

/// Who is not a peer any more is not watched either.
pub fn forget(peer: &str) {
    with_contact(peer, |contact| {
        contact.pulse = None;
        contact.liveness = Liveness::Unknown;
    });
}

/// The peers that are watched, in the order of `coord.peer_liveness`; none while no worker judges them.
pub fn rows() -> Vec<(String, &'static str, f64, String)> {
    let Some(database) = own_database().filter(|database| database.has_worker()) else {
        return Vec::new();
    };
    let (now, doubt) = (awake_now(database), own_doubt(database));
    let row = |contact: &Contact| {
        let pulse = contact.pulse?;
        Some((
            contact.peer.text(),
            contact.liveness.name(),
            shown(pulse.phi(now, doubt)),
            pulse.reason(now),
        ))
    };
    all_contacts().iter().filter_map(row).collect()
}
