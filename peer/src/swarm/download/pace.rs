//! How many requests to the origin at once, while others wait for what they bring [pure].
//!
//! A piece can be passed on only when it is whole: what is under way from the origin is what a crowd lags behind it. Requests
//! that share a bottleneck make each other slower and nothing faster, those that the origin slows down one by one add up; and
//! which of the two it is shows in how long a piece takes. So requests are added while a piece takes no longer for it, as TCP
//! Vegas does with packets (Brakmo, O'Malley, Peterson: "TCP Vegas", SIGCOMM 1994).

use std::time::Duration;

/// Requests at the start.
const FIRST: usize = 2;
/// A piece that comes at this rate or faster holds nobody up, bytes a second.
const QUICK: u64 = 10 << 20;
/// Pieces that are looked at together, at least, after the start: single ones are noisy.
const ROUND: u32 = 4;
/// Requests that merely wait for the others: more are made below the first, one less above the second.
const WAITING: [f64; 2] = [0.5, 0.8];
/// The best time is forgotten by this part a round: what the origin could do once it may not do now.
const AGING: f64 = 1.002;

pub(super) struct Pace {
    /// Seconds that a quick piece takes.
    quick: f64,
    runs: usize,
    /// Whether they were never too many yet: until then they double.
    starting: bool,
    best: f64,
    seconds: f64,
    pieces: u32,
}

impl Pace {
    pub(super) fn new(piece_len: u32) -> Self {
        let quick = f64::from(piece_len) / QUICK as f64;
        Self { quick, runs: FIRST, starting: true, best: f64::INFINITY, seconds: 0.0, pieces: 0 }
    }

    /// Requests at once.
    pub(super) fn runs(&self) -> usize {
        self.runs
    }

    /// A piece took so long, with `active` requests under way of at most `most`.
    pub(super) fn piece_took(&mut self, took: Duration, active: usize, most: usize) {
        // With less than it may have it is not the pace that bounds it.
        if active < self.runs {
            return;
        }
        self.seconds += took.as_secs_f64();
        self.pieces += 1;
        let least = if self.starting { 1 } else { ROUND };
        if self.pieces < least.max(u32::try_from(self.runs).unwrap_or(u32::MAX)) {
            return;
        }
        let mean = self.seconds / f64::from(self.pieces);
        (self.seconds, self.pieces) = (0.0, 0);
        self.best = (self.best * AGING).min(mean);
        let waiting = self.runs as f64 * (1.0 - self.best / mean.max(f64::MIN_POSITIVE));
        if mean <= self.quick || waiting < WAITING[0] {
            let more = if self.starting { self.runs } else { 1 };
            self.runs = (self.runs + more).min(most.max(1));
        } else if waiting > WAITING[1] {
            self.starting = false;
            self.runs = (self.runs - 1).max(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Requests after many pieces of an origin with `rate` bytes a second in all and `each` a request, shared with `others`.
    fn settled(rate: f64, each: f64, others: usize) -> usize {
        let mut pace = Pace::new(1 << 20);
        for _ in 0..800 {
            let share = (rate / (pace.runs() + others) as f64).min(each);
            let took = Duration::from_secs_f64(f64::from(1 << 20) / share);
            pace.piece_took(took, pace.runs(), 16);
        }
        pace.runs()
    }

    #[test]
    fn requests_that_share_a_slow_bottleneck_stay_few() {
        assert!(settled(15e6, f64::INFINITY, 0) <= 3);
        assert!(settled(15e6, f64::INFINITY, 4) <= 6);
    }

    #[test]
    fn requests_that_are_slowed_down_one_by_one_become_as_many_as_may_be() {
        assert_eq!(settled(f64::INFINITY, 1e6, 0), 16);
        assert_eq!(settled(f64::INFINITY, 50e6, 7), 16);
    }

    #[test]
    fn a_fast_origin_is_asked_for_as_much_as_it_brings_quickly() {
        assert!(settled(1e9, f64::INFINITY, 0) == 16);
        assert!((5..=12).contains(&settled(100e6, f64::INFINITY, 0)));
    }

    #[test]
    fn what_was_not_bound_by_the_pace_says_nothing_about_it() {
        let mut pace = Pace::new(1 << 20);
        pace.runs = 4;
        (0..100).for_each(|_| pace.piece_took(Duration::from_millis(1), 3, 16));
        assert_eq!(pace.runs(), 4);
    }
}
