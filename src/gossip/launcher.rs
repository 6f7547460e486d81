//! The launcher: sees to it that every database that is a node has one worker.
//!
//! It starts one worker in each non-template database when the server starts; a worker that finds
//! no node there leaves at once. Later it is told through shared memory. Workers are never started in template
//! databases, where they would make CREATE DATABASE fail.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use pgrx::bgworkers::{BackgroundWorkerBuilder, BgWorkerStartTime};
use pgrx::pg_sys;
use pgrx::prelude::*;

use super::background::{self, Process};
use super::{control, statistics};
use crate::lease::memory;

const LONGEST_WAIT: Duration = Duration::from_secs(60);
const FIRST_DELAY: Duration = Duration::from_secs(1);
const LONGEST_DELAY: Duration = Duration::from_secs(60);
/// A worker that ran this long is not in a crash loop.
const HEALTHY: Duration = Duration::from_secs(60);

/// Called from `_PG_init` while the server preloads libraries.
pub fn register() {
    BackgroundWorkerBuilder::new("pg_test launcher")
        .set_type("pg_test launcher")
        .set_library("pg_test")
        .set_function("pg_test_launcher_main")
        .set_start_time(BgWorkerStartTime::RecoveryFinished)
        .set_restart_time(Some(Duration::from_secs(1)))
        .enable_spi_access()
        .load();
}

/// A worker this launcher has started.
struct Started {
    process: Process,
    at: Instant,
}

#[derive(Default)]
struct Supervision {
    started: Option<Started>,
    /// How long to wait after a worker that died, and until when.
    delay: Duration,
    not_before: Option<Instant>,
    /// It was said that there is no slot for the worker.
    has_warned: bool,
}

#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn pg_test_launcher_main(_argument: pg_sys::Datum) {
    background::accept_signals();
    // SAFETY: a new background worker; without a database it reads shared catalogs only.
    unsafe {
        if pg_sys::IsBinaryUpgrade {
            pg_sys::proc_exit(0);
        }
        pg_sys::BackgroundWorkerInitializeConnectionByOid(
            pg_sys::InvalidOid,
            pg_sys::InvalidOid,
            0,
        );
    }
    control::note_start();
    memory::note_start();
    control::launcher_is_here();
    for oid in connectable_databases() {
        control::want_worker(oid);
    }
    let mut supervised: HashMap<u32, Supervision> = HashMap::new();
    loop {
        let wait = supervise(&mut supervised);
        background::wait(None, wait);
    }
}

/// Starts what should run and does not; returns when to look again at the latest.
fn supervise(supervised: &mut HashMap<u32, Supervision>) -> Duration {
    let now = Instant::now();
    let mut wait = LONGEST_WAIT;
    let mut existing: Option<Vec<u32>> = None;
    for database in control::databases() {
        let oid = database.oid();
        if oid == 0 {
            continue;
        }
        let supervision = supervised.entry(oid).or_default();
        supervision.collect(now, database);
        if supervision.started.is_some() || is_running(database) || database.is_dismissed() {
            continue;
        }
        if !database.is_wanted() {
            database.free();
            supervised.remove(&oid);
            continue;
        }
        if let Some(not_before) = supervision.not_before.filter(|moment| *moment > now) {
            wait = wait.min(not_before - now);
            continue;
        }
        if !existing
            .get_or_insert_with(connectable_databases)
            .contains(&oid)
        {
            database.free();
            statistics::forget_database(oid);
            supervised.remove(&oid);
            continue;
        }
        if !supervision.start(oid, now) {
            wait = wait.min(FIRST_DELAY);
        }
    }
    wait
}

/// A worker that an earlier launcher started.
fn is_running(database: &control::Database) -> bool {
    let process = database.worker.load(std::sync::atomic::Ordering::Acquire);
    // SAFETY: looks the process up in the array of backends.
    process != 0 && !unsafe { pg_sys::BackendPidGetProc(process) }.is_null()
}

impl Supervision {
    /// Takes note of a worker that has ended.
    fn collect(&mut self, now: Instant, database: &control::Database) {
        let ended = self.started.take_if(|started| started.process.has_ended());
        let Some(started) = ended else {
            return;
        };
        control::worker_is_gone(database);
        self.delay = if now - started.at > HEALTHY {
            FIRST_DELAY
        } else {
            (self.delay * 2).clamp(FIRST_DELAY, LONGEST_DELAY)
        };
        self.not_before = Some(now + self.delay);
    }

    /// Starts a worker. False when the server has no slot for one.
    fn start(&mut self, oid: u32, now: Instant) -> bool {
        self.started = Process::start("pg_test worker", "pg_test_worker_main", oid)
            .map(|process| Started { process, at: now });
        if self.started.is_some() {
            self.has_warned = false;
        } else if !std::mem::replace(&mut self.has_warned, true) {
            background::warn_of_missing_slot(
                &format!("the gossip worker of database {oid}"),
                "What that node holds does not travel until there is one.",
            );
        }
        self.started.is_some()
    }
}

/// The databases that are no templates and accept connections.
fn connectable_databases() -> Vec<u32> {
    let mut oids = Vec::new();
    // SAFETY: a catalog scan within a transaction, as the autovacuum launcher does it
    // (get_database_list in src/backend/postmaster/autovacuum.c).
    unsafe {
        pg_sys::StartTransactionCommand();
        let relation = pg_sys::table_open(
            pg_sys::DatabaseRelationId,
            pg_sys::AccessShareLock.cast_signed(),
        );
        let scan = pg_sys::systable_beginscan(
            relation,
            pg_sys::InvalidOid,
            false,
            std::ptr::null_mut(),
            0,
            std::ptr::null_mut(),
        );
        loop {
            let tuple = pg_sys::systable_getnext(scan);
            if tuple.is_null() {
                break;
            }
            let header = (*tuple).t_data;
            let form = header
                .cast::<u8>()
                .add(usize::from((*header).t_hoff))
                .cast::<pg_sys::FormData_pg_database>();
            if (*form).datallowconn && !(*form).datistemplate {
                oids.push((*form).oid.to_u32());
            }
        }
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(relation, pg_sys::AccessShareLock.cast_signed());
        pg_sys::CommitTransactionCommand();
    }
    oids
}
