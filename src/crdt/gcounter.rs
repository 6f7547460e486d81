//! Grow-only counters: one count per actor, which only that actor raises.

use crate::clock::vclock::MAX_COUNTER;
use crate::error::{Result, bad_argument, out_of_range};

/// An actor's count after `n` more of `what`.
pub fn increment(count: u64, n: i64, what: &str) -> Result<u64> {
    let n = u64::try_from(n).map_err(|_| {
        bad_argument(
            format!("negative number of {what}"),
            format!("The number {n} must not be below 0."),
        )
    })?;
    count
        .checked_add(n)
        .filter(|count| *count <= MAX_COUNTER)
        .ok_or_else(|| {
            out_of_range(
                &format!("number of {what}"),
                format!("The count of one actor, {count}, and {n} exceed {MAX_COUNTER}."),
            )
        })
}

/// An actor's count out of two states: the higher one has seen more of the same actor.
#[inline]
pub fn merge(left: u64, right: u64) -> u64 {
    left.max(right)
}

/// The value of the counter. 65 535 actors of 2^63 - 1 each exceed 64 bits.
pub fn total(counts: impl Iterator<Item = u64>) -> u128 {
    counts.map(u128::from).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::SqlState;

    #[test]
    fn increments_are_checked() {
        let max = i64::MAX;
        assert_eq!(increment(1, 2, "x"), Ok(3));
        assert_eq!(increment(0, max, "x"), Ok(MAX_COUNTER));
        for n in [1, max] {
            let error = increment(MAX_COUNTER, n, "x").unwrap_err();
            assert_eq!(error.state, SqlState::NumericValueOutOfRange);
        }
        let error = increment(0, -1, "x").unwrap_err();
        assert_eq!(error.state, SqlState::InvalidParameterValue);
    }

    #[test]
    fn totals_exceed_64_bits() {
        assert_eq!(
            total([MAX_COUNTER; 3].into_iter()),
            3 * u128::from(MAX_COUNTER)
        );
    }
}
