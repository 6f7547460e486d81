//! Binds the clocks to SQL; the declarations are in `sql/clock.sql`.

use std::ffi::CStr;

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use pgrx::{Internal, pg_sys};

use super::vclock::{self, Merged, Vclock};
use super::{hlc, server};
use crate::error::{bad_argument, malformed_binary};
use crate::varlena::{self, Allocated, Flat, FlatResult, SqlResult};

fn text(input: &CStr, type_name: &str) -> SqlResult<String> {
    Ok(varlena::utf8(input, type_name)?.to_owned())
}

#[pg_extern(sql = false)]
fn vclock_in(input: &CStr) -> SqlResult<FlatResult> {
    Ok(vclock::from_text(&text(input, vclock::TYPE_NAME)?)?.into())
}

#[pg_extern(sql = false)]
fn vclock_out(clock: Flat) -> SqlResult<std::ffi::CString> {
    varlena::c_string(vclock::to_text(Vclock::parse(clock.bytes())?))
}

#[pg_extern(sql = false)]
fn vclock_recv(message: Internal) -> SqlResult<FlatResult> {
    let bytes = varlena::received(message)?;
    Vclock::validate(&bytes)?;
    Ok(bytes.into())
}

#[pg_extern(sql = false)]
fn vclock_send(clock: Flat) -> FlatResult {
    clock.unchanged()
}

#[pg_extern(sql = false)]
fn vclock_from_bytea(bytes: Flat) -> SqlResult<FlatResult> {
    Vclock::validate(bytes.bytes())?;
    Ok(bytes.unchanged())
}

#[pg_extern(sql = false)]
fn vclock_increment(clock: Flat, actor: &str) -> SqlResult<FlatResult> {
    Ok(vclock::increment(Vclock::parse(clock.bytes())?, actor)?.into())
}

#[pg_extern(sql = false)]
fn vclock_get(clock: Flat, actor: &str) -> SqlResult<i64> {
    Ok(Vclock::parse(clock.bytes())?
        .get(actor.as_bytes())
        .cast_signed())
}

#[pg_extern(sql = false)]
fn vclock_entries(
    clock: Flat,
) -> Result<TableIterator<'static, (name!(actor, String), name!(counter, i64))>, ErrorReport> {
    let rows: Vec<(String, i64)> = Vclock::parse(clock.bytes())?
        .entries()
        .map(|entry| {
            (
                String::from_utf8_lossy(entry.actor).into_owned(),
                entry.counter.cast_signed(),
            )
        })
        .collect();
    Ok(TableIterator::new(rows))
}

/// Merge, also the transition and combine function of `vclock_merge_agg`.
#[pg_extern(sql = false)]
fn vclock_merge(left: Flat, right: Flat) -> SqlResult<FlatResult> {
    Ok(
        match vclock::merge_bytes::<Allocated>(left.bytes(), right.bytes())? {
            Merged::Left => left.unchanged(),
            Merged::New(merged) => merged.into(),
        },
    )
}

/// Meet, also the transition and combine function of `vclock_meet_agg`.
#[pg_extern(sql = false)]
fn vclock_meet(left: Flat, right: Flat) -> SqlResult<FlatResult> {
    let (a, b) = (Vclock::parse(left.bytes())?, Vclock::parse(right.bytes())?);
    if vclock::covers(b, a) {
        return Ok(left.unchanged());
    }
    Ok(vclock::meet(a, b)?.into())
}

/// The label of `coord.causality`; the SQL function casts it to the enum.
#[pg_extern(sql = false)]
fn vclock_compare(left: Flat, right: Flat) -> SqlResult<&'static str> {
    let (a, b) = (Vclock::parse(left.bytes())?, Vclock::parse(right.bytes())?);
    Ok(vclock::compare(a, b).label())
}

#[pg_extern(sql = false)]
fn vclock_covers(left: Flat, right: Flat) -> SqlResult<bool> {
    let (a, b) = (Vclock::parse(left.bytes())?, Vclock::parse(right.bytes())?);
    Ok(vclock::covers(a, b))
}

#[pg_extern(sql = false)]
fn vclock_covered_by(left: Flat, right: Flat) -> SqlResult<bool> {
    vclock_covers(right, left)
}

#[pg_extern(sql = false)]
fn vclock_concurrent(left: Flat, right: Flat) -> SqlResult<bool> {
    let (a, b) = (Vclock::parse(left.bytes())?, Vclock::parse(right.bytes())?);
    Ok(vclock::compare(a, b) == vclock::Causality::Concurrent)
}

// Equality and hashing are the same for every flat type: canonical values are equal exactly when
// their bytes are.

#[pg_extern(sql = false)]
fn flat_eq(left: Flat, right: Flat) -> bool {
    left.bytes() == right.bytes()
}

#[pg_extern(sql = false)]
fn flat_ne(left: Flat, right: Flat) -> bool {
    left.bytes() != right.bytes()
}

#[pg_extern(sql = false)]
fn flat_hash(value: Flat) -> i32 {
    varlena::hash(value.bytes())
}

#[pg_extern(sql = false)]
fn flat_hash_extended(value: Flat, seed: i64) -> i64 {
    varlena::hash_extended(value.bytes(), seed)
}

// An hlc travels by value: the datum holds the 64 bits, which Rust sees as an `i64`.

#[pg_extern(sql = false)]
fn hlc_in(input: &CStr) -> SqlResult<i64> {
    Ok(hlc::parse(&text(input, hlc::TYPE_NAME)?)?.cast_signed())
}

#[pg_extern(sql = false)]
fn hlc_out(stamp: i64) -> SqlResult<std::ffi::CString> {
    varlena::c_string(hlc::format(stamp.cast_unsigned()))
}

#[pg_extern(sql = false)]
fn hlc_recv(message: Internal) -> SqlResult<i64> {
    let bytes: [u8; 8] = varlena::received(message)?
        .try_into()
        .map_err(|_| malformed_binary(hlc::TYPE_NAME, "A stamp is 8 bytes long."))?;
    Ok(i64::from_be_bytes(bytes))
}

#[pg_extern(sql = false)]
fn hlc_send(stamp: i64) -> FlatResult {
    stamp.to_be_bytes().to_vec().into()
}

#[pg_extern(sql = false)]
fn hlc_cmp(left: i64, right: i64) -> i32 {
    left.cast_unsigned().cmp(&right.cast_unsigned()) as i32
}

#[pg_extern(sql = false)]
fn hlc_eq(left: i64, right: i64) -> bool {
    left == right
}

#[pg_extern(sql = false)]
fn hlc_ne(left: i64, right: i64) -> bool {
    left != right
}

#[pg_extern(sql = false)]
fn hlc_lt(left: i64, right: i64) -> bool {
    left.cast_unsigned() < right.cast_unsigned()
}

#[pg_extern(sql = false)]
fn hlc_le(left: i64, right: i64) -> bool {
    left.cast_unsigned() <= right.cast_unsigned()
}

#[pg_extern(sql = false)]
fn hlc_gt(left: i64, right: i64) -> bool {
    left.cast_unsigned() > right.cast_unsigned()
}

#[pg_extern(sql = false)]
fn hlc_ge(left: i64, right: i64) -> bool {
    left.cast_unsigned() >= right.cast_unsigned()
}

#[pg_extern(sql = false)]
fn hlc_larger(left: i64, right: i64) -> i64 {
    left.cast_unsigned()
        .max(right.cast_unsigned())
        .cast_signed()
}

#[pg_extern(sql = false)]
fn hlc_smaller(left: i64, right: i64) -> i64 {
    left.cast_unsigned()
        .min(right.cast_unsigned())
        .cast_signed()
}

#[pg_extern(sql = false)]
fn hlc_hash(stamp: i64) -> i32 {
    varlena::hash(&stamp.to_le_bytes())
}

#[pg_extern(sql = false)]
fn hlc_hash_extended(stamp: i64, seed: i64) -> i64 {
    varlena::hash_extended(&stamp.to_le_bytes(), seed)
}

#[pg_extern(sql = false)]
fn hlc_now() -> SqlResult<i64> {
    Ok(server::now()?.cast_signed())
}

#[pg_extern(sql = false)]
fn hlc_observe(remote: i64) -> SqlResult<i64> {
    Ok(server::observe(remote.cast_unsigned())?.cast_signed())
}

#[pg_extern(sql = false)]
fn hlc_refused() -> SqlResult<i64> {
    Ok(server::refused()?.cast_signed())
}

#[pg_extern(sql = false)]
fn hlc_milliseconds(stamp: i64) -> i64 {
    // 48 bits always fit.
    hlc::milliseconds(stamp.cast_unsigned()).cast_signed()
}

#[pg_extern(sql = false)]
fn hlc_counter(stamp: i64) -> i32 {
    // 16 bits always fit.
    hlc::counter(stamp.cast_unsigned()) as i32
}

/// Microseconds between 1970 and 2000, the epochs of Unix and of PostgreSQL.
const EPOCH_DIFFERENCE: i64 = 946_684_800_000_000;

#[pg_extern(sql = false)]
fn hlc_time(stamp: i64) -> SqlResult<TimestampWithTimeZone> {
    time_of(stamp.cast_unsigned()).ok_or_else(|| {
        bad_argument("hlc out of range", "The time does not fit timestamptz.").into()
    })
}

/// The time of a stamp: 48 bits of milliseconds end in the year 10889, far inside the range of timestamptz.
pub fn time_of(stamp: u64) -> Option<TimestampWithTimeZone> {
    timestamp_since_1970(hlc::milliseconds(stamp).cast_signed() * 1_000)
}

/// A time in microseconds since 1970. None when it does not fit.
pub fn timestamp_since_1970(microseconds: i64) -> Option<TimestampWithTimeZone> {
    TimestampWithTimeZone::try_from(microseconds.checked_sub(EPOCH_DIFFERENCE)?).ok()
}

#[pg_extern(sql = false)]
fn hlc_from_parts(time: TimestampWithTimeZone, counter: i32) -> SqlResult<i64> {
    let microseconds = pg_sys::TimestampTz::from(time).saturating_add(EPOCH_DIFFERENCE);
    Ok(hlc::new(microseconds.div_euclid(1_000), counter.into())?.cast_signed())
}
