//! Binds `constraint_state` to SQL; the declarations are in `sql/crdt.sql`.

use std::ffi::{CStr, CString};

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use pgrx::{AnyNumeric, Internal, pg_sys};

use super::constraint_state::{self, ConstraintState};
use super::{digest, fold, text};
use crate::clock::server;
use crate::clock::vclock::Vclock;
use crate::error::malformed_binary;
use crate::varlena::{self, Flat, FlatResult, SqlResult};

/// An argument of the type as its rules take it.
fn state<'a>(argument: &Flat<'a>) -> SqlResult<ConstraintState<'a>> {
    Ok(ConstraintState::parse(argument.bytes())?)
}

#[pg_extern(sql = false)]
fn constraint_state_in(input: &CStr) -> SqlResult<FlatResult> {
    Ok(text::from_text(varlena::utf8(input, constraint_state::TYPE_NAME)?)?.into())
}

#[pg_extern(sql = false)]
fn constraint_state_out(value: Flat) -> SqlResult<CString> {
    varlena::c_string(text::to_text(state(&value)?))
}

#[pg_extern(sql = false)]
fn constraint_state_recv(message: Internal) -> SqlResult<FlatResult> {
    let bytes = varlena::received(message)?;
    ConstraintState::validate(&bytes)?;
    Ok(bytes.into())
}

#[pg_extern(sql = false)]
fn constraint_state_send(value: Flat) -> FlatResult {
    value.unchanged()
}

#[pg_extern(sql = false)]
fn constraint_state_from_bytea(bytes: Flat) -> SqlResult<FlatResult> {
    ConstraintState::validate(bytes.bytes())?;
    Ok(bytes.unchanged())
}

#[pg_extern(sql = false)]
fn constraint_state_empty() -> FlatResult {
    constraint_state::empty().into()
}

#[pg_extern(sql = false)]
fn constraint_add(value: Flat, id: &str, actor: &str) -> SqlResult<FlatResult> {
    Ok(constraint_state::add(state(&value)?, id, actor)?.into())
}

#[pg_extern(sql = false)]
fn constraint_remove(value: Flat, id: &str) -> SqlResult<FlatResult> {
    Ok(constraint_state::remove(state(&value)?, id)?.into())
}

#[pg_extern(sql = false)]
fn constraint_record_satisfied(value: Flat, actor: &str, n: i64) -> SqlResult<FlatResult> {
    Ok(constraint_state::record_satisfied(state(&value)?, actor, n)?.into())
}

#[pg_extern(sql = false)]
fn constraint_record_violations(value: Flat, actor: &str, n: i64) -> SqlResult<FlatResult> {
    Ok(constraint_state::record_violations(state(&value)?, actor, n)?.into())
}

#[pg_extern(sql = false)]
fn constraint_move(value: Flat, x: i32, y: i32, at: i64, actor: &str) -> SqlResult<FlatResult> {
    Ok(constraint_state::move_to(state(&value)?, x, y, at.cast_unsigned(), actor)?.into())
}

#[pg_extern(sql = false)]
fn constraint_ids(value: Flat) -> Result<SetOfIterator<'static, String>, ErrorReport> {
    let ids: Vec<String> = state(&value)?.ids().map(String::from).collect();
    Ok(SetOfIterator::new(ids))
}

#[pg_extern(sql = false)]
fn constraint_contains(value: Flat, id: &str) -> SqlResult<bool> {
    Ok(state(&value)?.contains(id))
}

#[pg_extern(sql = false)]
fn constraint_count(value: Flat) -> SqlResult<i64> {
    Ok(i64::try_from(state(&value)?.count()).unwrap_or(i64::MAX))
}

#[pg_extern(sql = false)]
fn constraint_satisfied(value: Flat) -> SqlResult<AnyNumeric> {
    Ok(state(&value)?.satisfied_total().into())
}

#[pg_extern(sql = false)]
fn constraint_violations(value: Flat) -> SqlResult<AnyNumeric> {
    Ok(state(&value)?.violations_total().into())
}

#[pg_extern(sql = false)]
fn satisfaction_rate(value: Flat) -> SqlResult<Option<f64>> {
    Ok(state(&value)?.satisfaction_rate())
}

/// The stamp of a move: what it replaces may be of a clock that was ahead, or of this server's own
/// before it lost the file that keeps its clock from going back.
#[pg_extern(sql = false)]
fn state_stamp(value: Flat) -> SqlResult<i64> {
    let held = state(&value)?.position().map_or(0, |position| position.at);
    Ok(server::after(held)?.cast_signed())
}

#[pg_extern(sql = false)]
fn constraint_position(value: Flat) -> SqlResult<Option<pg_sys::Point>> {
    Ok(state(&value)?.position().map(|position| pg_sys::Point {
        x: position.x.into(),
        y: position.y.into(),
    }))
}

#[pg_extern(sql = false)]
fn constraint_context(value: Flat) -> SqlResult<FlatResult> {
    Ok(state(&value)?.context_clock()?.into())
}

/// Merge, also the transition and combine function of `constraint_merge_agg`.
#[pg_extern(sql = false)]
fn constraint_merge(left: Flat, right: Flat) -> SqlResult<FlatResult> {
    let (a, b) = (state(&left)?, state(&right)?);
    if constraint_state::covers(a, b) {
        return Ok(left.unchanged());
    }
    Ok(constraint_state::merge(a, b)?.into())
}

#[pg_extern(sql = false)]
fn constraint_covers(left: Flat, right: Flat) -> SqlResult<bool> {
    Ok(constraint_state::covers(state(&left)?, state(&right)?))
}

#[pg_extern(sql = false)]
fn constraint_covered_by(left: Flat, right: Flat) -> SqlResult<bool> {
    constraint_covers(right, left)
}

#[pg_extern(sql = false)]
fn constraint_delta(new: Flat, since: Flat) -> SqlResult<FlatResult> {
    let since = Vclock::parse(since.bytes())?;
    Ok(constraint_state::delta(state(&new)?, since.entries())?.into())
}

/// Counts the events of one actor, which nobody else has seen, as those of another.
#[pg_extern(sql = false)]
fn constraint_fold(value: Flat, from: &str, into: &str) -> SqlResult<FlatResult> {
    Ok(fold::fold(state(&value)?, from, into)?.into())
}

#[pg_extern(sql = false)]
fn state_digest(value: Flat) -> SqlResult<FlatResult> {
    Ok(state(&value)?.digest().to_vec().into())
}

#[pg_extern(sql = false)]
fn state_row_digest(name: &str, value: Flat) -> SqlResult<FlatResult> {
    // The stored column is computed before the table's constraints are checked, and says it better.
    constraint_state::check_state_name(name)?;
    Ok(digest::row_digest(name, value.bytes()).to_vec().into())
}

/// Transition and combine function of `digest_sum`.
#[pg_extern(sql = false)]
fn digest_add(left: Flat, right: Flat) -> SqlResult<FlatResult> {
    let digest = |argument: Flat| {
        <[u8; digest::DIGEST_BYTES]>::try_from(argument.bytes())
            .map_err(|_| malformed_binary("digest", "A digest is 32 bytes long."))
    };
    Ok(digest::add(&digest(left)?, &digest(right)?).to_vec().into())
}
