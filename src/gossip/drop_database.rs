//! DROP DATABASE fails while anybody is connected, and the worker of a node always is. So the
//! worker is told to go first; the command itself then waits up to five seconds for connections to
//! end (CountOtherDBBackends in src/backend/storage/ipc/procarray.c).

use std::sync::OnceLock;

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::control;

static PREVIOUS: OnceLock<pg_sys::ProcessUtility_hook_type> = OnceLock::new();

unsafe extern "C-unwind" {
    // Bound here once more without pgrx's guard, which would turn every error of every utility
    // command into a Rust panic and back.
    fn standard_ProcessUtility(
        statement: *mut pg_sys::PlannedStmt,
        query: *const std::ffi::c_char,
        read_only_tree: bool,
        context: pg_sys::ProcessUtilityContext::Type,
        params: pg_sys::ParamListInfo,
        environment: *mut pg_sys::QueryEnvironment,
        destination: *mut pg_sys::DestReceiver,
        completion: *mut pg_sys::QueryCompletion,
    );
}

/// Called from `_PG_init` while the server preloads libraries.
pub fn register() {
    // SAFETY: hooks are set while the postmaster is single-threaded.
    unsafe {
        PREVIOUS.get_or_init(|| pg_sys::ProcessUtility_hook);
        pg_sys::ProcessUtility_hook = Some(on_utility);
    }
}

/// Not guarded, and nothing in it has a destructor: an error of the command jumps over this frame
/// as over one of C.
#[allow(clippy::too_many_arguments)] // PostgreSQL's signature
unsafe extern "C-unwind" fn on_utility(
    statement: *mut pg_sys::PlannedStmt,
    query: *const std::ffi::c_char,
    read_only_tree: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    params: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    destination: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    // SAFETY: the arguments are PostgreSQL's own and are passed on as they came.
    unsafe {
        let utility = (*statement).utilityStmt;
        if (*utility).type_ == pg_sys::NodeTag::T_DropdbStmt {
            dismiss_worker((*utility.cast::<pg_sys::DropdbStmt>()).dbname);
        }
        let next = match PREVIOUS.get() {
            Some(Some(hook)) => *hook,
            _ => standard_ProcessUtility,
        };
        next(
            statement,
            query,
            read_only_tree,
            context,
            params,
            environment,
            destination,
            completion,
        );
    }
}

/// Sends the worker of a database away, if the caller may drop that database. It comes back when
/// the command fails.
///
/// # Safety
/// The name must be a valid C string.
#[pg_guard]
unsafe extern "C-unwind" fn dismiss_worker(database: *const std::ffi::c_char) {
    // SAFETY: a catalog look-up within the command's transaction.
    let oid = unsafe { pg_sys::get_database_oid(database, true) };
    if oid != pg_sys::InvalidOid && may_drop(oid) {
        control::dismiss_worker(oid.to_u32());
    }
}

fn may_drop(database: pg_sys::Oid) -> bool {
    // SAFETY: catalog look-ups within the command's transaction.
    unsafe {
        #[cfg(feature = "pg15")]
        return pg_sys::pg_database_ownercheck(database, pg_sys::GetUserId());
        #[cfg(not(feature = "pg15"))]
        return pg_sys::object_ownercheck(
            pg_sys::DatabaseRelationId,
            database,
            pg_sys::GetUserId(),
        );
    }
}
