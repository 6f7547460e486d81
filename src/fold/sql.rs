//! Binds the fold to SQL; the declarations are in `sql/fold.sql`.
//!
//! The digest of the folded state is kept as a sum: every statement that changes a table of the fold adds
//! one row to `coord.fold_digest`, by what it has put in less what it has taken out. Nobody waits for
//! anybody there, at no isolation level, and a rollback takes its row along. Readers add the rows up; the
//! worker replaces many by one.

use std::cell::Cell;

use pgrx::IntoDatum;
use pgrx::prelude::*;

use super::record;
use crate::crdt::digest::{self, DIGEST_BYTES, Digest};
use crate::heap::{Access, Table};
use crate::trigger::{Firing, Operation, trigger_function};

const DOMAIN: &[u8] = b"pg_test fold 1";
const ZERO: Digest = [0; DIGEST_BYTES];

thread_local! {
    /// What the statement has changed so far. Begins at zero with each statement, also when the one before
    /// has failed.
    static CHANGE: Cell<Digest> = const { Cell::new(ZERO) };
}

trigger_function!(
    fold_digest_wrapper,
    pg_finfo_fold_digest_wrapper,
    fold_digest
);

/// The triggers `fold_digest_begin`, `fold_digest_row` and `fold_digest_end`.
fn fold_digest(firing: &Firing) -> pg_sys::Datum {
    match (firing.is_for_row(), firing.is_before()) {
        (true, _) => CHANGE.set(changed(firing, CHANGE.get())),
        (false, true) => CHANGE.set(ZERO),
        (false, false) => store(CHANGE.replace(ZERO)),
    }
    firing.unchanged()
}

fn changed(firing: &Firing, before: Digest) -> Digest {
    let table = firing.table_name();
    match firing.operation() {
        Operation::Insert => digest::add(&before, &row(firing, &table, firing.row())),
        Operation::Delete => digest::subtract(&before, &row(firing, &table, firing.row())),
        Operation::Update => {
            let without = digest::subtract(&before, &row(firing, &table, firing.row()));
            digest::add(&without, &row(firing, &table, firing.replacement()))
        }
        Operation::Truncate => before,
    }
}

/// A row is a function of the operation it comes from, whose name is a hash of all that it says. One without
/// a stamp comes from none.
fn row(firing: &Firing, table: &str, row: pg_sys::HeapTuple) -> Digest {
    let number = |name| firing.column_number(name).unwrap_or_default();
    // SAFETY: the columns of these names are a text and a stamp in each table of the fold.
    let (op_id, stamp) = unsafe {
        (
            firing.value::<&str>(row, number("op_id")),
            firing.value::<i64>(row, number("hlc")),
        )
    };
    match (op_id, stamp) {
        (Some(op_id), Some(_)) => of_row(table, op_id),
        _ => ZERO,
    }
}

fn of_row(table: &str, op_id: &str) -> Digest {
    digest::fields(&[DOMAIN, table.as_bytes(), op_id.as_bytes()])
}

/// The digest of the turn that an operation is.
pub fn turn_digest(op_id: &str) -> Digest {
    of_row("turn", op_id)
}

/// Adds rows that were put into the fold past its triggers.
pub fn add_to_digest(rows: impl Iterator<Item = Digest>) {
    store(rows.fold(ZERO, |sum, row| digest::add(&sum, &row)));
}

fn store(change: Digest) {
    if change != ZERO {
        Table::open(c"fold_digest", Access::Write).insert(&[change.as_slice().into_datum()]);
    }
}

/// The digest that a row has, for who adds them up anew.
#[pg_extern(sql = false)]
fn fold_row_digest(table: &str, op_id: &str) -> Vec<u8> {
    of_row(table, op_id).to_vec()
}

#[pg_extern(sql = false)]
fn record_rank(surface: &str, hlc: i64, op_id: &str) -> Vec<u8> {
    record::rank(surface, hlc.cast_unsigned(), op_id)
}
