//! The clock that leases expire by.
//!
//! The wall clock is read once, when the server's shared memory is made; from there on the time is
//! counted by the monotonic clock, so a step of the wall clock, back or forward, moves no lease.
//! `CLOCK_BOOTTIME` also counts while the machine sleeps.

/// Where the counting began: the wall clock and the monotonic clock of one moment, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Anchor {
    pub wall: i64,
    pub monotonic: i64,
}

impl Anchor {
    /// The time when the monotonic clock shows `monotonic`.
    pub fn at(self, monotonic: i64) -> i64 {
        self.wall + (monotonic - self.monotonic)
    }

    /// How far the wall clock has been stepped since, when at one moment it shows `wall`.
    pub fn stepped(self, wall: i64, monotonic: i64) -> i64 {
        wall - self.at(monotonic)
    }
}

/// Microseconds of the monotonic clock.
pub fn monotonic() -> i64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes into `now`; this clock exists on every Linux since 2.6.39.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now) };
    now.tv_sec * 1_000_000 + now.tv_nsec / 1_000
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANCHOR: Anchor = Anchor {
        wall: 1_000_000,
        monotonic: 50,
    };

    #[test]
    fn a_step_of_the_wall_clock_moves_nothing() {
        // An hour passes; meanwhile the wall clock was set back by a day.
        let (hour, day) = (3_600_000_000, 86_400_000_000);
        assert_eq!(ANCHOR.at(50 + hour), 1_000_000 + hour);
        assert_eq!(ANCHOR.stepped(1_000_000 + hour - day, 50 + hour), -day);
        assert_eq!(ANCHOR.stepped(1_000_000 + hour, 50 + hour), 0);
    }

    #[test]
    fn the_monotonic_clock_does_not_go_back() {
        let before = monotonic();
        assert!(before > 0);
        assert!(monotonic() >= before);
    }
}
