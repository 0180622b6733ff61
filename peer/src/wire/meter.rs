//! How fast a link is, lately [pure].

use std::time::{Duration, Instant};

/// Bytes are counted over windows of this length at least, so that one burst is not a rate.
const WINDOW: Duration = Duration::from_millis(200);
/// The weight of a new window: a change shows within about four of them.
const WEIGHT: f64 = 0.3;

/// An exponentially weighted moving average of a rate, while something is under way.
#[derive(Default)]
pub struct Meter {
    since: Option<Instant>,
    bytes: u64,
    rate: f64,
}

impl Meter {
    /// Nothing measured yet.
    pub fn new() -> Self {
        Self { since: None, bytes: 0, rate: 0.0 }
    }

    /// Something begins after nothing was under way: the pause does not count.
    pub fn begin(&mut self, now: Instant) {
        self.since = Some(now);
        self.bytes = 0;
    }

    /// So many bytes came.
    pub fn add(&mut self, now: Instant, bytes: u64) {
        self.bytes += bytes;
        let since = *self.since.get_or_insert(now);
        let elapsed = now.saturating_duration_since(since);
        if elapsed < WINDOW {
            return;
        }
        let rate = self.bytes as f64 / elapsed.as_secs_f64();
        self.rate = if self.rate == 0.0 { rate } else { self.rate + WEIGHT * (rate - self.rate) };
        self.begin(now);
    }

    /// Bytes a second; 0 as long as nothing is known.
    pub fn rate(&self) -> u64 {
        self.rate as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_follows_the_bytes_and_leaves_pauses_out() {
        let start = Instant::now();
        let mut meter = Meter::new();
        meter.begin(start);
        for tick in 1..=20 {
            meter.add(start + WINDOW * tick, 1000);
        }
        assert_eq!(meter.rate(), 5000);
        let later = start + Duration::from_secs(100);
        meter.begin(later);
        meter.add(later + WINDOW, 1000);
        assert_eq!(meter.rate(), 5000);
    }
}
