//! Streams, in the background: the worker compares what should exist with what does, and sends heartbeats. A slot
//! waits for every open transaction and a subscription for the network, so processes of their own make them, and
//! the worker sees to it that one of each kind runs while there is something to make.

use std::ffi::CStr;
use std::time::{Duration, Instant};

use pgrx::prelude::*;
use pgrx::{FromDatum, pg_sys};

use super::background::{self, Process, transaction};
use super::control;
use crate::spi::Value;
use crate::{guc, heap, process};

/// How often is looked, however long the interval of gossip.
const LONGEST_UNAWARE: Duration = Duration::from_secs(1);

/// All tables of streams are read each time.
const SHORTEST_PACE: Duration = Duration::from_millis(100);

/// After a process that could not make all that was missing.
const DELAY: Duration = Duration::from_secs(2);

/// What makes a connection takes less; a peer that swallows it would take minutes.
const LONGEST_CONNECTING: Duration = Duration::from_secs(30);

/// A reader can come back between the end of its connection and that of its slot. Then it waits for a while.
const CLEARINGS: u32 = 5;

/// A kind of process.
struct Maker {
    name: &'static str,
    function: &'static str,
    /// How long it may run.
    limit: Duration,
    running: Option<(Process, Instant)>,
    /// It was said that there is no slot for it.
    has_warned: bool,
    not_before: Option<Instant>,
}

pub struct Streams {
    slots: Maker,
    subscriptions: Maker,
    pace: Duration,
    last_look: Option<Instant>,
    last_heartbeat: Option<Instant>,
}

impl Streams {
    pub fn new() -> Self {
        Self {
            slots: Maker::new("pg_test slot maker", "pg_test_slots_main", Duration::MAX),
            subscriptions: Maker::new(
                "pg_test subscriber",
                "pg_test_subscriptions_main",
                LONGEST_CONNECTING,
            ),
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
    let done = transaction(|spi| {
        // An extension of an earlier version has no streams.
        if !heap::is_there(c"stream_offer") {
            return Ok(false);
        }
        Ok(spi.write(task, &[]).get(0, 0).unwrap_or(false))
    });
    done.unwrap_or_else(|reason| {
        pgrx::log!("pg_test: could not tend the streams: {reason}");
        false
    })
}

fn heartbeat_interval() -> Duration {
    Duration::from_millis(guc::HEARTBEAT_INTERVAL.get().unsigned_abs().into())
}

impl Maker {
    const fn new(name: &'static str, function: &'static str, limit: Duration) -> Self {
        Self {
            name,
            function,
            limit,
            running: None,
            has_warned: false,
            not_before: None,
        }
    }

    fn start(&mut self) {
        let now = Instant::now();
        if self.is_running() || self.not_before.is_some_and(|moment| moment > now) {
            return;
        }
        self.not_before = Some(now + DELAY);
        self.running = Process::start(self.name, self.function, process::own_database())
            .map(|process| (process, now));
        if self.running.is_some() {
            self.has_warned = false;
        } else if !std::mem::replace(&mut self.has_warned, true) {
            background::warn_of_missing_slot(
                &format!("a {}", self.name),
                "Gossip carries what the streams that it is to make would carry.",
            );
        }
    }

    fn is_running(&mut self) -> bool {
        self.running.take_if(|(process, _)| process.has_ended());
        self.running.is_some()
    }

    fn end_if_stuck(&mut self) {
        if self.is_running()
            && let Some((process, since)) = &self.running
            && since.elapsed() > self.limit
        {
            process.terminate();
        }
    }
}

/// A slot waits as long as it takes. A statement that makes a subscription has the password in it, and is not to
/// be the context of a line in the log.
const SETTINGS: &[(&CStr, &CStr)] = &[
    (c"search_path", c"pg_catalog"),
    (c"default_transaction_isolation", c"read committed"),
    (c"log_error_verbosity", c"terse"),
    (c"lock_timeout", c"0"),
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    (c"transaction_timeout", c"0"),
];

/// Connects a process that the worker has started to its database.
///
/// # Safety
/// To be called once, first, with the argument of the process.
unsafe fn connect(argument: pg_sys::Datum) {
    background::accept_signals();
    // SAFETY: the worker passes its database's oid; no name makes this a superuser.
    unsafe {
        let oid = pg_sys::Oid::from_datum(argument, false).unwrap_or(pg_sys::InvalidOid);
        pg_sys::BackgroundWorkerInitializeConnectionByOid(oid, pg_sys::InvalidOid, 0);
    }
    background::set_options(SETTINGS);
}

/// Does a task for each name that a query gives, in a transaction of its own each. What fails is noted, and tried
/// again by the next process.
fn make_each(names: &'static CStr, task: &'static CStr, note: &'static CStr) {
    let missing = transaction(|spi| {
        let rows = spi.read(names, &[]);
        let names = (0..rows.len()).filter_map(|row| rows.get::<String>(row, 0));
        Ok(names.collect::<Vec<_>>())
    });
    for name in missing.unwrap_or_else(give_up) {
        let made = transaction(|spi| {
            spi.write(task, &[Value::Text(Some(&name))]);
            Ok(())
        });
        if let Err(reason) = made {
            let noted = transaction(|spi| {
                let arguments = [Value::Text(Some(&name)), Value::Text(Some(&reason))];
                spi.write(note, &arguments);
                Ok(())
            });
            noted.unwrap_or_else(give_up);
        }
    }
}

/// Ends the process.
fn give_up<T>(reason: String) -> T {
    ereport!(
        FATAL,
        PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
        format!("pg_test: could not make what streams need: {reason}")
    );
}

#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn pg_test_slots_main(argument: pg_sys::Datum) {
    // SAFETY: the start of a new process.
    unsafe { connect(argument) };
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
    unsafe { connect(argument) };
    let note = c"UPDATE coord.stream_source SET failure = $2 WHERE slot = $1";
    // In any order: one that hangs is ended, and is not to be the first again.
    let left_over = c"SELECT subscription FROM coord.stream_orphan ORDER BY random()";
    make_each(left_over, c"SELECT coord.stream_unsubscribe($1)", note);
    let missing = c"SELECT slot FROM coord.stream_missing ORDER BY random()";
    make_each(missing, c"SELECT coord.stream_subscribe($1)", note);
}
