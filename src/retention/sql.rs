//! Binds what nodes say of retention to SQL; the declarations are in `sql/fold.sql` and
//! `sql/retention.sql`.

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
