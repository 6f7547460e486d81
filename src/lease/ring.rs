//! Numbers that many processes hand to one, in shared memory: a commit can put one in, because it allocates nothing
//! and waits for nobody. When the reader does not come for long, the oldest are overwritten, and it is told so.

use std::sync::atomic::{AtomicU64, Ordering};

/// Numbers kept for the reader: at ten thousand a second, some hundred milliseconds.
const PLACES: usize = 2_048;

/// Numbers have this many bits; above them stands in which round of the ring a place was filled.
const BITS: u32 = 48;
const NUMBER: u64 = (1 << BITS) - 1;

/// All zero is an empty one.
#[repr(C)]
pub struct Ring {
    /// How many numbers were ever put in, or are about to be.
    count: AtomicU64,
    places: [AtomicU64; PLACES],
}

/// Numbers that were put in since a position, and the position behind them.
#[derive(Debug, PartialEq, Eq)]
pub struct Taken {
    pub numbers: Vec<u64>,
    pub position: u64,
    /// Some before these were overwritten.
    pub is_overrun: bool,
}

/// What stands in a place that was filled at a position, but for the number. Never zero in the first round.
fn round_of(position: u64) -> u64 {
    (position / PLACES as u64 + 1) << BITS
}

/// By how much what stands in a place was filled in a later round than a position is of.
fn rounds_ahead(found: u64, position: u64) -> i64 {
    (found & !NUMBER)
        .wrapping_sub(round_of(position))
        .cast_signed()
}

impl Ring {
    fn place(&self, position: u64) -> &AtomicU64 {
        &self.places[(position % PLACES as u64) as usize]
    }

    pub fn put(&self, number: u64) {
        let position = self.count.fetch_add(1, Ordering::AcqRel);
        let place = self.place(position);
        let mut found = place.load(Ordering::Acquire);
        // Who was held up for a whole round has nothing to say any more.
        while rounds_ahead(found, position) < 0 {
            let new = round_of(position) | number & NUMBER;
            match place.compare_exchange(found, new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return,
                Err(other) => found = other,
            }
        }
    }

    /// Behind everything that was put in until now.
    pub fn position(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// What was put in from a position on, up to the first place that is about to be filled.
    pub fn take(&self, from: u64) -> Taken {
        let end = self.position();
        let oldest = end.saturating_sub(PLACES as u64);
        let mut taken = Taken {
            numbers: Vec::new(),
            position: from.max(oldest),
            is_overrun: from < oldest,
        };
        while taken.position < end {
            let found = self.place(taken.position).load(Ordering::Acquire);
            match rounds_ahead(found, taken.position) {
                0 => taken.numbers.push(found & NUMBER),
                // Whoever is to fill it has not come to it yet.
                ..0 => break,
                _ => taken.is_overrun = true,
            }
            taken.position += 1;
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::atomic::AtomicBool;

    use super::*;

    fn empty() -> Ring {
        Ring {
            count: AtomicU64::new(0),
            places: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    #[test]
    fn numbers_are_taken_once_in_their_order() {
        let ring = empty();
        assert!(ring.take(0).numbers.is_empty());
        ring.put(0);
        ring.put(NUMBER);
        let taken = ring.take(0);
        assert_eq!(
            (&*taken.numbers, taken.is_overrun),
            (&[0, NUMBER][..], false)
        );
        assert!(ring.take(taken.position).numbers.is_empty());
        ring.put(7);
        assert_eq!(ring.take(taken.position).numbers, [7]);
    }

    #[test]
    fn what_was_overwritten_is_missed() {
        let ring = empty();
        (0..PLACES as u64).for_each(|number| ring.put(number));
        assert!(!ring.take(0).is_overrun);
        ring.put(PLACES as u64);
        let taken = ring.take(0);
        assert!(taken.is_overrun);
        assert_eq!(taken.numbers, (1..=PLACES as u64).collect::<Vec<_>>());
        assert!(!ring.take(1).is_overrun);
    }

    #[test]
    fn a_place_that_is_about_to_be_filled_is_waited_for() {
        for rounds in [0, 1, 5] {
            let ring = empty();
            let from = rounds * PLACES as u64;
            (0..from).for_each(|number| ring.put(number));
            ring.count.fetch_add(1, Ordering::AcqRel);
            ring.put(2);
            assert_eq!(ring.take(from).position, from);
            ring.place(from)
                .store(round_of(from) | 1, Ordering::Release);
            assert_eq!(ring.take(from).numbers, [1, 2]);
        }
    }

    #[test]
    fn who_was_held_up_for_a_round_overwrites_nothing() {
        let ring = empty();
        (0..2 * PLACES as u64).for_each(|number| ring.put(number));
        ring.count.store(3, Ordering::Release);
        ring.put(7);
        ring.count.store(2 * PLACES as u64, Ordering::Release);
        let taken = ring.take(PLACES as u64);
        assert_eq!(taken.numbers[3], PLACES as u64 + 3);
    }

    /// Every number is taken, unless the ring says that some were missed.
    #[test]
    fn many_put_in_while_one_takes() {
        const EACH: u64 = 200_000;
        let ring = empty();
        let is_done = AtomicBool::new(false);
        let (ring, is_done) = (&ring, &is_done);
        let (taken, misses) = std::thread::scope(|scope| {
            let reader = scope.spawn(move || {
                let (mut position, mut numbers, mut misses) = (0, Vec::new(), 0);
                loop {
                    let ends = is_done.load(Ordering::Acquire);
                    let taken = ring.take(position);
                    position = taken.position;
                    misses += usize::from(taken.is_overrun);
                    numbers.extend(taken.numbers);
                    if ends && position == ring.position() {
                        return (numbers, misses);
                    }
                }
            });
            let writers: Vec<_> = (0..3)
                .map(|writer| {
                    scope.spawn(move || (0..EACH).for_each(|n| ring.put(writer * EACH + n)))
                })
                .collect();
            for writer in writers {
                writer.join().expect("a writer");
            }
            is_done.store(true, Ordering::Release);
            reader.join().expect("the reader")
        });
        let different: HashSet<u64> = taken.iter().copied().collect();
        assert_eq!(different.len(), taken.len(), "none twice");
        assert!(different.iter().all(|number| *number < 3 * EACH));
        assert!(
            misses > 0 || taken.len() as u64 == 3 * EACH,
            "none is lost silently"
        );
    }
}
