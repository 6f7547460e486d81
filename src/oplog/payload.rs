//! Payloads, read by PostgreSQL's own functions.

use std::ffi::CStr;

use pgrx::{FromDatum, IntoDatum, direct_function_call, direct_function_call_as_datum, pg_sys};

use super::op;

/// A jsonb.
#[derive(Clone, Copy)]
pub struct Payload(pg_sys::Datum);

impl Payload {
    /// # Safety
    /// The datum is a jsonb, which lives as long as this value.
    pub unsafe fn new(datum: pg_sys::Datum) -> Self {
        Self(datum)
    }

    pub fn datum(self) -> pg_sys::Datum {
        self.0
    }

    /// As `payload::text`.
    pub fn text(self) -> String {
        // SAFETY: a jsonb, as whoever made this promises.
        let text = unsafe { direct_function_call::<&CStr>(pg_sys::jsonb_out, &[Some(self.0)]) };
        text.unwrap_or_default().to_string_lossy().into_owned()
    }

    /// As `payload ->> name`.
    fn field(self, name: &str) -> Option<String> {
        let arguments = [Some(self.0), name.into_datum()];
        // SAFETY: as above.
        unsafe { direct_function_call(pg_sys::jsonb_object_field_text, &arguments) }
    }

    /// As `payload -> name`.
    pub fn part(self, name: &str) -> Option<pg_sys::Datum> {
        let arguments = [Some(self.0), name.into_datum()];
        // SAFETY: as above.
        unsafe { direct_function_call_as_datum(pg_sys::jsonb_object_field, &arguments) }
    }

    /// As `coord.op_key`; `text` is the payload's.
    pub fn key(self, surface: &str, text: &str) -> String {
        match surface {
            "conversation" => self.field("conversation_id").unwrap_or_default(),
            "routing" => String::new(),
            "row" => self.field("stream").unwrap_or_default(),
            _ => self.field("id").unwrap_or_else(|| op::hash(text)),
        }
    }
}

impl FromDatum for Payload {
    unsafe fn from_polymorphic_datum(
        datum: pg_sys::Datum,
        is_null: bool,
        _type_oid: pg_sys::Oid,
    ) -> Option<Self> {
        (!is_null).then_some(Self(datum))
    }
}
