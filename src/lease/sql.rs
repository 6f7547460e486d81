//! Binds leases and fencing to SQL; the declarations are in `sql/lease.sql`.

use std::ffi::CStr;
use std::time::Duration;

use pgrx::callconv::{BoxRet, FcInfo};
use pgrx::datum::Datum;
use pgrx::iter::TableIterator;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use pgrx::{IntoDatum, JsonB, Uuid, pg_sys};

use super::acquire::{self, Answer, Grant, Wish};
use super::admission;
use super::grant::{self, Request};
use super::memory;
use super::protection::{self, Protection};
use super::store::{self, Leases};
use super::tenure::{self, Claim};
use super::transaction::{self, Effect};
use crate::error::{self, Error, bad_argument};
use crate::heap::{self, Access, Latest};
use crate::lock::Lock;
use crate::trigger::{Firing, Operation, trigger_function};
use crate::varlena::{SqlResult, raise};

/// A row of the composite type that a function is declared to return.
struct CompositeRow(Vec<Option<pg_sys::Datum>>);

// SAFETY: each function gives the values of the columns that its declaration names.
unsafe impl BoxRet for CompositeRow {
    unsafe fn box_into<'fcx>(self, fcinfo: &mut FcInfo<'fcx>) -> Datum<'fcx> {
        // SAFETY: as above.
        unsafe {
            let row = composite(fcinfo.as_mut_ptr(), &self.0);
            fcinfo.return_raw_datum(row)
        }
    }
}

pgrx::impl_sql_translatable!(CompositeRow, "record");

/// A row of type `coord.lease_grant`.
fn grant_row(grant: Grant) -> CompositeRow {
    CompositeRow(vec![
        grant.resource.into_datum(),
        grant.holder.into_datum(),
        grant.epoch.into_datum(),
        Some(store::timestamp(grant.expires_at)),
    ])
}

/// A row of the composite type that a function is called to return.
///
/// # Safety
/// The call is of a function whose result has columns of the types of `values`, none of them null.
unsafe fn composite(
    call: pg_sys::FunctionCallInfo,
    values: &[Option<pg_sys::Datum>],
) -> pg_sys::Datum {
    let mut datums: Vec<pg_sys::Datum> = values
        .iter()
        .map(|value| value.unwrap_or(pg_sys::Datum::null()))
        .collect();
    let mut nulls: Vec<bool> = values.iter().map(Option::is_none).collect();
    let mut columns = std::ptr::null_mut();
    // SAFETY: as promised by the caller.
    unsafe {
        pg_sys::get_call_result_type(call, std::ptr::null_mut(), &raw mut columns);
        let columns = pg_sys::BlessTupleDesc(columns);
        let row = pg_sys::heap_form_tuple(columns, datums.as_mut_ptr(), nulls.as_mut_ptr());
        pg_sys::HeapTupleHeaderGetDatum((*row).t_data)
    }
}

fn microseconds(interval: &Interval) -> Result<i64, Error> {
    grant::interval_microseconds(interval.months(), interval.days(), interval.micros())
}

fn ttl_microseconds(ttl: &Interval) -> Result<i64, Error> {
    let ttl = microseconds(ttl)?;
    grant::check_ttl(ttl)?;
    Ok(ttl)
}

/// Raises 25006 on a standby, where nothing is granted.
fn refuse_standby(function: &CStr) {
    // SAFETY: a plain C string.
    unsafe { pg_sys::PreventCommandDuringRecovery(function.as_ptr()) };
}

/// Raises 25006 in a transaction that only reads as well.
fn refuse_to_read_only(function: &CStr) {
    // SAFETY: a plain C string.
    unsafe { pg_sys::PreventCommandIfReadOnly(function.as_ptr()) };
    refuse_standby(function);
}

fn required<T>(argument: Option<T>, name: &str) -> Result<T, Error> {
    argument.ok_or_else(|| {
        bad_argument(
            format!("{name} must not be null"),
            "Only request_id may be null.",
        )
    })
}

/// How long an acquisition may take. To make an interval of no length is a call into PostgreSQL, which
/// those who do not wait need not pay for.
enum Patience {
    None,
    UpTo(Interval),
}

impl Patience {
    fn microseconds(&self) -> Result<i64, Error> {
        match self {
            Self::None => Ok(0),
            Self::UpTo(interval) => microseconds(interval),
        }
    }
}

/// What is asked of an acquisition, as SQL gives it.
struct Arguments<'a> {
    resource: Option<&'a str>,
    holder: Option<&'a str>,
    ttl: Option<Interval>,
    request_id: Option<Uuid>,
    max_wait: Option<Patience>,
    terminate_writers: Option<bool>,
}

fn acquire(arguments: Arguments) -> Result<Answer, Error> {
    let resource = required(arguments.resource, "resource")?;
    let holder = required(arguments.holder, "holder")?;
    grant::check_name("a resource", resource)?;
    grant::check_name("a holder", holder)?;
    let max_wait = required(arguments.max_wait, "max_wait")?.microseconds()?;
    grant::check_max_wait(max_wait)?;
    refuse_to_read_only(c"lease_acquire()");
    acquire::acquire(&Wish {
        resource,
        request: Request {
            holder,
            id: arguments.request_id.map(|id| *id.as_bytes()),
        },
        ttl: ttl_microseconds(&required(arguments.ttl, "ttl")?)?,
        max_wait: Duration::from_micros(max_wait.unsigned_abs()),
        terminates_writers: required(arguments.terminate_writers, "terminate_writers")?,
    })
}

#[pg_extern(sql = false)]
fn lease_acquire(
    resource: Option<&str>,
    holder: Option<&str>,
    ttl: Option<Interval>,
    request_id: Option<Uuid>,
    max_wait: Option<Interval>,
    terminate_writers: Option<bool>,
) -> SqlResult<CompositeRow> {
    match acquire(Arguments {
        resource,
        holder,
        ttl,
        request_id,
        max_wait: max_wait.map(Patience::UpTo),
        terminate_writers,
    })? {
        Answer::Granted(grant) => Ok(grant_row(grant)),
        Answer::Refused(refusal) => Err(refusal.into()),
    }
}

#[pg_extern(sql = false)]
fn lease_try_acquire(
    resource: Option<&str>,
    holder: Option<&str>,
    ttl: Option<Interval>,
    request_id: Option<Uuid>,
) -> SqlResult<Option<CompositeRow>> {
    match acquire(Arguments {
        resource,
        holder,
        ttl,
        request_id,
        max_wait: Some(Patience::None),
        terminate_writers: Some(false),
    })? {
        Answer::Granted(grant) => Ok(Some(grant_row(grant))),
        Answer::Refused(_) => Ok(None),
    }
}

/// A moment of the lease clock as SQL has it.
struct Moment(i64);

// SAFETY: a timestamptz is its microseconds.
unsafe impl BoxRet for Moment {
    unsafe fn box_into<'fcx>(self, fcinfo: &mut FcInfo<'fcx>) -> Datum<'fcx> {
        // SAFETY: as above.
        unsafe { fcinfo.return_raw_datum(store::timestamp(self.0)) }
    }
}

pgrx::impl_sql_translatable!(Moment, "timestamptz");

#[pg_extern(sql = false)]
fn lease_renew(resource: &str, holder: &str, epoch: i64, ttl: Interval) -> SqlResult<Moment> {
    let ttl = ttl_microseconds(&ttl)?;
    refuse_standby(c"lease_renew()");
    let claim = Claim {
        resource,
        holder,
        epoch,
    };
    let renewed = tenure::renew(claim, ttl).map_err(|refusal| refusal.into_error(claim))?;
    Ok(Moment(renewed))
}

/// Reads `{"resource": epoch, …}`.
fn claimed_epochs(epochs: &JsonB) -> Result<Vec<(String, i64)>, Error> {
    let malformed = |detail: String| bad_argument("invalid epochs", detail);
    let object = epochs
        .0
        .as_object()
        .ok_or_else(|| malformed("They are an object of resources and epochs.".to_owned()))?;
    let claims = object.iter().map(|(resource, epoch)| {
        let epoch = epoch
            .as_i64()
            .ok_or_else(|| malformed(format!("The epoch of \"{resource}\" is {epoch}.")))?;
        Ok((resource.clone(), epoch))
    });
    claims.collect()
}

// pgrx reads the columns from the text of the result type, so none of it can be an alias.
#[expect(clippy::type_complexity)]
#[pg_extern(sql = false)]
fn lease_renew_all(
    holder: &str,
    epochs: JsonB,
    ttl: Interval,
) -> Result<
    TableIterator<
        'static,
        (
            name!(resource, String),
            name!(epoch, i64),
            name!(expires_at, Option<TimestampWithTimeZone>),
            name!(refusal, Option<String>),
        ),
    >,
    ErrorReport,
> {
    let ttl = ttl_microseconds(&ttl)?;
    let claims = claimed_epochs(&epochs)?;
    refuse_standby(c"lease_renew_all()");
    let mut rows = Vec::with_capacity(claims.len());
    for (resource, epoch) in claims {
        let claim = Claim {
            resource: &resource,
            holder,
            epoch,
        };
        let (expires_at, refusal) = match tenure::renew(claim, ttl) {
            Ok(expires_at) => (TimestampWithTimeZone::try_from(expires_at).ok(), None),
            Err(refusal) => (None, Some(refusal.name().to_owned())),
        };
        rows.push((resource, epoch, expires_at, refusal));
    }
    Ok(TableIterator::new(rows))
}

#[pg_extern(sql = false)]
fn lease_release(resource: &str, holder: &str, epoch: i64) -> SqlResult<bool> {
    refuse_to_read_only(c"lease_release()");
    let claim = Claim {
        resource,
        holder,
        epoch,
    };
    tenure::release(claim).map_err(|refusal| refusal.into_error(claim))?;
    Ok(true)
}

#[pg_extern(sql = false)]
fn lease_release_all(holder: &str) -> i64 {
    refuse_to_read_only(c"lease_release_all()");
    tenure::release_all(holder)
}

#[pg_extern(sql = false)]
fn lease_revoke(resource: &str, reason: &str) -> SqlResult<bool> {
    refuse_to_read_only(c"lease_revoke()");
    Ok(tenure::revoke(resource, reason)?)
}

#[pg_extern(sql = false)]
fn lease_current(resource: &str) -> Option<CompositeRow> {
    let now = store::now();
    let found = Leases::open(Access::Read).find(resource);
    if let Some(found) = found.filter(|found| found.lease.is_held(now)) {
        let mut row = grant_row(Grant::of(resource, &found.lease));
        row.0.extend([None, None]);
        return Some(row);
    }
    let elsewhere = store::elsewhere(&Latest::take(), resource);
    elsewhere.live(now).map(|report| {
        CompositeRow(vec![
            resource.into_datum(),
            report.holder.as_str().into_datum(),
            report.epoch.into_datum(),
            Some(store::timestamp(report.expires_at)),
            report.node.as_str().into_datum(),
            Some(store::timestamp(report.heard_at)),
        ])
    })
}

#[pg_extern(sql = false)]
fn lease_memory_is_open() -> bool {
    memory::is_open(heap::relation_oid(c"lease").to_u32())
}

#[pg_extern(sql = false)]
fn lease_now() -> Moment {
    Moment(store::now())
}

#[pg_extern(sql = false)]
fn lease_expires_at(
    resource: &str,
    lease_id: i64,
    epoch: i64,
    expires_at: TimestampWithTimeZone,
    ttl: Interval,
    memory: TimestampWithTimeZone,
) -> SqlResult<Moment> {
    let key = store::key(heap::relation_oid(c"lease").to_u32(), lease_id, resource);
    let stored = grant::Stored {
        expires_at: expires_at.into_inner(),
        ttl: microseconds(&ttl)?,
        memory: memory.into_inner(),
    };
    Ok(Moment(store::expires_at(key, epoch, stored)))
}

#[pg_extern(sql = false)]
fn lease_lock(resource: &str) -> CompositeRow {
    let (high, low) = Lock::of_lease(resource).numbers();
    let numbers = [high, low].map(|number| pg_sys::Oid::from(number).into_datum());
    CompositeRow(numbers.to_vec())
}

#[pg_extern(sql = false)]
fn fence(resource: &str, epoch: i64) -> SqlResult<()> {
    Ok(admission::admit(resource, epoch)?)
}

#[pg_extern(sql = false)]
fn fence_set(resource: &str, epoch: i64) -> SqlResult<()> {
    admission::admit(resource, epoch)?;
    transaction::set_token(resource, epoch);
    Ok(())
}

trigger_function!(lease_keep_wrapper, pg_finfo_lease_keep_wrapper, lease_keep);

/// The triggers that keep grants as they are.
fn lease_keep(firing: &Firing) -> pg_sys::Datum {
    if firing.operation() != Operation::Truncate {
        raise(error::lease_kept(&Leases::resource_of(firing)));
    }
    transaction::at_commit(Effect::Emptied);
    firing.unchanged()
}

/// The three arguments of a trigger of ours, null where it has none.
#[pg_extern(sql = false)]
fn fence_guard_arguments(arguments: &[u8]) -> SqlResult<CompositeRow> {
    let malformed =
        || -> Error { error::malformed_binary("trigger arguments", "They are not three texts.") };
    let found = Protection::parse(arguments).ok_or_else(malformed)?;
    let given = |text: &str| (!text.is_empty()).then_some(text).into_datum();
    let arguments = [found.resource, found.resource_column, found.epoch_column];
    Ok(CompositeRow(arguments.map(given).to_vec()))
}

#[pg_extern(sql = false)]
fn fence_refusals(target: pg_sys::Oid) -> Option<i64> {
    protection::refusals(target.to_u32())
}
