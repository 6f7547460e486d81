//! Strict reading of the JSON text forms.
//!
//! `serde_json::Value` lets the last of equal keys win and turns large integers into floating
//! point; a type whose equal meaning is equal bytes can afford neither.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use crate::error::{Result, malformed_text, out_of_range};

const MAX_COUNTER: u64 = i64::MAX as u64;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Null,
    Bool(bool),
    /// Digits. What was written with a fraction or an exponent has a point in it, unless it is
    /// so large that it is whole anyway.
    Number(String),
    Text(String),
    Array(Vec<Value>),
    /// Members sorted by key, no key twice.
    Object(Vec<(String, Value)>),
}

/// Reads one JSON value. Equal keys in one object are refused; nesting is limited to 127 levels
/// by `serde_json`.
pub fn parse_strict(type_name: &str, text: &str) -> Result<Value> {
    serde_json::from_str(text)
        .map_err(|error| malformed_text(type_name, format!("The JSON cannot be read: {error}.")))
}

/// What a payload says. None for anything but an object: an array would be read as well.
pub fn parse_object<'a, T: Deserialize<'a>>(payload: &'a str) -> Option<T> {
    let object = payload.starts_with('{').then_some(payload)?;
    serde_json::from_str(object).ok()
}

/// A counter, 0 to 2^63 - 1. `part` names it in the DETAIL.
pub fn counter(type_name: &str, part: &str, value: &Value) -> Result<u64> {
    let digits = integer(type_name, part, value)?;
    if digits.starts_with('-') {
        return Err(malformed_text(
            type_name,
            format!("The number for {part} is negative."),
        ));
    }
    digits
        .parse()
        .ok()
        .filter(|counter| *counter <= MAX_COUNTER)
        .ok_or_else(|| {
            out_of_range(
                &format!("{type_name} counter"),
                format!("The number {digits} for {part} is above {MAX_COUNTER}."),
            )
        })
}

/// A whole number as an SQL integer. `part` names it in the DETAIL.
pub fn int4(type_name: &str, part: &str, value: &Value) -> Result<i32> {
    let digits = integer(type_name, part, value)?;
    digits.parse().map_err(|_| {
        out_of_range(
            &format!("{type_name} number"),
            format!("The number {digits} for {part} does not fit an integer."),
        )
    })
}

/// The digits of a number without fraction and exponent.
fn integer<'a>(type_name: &str, part: &str, value: &'a Value) -> Result<&'a str> {
    match value {
        Value::Number(digits) if !digits.contains(['.', 'e', 'E']) => Ok(digits),
        _ => Err(malformed_text(
            type_name,
            format!("The value for {part} is not a whole number."),
        )),
    }
}

/// Appends a string in JSON quotes.
pub fn write_string(out: &mut String, text: &str) {
    out.push_str(&serde_json::Value::from(text).to_string());
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> std::result::Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> std::result::Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> std::result::Result<Value, E> {
        Ok(Value::Number(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> std::result::Result<Value, E> {
        Ok(Value::Number(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> std::result::Result<Value, E> {
        // serde_json hands over integers beyond 64 bits as floating point. They are whole, and
        // out of range rather than malformed, whatever their last digits were.
        const BEYOND_64_BITS: f64 = 9_223_372_036_854_775_807.0;
        if value.abs() >= BEYOND_64_BITS {
            Ok(Value::Number(format!("{value:.0}")))
        } else {
            Ok(Value::Number(format!("{value:?}")))
        }
    }

    fn visit_str<E>(self, value: &str) -> std::result::Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> std::result::Result<Value, E> {
        Ok(Value::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> std::result::Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = sequence.next_element()? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Value, A::Error> {
        let mut members: Vec<(String, Value)> = Vec::new();
        while let Some(member) = map.next_entry()? {
            members.push(member);
        }
        members.sort_by(|left, right| left.0.cmp(&right.0));
        match members.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            Some(pair) => Err(A::Error::custom(format_args!(
                "the key \"{}\" is given twice",
                pair[0].0
            ))),
            None => Ok(Value::Object(members)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::SqlState;

    fn number(text: &str) -> Value {
        Value::Number(text.into())
    }

    #[test]
    fn objects_come_sorted() {
        assert_eq!(
            parse_strict("t", r#" {"b": [1, null, true], "a": "x\u00e9"} "#),
            Ok(Value::Object(vec![
                ("a".into(), Value::Text("xé".into())),
                (
                    "b".into(),
                    Value::Array(vec![number("1"), Value::Null, Value::Bool(true)])
                ),
            ]))
        );
    }

    #[test]
    fn equal_keys_are_refused_at_any_depth() {
        for text in [r#"{"a":1,"a":1}"#, r#"[{"x":{"b":1,"a":2,"\u0062":3}}]"#] {
            let error = parse_strict("vclock", text).unwrap_err();
            assert_eq!(error.state, SqlState::InvalidTextRepresentation);
            assert!(error.detail.unwrap().contains("is given twice"));
        }
    }

    #[test]
    fn malformed_and_deep_texts_are_refused() {
        let deep = "[".repeat(100_000);
        for text in ["", "{", "{}{}", "01", "\"\\ud800\"", "nan", "[1,]", &deep] {
            assert_eq!(
                parse_strict("vclock", text).unwrap_err().state,
                SqlState::InvalidTextRepresentation
            );
        }
    }

    #[test]
    fn counters_are_whole_and_bounded() {
        let read = |text| {
            counter(
                "vclock",
                "actor \"a\"",
                &parse_strict("vclock", text).unwrap(),
            )
        };
        assert_eq!(read("0"), Ok(0));
        assert_eq!(read("9223372036854775807"), Ok(MAX_COUNTER));
        for text in ["-1", "1.0", "1e3", "0.5", "-0", "\"1\"", "null", "[]"] {
            let error = read(text).unwrap_err();
            assert_eq!(error.state, SqlState::InvalidTextRepresentation, "{text}");
            assert!(error.detail.unwrap().contains("actor \"a\""));
        }
        for text in [
            "9223372036854775808",
            "18446744073709551616",
            "100000000000000000000000000",
        ] {
            let error = read(text).unwrap_err();
            assert_eq!(error.state, SqlState::NumericValueOutOfRange, "{text}");
        }
    }

    #[test]
    fn int4_is_bounded() {
        let read = |text| int4("t", "x", &parse_strict("t", text).unwrap());
        assert_eq!(read("-2147483648"), Ok(i32::MIN));
        assert_eq!(read("2147483647"), Ok(i32::MAX));
        for text in ["2147483648", "-2147483649", "-1e30"] {
            let error = read(text).unwrap_err();
            assert_eq!(error.state, SqlState::NumericValueOutOfRange, "{text}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn strings_round_trip(text: String) {
            let mut quoted = String::new();
            write_string(&mut quoted, &text);
            prop_assert_eq!(parse_strict("t", &quoted), Ok(Value::Text(text)));
        }

        #[test]
        fn any_text_is_an_error_or_a_value(text: String) {
            let _ = parse_strict("t", &text);
        }
    }
}
