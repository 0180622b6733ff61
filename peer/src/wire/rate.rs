//! How fast bytes may leave [pure].

use std::time::{Duration, Instant};

/// What may be sent at once after a pause, as a time at the full rate. Long enough for timers of a millisecond to keep the
/// rate up, short enough not to be seen as a burst by whoever shares the line.
const BURST: Duration = Duration::from_millis(50);

/// A token bucket that may go into debt: whoever takes from it is told how long to wait, so that takers are served in the
/// order in which they came and none is starved by smaller ones.
#[derive(Debug)]
pub struct Bucket {
    /// Bytes a second; 0 is no limit.
    rate: u64,
    /// When the debt is paid; at most [`BURST`] in the past.
    level: Option<Instant>,
}

impl Bucket {
    /// Lets `rate` bytes a second through; 0 is no limit.
    pub fn new(rate: u64) -> Self {
        Self { rate, level: None }
    }

    /// Another rate from now on; what was taken before is not reckoned anew.
    pub fn set_rate(&mut self, rate: u64) {
        self.rate = rate;
    }

    /// Takes `bytes`, which may be sent after the returned time.
    pub fn take(&mut self, now: Instant, bytes: u64) -> Duration {
        if self.rate == 0 {
            return Duration::ZERO;
        }
        let full = now.checked_sub(BURST).unwrap_or(now);
        let level = self.level.map_or(full, |level| level.max(full));
        let wait = level.saturating_duration_since(now);
        self.level = Some(level + Duration::from_secs_f64(bytes as f64 / self.rate as f64));
        wait
    }

    /// How long whoever takes next will wait.
    pub fn debt(&self, now: Instant) -> Duration {
        self.level.map_or(Duration::ZERO, |level| level.saturating_duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn never_more_than_the_rate_and_one_burst_leaves(
            takes in proptest::collection::vec((0..200_000u64, 0..40u64), 1..100),
        ) {
            let rate = 1_000_000;
            let start = Instant::now();
            let (mut bucket, mut now, mut sent) = (Bucket::new(rate), start, 0);
            for (bytes, pause) in takes {
                now += bucket.take(now, bytes);
                // At this moment everything before is sent, and no more than the bucket ever held.
                let allowed = (now - start + BURST).as_secs_f64() * rate as f64;
                prop_assert!(sent as f64 <= allowed + 1.0, "{sent} of {allowed}");
                sent += bytes;
                now += Duration::from_millis(pause);
            }
        }
    }

    #[test]
    fn a_line_that_is_kept_busy_runs_at_the_rate() {
        let start = Instant::now();
        let (mut bucket, mut now) = (Bucket::new(10_000_000), start);
        for _ in 0..1000 {
            now += bucket.take(now, 100_000);
        }
        let seconds = (now - start).as_secs_f64();
        assert!((9.8..=10.0).contains(&seconds), "{seconds}");
    }

    #[test]
    fn no_limit_never_waits() {
        let mut bucket = Bucket::new(0);
        assert_eq!(bucket.take(Instant::now(), u64::MAX), Duration::ZERO);
        assert_eq!(bucket.debt(Instant::now()), Duration::ZERO);
    }
}
