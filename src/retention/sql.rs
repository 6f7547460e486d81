//! Binds what nodes say of retention to SQL; the declarations are in `sql/fold.sql` and
//! `sql/retention.sql`.

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::content;
use crate::error;
use crate::varlena::{FlatResult, SqlResult};

#[pg_extern(sql = false)]
fn trims_are_whole(payload: &str) -> bool {
    content::are_trims_whole(payload)
}

#[pg_extern(sql = false)]
fn checkpoint_is_whole(payload: &str) -> bool {
    content::is_checkpoint_whole(payload)
}

#[pg_extern(sql = false)]
fn checkpoint_mismatch(origin: &str, expected: &str, found: &str) -> SqlResult<FlatResult> {
    Err(error::checkpoint_mismatch(origin, expected, found).into())
}

/// Refuses to go on where all statements of a transaction see what the first one has seen.
#[pg_extern(sql = false)]
fn read_committed_required(what: &str) -> SqlResult<()> {
    // SAFETY: a plain variable of this process.
    let level = unsafe { pg_sys::XactIsoLevel };
    if level > pg_sys::XACT_READ_COMMITTED.cast_signed() {
        return Err(error::isolation_too_strict(what).into());
    }
    Ok(())
}
