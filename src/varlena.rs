//! The edge between flat values and PostgreSQL datums, and between [`Error`] and `ereport`.

use std::cell::UnsafeCell;
use std::ffi::{CStr, CString, c_void};

use pgrx::callconv::{Arg, ArgAbi, BoxRet, FcInfo};
use pgrx::datum::Datum;
use pgrx::nullable::Nullable;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use pgrx::{
    FromDatum, Internal, pg_sys, rust_byte_slice_to_bytea, varatt_is_1b, varatt_is_1b_e,
    varatt_is_4b_u, vardata_any, varlena_to_byte_slice, varsize_any_exhdr,
};

use crate::error::{Error, SqlState, malformed_binary, malformed_text};

pub type SqlResult<T> = std::result::Result<T, ErrorReport>;

impl From<Error> for ErrorReport {
    /// To be raised at once.
    fn from(error: Error) -> Self {
        let mut report = ErrorReport::new(error_code(error.state), error.message, "pg_test");
        if let Some(detail) = error.detail {
            report = report.set_detail(detail);
        }
        if let Some(hint) = error.hint {
            report = report.set_hint(hint);
        }
        if let Some(constraint) = error.constraint {
            name_constraint_in_next_error(constraint);
        }
        report
    }
}

/// Raises an error where there is no result to return it as.
pub fn raise(error: Error) -> ! {
    ErrorReport::from(error).report(PgLogLevel::ERROR);
    unreachable!("an error of level ERROR does not return");
}

/// Adds the name of a constraint to the error that is raised next. An [`ErrorReport`] has no place for
/// it, but PostgreSQL asks everybody on its stack of contexts what to add to an error.
fn name_constraint_in_next_error(name: &'static CStr) {
    thread_local! {
        static CONTEXT: UnsafeCell<pg_sys::ErrorContextCallback> = UnsafeCell::default();
    }
    #[pg_guard]
    unsafe extern "C-unwind" fn add_name(name: *mut c_void) {
        // SAFETY: called while PostgreSQL completes an error; the argument is a constant string.
        unsafe { pg_sys::err_generic_string(i32::from(b'n'), name.cast()) };
    }
    // SAFETY: the context lives as long as the process; whoever catches the error resets the stack to
    // what it was for him.
    unsafe {
        let context = CONTEXT.with(UnsafeCell::get);
        (*context).previous = pg_sys::error_context_stack;
        (*context).callback = Some(add_name);
        (*context).arg = name.as_ptr().cast_mut().cast();
        pg_sys::error_context_stack = context;
    }
}

fn error_code(state: SqlState) -> PgSqlErrorCode {
    match state {
        SqlState::InvalidTextRepresentation => PgSqlErrorCode::ERRCODE_INVALID_TEXT_REPRESENTATION,
        SqlState::InvalidBinaryRepresentation => {
            PgSqlErrorCode::ERRCODE_INVALID_BINARY_REPRESENTATION
        }
        SqlState::NumericValueOutOfRange => PgSqlErrorCode::ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE,
        SqlState::InvalidParameterValue => PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
        SqlState::ProgramLimitExceeded => PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
        SqlState::NotReady => PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        SqlState::UndefinedObject => PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
        SqlState::DuplicateObject => PgSqlErrorCode::ERRCODE_DUPLICATE_OBJECT,
        SqlState::InsufficientPrivilege => PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
        SqlState::ConnectionFailure => PgSqlErrorCode::ERRCODE_CONNECTION_FAILURE,
        SqlState::DataCorrupted => PgSqlErrorCode::ERRCODE_DATA_CORRUPTED,
        SqlState::IoError => PgSqlErrorCode::ERRCODE_IO_ERROR,
        SqlState::ActiveTransaction => PgSqlErrorCode::ERRCODE_ACTIVE_SQL_TRANSACTION,
        SqlState::SerializationFailure => PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE,
        SqlState::LockNotAvailable => PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE,
        SqlState::CheckViolation => PgSqlErrorCode::ERRCODE_CHECK_VIOLATION,
        SqlState::FeatureNotSupported => PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
        SqlState::UndefinedColumn => PgSqlErrorCode::ERRCODE_UNDEFINED_COLUMN,
        SqlState::TriggerProtocolViolated => {
            PgSqlErrorCode::ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED
        }
    }
}

/// An argument of one of the extension's flat types: its bytes without the varlena header.
///
/// A short inline value is borrowed from the tuple; a compressed or external one is fetched.
#[derive(Clone, Copy)]
pub struct Flat<'a> {
    bytes: &'a [u8],
    datum: pg_sys::Datum,
}

impl<'a> Flat<'a> {
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The argument itself, to be handed on.
    pub fn datum(&self) -> pg_sys::Datum {
        self.datum
    }

    /// The argument itself as a result. An aggregate whose state already covers its input hands
    /// the state back by pointer, which saves the executor a copy per row.
    pub fn unchanged(&self) -> FlatResult {
        FlatResult(self.datum)
    }
}

/// Whether a value lies in the tuple as it is. `pg_detoast_datum_packed` would hand it back
/// unchanged, but at the price of a `sigsetjmp` around every call from Rust into PostgreSQL.
///
/// # Safety
/// `value` points at a varlena.
unsafe fn is_plain(value: *const pg_sys::varlena) -> bool {
    // SAFETY: reads the header alone.
    unsafe { varatt_is_4b_u(value) || (varatt_is_1b(value) && !varatt_is_1b_e(value)) }
}

impl FromDatum for Flat<'_> {
    unsafe fn from_polymorphic_datum(
        datum: pg_sys::Datum,
        is_null: bool,
        _type_oid: pg_sys::Oid,
    ) -> Option<Self> {
        if is_null {
            return None;
        }
        // SAFETY: the SQL declaration makes this argument one of our varlena types. What the
        // detoasting allocates lives in the call's memory context, as long as the call itself.
        unsafe {
            let mut value: *mut pg_sys::varlena = datum.cast_mut_ptr();
            if !is_plain(value) {
                value = pg_sys::pg_detoast_datum_packed(value);
            }
            Some(Flat {
                bytes: varlena_to_byte_slice(value),
                datum,
            })
        }
    }
}

// SAFETY: unboxing goes through `FromDatum` above, which handles null before touching the datum.
unsafe impl<'fcx> ArgAbi<'fcx> for Flat<'fcx> {
    unsafe fn unbox_arg_unchecked(arg: Arg<'_, 'fcx>) -> Self {
        // SAFETY: the functions taking `Flat` are declared STRICT, so the argument is not null.
        unsafe { arg.unbox_arg_using_from_datum() }.unwrap_or(Flat {
            bytes: &[],
            datum: pg_sys::Datum::null(),
        })
    }

    unsafe fn unbox_nullable_arg(arg: Arg<'_, 'fcx>) -> Nullable<Self> {
        // SAFETY: as above; null becomes `Nullable::Null`.
        unsafe { arg.unbox_arg_using_from_datum() }.into()
    }
}

/// A flat value in PostgreSQL's memory, of the current context. Rules that write their result into
/// one save a copy over returning a `Vec`.
pub struct Allocated(*mut pg_sys::varlena);

impl From<&[u8]> for Allocated {
    fn from(bytes: &[u8]) -> Self {
        Self(rust_byte_slice_to_bytea(bytes).into_pg())
    }
}

impl AsMut<[u8]> for Allocated {
    fn as_mut(&mut self) -> &mut [u8] {
        // SAFETY: made by `from` with a header of four bytes, and nobody else has the pointer.
        unsafe {
            std::slice::from_raw_parts_mut(
                vardata_any(self.0) as *mut u8,
                varsize_any_exhdr(self.0),
            )
        }
    }
}

/// A result of one of the flat types: a datum of the caller's context, or an argument of the call.
pub struct FlatResult(pg_sys::Datum);

impl FlatResult {
    /// # Safety
    /// The datum is one of the declared result type, and lies in the memory of the caller.
    pub unsafe fn from_datum(datum: pg_sys::Datum) -> Self {
        Self(datum)
    }
}

impl From<Allocated> for FlatResult {
    fn from(value: Allocated) -> Self {
        Self(pg_sys::Datum::from(value.0))
    }
}

impl From<Vec<u8>> for FlatResult {
    fn from(bytes: Vec<u8>) -> Self {
        Allocated::from(bytes.as_slice()).into()
    }
}

// SAFETY: the datum is one of the declared result type, as every way to make a `FlatResult` ensures.
unsafe impl BoxRet for FlatResult {
    unsafe fn box_into<'fcx>(self, fcinfo: &mut FcInfo<'fcx>) -> Datum<'fcx> {
        // SAFETY: as above.
        unsafe { fcinfo.return_raw_datum(self.0) }
    }
}

// The SQL of every function is written by hand in sql/*.sql, so these names are never printed.
pgrx::impl_sql_translatable!(Flat<'_>, "bytea");
pgrx::impl_sql_translatable!(FlatResult, "bytea");

unsafe extern "C-unwind" {
    // Exported by every PostgreSQL since 13 (src/common/hashfn.c); not among pgrx's bindings.
    fn hash_bytes(bytes: *const u8, length: i32) -> u32;
    fn hash_bytes_extended(bytes: *const u8, length: i32, seed: u64) -> u64;
}

/// PostgreSQL's own hash, so that hash joins and hash partitioning behave as for core types.
pub fn hash(bytes: &[u8]) -> i32 {
    let length = i32::try_from(bytes.len()).unwrap_or(i32::MAX);
    // SAFETY: reads `length` bytes, at most what the slice holds.
    unsafe { hash_bytes(bytes.as_ptr(), length) }.cast_signed()
}

/// The seeded form, as hash partitioning asks for it.
pub fn hash_extended(bytes: &[u8], seed: i64) -> i64 {
    let length = i32::try_from(bytes.len()).unwrap_or(i32::MAX);
    // SAFETY: as in `hash`.
    unsafe { hash_bytes_extended(bytes.as_ptr(), length, seed.cast_unsigned()) }.cast_signed()
}

/// The text of an input function's argument.
pub fn utf8<'a>(input: &'a CStr, type_name: &str) -> SqlResult<&'a str> {
    input.to_str().map_err(|_| {
        malformed_text(
            type_name,
            "The text is not valid UTF-8; the database must use UTF8.",
        )
        .into()
    })
}

/// The result of an output function.
pub fn c_string(text: String) -> SqlResult<CString> {
    CString::new(text)
        .map_err(|_| malformed_binary("text", "A stored value contains a NUL character.").into())
}

/// Everything a receive function was sent.
pub fn received(message: Internal) -> SqlResult<Vec<u8>> {
    let missing = || malformed_binary("message", "A receive function was called without one.");
    let datum = message.unwrap().ok_or_else(missing)?;
    // SAFETY: PostgreSQL calls receive functions with a StringInfo in the `internal` argument;
    // only it can call functions that take `internal`.
    unsafe {
        let buffer = datum.cast_mut_ptr::<pg_sys::StringInfoData>();
        let length = (*buffer).len - (*buffer).cursor;
        let bytes = pg_sys::pq_getmsgbytes(buffer, length);
        let length = usize::try_from(length).unwrap_or(0);
        Ok(std::slice::from_raw_parts(bytes.cast(), length).to_vec())
    }
}
