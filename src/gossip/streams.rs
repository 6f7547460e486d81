//! Streams, in the background: the worker compares what should exist with what does, and sends heartbeats. A slot
//! waits for every open transaction and a subscription for the network, so processes of their own make them, and
//! the worker sees to it that one of each kind runs while there is something to make.

use std::ffi::CStr;
use std::time::{Duration, Instant};

use pgrx::prelude::*;

use super::background::{self, transaction};
use super::control;
use super::helper::{self, Errand, Helper};
use crate::guc;
use crate::spi::Value;

/// How often is looked, however long the interval of gossip.
const LONGEST_UNAWARE: Duration = Duration::from_secs(1);

/// All tables of streams are read each time.
const SHORTEST_PACE: Duration = Duration::from_millis(100);

/// What makes a connection takes less; a peer that swallows it would take minutes.
const LONGEST_CONNECTING: Duration = Duration::from_secs(30);

/// A reader can come back between the end of its connection and that of its slot. Then it waits for a while.
const CLEARINGS: u32 = 5;

const CONSEQUENCE: &str = "Gossip carries what the streams that it is to make would carry.";

const SLOT_MAKER: Errand = Errand {
    name: "pg_test slot maker",
    function: "pg_test_slots_main",
    limit: Duration::MAX,
    delay: Duration::from_secs(2),
    consequence: CONSEQUENCE,
};

const SUBSCRIBER: Errand = Errand {
    name: "pg_test subscriber",
    function: "pg_test_subscriptions_main",
    limit: LONGEST_CONNECTING,
    delay: Duration::from_secs(2),
    consequence: CONSEQUENCE,
};

pub struct Streams {
    slots: Helper,
    subscriptions: Helper,
    pace: Duration,
    last_look: Option<Instant>,
    last_heartbeat: Option<Instant>,
}

impl Streams {
    pub fn new() -> Self {
        Self {
            slots: Helper::new(SLOT_MAKER),
            subscriptions: Helper::new(SUBSCRIBER),
            pace: LONGEST_UNAWARE,
            last_look: None,
            last_heartbeat: None,
        }
    }

    /// When there is something to do again.
    pub fn due(&self) -> Duration {
        let left = |last: Option<Instant>, pace: Duration| {
            last.map_or(Duration::ZERO, |last| pace.saturating_sub(last.elapsed()))
        };
        left(self.last_look, self.pace).min(left(self.last_heartbeat, heartbeat_interval()))
    }

    /// Does what is due. To be called only while the node knows its life.
    pub fn attend(&mut self, gossip_interval: Duration) {
        self.pace = gossip_interval.clamp(SHORTEST_PACE, LONGEST_UNAWARE);
        if self
            .last_heartbeat
            .is_none_or(|last| last.elapsed() >= heartbeat_interval())
        {
            self.last_heartbeat = Some(Instant::now());
            tend(c"SELECT coord.heartbeat_send() > 0");
        }
        if self
            .last_look
            .is_none_or(|last| last.elapsed() >= self.pace)
        {
            self.last_look = Some(Instant::now());
            if tend(c"SELECT coord.stream_tend_offers()") {
                self.slots.start();
            }
            tend(c"SELECT coord.stream_tend_slots() > 0");
            if tend(c"SELECT coord.stream_tend_sources()") {
                self.subscriptions.start();
            }
            self.subscriptions.end_if_stuck();
        }
    }

    /// The extension was dropped: what it had made and does not belong to it goes too. Returns whether all of
    /// that is gone.
    pub fn clear(&mut self) -> bool {
        self.last_look = None;
        for _ in 0..CLEARINGS {
            let cleared = transaction(|spi| {
                spi.write(CLEAR, &[]);
                Ok(())
            });
            match cleared {
                Ok(()) => return true,
                Err(reason) => pgrx::log!("pg_test: could not remove the streams: {reason}"),
            }
        }
        false
    }
}

const CLEAR: &CStr = c"
    DO $$
    DECLARE
      name text;
    BEGIN
      FOR name IN SELECT p.pubname FROM pg_catalog.pg_publication p WHERE p.pubname LIKE 'coord\\_stream\\_%' LOOP
        EXECUTE format('DROP PUBLICATION %I', name);
      END LOOP;
      FOR name IN SELECT s.subname FROM pg_catalog.pg_subscription s
                   WHERE s.subdbid = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = current_database())
                     AND s.subname ~ '^coord_.+_[0-9a-f]{8}$' LOOP
        EXECUTE format('ALTER SUBSCRIPTION %I DISABLE', name);
        EXECUTE format('ALTER SUBSCRIPTION %I SET (slot_name = NONE)', name);
        EXECUTE format('DROP SUBSCRIPTION %I', name);
      END LOOP;
      PERFORM pg_terminate_backend(r.active_pid, 1000), pg_drop_replication_slot(r.slot_name)
         FROM pg_catalog.pg_replication_slots r
        WHERE r.database = current_database() AND r.slot_name ~ '^coord_.+_[0-9a-f]{8}$';
    END
    $$";

/// Runs one of the functions that compare; what it returns says whether there is more to do.
fn tend(task: &'static CStr) -> bool {
    background::ask(c"stream_offer", task, "the streams").unwrap_or(false)
}

fn heartbeat_interval() -> Duration {
    Duration::from_millis(guc::HEARTBEAT_INTERVAL.get().unsigned_abs().into())
}

#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn pg_test_slots_main(argument: pg_sys::Datum) {
    // SAFETY: the start of a new process.
    unsafe { helper::connect(argument) };
    let note = c"UPDATE coord.stream_offer SET reason = $2 WHERE slot = $1";
    let missing = c"SELECT slot FROM coord.stream_slot_missing ORDER BY slot";
    make_each(missing, c"SELECT coord.stream_slot_create($1)", note);
    // A transaction that makes a slot writes nothing else.
    make_each(missing, c"SELECT coord.stream_slot_made($1)", note);
    control::wake_own_worker();
}

#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn pg_test_subscriptions_main(argument: pg_sys::Datum) {
    // SAFETY: the start of a new process.
    unsafe { helper::connect(argument) };
    let note = c"UPDATE coord.stream_source SET failure = $2 WHERE slot = $1";
    // In any order: one that hangs is ended, and is not to be the first again.
    let left_over = c"SELECT subscription FROM coord.stream_orphan ORDER BY random()";
    make_each(left_over, c"SELECT coord.stream_unsubscribe($1)", note);
    let missing = c"SELECT slot FROM coord.stream_missing ORDER BY random()";
    make_each(missing, c"SELECT coord.stream_subscribe($1)", note);
}

/// Does a task for each name that a query gives. What fails is noted, and tried again by the next process.
fn make_each(names: &'static CStr, task: &'static CStr, note: &'static CStr) {
    for (name, reason) in helper::do_each(names, task) {
        let noted = transaction(|spi| {
            let arguments = [Value::Text(Some(&name)), Value::Text(Some(&reason))];
            spi.write(note, &arguments);
            Ok(())
        });
        noted.unwrap_or_else(helper::give_up);
    }
}
