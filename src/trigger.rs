//! Triggers in C speed: what PostgreSQL tells a trigger function, read where it lies.

use std::ffi::CStr;

use pgrx::{FromDatum, PgTupleDesc, pg_sys};

use crate::error;
use crate::heap::{Values, name_of};
use crate::varlena::raise;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Insert,
    Delete,
    Update,
    Truncate,
}

/// What PostgreSQL needs to call a trigger function in C: the function by its name, which hands the firing to `run`, and
/// the record that says how it is called.
macro_rules! trigger_function {
    ($name:ident, $record:ident, $run:expr) => {
        /// Entry point of a trigger.
        ///
        /// # Safety
        /// Called by PostgreSQL as a trigger function.
        #[pgrx::pg_guard]
        #[unsafe(no_mangle)]
        pub unsafe extern "C-unwind" fn $name(
            fcinfo: pgrx::pg_sys::FunctionCallInfo,
        ) -> pgrx::pg_sys::Datum {
            // SAFETY: as the caller promises.
            $run(&unsafe { $crate::trigger::Firing::new(fcinfo) })
        }

        #[unsafe(no_mangle)]
        pub extern "C" fn $record() -> &'static pgrx::pg_sys::Pg_finfo_record {
            const RECORD: pgrx::pg_sys::Pg_finfo_record =
                pgrx::pg_sys::Pg_finfo_record { api_version: 1 };
            &RECORD
        }
    };
}
pub(crate) use trigger_function;

/// One firing of a trigger.
pub struct Firing<'a> {
    data: &'a pg_sys::TriggerData,
}

impl Firing<'_> {
    /// Raises an error when it is no trigger that calls: SELECT can call such a function too.
    ///
    /// # Safety
    /// PostgreSQL called a function declared to return a trigger with this.
    pub unsafe fn new(fcinfo: pg_sys::FunctionCallInfo) -> Self {
        // SAFETY: a trigger calls with its data as context, which its tag tells.
        unsafe {
            let context = (*fcinfo).context;
            if context.is_null() || (*context).type_ != pg_sys::NodeTag::T_TriggerData {
                raise(error::not_a_trigger());
            }
            Self {
                data: &*context.cast::<pg_sys::TriggerData>(),
            }
        }
    }

    pub fn operation(&self) -> Operation {
        match self.data.tg_event & pg_sys::TRIGGER_EVENT_OPMASK {
            pg_sys::TRIGGER_EVENT_INSERT => Operation::Insert,
            pg_sys::TRIGGER_EVENT_DELETE => Operation::Delete,
            pg_sys::TRIGGER_EVENT_UPDATE => Operation::Update,
            _ => Operation::Truncate,
        }
    }

    pub fn is_for_row(&self) -> bool {
        self.data.tg_event & pg_sys::TRIGGER_EVENT_ROW != 0
    }

    pub fn is_before(&self) -> bool {
        self.data.tg_event & pg_sys::TRIGGER_EVENT_TIMINGMASK == pg_sys::TRIGGER_EVENT_BEFORE
    }

    /// The row that is deleted, replaced or inserted.
    pub fn row(&self) -> pg_sys::HeapTuple {
        self.data.tg_trigtuple
    }

    /// What an UPDATE replaces the row with.
    pub fn replacement(&self) -> pg_sys::HeapTuple {
        self.data.tg_newtuple
    }

    /// Whether the UPDATE itself sets a column, by its number.
    pub fn is_set(&self, number: i32) -> bool {
        let place = number - pg_sys::FirstLowInvalidHeapAttributeNumber;
        // SAFETY: the set lives as long as the trigger's data.
        unsafe { pg_sys::bms_is_member(place, self.data.tg_updatedcols) }
    }

    pub fn table_oid(&self) -> u32 {
        // SAFETY: the relation is open while its trigger runs.
        unsafe { (*self.data.tg_relation).rd_id }.to_u32()
    }

    pub fn table_name(&self) -> String {
        // SAFETY: as above.
        unsafe { name_of(self.data.tg_relation) }
    }

    /// An argument that the trigger was created with; empty when it has fewer.
    pub fn argument(&self, number: usize) -> &str {
        // SAFETY: the count is compared; each is a C string in the encoding of the database, which is UTF-8.
        unsafe {
            let trigger = &*self.data.tg_trigger;
            if usize::try_from(trigger.tgnargs).is_ok_and(|count| number < count) {
                let text = CStr::from_ptr(*trigger.tgargs.add(number));
                text.to_str().unwrap_or_default()
            } else {
                ""
            }
        }
    }

    fn columns(&self) -> pg_sys::TupleDesc {
        // SAFETY: the relation is open while its trigger runs.
        unsafe { (*self.data.tg_relation).rd_att }
    }

    /// The number of a column, from 1.
    pub fn column_number(&self, name: &str) -> Option<i32> {
        // SAFETY: the columns are there as long as the relation is open.
        let columns = unsafe { PgTupleDesc::from_pg_unchecked(self.columns()) };
        let mut numbered = columns.iter().zip(1..);
        let found = numbered.find(|(column, _)| column.name() == name && !column.is_dropped());
        found.map(|(_, number)| number)
    }

    /// # Safety
    /// The row is of the relation, and the column is of type `T`.
    pub unsafe fn value<T: FromDatum>(&self, row: pg_sys::HeapTuple, number: i32) -> Option<T> {
        let mut is_null = false;
        // SAFETY: as promised by the caller.
        unsafe {
            let datum = pg_sys::heap_getattr(row, number, self.columns(), &mut is_null);
            T::from_datum(datum, is_null)
        }
    }

    /// The values of all columns of the row.
    pub fn values<const N: usize>(&self) -> Values<N> {
        // SAFETY: the row is of the relation.
        unsafe { Values::of(self.row(), self.columns()) }
    }

    /// The row as text, which reads back as one of any table with these columns.
    pub fn row_text(&self) -> String {
        // SAFETY: the row is of the relation; the output function gives a C string in the memory of the call.
        unsafe {
            let row = pg_sys::heap_copy_tuple_as_datum(self.row(), self.columns());
            let text = pg_sys::OidOutputFunctionCall(pg_sys::F_RECORD_OUT.into(), row);
            CStr::from_ptr(text).to_string_lossy().into_owned()
        }
    }

    /// What lets PostgreSQL go on with another value in a column, from 0.
    ///
    /// # Safety
    /// The value is of the type of the column.
    pub unsafe fn with_value(&self, column: usize, value: pg_sys::Datum) -> pg_sys::Datum {
        let mut number = i32::try_from(column).unwrap_or(i32::MAX) + 1;
        let (mut value, mut is_null) = (value, false);
        // SAFETY: as promised by the caller; PostgreSQL refuses a number that no column has.
        let row = unsafe {
            pg_sys::heap_modify_tuple_by_cols(
                self.row(),
                self.columns(),
                1,
                &raw mut number,
                &raw mut value,
                &raw mut is_null,
            )
        };
        pg_sys::Datum::from(row)
    }

    /// What lets PostgreSQL go on without the row.
    pub fn nothing() -> pg_sys::Datum {
        pg_sys::Datum::null()
    }

    /// What lets PostgreSQL go on with the row as it is.
    pub fn unchanged(&self) -> pg_sys::Datum {
        if !self.is_for_row() {
            return pg_sys::Datum::null();
        }
        let row = if self.operation() == Operation::Update {
            self.replacement()
        } else {
            self.row()
        };
        pg_sys::Datum::from(row)
    }
}
