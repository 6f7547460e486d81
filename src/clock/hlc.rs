//! Hybrid logical clocks (Kulkarni, Demirbas, Madappa, Avva, Leone 2014).
//!
//! A stamp is 64 bits: 48 bits of milliseconds since 1970 and a 16-bit counter. Held as one
//! integer, the paper's rules become arithmetic: the next stamp is the larger of "last + 1" and
//! "physical time, counter 0", and a counter that overflows carries into the milliseconds.

use chrono::{DateTime, NaiveDateTime};

use crate::error::{Error, Result, bad_argument, malformed_text, out_of_range};

pub const TYPE_NAME: &str = "hlc";
pub const COUNTER_BITS: u32 = 16;
pub const MAX_MILLISECONDS: u64 = (1 << 48) - 1;
const MAX_COUNTER: u64 = (1 << COUNTER_BITS) - 1;
const TIME_FORMAT: &str = "%Y-%m-%dT%H:%M:%S%.3f";

/// A stamp from its parts. 22003 when the milliseconds do not fit 48 bits or the counter 16.
pub fn new(milliseconds: i64, counter: i64) -> Result<u64> {
    let milliseconds = u64::try_from(milliseconds)
        .ok()
        .filter(|milliseconds| *milliseconds <= MAX_MILLISECONDS)
        .ok_or_else(|| {
            out_of_range(
                TYPE_NAME,
                "The time must lie between 1970 and the year 10889.",
            )
        })?;
    let counter = u64::try_from(counter)
        .ok()
        .filter(|counter| *counter <= MAX_COUNTER)
        .ok_or_else(|| counter_out_of_range(&counter.to_string()))?;
    Ok(milliseconds << COUNTER_BITS | counter)
}

fn counter_out_of_range(counter: &str) -> Error {
    out_of_range(
        TYPE_NAME,
        format!("The counter {counter} must lie between 0 and {MAX_COUNTER}."),
    )
}

pub const fn milliseconds(stamp: u64) -> u64 {
    stamp >> COUNTER_BITS
}

pub const fn counter(stamp: u64) -> u64 {
    stamp & MAX_COUNTER
}

/// The earliest stamp of a physical time.
pub const fn at(milliseconds: u64) -> u64 {
    milliseconds << COUNTER_BITS
}

/// The next stamp after `last` when the physical clock shows `physical` milliseconds.
pub fn tick(last: u64, physical: u64) -> Result<u64> {
    Ok(successor(last)?.max(at(physical)))
}

/// The next stamp after both `last` and a stamp heard from elsewhere.
pub fn observe(last: u64, physical: u64, remote: u64, max_drift: u64) -> Result<u64> {
    check_drift(physical, remote, max_drift)?;
    Ok(successor(last)?.max(successor(remote)?).max(at(physical)))
}

/// Refuses a stamp whose clock runs more than `max_drift` milliseconds ahead of `physical`.
pub fn check_drift(physical: u64, remote: u64, max_drift: u64) -> Result<()> {
    let ahead = milliseconds(remote).saturating_sub(physical);
    if ahead > max_drift {
        return Err(too_far_ahead(remote, ahead, max_drift));
    }
    Ok(())
}

fn successor(stamp: u64) -> Result<u64> {
    stamp
        .checked_add(1)
        .ok_or_else(|| out_of_range(TYPE_NAME, "The clock has reached the end of its range."))
}

fn too_far_ahead(remote: u64, ahead: u64, max_drift: u64) -> Error {
    bad_argument(
        "hybrid logical clock too far ahead",
        format!(
            "The stamp {} is {ahead} ms ahead of this server; coord.max_clock_drift is {max_drift} ms.",
            format(remote)
        ),
    )
}

/// The text form, `2026-11-21T07:00:00.123Z/5`.
pub fn format(stamp: u64) -> String {
    let milliseconds = i64::try_from(milliseconds(stamp)).unwrap_or_default();
    let time = DateTime::from_timestamp_millis(milliseconds).unwrap_or_default();
    format!("{}Z/{}", time.format(TIME_FORMAT), counter(stamp))
}

/// Reads the text form. 22P02 when it is malformed, 22003 when a part is out of range.
pub fn parse(text: &str) -> Result<u64> {
    let malformed = || {
        malformed_text(
            TYPE_NAME,
            format!("\"{text}\" is not of the form 2026-11-21T07:00:00.123Z/5."),
        )
    };
    let (time, counter) = text.trim().split_once("Z/").ok_or_else(malformed)?;
    if counter.is_empty() || !counter.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(malformed());
    }
    let time = NaiveDateTime::parse_from_str(time, TIME_FORMAT).map_err(|_| malformed())?;
    let milliseconds = time.and_utc().timestamp_millis();
    let counter = counter.parse().map_err(|_| counter_out_of_range(counter))?;
    new(milliseconds, counter)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::SqlState;

    #[test]
    fn text_form_is_known() {
        let stamp = new(1_795_244_400_123, 5).unwrap();
        assert_eq!(format(stamp), "2026-11-21T07:00:00.123Z/5");
        assert_eq!(format(0), "1970-01-01T00:00:00.000Z/0");
        assert_eq!(parse(&format(u64::MAX)), Ok(u64::MAX));
    }

    #[test]
    fn malformed_text_is_refused() {
        for text in [
            "",
            "x",
            "2026-11-21T07:00:00.123Z",
            "2026-11-21T07:00:00Z/",
            "2026-11-21T07:00:00Z/-1",
            "2026-13-21T07:00:00Z/1",
            "2026-11-21 07:00:00/1",
        ] {
            assert_eq!(
                parse(text).unwrap_err().state,
                SqlState::InvalidTextRepresentation,
                "{text}"
            );
        }
        for text in [
            "2026-11-21T07:00:00Z/65536",
            "1969-12-31T23:59:59.999Z/0",
            "2026-11-21T07:00:00Z/99999999999999999999",
        ] {
            assert_eq!(
                parse(text).unwrap_err().state,
                SqlState::NumericValueOutOfRange,
                "{text}"
            );
        }
    }

    #[test]
    fn counter_overflow_advances_the_milliseconds() {
        let last = at(1000) | 0xffff;
        assert_eq!(tick(last, 999), Ok(at(1001)));
        assert_eq!(
            tick(u64::MAX, 0).unwrap_err().state,
            SqlState::NumericValueOutOfRange
        );
    }

    #[test]
    fn a_fast_clock_is_refused() {
        assert!(observe(0, 1000, at(1300), 300).is_ok());
        let error = observe(0, 1000, at(1301), 300).unwrap_err();
        assert_eq!(error.state, SqlState::InvalidParameterValue);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn text_round_trips(stamp: u64) {
            prop_assert_eq!(parse(&format(stamp)), Ok(stamp));
        }

        #[test]
        fn any_text_is_an_error_or_a_value(text: String) {
            if let Ok(stamp) = parse(&text) {
                prop_assert_eq!(parse(&format(stamp)), Ok(stamp));
            }
        }

        /// The rules of the paper, figure 5, written out with separate parts.
        #[test]
        fn observe_follows_the_paper(last in 0..1_u64 << 40, physical in 0..1_u64 << 24, remote in 0..1_u64 << 40) {
            let (l, c) = (milliseconds(last), counter(last));
            let (lm, cm) = (milliseconds(remote), counter(remote));
            let l2 = l.max(lm).max(physical);
            let c2 = match (l2 == l, l2 == lm) {
                (true, true) => c.max(cm) + 1,
                (true, false) => c + 1,
                (false, true) => cm + 1,
                (false, false) => 0,
            };
            prop_assert_eq!(observe(last, physical, remote, u64::MAX), Ok((l2 << COUNTER_BITS) + c2));
        }
    }
}
