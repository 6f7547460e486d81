//! A thin layer over SPI: plans kept per session, result tables freed, and a choice of snapshot.
//!
//! pgrx's own layer plans every statement anew, never frees a result table, and picks read-only
//! execution by itself; the gossip feed needs several reads under one snapshot (design: a batch
//! and the snapshot stored for it come from one snapshot).
//!
//! Arguments and results are of built-in types only, so a kept plan outlives DROP EXTENSION.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CStr, c_char};
use std::marker::PhantomData;

use pgrx::{FromDatum, IntoDatum, pg_sys};

use crate::varlena::{Flat, FlatResult};

/// An argument of a statement.
#[derive(Clone, Copy)]
pub enum Value<'a> {
    Text(Option<&'a str>),
    Bytes(Option<&'a [u8]>),
    Int(i64),
    Bool(bool),
    /// Microseconds since 2000, as PostgreSQL counts them.
    Timestamp(Option<i64>),
    Texts(&'a [&'a str]),
    ByteStrings(&'a [&'a [u8]]),
    Ints(&'a [i64]),
    Json(Flat<'a>),
}

impl Value<'_> {
    fn type_oid(self) -> pg_sys::Oid {
        match self {
            Self::Text(_) => pg_sys::TEXTOID,
            Self::Bytes(_) => pg_sys::BYTEAOID,
            Self::Int(_) => pg_sys::INT8OID,
            Self::Bool(_) => pg_sys::BOOLOID,
            Self::Timestamp(_) => pg_sys::TIMESTAMPTZOID,
            Self::Texts(_) => pg_sys::TEXTARRAYOID,
            Self::ByteStrings(_) => pg_sys::BYTEAARRAYOID,
            Self::Ints(_) => pg_sys::INT8ARRAYOID,
            Self::Json(_) => pg_sys::JSONBOID,
        }
    }

    fn datum(self) -> Option<pg_sys::Datum> {
        match self {
            Self::Text(text) => text.into_datum(),
            Self::Bytes(bytes) => bytes.into_datum(),
            Self::Int(number) => number.into_datum(),
            Self::Bool(truth) => truth.into_datum(),
            Self::Timestamp(moment) => moment.into_datum(),
            Self::Texts(texts) => texts.to_vec().into_datum(),
            Self::ByteStrings(strings) => strings.to_vec().into_datum(),
            Self::Ints(numbers) => numbers.to_vec().into_datum(),
            Self::Json(json) => Some(json.datum()),
        }
    }
}

thread_local! {
    static PLANS: RefCell<HashMap<*const c_char, pg_sys::SPIPlanPtr>> = RefCell::default();
}

/// An open SPI connection.
pub struct Session {
    _not_send: PhantomData<*const ()>,
}

/// Runs `work` with SPI connected. Results must be plain values: what SPI allocated is freed.
pub fn connect<T>(work: impl FnOnce(&Session) -> T) -> T {
    // SAFETY: connect and finish are paired; an error in between ends the transaction, which
    // closes the connection itself.
    unsafe { pg_sys::SPI_connect() };
    let result = work(&Session {
        _not_send: PhantomData,
    });
    // SAFETY: as above.
    unsafe { pg_sys::SPI_finish() };
    result
}

impl Session {
    /// Runs `work` with one snapshot that every `read` in it uses, taken now, with this
    /// transaction's own changes visible.
    pub fn with_snapshot<T>(&self, work: impl FnOnce(&Self) -> T) -> T {
        // SAFETY: push and pop are paired; an error in between ends the transaction, which
        // releases the snapshot itself.
        unsafe {
            pg_sys::CommandCounterIncrement();
            pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        }
        let result = work(self);
        // SAFETY: as above.
        unsafe { pg_sys::PopActiveSnapshot() };
        result
    }

    /// The same with a snapshot of this moment, which a transaction of a stricter isolation level
    /// would not take by itself. Only for looking: what it shows may be newer than what the
    /// transaction can change.
    pub fn with_latest_snapshot<T>(&self, work: impl FnOnce(&Self) -> T) -> T {
        // SAFETY: as above.
        unsafe { pg_sys::PushActiveSnapshot(pg_sys::GetLatestSnapshot()) };
        let result = work(self);
        // SAFETY: as above.
        unsafe { pg_sys::PopActiveSnapshot() };
        result
    }

    /// Runs a query under the active snapshot.
    pub fn read(&self, sql: &'static CStr, arguments: &[Value]) -> Rows {
        execute(sql, arguments, true)
    }

    /// Runs a statement that may write, under a snapshot of its own.
    pub fn write(&self, sql: &'static CStr, arguments: &[Value]) -> Rows {
        execute(sql, arguments, false)
    }
}

fn execute(sql: &'static CStr, arguments: &[Value], read_only: bool) -> Rows {
    let plan = kept_plan(sql, arguments);
    let mut datums = Vec::with_capacity(arguments.len());
    let mut nulls = Vec::with_capacity(arguments.len());
    for argument in arguments {
        let datum = argument.datum();
        nulls.push(if datum.is_some() { b' ' } else { b'n' }.cast_signed());
        datums.push(datum.unwrap_or(pg_sys::Datum::null()));
    }
    // SAFETY: SPI is connected (a `Session` exists), the arrays match the plan's argument count;
    // errors are raised by PostgreSQL and unwind through here.
    unsafe {
        pg_sys::SPI_execute_plan(plan, datums.as_mut_ptr(), nulls.as_ptr(), read_only, 0);
        Rows {
            table: pg_sys::SPI_tuptable,
            count: usize::try_from(pg_sys::SPI_processed).unwrap_or(0),
        }
    }
}

fn kept_plan(sql: &'static CStr, arguments: &[Value]) -> pg_sys::SPIPlanPtr {
    PLANS.with_borrow_mut(|plans| {
        *plans.entry(sql.as_ptr()).or_insert_with(|| {
            let mut types: Vec<pg_sys::Oid> = arguments
                .iter()
                .map(|argument| argument.type_oid())
                .collect();
            // SAFETY: SPI is connected; preparing raises an error rather than returning null for
            // SQL that does not parse, and a kept plan lives as long as the session.
            unsafe {
                let count = i32::try_from(types.len()).unwrap_or(i32::MAX);
                let plan = pg_sys::SPI_prepare(sql.as_ptr(), count, types.as_mut_ptr());
                pg_sys::SPI_keepplan(plan);
                plan
            }
        })
    })
}

/// The rows of one statement, freed when dropped.
pub struct Rows {
    table: *mut pg_sys::SPITupleTable,
    count: usize,
}

impl Rows {
    /// Rows returned, or affected by a statement without RETURNING.
    pub fn len(&self) -> usize {
        self.count
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// A column (from 0) of a row (from 0), `None` when it is null. Raises an error when the
    /// value is of another type than asked for.
    pub fn get<T: FromDatum + IntoDatum>(&self, row: usize, column: i32) -> Option<T> {
        let (datum, is_null, found) = self.datum(row, column);
        assert!(
            T::is_compatible_with(found),
            "column {column} is of another type"
        );
        // SAFETY: the type is compared above.
        unsafe { T::from_datum(datum, is_null) }
    }

    /// A column of a row as the result of the function that SPI was connected in; its type is one of those
    /// that vary in length.
    pub fn flat(&self, row: usize, column: i32) -> FlatResult {
        let (datum, is_null, _) = self.datum(row, column);
        assert!(!is_null, "column {column} is null");
        // SAFETY: copied to where the function's caller finds it.
        unsafe { FlatResult::from_datum(pg_sys::SPI_datumTransfer(datum, false, -1)) }
    }

    /// A column of a row as it is, whether it is null, and its type.
    pub fn datum(&self, row: usize, column: i32) -> (pg_sys::Datum, bool, pg_sys::Oid) {
        assert!(
            row < self.count && !self.table.is_null(),
            "row {row} does not exist"
        );
        // SAFETY: the row exists; `SPI_getbinval` checks the column number.
        unsafe {
            let table = &*self.table;
            let found = pg_sys::SPI_gettypeid(table.tupdesc, column + 1);
            let mut is_null = false;
            let tuple = *table.vals.add(row);
            let datum = pg_sys::SPI_getbinval(tuple, table.tupdesc, column + 1, &raw mut is_null);
            (datum, is_null, found)
        }
    }
}

impl Drop for Rows {
    fn drop(&mut self) {
        if !self.table.is_null() {
            // SAFETY: owned by this value and freed once. During an error PostgreSQL frees all
            // result tables of the connection, and this frees the one it still lists.
            unsafe { pg_sys::SPI_freetuptable(self.table) };
        }
    }
}
