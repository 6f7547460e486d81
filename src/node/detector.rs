//! Is a peer alive? Phi accrual (Hayashibara, Défago, Yared, Katayama 2004) over heartbeats, with the
//! self-doubt of Lifeguard (Dadgar, Phillips, Currey 2018).
//!
//! Every node counts the ticks of its timer. Each message carries the counts that the speaker knows,
//! its own and those of others (van Renesse, Minsky, Hayden 1998), so a peer is heard through third
//! nodes too, and a count that does not rise is no news, however often it is repeated: who is dead does
//! not come back through a third.
//!
//! Times are microseconds of a clock that does not step, and that stands still while this node itself
//! does not get to run: whoever was stopped or starved does not hold that time against others.

use serde::{Deserialize, Serialize};

use crate::clock::vclock::{self, Vclock};
use crate::error::{Result, malformed_binary};

/// Dead is a quarter surer than suspect.
const DEAD_FACTOR: f64 = 1.25;

/// Beyond this a larger phi says nothing more.
const MAX_PHI: f64 = 100.0;

/// Weight of the latest interval in mean and variance: about as much as a window of the last 30 beats,
/// at the cost of two numbers (exponentially weighted variance: Finch 2009).
const WEIGHT: f64 = 1.0 / 30.0;

/// The deviation is taken to be at least this part of the interval, so that a very regular peer is not
/// suspected for its first irregularity, and at least `MIN_DEVIATION`.
const MIN_DEVIATION_PART: f64 = 0.25;
const MIN_DEVIATION: f64 = 100_000.0;

/// A peer may miss a beat, and pause at least this long, without having failed: a flush to a slow
/// disk, a page of code to be loaded.
const PAUSE_PART: f64 = 1.0;
const MIN_PAUSE: f64 = 500_000.0;

/// A peer that does not count its beats is heard when it happens to be chosen: this many intervals.
const UNCOUNTED_INTERVALS: i64 = 3;

pub const MAX_INTERVAL_MILLISECONDS: u64 = 3_600_000;

/// What a message says of who is alive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeats {
    /// Between two beats of the speaker; 0 when it does not count any.
    pub interval_milliseconds: u64,
    /// A vclock of node to the highest count heard of.
    pub counts: Vec<u8>,
}

/// Of a speaker that tells none.
impl Default for Heartbeats {
    fn default() -> Self {
        Self {
            interval_milliseconds: 0,
            counts: vclock::empty(),
        }
    }
}

impl Heartbeats {
    /// Checks what came from a peer.
    ///
    /// # Errors
    /// 22P03 for an interval above an hour or counts that are no vclock.
    pub fn check(&self) -> Result<()> {
        if self.interval_milliseconds > MAX_INTERVAL_MILLISECONDS {
            return Err(malformed_binary(
                "gossip message",
                "The heartbeat interval is out of range.",
            ));
        }
        Vclock::validate(&self.counts).map(drop)
    }
}

/// What this node thinks of a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Liveness {
    /// Nobody has judged yet.
    #[default]
    Unknown,
    Alive,
    Suspect,
    Dead,
}

impl Liveness {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Alive => "alive",
            Self::Suspect => "suspect",
            Self::Dead => "dead",
        }
    }
}

/// The beats of one peer as they were heard.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pulse {
    pub count: u64,
    /// Between two beats, as the peer said, or as this node assumes.
    interval: i64,
    mean: f64,
    variance: f64,
    last_beat: i64,
    /// The last beat or message of the peer; before the first, when this node began to listen.
    last_sign: i64,
    is_heard: bool,
    /// Only a sign of life takes back what was said of a peer: doubt keeps this node from accusing
    /// others, and acquits nobody.
    verdict: Liveness,
}

impl Pulse {
    /// A peer that is expected to beat at `interval` from `now` on.
    pub fn expected(now: i64, interval: i64) -> Self {
        let mut pulse = Self {
            count: 0,
            interval: 0,
            mean: 0.0,
            variance: 0.0,
            last_beat: now,
            last_sign: now,
            is_heard: false,
            verdict: Liveness::Unknown,
        };
        pulse.expect(interval);
        pulse
    }

    fn expect(&mut self, interval: i64) {
        self.interval = interval;
        self.mean = interval as f64;
        self.variance = self.least_deviation().powi(2);
    }

    fn least_deviation(&self) -> f64 {
        (self.interval as f64 * MIN_DEVIATION_PART).max(MIN_DEVIATION)
    }

    fn pause(&self) -> f64 {
        (self.interval as f64 * PAUSE_PART).max(MIN_PAUSE)
    }

    /// A count of the peer's beats was heard, from itself or through another. An interval long enough
    /// to suspect the peer is an outage and tells nothing of its rhythm.
    pub fn hear_count(&mut self, now: i64, count: u64, threshold: f64) {
        if count <= self.count {
            return;
        }
        let interval = (now - self.last_beat) as f64;
        if self.count > 0 && self.phi_of(interval) < threshold {
            let deviation = interval - self.mean;
            self.mean += WEIGHT * deviation;
            self.variance = (1.0 - WEIGHT) * (self.variance + WEIGHT * deviation * deviation);
        }
        self.count = count;
        self.last_beat = now;
        self.sign(now);
    }

    /// The peer itself spoke. `own_interval` is what this node beats at.
    pub fn hear_message(&mut self, now: i64, told_milliseconds: u64, own_interval: i64) {
        let interval = match i64::try_from(told_milliseconds) {
            Ok(told) if told > 0 => told * 1_000,
            _ => own_interval * UNCOUNTED_INTERVALS,
        };
        if interval != self.interval {
            self.expect(interval);
        }
        self.sign(now);
    }

    fn sign(&mut self, now: i64) {
        self.last_sign = now;
        self.is_heard = true;
        self.verdict = Liveness::Alive;
    }

    pub fn silence(&self, now: i64) -> i64 {
        (now - self.last_sign).max(0)
    }

    /// How unlikely it is that a peer that is alive stays silent for so long: 1 stands for one in ten,
    /// 2 for one in a hundred, and so on.
    pub fn phi(&self, now: i64, doubt: SelfDoubt) -> f64 {
        self.phi_of(self.silence(now) as f64 / doubt.factor())
    }

    /// The tail of the normal distribution is taken from its logistic approximation (Bowling et al. 2009).
    fn phi_of(&self, silence: f64) -> f64 {
        let deviation = self.variance.sqrt().max(self.least_deviation());
        let y = (silence - self.mean - self.pause()) / deviation;
        let exponent = y * (1.5976 + 0.070_566 * y * y);
        let later = (1.0 + (-exponent.abs()).exp()).log10();
        let phi = if exponent > 0.0 {
            exponent * std::f64::consts::LOG10_E + later
        } else {
            later
        };
        phi.min(MAX_PHI)
    }

    /// What to think of the peer, `threshold` being the phi at which it is suspected.
    pub fn judge(&mut self, now: i64, doubt: SelfDoubt, threshold: f64) -> Liveness {
        let phi = self.phi(now, doubt);
        let accusation = if phi >= (threshold * DEAD_FACTOR).min(MAX_PHI) {
            Liveness::Dead
        } else if phi >= threshold {
            Liveness::Suspect
        } else {
            Liveness::Unknown
        };
        self.verdict = self.verdict.max(accusation);
        self.verdict
    }

    /// Why, in words for an administrator.
    pub fn reason(&self, now: i64) -> String {
        let seconds = self.silence(now) as f64 / 1e6;
        if !self.is_heard {
            format!("never heard, listening for {seconds:.1} s")
        } else if self.verdict > Liveness::Alive {
            format!("silent for {seconds:.1} s")
        } else {
            format!("heard {seconds:.1} s ago")
        }
    }
}

/// How far this node mistrusts its own judgement: 0 not at all, each step as much again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SelfDoubt(u8);

impl SelfDoubt {
    pub const NONE: Self = Self(0);
    /// Lifeguard's own limit.
    pub const MOST: Self = Self(8);

    pub fn from_score(score: u8) -> Self {
        Self(score.min(Self::MOST.0))
    }

    pub fn score(self) -> u8 {
        self.0
    }

    fn factor(self) -> f64 {
        1.0 + f64::from(self.0)
    }

    /// After a look that came `late` microseconds after it was due. Returns as well how much of that
    /// this node did not run, and so holds against nobody.
    pub fn after_look(self, late: i64, interval: i64) -> (Self, i64) {
        let is_starved = late as f64 > (interval as f64 * MIN_DEVIATION_PART).max(MIN_DEVIATION);
        if is_starved {
            (Self(self.0.saturating_add(1).min(Self::MOST.0)), late)
        } else {
            (Self(self.0.saturating_sub(1)), 0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000;
    const THRESHOLD: f64 = 8.0;

    /// A peer that has beaten regularly for a while, and when it last did.
    fn regular(interval: i64) -> (Pulse, i64) {
        let mut pulse = Pulse::expected(0, interval);
        let mut now = 0;
        for count in 1..=100 {
            now += interval;
            pulse.hear_count(now, count, THRESHOLD);
        }
        (pulse, now)
    }

    fn liveness(mut pulse: Pulse, now: i64) -> Liveness {
        pulse.judge(now, SelfDoubt::NONE, THRESHOLD)
    }

    #[test]
    fn phi_is_the_tail_of_the_normal_distribution() {
        let (pulse, last) = regular(SECOND);
        let at = |deviations: f64| {
            let silence = pulse.mean + pulse.pause() + deviations * pulse.least_deviation();
            pulse.phi(last + silence as i64, SelfDoubt::NONE)
        };
        // -log10 of 0.5, 0.1587 and 0.02275.
        for (deviations, expected) in [(0.0, 0.301), (1.0, 0.799), (2.0, 1.643)] {
            let phi = at(deviations);
            assert!((phi - expected).abs() < 0.02, "{deviations}: {phi}");
        }
        assert!(at(-6.0) < 1e-6);
        assert!((pulse.phi(i64::MAX / 2, SelfDoubt::NONE) - MAX_PHI).abs() < f64::EPSILON);
    }

    #[test]
    fn a_silent_peer_is_suspected_and_then_dead_within_four_seconds() {
        let (pulse, last) = regular(SECOND);
        assert_eq!(liveness(pulse, last + 2 * SECOND), Liveness::Alive);
        assert_eq!(liveness(pulse, last + 3_350_000), Liveness::Suspect);
        assert_eq!(liveness(pulse, last + 4 * SECOND), Liveness::Dead);
    }

    #[test]
    fn a_peer_that_was_never_heard_is_unknown_and_then_dead() {
        let pulse = Pulse::expected(0, SECOND);
        assert_eq!(liveness(pulse, SECOND), Liveness::Unknown);
        assert_eq!(liveness(pulse, 5 * SECOND), Liveness::Dead);
        assert_eq!(pulse.reason(5 * SECOND), "never heard, listening for 5.0 s");
    }

    #[test]
    fn a_count_that_does_not_rise_is_no_sign_of_life() {
        let (mut pulse, last) = regular(SECOND);
        pulse.hear_count(last + 10 * SECOND, 100, THRESHOLD);
        assert_eq!(liveness(pulse, last + 10 * SECOND), Liveness::Dead);
        pulse.hear_count(last + 10 * SECOND, 101, THRESHOLD);
        assert_eq!(liveness(pulse, last + 10 * SECOND), Liveness::Alive);
    }

    #[test]
    fn a_message_is_a_sign_of_life_whatever_its_count() {
        let (mut pulse, last) = regular(SECOND);
        let now = last + 10 * SECOND;
        pulse.hear_message(now, 1_000, SECOND);
        pulse.hear_count(now, 1, THRESHOLD);
        assert_eq!(liveness(pulse, now), Liveness::Alive);
        assert_eq!(pulse.count, 100);
    }

    #[test]
    fn an_outage_does_not_change_the_rhythm() {
        let (mut pulse, last) = regular(SECOND);
        let before = (pulse.mean, pulse.variance);
        pulse.hear_count(last + 3_600 * SECOND, 101, THRESHOLD);
        assert_eq!((pulse.mean, pulse.variance), before);
        // A node that starts again speaks before it counts on from where it was.
        pulse.hear_message(last + 7_200 * SECOND, 1_000, SECOND);
        pulse.hear_count(last + 7_200 * SECOND, 102, THRESHOLD);
        assert_eq!((pulse.mean, pulse.variance), before);
    }

    #[test]
    fn an_irregular_peer_is_given_more_time() {
        let (steady, last) = regular(SECOND);
        let mut restless = steady;
        let mut now = last;
        for count in 101..=200 {
            now += if count % 2 == 0 {
                SECOND / 4
            } else {
                2 * SECOND
            };
            restless.hear_count(now, count, THRESHOLD);
        }
        let silence = 3_350_000;
        assert_eq!(liveness(steady, last + silence), Liveness::Suspect);
        assert_eq!(liveness(restless, now + silence), Liveness::Alive);
    }

    #[test]
    fn a_peer_that_slows_down_says_so() {
        let (mut pulse, last) = regular(SECOND);
        pulse.hear_message(last, 60_000, SECOND);
        assert_eq!(liveness(pulse, last + 90 * SECOND), Liveness::Alive);
        assert_eq!(liveness(pulse, last + 240 * SECOND), Liveness::Dead);
    }

    #[test]
    fn a_starved_node_gives_others_more_time() {
        let (mut pulse, last) = regular(SECOND);
        let now = last + 4 * SECOND;
        let (doubt, stalled) = SelfDoubt::NONE.after_look(2 * SECOND, SECOND);
        assert_eq!(stalled, 2 * SECOND);
        assert_eq!(pulse.judge(now, doubt, THRESHOLD), Liveness::Alive);
        let (calm, stalled) = doubt.after_look(1_000, SECOND);
        assert_eq!((calm, stalled), (SelfDoubt::NONE, 0));
        assert_eq!(pulse.judge(now, calm, THRESHOLD), Liveness::Dead);
        // Doubt takes nothing back; a sign of life does.
        assert_eq!(pulse.judge(now, doubt, THRESHOLD), Liveness::Dead);
        assert_eq!(pulse.reason(now), "silent for 4.0 s");
        pulse.hear_message(now, 1_000, SECOND);
        assert_eq!(pulse.judge(now, doubt, THRESHOLD), Liveness::Alive);
        assert_eq!(pulse.reason(now), "heard 0.0 s ago");
    }

    #[test]
    fn doubt_has_a_limit() {
        let mut doubt = SelfDoubt::NONE;
        for _ in 0..100 {
            (doubt, _) = doubt.after_look(SECOND, SECOND);
        }
        assert_eq!(doubt, SelfDoubt::MOST);
        assert_eq!(SelfDoubt::from_score(doubt.score()), doubt);
    }
}
