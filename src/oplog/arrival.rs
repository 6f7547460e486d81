//! Operations that come from elsewhere, admitted and folded without the executor: replication applies them one by
//! one, so that what an operation takes here bounds how many a second all other nodes can append.

use pgrx::pg_sys;

use super::admission::{self, Admission, Arrival, Known, Refusal};
use super::op::Content;
use super::payload::Payload;
use crate::clock::server;
use crate::clock::vclock::Vclock;
use crate::conversation::turn::Said;
use crate::error::Result;
use crate::fold::turn::{Turn, Turns};
use crate::heap::{self, Access, Key, Latest, Table, Values};
use crate::is_preloaded;
use crate::lock::{Lock, Mode};
use crate::spi::{self, Value};
use crate::stream;
use crate::trigger::{Firing, trigger_function};
use crate::varlena::{Flat, raise};

/// Columns of `coord.op`, from 0.
mod column {
    pub const ORIGIN: usize = 0;
    pub const SEQ: usize = 1;
    pub const XID: usize = 2;
    pub const LOCAL_XID: usize = 3;
    pub const HLC: usize = 4;
    pub const OP_ID: usize = 5;
    pub const SCOPE: usize = 6;
    pub const SURFACE: usize = 7;
    pub const PAYLOAD: usize = 8;
    pub const TENANT_ID: usize = 10;
    pub const COUNT: usize = 11;
}

/// A row that is put into the log.
struct Op<'a> {
    origin: &'a str,
    seq: i64,
    xid: u64,
    hlc: u64,
    op_id: &'a str,
    scope: &'a str,
    surface: &'a str,
    payload: Payload,
    tenant: Option<pgrx::Uuid>,
}

impl<'a> Op<'a> {
    /// None for one that lacks a part, which its table refuses.
    fn read(values: &'a Values<{ column::COUNT }>) -> Option<Self> {
        // SAFETY: the types are those of sql/oplog.sql; an xid8 is its number.
        unsafe {
            Some(Self {
                origin: values.get(column::ORIGIN)?,
                seq: values.get(column::SEQ)?,
                xid: values.get::<i64>(column::XID)?.cast_unsigned(),
                hlc: values.get::<i64>(column::HLC)?.cast_unsigned(),
                op_id: values.get(column::OP_ID)?,
                scope: values.get(column::SCOPE)?,
                surface: values.get(column::SURFACE)?,
                payload: values.get(column::PAYLOAD)?,
                tenant: values.get(column::TENANT_ID),
            })
        }
    }
}

trigger_function!(op_admit_wrapper, pg_finfo_op_admit_wrapper, op_admit);

/// The trigger `op_admit`.
fn op_admit(firing: &Firing) -> pg_sys::Datum {
    match admit(firing) {
        // SAFETY: the column is an xid8.
        Ok(Admission::Admitted) => unsafe { firing.with_value(column::LOCAL_XID, own_xid()) },
        Ok(Admission::Repeated) => Firing::nothing(),
        Ok(Admission::Refused(refusal)) => {
            refuse(firing, &refusal);
            Firing::nothing()
        }
        Err(error) => raise(error),
    }
}

/// The transaction that brings an operation here.
fn own_xid() -> pg_sys::Datum {
    // SAFETY: a transaction that writes.
    unsafe { pg_sys::GetTopFullTransactionId() }.value.into()
}

fn admit(firing: &Firing) -> Result<Admission> {
    let values = firing.values();
    let Some(op) = Op::read(&values) else {
        return Ok(Admission::Admitted);
    };
    stream::sql::pass_gate()?;
    // Before the look at what is here: whoever else brings the same operation has ended then.
    Lock::of_origin(op.origin).take(Mode::Admission);
    let text = op.payload.text();
    let tenant = op.tenant.map(|tenant| tenant.to_string());
    let arrival = Arrival {
        content: Content {
            origin: op.origin,
            seq: op.seq,
            hlc: op.hlc,
            scope: op.scope,
            surface: op.surface,
            payload: &text,
            tenant: tenant.as_deref().unwrap_or_default(),
        },
        op_id: op.op_id,
        key: &op.payload.key(op.surface, &text),
        xid: op.xid,
    };
    let admission = decide(firing, &op, &arrival);
    Ok(match admission {
        Admission::Admitted => observe(op.hlc),
        _ => admission,
    })
}

fn decide(firing: &Firing, op: &Op, arrival: &Arrival) -> Admission {
    // What the statement has brought before counts as well.
    heap::make_visible();
    let seen = Latest::take();
    let log = Table::open_by_oid(firing.table_oid().into(), Access::Write);
    let keys = [Key::Text(1, op.origin), Key::Number(2, op.seq)];
    let row = log.find_by_identity(&seen, &keys);
    let known = Known {
        // SAFETY: the type is that of sql/oplog.sql.
        op_id: (row.as_ref()).and_then(|row| unsafe { row.get(column::OP_ID) }),
        is_quarantined: is_quarantined(&seen, op.origin),
        base: base(&seen, op.origin),
    };
    admission::decide(arrival, known)
}

fn is_quarantined(seen: &Latest, origin: &str) -> bool {
    let quarantine = Table::open(c"quarantine", Access::Read);
    !quarantine.is_empty()
        && (quarantine.find(seen, c"quarantine_pkey", &[Key::Text(1, origin)])).is_some()
}

/// How far the log of this node was cleared of what is needed for nothing.
fn base(seen: &Latest, origin: &str) -> u64 {
    let table = Table::open(c"op_base", Access::Read);
    let row = table.first(seen);
    // SAFETY: the type is that of sql/fold.sql.
    let frontier = row.as_ref().and_then(|row| unsafe { row.get::<Flat>(0) });
    let frontier = frontier.and_then(|frontier| Vclock::parse(frontier.bytes()).ok());
    frontier.map_or(0, |frontier| frontier.get(origin.as_bytes()))
}

/// Moves this node's clock above the stamp, so that whatever is appended next comes after it.
fn observe(stamp: u64) -> Admission {
    let observed = if is_preloaded() {
        server::observe(stamp).map(drop)
    } else {
        server::check_drift(stamp)
    };
    match observed {
        Ok(()) => Admission::Admitted,
        Err(refusal) => Admission::Refused(Refusal::Clock(refusal.to_string())),
    }
}

fn refuse(firing: &Firing, refusal: &Refusal) {
    let (row, detail) = (firing.row_text(), refusal.detail());
    spi::connect(|spi| {
        let arguments = [
            Value::Text(Some(&row)),
            Value::Text(Some(refusal.reason())),
            Value::Text(detail.as_deref()),
            Value::Text(refusal.kept()),
        ];
        spi.write(
            c"SELECT coord.op_refuse($1::coord.op, $2, $3, $4)",
            &arguments,
        );
    });
}

trigger_function!(
    op_fold_turn_wrapper,
    pg_finfo_op_fold_turn_wrapper,
    op_fold_turn
);

/// The trigger `op_fold_turn`.
fn op_fold_turn(firing: &Firing) -> pg_sys::Datum {
    let values = firing.values();
    if let Some(op) = Op::read(&values).filter(|op| !waits(op)) {
        match Turns::open() {
            Some(turns) => fold_turn(&turns, &op),
            None => fold_by_statements(firing),
        }
    }
    Firing::nothing()
}

/// Whether it is to be folded later, because somebody holds the table that it folds into.
fn waits(op: &Op) -> bool {
    let waiting = Table::open(c"fold_waiting", Access::Read);
    if waiting.is_empty() {
        return false;
    }
    heap::make_visible();
    let keys = [Key::Text(1, op.origin), Key::Number(2, op.seq)];
    (waiting.find(&Latest::take(), c"fold_waiting_pkey", &keys)).is_some()
}

fn fold_turn(turns: &Turns, op: &Op) {
    let text = op.payload.text();
    turns.put(&Turn {
        scope: op.scope,
        hlc: op.hlc,
        op_id: op.op_id,
        origin: op.origin,
        payload: op.payload,
        said: &Said::parse(&text),
    });
}

fn fold_by_statements(firing: &Firing) {
    let row = firing.row_text();
    spi::connect(|spi| {
        spi.write(
            c"SELECT coord.op_fold(ARRAY[$1::coord.op])",
            &[Value::Text(Some(&row))],
        );
    });
}
