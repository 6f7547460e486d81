//! Processes for what takes its time: the worker starts one of a kind while there is something for it to do, so that
//! neither gossip nor shutdown waits.

use std::ffi::CStr;
use std::time::{Duration, Instant};

use pgrx::prelude::*;
use pgrx::{FromDatum, pg_sys};

use super::background::{self, Process, transaction};
use crate::process;
use crate::spi::Value;

/// A kind of process.
pub struct Errand {
    pub name: &'static str,
    /// What it runs, in this library.
    pub function: &'static str,
    /// How long it may run.
    pub limit: Duration,
    /// From one to the next.
    pub delay: Duration,
    /// What comes of it when the server has no slot for one.
    pub consequence: &'static str,
}

/// The process of a kind, of which one runs at a time.
pub struct Helper {
    errand: Errand,
    running: Option<(Process, Instant)>,
    /// It was said that there is no slot for it.
    has_warned: bool,
    not_before: Option<Instant>,
}

impl Helper {
    pub const fn new(errand: Errand) -> Self {
        Self {
            errand,
            running: None,
            has_warned: false,
            not_before: None,
        }
    }

    /// Sees to it that one runs, or will soon.
    pub fn start(&mut self) {
        if !self.may_start() {
            return;
        }
        let now = Instant::now();
        let Errand { name, function, .. } = self.errand;
        self.not_before = Some(now + self.errand.delay);
        let started = Process::start(name, function, process::own_database());
        self.running = started.map(|process| (process, now));
        if self.running.is_some() {
            self.has_warned = false;
        } else if !std::mem::replace(&mut self.has_warned, true) {
            background::warn_of_missing_slot(&format!("a {name}"), self.errand.consequence);
        }
    }

    /// Whether none runs, and the last one has begun long enough ago.
    pub fn may_start(&mut self) -> bool {
        !self.is_running() && (self.not_before).is_none_or(|moment| moment <= Instant::now())
    }

    fn is_running(&mut self) -> bool {
        self.running.take_if(|(process, _)| process.has_ended());
        self.running.is_some()
    }

    pub fn end_if_stuck(&mut self) {
        if self.is_running()
            && let Some((process, since)) = &self.running
            && since.elapsed() > self.errand.limit
        {
            process.terminate();
        }
    }
}

/// What waits does so as long as it takes. A statement that makes a subscription has the password in it, and is not
/// to be the context of a line in the log.
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
pub unsafe fn connect(argument: pg_sys::Datum) {
    background::accept_signals();
    // SAFETY: the worker passes its database's oid; no name makes this a superuser.
    unsafe {
        let oid = pg_sys::Oid::from_datum(argument, false).unwrap_or(pg_sys::InvalidOid);
        pg_sys::BackgroundWorkerInitializeConnectionByOid(oid, pg_sys::InvalidOid, 0);
    }
    background::set_options(SETTINGS);
}

/// Does a task for each name that a query gives, in a transaction of its own each. Returns what failed, and why.
pub fn do_each(names: &'static CStr, task: &'static CStr) -> Vec<(String, String)> {
    let found = transaction(|spi| {
        let rows = spi.read(names, &[]);
        let names = (0..rows.len()).filter_map(|row| rows.get::<String>(row, 0));
        Ok(names.collect::<Vec<_>>())
    });
    let names = found.unwrap_or_else(give_up).into_iter();
    let done = names.filter_map(|name| {
        let outcome = transaction(|spi| {
            spi.write(task, &[Value::Text(Some(&name))]);
            Ok(())
        });
        outcome.err().map(|reason| (name, reason))
    });
    done.collect()
}

/// Ends the process.
pub fn give_up<T>(reason: String) -> T {
    ereport!(
        FATAL,
        PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
        format!("pg_test: could not do what this process is for: {reason}")
    );
}
