//! What the worker of a database does for its leases: opens shared memory for renewals, writes back
//! what the table does not know, tells changes of holder, and forgets old history.

use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, CString, c_char};
use std::time::{Duration, Instant};

use pgrx::pg_sys;
use serde::Serialize;

use super::grant::{Predecessor, Run};
use super::history::{self, Line};
use super::memory::{self, Extent, Unwritten};
use super::store;
use crate::error::Result;
use crate::guc;
use crate::heap;
use crate::lock::{self, Lock, Mode};
use crate::process::force_sync_commit;
use crate::spi::{Session, Value};

/// Renewals reach the table this often; a clean shutdown writes back what is left, and after any other
/// every lease counts as held for its ttl. So this only bounds how old a dump can be.
const INTERVAL: Duration = Duration::from_secs(60);

/// Changes of holder are told at once, and then this much later together: under load a transaction for
/// each would take as much from the processors as the grants themselves.
const BREATH: Duration = Duration::from_millis(20);

/// How long to wait after a failure to open the memory, and where the extension is of a version that has
/// no leases.
const RETRY: Duration = Duration::from_secs(1);

/// Leases written back in one transaction, which holds a lock of each.
const BATCH: usize = 200;

/// Blocks of history that one transaction deletes from, how many a pass looks at, and in how many passes all are.
const BLOCKS: u32 = 128;
const FEWEST_BLOCKS: u32 = 1_024;
const PASSES: u32 = 60;

/// A step of the wall clock that is carried over into the next run of the server.
const STEP: i64 = 1_000_000;

/// Runs a transaction, as the worker runs its own.
pub type Runner = fn(&mut dyn FnMut(&Session) -> Result<()>) -> std::result::Result<(), String>;

/// What the worker remembers of its leases.
pub struct Keeper {
    run: Runner,
    is_open: bool,
    last_tried: Option<Instant>,
    /// None until it has been done once: a worker may end before the first interval has passed.
    last_written: Option<Instant>,
    last_told: Option<Instant>,
    told: Option<Told>,
    /// Where in the history to look next for lines that are too old.
    next_block: u32,
}

/// How far changes of holder were told.
struct Told {
    /// What was visible before, as `pg_snapshot`: where to look for what was overwritten in memory.
    seen: String,
    /// In the changes that memory keeps.
    position: u64,
    /// The file that these changes are in: another one after the table was rewritten.
    file: Option<i64>,
}

impl Keeper {
    pub fn new(run: Runner) -> Self {
        Self {
            run,
            is_open: false,
            last_tried: None,
            last_written: None,
            last_told: None,
            told: None,
            next_block: 0,
        }
    }

    /// The extension was created, or created again: its table does not know of this memory yet.
    pub fn reopen(&mut self) {
        memory::close();
        self.is_open = false;
        self.last_tried = None;
    }

    /// What is due. Errors are logged and what failed is tried again. Returns the resources whose holder
    /// has changed.
    pub fn attend(&mut self) -> Vec<String> {
        if !self.is_open && self.last_tried.is_none_or(|last| last.elapsed() >= RETRY) {
            self.last_tried = Some(Instant::now());
            self.open();
        }
        if !self.is_open {
            return Vec::new();
        }
        if memory::take_urgency() {
            self.write_back(Extent::Urgent);
        }
        if self
            .last_written
            .is_none_or(|last| last.elapsed() >= INTERVAL)
        {
            self.write_back(Extent::All);
            self.forget_history();
            self.last_written = Some(Instant::now());
        }
        if self.told.is_none() || (memory::has_change() && self.rest().is_zero()) {
            memory::take_change();
            self.last_told = Some(Instant::now());
            return self.tell_changes();
        }
        Vec::new()
    }

    /// Whether renewals stay in memory.
    pub fn is_open(&self) -> bool {
        self.is_open
    }

    /// How long until something is due that is known now.
    pub fn due(&self) -> Option<Duration> {
        memory::has_change().then(|| self.rest())
    }

    fn rest(&self) -> Duration {
        self.last_told
            .map_or(Duration::ZERO, |last| BREATH.saturating_sub(last.elapsed()))
    }

    /// Runs `work` where there are leases. False when it failed, or there are none any more.
    fn transaction(&self, what: &str, mut work: impl FnMut(&Session) -> Result<()>) -> bool {
        let mut is_there = false;
        let outcome = (self.run)(&mut |spi| {
            // Of a version that has leases.
            is_there = heap::is_there(c"lease_memory");
            if is_there { work(spi) } else { Ok(()) }
        });
        if let Err(reason) = &outcome {
            pgrx::log!("pg_test: could not {what}: {reason}");
        }
        outcome.is_ok() && is_there
    }

    /// First the table says, on disk, that renewals stay in memory; then they may. What the end of the
    /// memory before means for each lease is written down, so that the end of this one need not know.
    fn open(&mut self) {
        let mut relation = 0;
        self.is_open = self.transaction("open the memory of leases", |spi| {
            relation = heap::relation_oid(c"lease").to_u32();
            let run = store::run();
            let is_settled = run.predecessor == Predecessor::Closed { stepped: 0 }
                || is_settled_for(spi, run.memory);
            if !is_settled {
                settle(spi, run);
            }
            let (was_closed, stepped) = match run.predecessor {
                Predecessor::Closed { stepped } => (true, stepped),
                Predecessor::Lost => (false, 0),
            };
            spi.write(
                c"INSERT INTO coord.lease_memory AS m (memory, predecessor_was_closed, predecessor_stepped)
                  VALUES ($1, $2, $3)
                  ON CONFLICT ((true)) DO UPDATE
                     SET memory = excluded.memory,
                         predecessor_was_closed = excluded.predecessor_was_closed,
                         predecessor_stepped = excluded.predecessor_stepped,
                         is_closed = false, stepped = 0",
                &[
                    Value::Timestamp(Some(run.memory)),
                    Value::Bool(was_closed),
                    Value::Int(stepped),
                ],
            );
            force_sync_commit();
            Ok(())
        });
        if self.is_open {
            memory::open(relation);
        }
    }

    /// Writes expiries to the table; false when some are left, because a transaction holds their rows.
    fn write_back(&self, extent: Extent) -> bool {
        let mut left = Vec::new();
        loop {
            let mut unwritten = memory::take_unwritten(extent, BATCH);
            if unwritten.is_empty() {
                break;
            }
            let mut written = HashSet::new();
            let is_done = self.transaction("write back leases", |spi| {
                written = write(spi, &unwritten);
                Ok(())
            });
            unwritten.retain(|lease| {
                let is_written = is_done && written.contains(&lease.lease_id);
                if is_written {
                    lease.is_written();
                }
                !is_written
            });
            left.append(&mut unwritten);
        }
        left.iter().for_each(memory::put_back);
        left.is_empty()
    }

    /// Deletes what is too old in a part of the history, so large that all of it is looked at in an hour.
    fn forget_history(&mut self) {
        let minutes = i64::from(guc::LEASE_HISTORY_RETENTION.get());
        if minutes < 0 {
            return;
        }
        let mut blocks = 0;
        self.transaction("look at the history of leases", |_| {
            blocks = history::blocks();
            Ok(())
        });
        let mut left = blocks.min(FEWEST_BLOCKS.max(blocks / PASSES + 1));
        while left > 0 {
            if self.next_block >= blocks {
                self.next_block = 0;
            }
            let end = blocks.min(self.next_block + BLOCKS.min(left));
            let window = [self.next_block, end].map(|block| format!("({block},0)"));
            let is_done = self.transaction("delete old history of leases", |spi| {
                spi.write(
                    c"DELETE FROM coord.lease_history h
                       WHERE h.ctid >= $1::tid AND h.ctid < $2::tid
                         AND h.recorded_at < clock_timestamp() - $3 * interval '1 minute'",
                    &[
                        Value::Text(Some(&window[0])),
                        Value::Text(Some(&window[1])),
                        Value::Int(minutes),
                    ],
                );
                Ok(())
            });
            if !is_done {
                return;
            }
            left -= end - self.next_block;
            self.next_block = end;
        }
    }

    /// Notifies of what has changed since the last time, in the order of epochs.
    fn tell_changes(&mut self) -> Vec<String> {
        let mut told = None;
        let mut changed = Vec::new();
        let before = self.told.as_ref();
        let is_told = self.transaction("tell changes of leases", |spi| {
            let now = spi.write(
                c"SELECT pg_current_snapshot()::text, pg_relation_filenode('coord.lease_history')::bigint",
                &[],
            );
            let file = now.get(0, 1);
            let taken = before.map(|before| (before, memory::changes_since(before.position)));
            let mut position = memory::changes_position();
            if let Some((before, Some(taken))) = taken {
                position = taken.position;
                let is_lost = taken.is_overrun || before.file != file;
                changed = notify(if is_lost {
                    history::lines_since(&before.seen)
                } else {
                    history::lines_at(&taken.numbers)
                });
            }
            told = now.get(0, 0).map(|seen| Told { seen, position, file });
            Ok(())
        });
        if is_told {
            self.told = told;
        }
        changed
    }
}

/// A line of history as listeners get it.
#[derive(Serialize)]
struct Change {
    resource: String,
    event: String,
    holder: String,
    epoch: i64,
    expires_at: Option<String>,
    reason: Option<String>,
}

impl From<Line> for Change {
    fn from(line: Line) -> Self {
        Self {
            resource: line.resource,
            event: line.event,
            holder: line.holder,
            epoch: line.epoch,
            expires_at: line.expires_at.map(iso8601),
            reason: line.reason.map(shortened),
        }
    }
}

/// A time as JSON has it.
fn iso8601(microseconds: i64) -> String {
    let mut text: [c_char; pg_sys::MAXDATELEN as usize + 1] = [0; _];
    // SAFETY: the buffer is as long as PostgreSQL's own is for this.
    unsafe {
        pg_sys::JsonEncodeDateTime(
            text.as_mut_ptr(),
            store::timestamp(microseconds),
            pg_sys::TIMESTAMPTZOID,
            std::ptr::null(),
        );
        CStr::from_ptr(text.as_ptr()).to_string_lossy().into_owned()
    }
}

unsafe extern "C-unwind" {
    // Exported by every PostgreSQL since 9.0 (src/backend/commands/async.c); not among pgrx's bindings.
    fn Async_Notify(channel: *const c_char, payload: *const c_char);
}

/// The payloads are put together without SQL: that takes several times as long, and under load there are thousands in
/// a second. Returns the resources.
fn notify(lines: Vec<Line>) -> Vec<String> {
    let mut changed: Vec<String> = Vec::new();
    for line in lines {
        if changed.last() != Some(&line.resource) {
            changed.push(line.resource.clone());
        }
        let payload = serde_json::to_string(&Change::from(line)).map(CString::new);
        if let Ok(Ok(payload)) = payload {
            // SAFETY: both strings are copied; a transaction is in progress.
            unsafe {
                pg_sys::submodules::ffi::pg_guard_ffi_boundary(|| {
                    Async_Notify(c"coord_lease".as_ptr(), payload.as_ptr());
                });
            }
        }
    }
    changed
}

/// A payload has less than 8 000 bytes.
fn shortened(reason: String) -> String {
    const MOST: usize = 1_000;
    reason.chars().take(MOST).collect()
}

/// Whether a worker that has ended since has opened this very memory.
fn is_settled_for(spi: &Session, memory: i64) -> bool {
    let found = spi.read(
        c"SELECT FROM coord.lease_memory
           WHERE memory = $1",
        &[Value::Timestamp(Some(memory))],
    );
    !found.is_empty()
}

/// Gives every lease the expiry that it has in this run. The lock of the table keeps out whoever would
/// change a row meanwhile; it is not waited for long, because they wait behind it.
fn settle(spi: &Session, run: Run) {
    spi.read(c"SELECT set_config('lock_timeout', '100ms', true)", &[]);
    spi.write(c"LOCK TABLE coord.lease IN SHARE ROW EXCLUSIVE MODE", &[]);
    let (start, stepped) = match run.predecessor {
        Predecessor::Closed { stepped } => (None, stepped),
        Predecessor::Lost => (Some(run.start), 0),
    };
    spi.write(
        c"UPDATE coord.lease l
             SET expires_at = greatest(l.expires_at + $2 * interval '1 microsecond',
                                       $3 + l.ttl),
                 memory = $1
           WHERE l.ended IS NULL AND l.memory <> $1",
        &[
            Value::Timestamp(Some(run.memory)),
            Value::Int(stepped),
            Value::Timestamp(start),
        ],
    );
    // What was heard of other nodes is kept by the clock of this one.
    spi.write(
        c"UPDATE coord.lease_report r SET expires_at = r.expires_at + $1 * interval '1 microsecond'
           WHERE $1 <> 0 AND r.learned_from IS NOT NULL",
        &[Value::Int(stepped)],
    );
}

/// Writes those that nobody is changing, and says of which there is nothing left to write: a row of another
/// epoch, or none, needs nothing. The lock of the lease keeps everybody else from changing its row, for a
/// moment; whoever acquires it waits for that.
fn write(spi: &Session, unwritten: &[Unwritten]) -> HashSet<i64> {
    let numbers = |number: fn(&Unwritten) -> i64| unwritten.iter().map(number).collect::<Vec<_>>();
    let identifiers = numbers(|lease| lease.lease_id);
    let named = spi.read(
        c"SELECT lease_id, resource FROM coord.lease WHERE lease_id = ANY ($1)",
        &[Value::Ints(&identifiers)],
    );
    let hashes: HashMap<_, _> = unwritten
        .iter()
        .map(|lease| (lease.lease_id, lease.resource))
        .collect();
    let mut held = HashSet::new();
    let mut locked = Vec::new();
    for row in 0..named.len() {
        let resource = named.get::<String>(row, 1).unwrap_or_default();
        let lease_id = named.get::<i64>(row, 0).unwrap_or_default();
        // The number may be that of another resource by now.
        if hashes.get(&lease_id) != Some(&lock::hash(&resource)) {
            continue;
        }
        if Lock::of_lease(&resource).try_take(Mode::Change) {
            locked.push(lease_id);
        } else {
            held.insert(lease_id);
        }
    }
    spi.write(
        c"UPDATE coord.lease l
             SET expires_at = '2000-01-01 00:00:00+00'::timestamptz + w.expires_at * interval '1 microsecond',
                 ttl = greatest(l.ttl, w.ttl * interval '1 microsecond'),
                 memory = $5
            FROM unnest($1, $2, $3, $4) w (lease_id, epoch, expires_at, ttl)
           WHERE l.lease_id = ANY ($6) AND l.lease_id = w.lease_id AND l.epoch = w.epoch",
        &[
            Value::Ints(&identifiers),
            Value::Ints(&numbers(|lease| lease.epoch)),
            Value::Ints(&numbers(|lease| lease.expires_at)),
            Value::Ints(&numbers(|lease| lease.ttl)),
            Value::Timestamp(Some(memory::since())),
            Value::Ints(&locked),
        ],
    );
    // A longer ttl is a promise that a crash must not break.
    force_sync_commit();
    identifiers
        .into_iter()
        .filter(|lease_id| !held.contains(lease_id))
        .collect()
}

/// The worker ends: writes back what is left, in what is left of its process, and says so.
pub fn close(run: Runner) {
    memory::close();
    memory::put_back_interrupted();
    let keeper = Keeper::new(run);
    if !keeper.write_back(Extent::All) {
        return;
    }
    keeper.transaction("close the memory of leases", |spi| {
        let stepped = memory::clock_stepped();
        spi.write(
            c"UPDATE coord.lease_memory SET is_closed = true, stepped = $2
               WHERE memory = $1",
            &[
                Value::Timestamp(Some(memory::since())),
                Value::Int(if stepped.abs() > STEP { stepped } else { 0 }),
            ],
        );
        force_sync_commit();
        Ok(())
    });
}
