//! `pg_test`: coordination of agent fleets inside PostgreSQL.

use std::sync::atomic::{AtomicBool, Ordering};

use pgrx::prelude::*;

pub mod clock;
pub mod conversation;
pub mod crdt;
pub mod error;
pub mod fold;
pub mod gossip;
pub mod guc;
mod heap;
pub mod intent;
pub mod json;
pub mod lease;
mod lock;
pub mod node;
pub mod oplog;
mod process;
pub mod retention;
mod roots;
mod spi;
pub mod stream;
mod trigger;
mod varlena;

::pgrx::pg_module_magic!(name, version);

extension_sql_file!("../sql/roles.sql", name = "roles", bootstrap);
extension_sql_file!("../sql/clock.sql", name = "clock", requires = ["roles"]);
extension_sql_file!("../sql/node.sql", name = "node", requires = ["clock"]);
extension_sql_file!("../sql/crdt.sql", name = "crdt", requires = ["node"]);
extension_sql_file!("../sql/state.sql", name = "state", requires = ["crdt"]);
extension_sql_file!("../sql/gossip.sql", name = "gossip", requires = ["state"]);
extension_sql_file!(
    "../sql/incarnation.sql",
    name = "incarnation",
    requires = ["gossip"]
);
extension_sql_file!(
    "../sql/lease.sql",
    name = "lease",
    requires = ["incarnation"]
);
extension_sql_file!("../sql/intent.sql", name = "intent", requires = ["lease"]);
extension_sql_file!("../sql/oplog.sql", name = "oplog", requires = ["intent"]);
extension_sql_file!("../sql/fold.sql", name = "fold", requires = ["oplog"]);
extension_sql_file!(
    "../sql/conversation.sql",
    name = "conversation",
    requires = ["fold"]
);
extension_sql_file!(
    "../sql/stream.sql",
    name = "stream",
    requires = ["conversation"]
);
extension_sql_file!("../sql/report.sql", name = "report", requires = ["stream"]);
extension_sql_file!(
    "../sql/retention.sql",
    name = "retention",
    requires = ["report"]
);
extension_sql_file!("../sql/sync.sql", name = "sync", requires = ["retention"]);
extension_sql_file!("../sql/health.sql", name = "health", requires = ["sync"]);

static PRELOADED: AtomicBool = AtomicBool::new(false);

/// Whether the library was loaded by the postmaster, and shared memory is there.
fn is_preloaded() -> bool {
    PRELOADED.load(Ordering::Relaxed)
}

#[pg_guard]
pub extern "C-unwind" fn _PG_init() {
    // SAFETY: a plain flag of this process.
    let preloads = unsafe { pg_sys::process_shared_preload_libraries_in_progress };
    if preloads {
        guc::register_preloaded();
    }
    guc::register();
    gossip::control::register_callback();
    oplog::append::call_at_append(gossip::sql::tell_appended);
    lease::register_callbacks();
    heap::register_callbacks();
    if preloads {
        clock::server::register();
        lease::memory::register();
        lease::protection::register();
        gossip::control::register();
        gossip::statistics::register();
        gossip::launcher::register();
        gossip::drop_database::register();
        roots::register();
        PRELOADED.store(true, Ordering::Relaxed);
    }
}
