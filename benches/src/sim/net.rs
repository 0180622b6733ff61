//! Links as queues that empty at a rate.

use std::time::Duration;

/// One direction of a link.
#[derive(Clone, Debug)]
pub(super) struct Pipe {
    /// Bytes a second.
    rate: f64,
    free_at: Duration,
}

impl Pipe {
    pub(super) fn new(rate: f64) -> Self {
        Self { rate, free_at: Duration::ZERO }
    }

    /// Queues bytes; when the last one is sent.
    pub(super) fn send(&mut self, now: Duration, bytes: u64) -> Duration {
        self.free_at = self.free_at.max(now) + duration(bytes, self.rate);
        self.free_at
    }

    /// Takes back bytes that would have been sent by `end`, as far as they are not. Those behind keep their times; the room
    /// goes to those to come.
    pub(super) fn take_back(&mut self, now: Duration, bytes: u64, end: Duration) {
        let unsent = end.saturating_sub(now).min(duration(bytes, self.rate));
        self.free_at = self.free_at.saturating_sub(unsent);
    }

    pub(super) fn rate(&self) -> f64 {
        self.rate
    }
}

/// The time that bytes take.
pub(super) fn duration(bytes: u64, rate: f64) -> Duration {
    Duration::from_secs_f64(bytes as f64 / rate)
}
