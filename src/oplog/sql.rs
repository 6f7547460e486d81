//! Binds the log to SQL; the declarations are in `sql/oplog.sql`.

use std::cell::Cell;
use std::ffi::{CStr, CString};

use pgrx::pg_sys::panic::{ErrorReport, ErrorReportable};
use pgrx::prelude::*;
use pgrx::{IntoDatum, direct_function_call_as_datum};
use serde::Serialize;

use super::append::{Appended, Log, Turn};
use super::op::{self, Content};
use super::payload::Payload;
use crate::clock::hlc;
use crate::error::{self, Error};
use crate::heap::{Access, Table};
use crate::lock::{Lock, Mode};
use crate::node::sql::confirmed_actor;
use crate::spi::{self, Session, Value};
use crate::varlena::{Flat, FlatResult, SqlResult};

/// Who puts operations into the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// Replication, gossip, a dump: they are checked, and folded one by one.
    Elsewhere,
    /// This node. The trigger folds them.
    Here,
    /// This node, in a statement that folds them itself.
    HereAndFolded,
}

thread_local! {
    static SOURCE: Cell<Source> = const { Cell::new(Source::Elsewhere) };
}

/// While it lives, operations come from this source.
struct Appending;

impl Appending {
    fn from(source: Source) -> Self {
        SOURCE.set(source);
        Self
    }
}

impl Drop for Appending {
    fn drop(&mut self) {
        SOURCE.set(Source::Elsewhere);
    }
}

#[pg_extern(sql = false)]
fn op_id(
    origin: &str,
    seq: i64,
    hlc: i64,
    scope: &str,
    surface: &str,
    payload: &str,
    tenant: &str,
) -> String {
    let content = Content {
        origin,
        seq,
        hlc: hlc.cast_unsigned(),
        scope,
        surface,
        payload,
        tenant,
    };
    content.name()
}

#[pg_extern(sql = false)]
fn op_hash(payload: &str) -> String {
    op::hash(payload)
}

#[pg_extern(sql = false)]
fn op_check(scope: &str, surface: &str, key: &str, size: i32) -> SqlResult<bool> {
    op::check_appended(scope, surface, key, size.into())?;
    Ok(true)
}

/// Keeps everybody else from bringing operations of this origin until the transaction ends.
#[pg_extern(sql = false)]
fn op_origin_lock(origin: &str) {
    Lock::of_origin(origin).take(Mode::Admission);
}

#[pg_extern(sql = false)]
fn op_is_from_elsewhere() -> bool {
    SOURCE.get() == Source::Elsewhere
}

#[pg_extern(sql = false)]
fn op_is_single() -> bool {
    SOURCE.get() != Source::HereAndFolded
}

/// What this node appends under. A new life waits for whoever has the log open for writing, and is seen by
/// whoever comes later.
fn actor() -> Result<String, Error> {
    drop(Table::open(c"op", Access::Write));
    confirmed_actor()
}

#[pg_extern(sql = false)]
fn op_required(part: &str) -> SqlResult<FlatResult> {
    Err(error::op_incomplete(part).into())
}

#[pg_trigger(sql = false)]
fn op_keep<'a>(
    trigger: &'a PgTrigger<'a>,
) -> Result<Option<PgHeapTuple<'a, impl WhoAllocated>>, Error> {
    Err::<(), ErrorReport>(error::op_immutable().into()).unwrap_or_report();
    Ok(trigger.new())
}

/// Appends what this node says to the others by itself.
#[pg_extern(sql = false)]
fn op_append_own(scope: &str, surface: &str, payload: Flat) -> SqlResult<()> {
    // SAFETY: the argument is a jsonb.
    let text = unsafe { Payload::new(payload.datum()) }.text();
    op::check(
        scope,
        surface,
        "",
        i64::try_from(text.len()).unwrap_or(i64::MAX),
    )?;
    let actor = actor()?;
    let appending = Appending::from(Source::Here);
    spi::connect(|spi| {
        let arguments = [
            Value::Text(Some(&actor)),
            Value::Text(Some(scope)),
            Value::Text(Some(surface)),
            Value::Json(payload),
        ];
        spi.write(APPEND_OWN, &arguments);
    });
    drop(appending);
    Ok(())
}

const APPEND_OWN: &CStr = c"
    INSERT INTO coord.op (origin, seq, hlc, op_id, scope, surface, payload)
    SELECT $1, n.seq, n.hlc, coord.op_id($1, n.seq, n.hlc, $2, $3, $4::text, ''), $2, $3, $4
      FROM (SELECT nextval('coord.op_seq') AS seq, coord.hlc_now() AS hlc OFFSET 0) n";

fn given<T>(argument: Option<T>, name: &str) -> Result<T, Error> {
    argument.ok_or_else(|| error::op_incomplete(name))
}

#[pg_extern(sql = false)]
fn op_append(
    scope: Option<&str>,
    surface: Option<&str>,
    payload: Option<Flat>,
) -> SqlResult<FlatResult> {
    let scope = given(scope, "scope")?;
    let surface = given(surface, "surface")?;
    let payload = given(payload, "payload")?;
    let actor = actor()?;
    if surface == "conversation"
        && let Some(log) = writable_log()
    {
        // SAFETY: the argument is a jsonb.
        let payload = unsafe { Payload::new(payload.datum()) };
        let turn = Turn {
            scope,
            payload,
            tenant: None,
        };
        if let Some(appended) = log.append(&actor, &[turn])? {
            return Ok(json_result(receipt(&actor, &appended[0])));
        }
    }
    let appending = Appending::from(Source::Here);
    let receipt = spi::connect(|spi| {
        let rows = spi.write(
            APPEND,
            &[
                Value::Text(Some(&actor)),
                Value::Text(Some(scope)),
                Value::Text(Some(surface)),
                Value::Json(payload),
            ],
        );
        rows.flat(0, 0)
    });
    drop(appending);
    Ok(receipt)
}

/// The log, where turns can be written past the executor, which refuses to write where that is not allowed.
fn writable_log() -> Option<Log> {
    // SAFETY: raise an error themselves.
    unsafe {
        pg_sys::PreventCommandIfReadOnly(c"coord.op_append()".as_ptr());
        pg_sys::PreventCommandIfParallelMode(c"coord.op_append()".as_ptr());
    }
    Log::open()
}

/// As `coord.op_receipt`.
#[derive(Serialize)]
struct Receipt<'a> {
    op_id: &'a str,
    seq: i64,
    hlc: Stamp<'a>,
}

#[derive(Serialize)]
struct Stamp<'a> {
    wall_ms: u64,
    counter: u64,
    device_id: &'a str,
}

fn receipt<'a>(actor: &'a str, appended: &'a Appended) -> Receipt<'a> {
    Receipt {
        op_id: &appended.op_id,
        seq: appended.seq,
        hlc: Stamp {
            wall_ms: hlc::milliseconds(appended.hlc),
            counter: hlc::counter(appended.hlc),
            device_id: actor,
        },
    }
}

/// Without a tree of values in between, which thousands of receipts would take long to put up.
fn json_result(value: impl Serialize) -> FlatResult {
    let text = serde_json::to_string(&value).ok().map(CString::new);
    let text = text.and_then(std::result::Result::ok).unwrap_or_default();
    // SAFETY: the input function takes a C string and gives a jsonb in the memory of the call, or raises an error.
    unsafe {
        let datum =
            direct_function_call_as_datum(pg_sys::jsonb_in, &[text.as_c_str().into_datum()]);
        FlatResult::from_datum(datum.unwrap_or(pg_sys::Datum::null()))
    }
}

const APPEND: &CStr = c"
    INSERT INTO coord.op AS o (origin, seq, hlc, op_id, scope, surface, payload)
    SELECT $1, n.seq, n.hlc, coord.op_id($1, n.seq, n.hlc, $2, $3, n.content, ''), $2, $3, $4
      FROM (SELECT nextval('coord.op_seq') AS seq, coord.hlc_now() AS hlc, $4::text AS content OFFSET 0) n
     WHERE coord.op_check($2, $3, coord.op_key($3, $4), octet_length(n.content))
       AND ($3 <> 'intent' OR coord.intent_is_admissible(n.content))
    RETURNING coord.op_receipt(o)";

/// Numbers and stamps follow the order of the array. Rows are written in the order of what they fold into,
/// because replication applies them in that order: whoever folds several takes row locks in one order.
#[pg_extern(sql = false)]
fn op_append_many(ops: Option<Flat>) -> SqlResult<FlatResult> {
    let ops = given(ops, "array")?;
    let actor = actor()?;
    if let Some(log) = writable_log()
        && let Some(appended) = spi::connect(|spi| append_turns(spi, &log, &actor, ops))?
    {
        let receipts = appended.iter().map(|appended| receipt(&actor, appended));
        return Ok(json_result(receipts.collect::<Vec<_>>()));
    }
    let appending = Appending::from(Source::HereAndFolded);
    let receipts = spi::connect(|spi| {
        let rows = spi.write(APPEND_MANY, &[Value::Text(Some(&actor)), Value::Json(ops)]);
        rows.flat(0, 0)
    });
    drop(appending);
    Ok(receipts)
}

/// Appends an array of turns; None when something else is in it, or nothing that can be appended.
fn append_turns(
    spi: &Session,
    log: &Log,
    actor: &str,
    ops: Flat,
) -> Result<Option<Vec<Appended>>, Error> {
    let given = spi.write(
        c"SELECT e.op ->> 'scope', e.op -> 'payload', (e.op ->> 'tenant_id')::uuid,
                 e.op ->> 'surface' = 'conversation' AND e.op ->> 'scope' IS NOT NULL
                 AND e.op -> 'payload' IS NOT NULL
            FROM jsonb_array_elements($1) e(op)",
        &[Value::Json(ops)],
    );
    let rows = 0..given.len();
    if !rows.clone().all(|row| given.get(row, 3) == Some(true)) {
        return Ok(None);
    }
    let scopes: Vec<Option<String>> = rows.clone().map(|row| given.get(row, 0)).collect();
    let turns: Vec<Turn> = rows
        .map(|row| Turn {
            scope: scopes[row].as_deref().unwrap_or_default(),
            // SAFETY: a jsonb, which lives as long as the rows.
            payload: unsafe { Payload::new(given.datum(row, 1).0) },
            tenant: given.get(row, 2),
        })
        .collect();
    log.append(actor, &turns)
}

const APPEND_MANY: &CStr = c"
    WITH given AS MATERIALIZED (
      SELECT g.*, nextval('coord.op_seq') AS seq, coord.hlc_now() AS hlc
        FROM coord.op_parse($2) g
    ), appended AS (
      INSERT INTO coord.op AS o (origin, seq, hlc, op_id, scope, surface, payload, tenant_id)
      SELECT $1, g.seq, g.hlc,
             coord.op_id($1, g.seq, g.hlc, g.scope, g.surface, g.content, coalesce(g.tenant_id::text, '')),
             g.scope, g.surface, g.payload, g.tenant_id
        FROM given g
       ORDER BY g.scope, g.surface, g.key, g.seq
      RETURNING o AS op
    ), folded AS MATERIALIZED (
      SELECT coord.op_fold(array_agg(a.op)) FROM appended a
    )
    SELECT coalesce(jsonb_agg(coord.op_receipt(a.op) ORDER BY (a.op).seq), '[]')
      FROM appended a, folded";
