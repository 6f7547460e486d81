//! Retention, in the background: the worker makes partitions ahead, and a process of its own makes checkpoints and
//! leaves out of the log what can go, for which it reads all of it.

use std::ffi::CStr;
use std::time::{Duration, Instant};

use pgrx::prelude::*;

use super::background;
use super::helper::{self, Errand, Helper};

/// A transaction that keeps partitions from changing may stay open for hours, and each attempt holds up others for
/// as long as it waits.
const DELAY: Duration = Duration::from_secs(10);

const COMPACTOR: Errand = Errand {
    name: "pg_test compactor",
    function: "pg_test_compactor_main",
    limit: Duration::MAX,
    delay: DELAY,
    consequence: "The operation log keeps what it could leave out.",
};

pub struct Retention {
    compactor: Helper,
    /// When partitions are made again, after a transaction was in the way.
    partitions_not_before: Option<Instant>,
}

impl Retention {
    pub const fn new() -> Self {
        Self {
            compactor: Helper::new(COMPACTOR),
            partitions_not_before: None,
        }
    }

    /// Does what is due. To be called only while the node knows its life.
    pub fn attend(&mut self) {
        let now = Instant::now();
        let may_try = self
            .partitions_not_before
            .is_none_or(|moment| moment <= now);
        let is_made = || {
            holds(c"SELECT coord.op_partition_is_large() OR coord.op_partition_tend()")
                .unwrap_or(false)
        };
        if may_try && !is_made() {
            self.partitions_not_before = Some(now + DELAY);
        }
        if self.compactor.may_start() && holds(c"SELECT coord.retention_is_due()").unwrap_or(false)
        {
            self.compactor.start();
        }
    }
}

/// None when it could not be asked, and while there is no log.
fn holds(question: &'static CStr) -> Option<bool> {
    background::ask(c"op_base", question, "the partitions of the operation log")
}

#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn pg_test_compactor_main(argument: pg_sys::Datum) {
    // SAFETY: the start of a new process.
    unsafe { helper::connect(argument) };
    // It holds locks while it copies, and gives way to who wants more of them: DROP EXTENSION, as the worker does.
    background::set_options(&[(c"lock_timeout", c"500ms")]);
    let steps = [
        (
            c"SELECT 'the default partition' WHERE coord.op_partition_is_large()",
            c"SELECT coord.op_partition_tend() WHERE $1 IS NOT NULL",
        ),
        (
            c"SELECT 'the log' WHERE coord.checkpoint_is_due()",
            c"SELECT coord.checkpoint() WHERE $1 IS NOT NULL",
        ),
        (
            c"SELECT from_seq::text FROM coord.op_compaction_due ORDER BY from_seq",
            c"SELECT coord.op_compaction_begin($1::bigint)",
        ),
        (
            c"SELECT from_seq::text FROM coord.op_compaction WHERE replacement IS NOT NULL ORDER BY from_seq",
            c"SELECT coord.op_compaction_end($1::bigint)",
        ),
    ];
    for (names, task) in steps {
        for (name, reason) in helper::do_each(names, task) {
            pgrx::log!(
                "pg_test: could not leave out of {name} what can go, and will try again: {reason}"
            );
        }
    }
}
