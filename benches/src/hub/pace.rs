//! Rate limits per connection and in total.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

/// Largest frame handed to a connection.
pub(super) const FRAME: u64 = 256 << 10;

/// Rates in bytes a second; none: unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rates {
    /// For each connection.
    #[serde(default)]
    pub connection: Option<u64>,
    /// For all connections together.
    #[serde(default)]
    pub total: Option<u64>,
}

/// The limits in force. Shared: changes apply to the next frame of each body.
#[derive(Debug, Default)]
pub struct Limits {
    connection: AtomicU64,
    total: AtomicU64,
    pacer: Pacer,
}

impl Limits {
    /// Replaces both limits.
    pub fn set(&self, rates: Rates) {
        self.connection.store(rates.connection.unwrap_or(0), Ordering::Relaxed);
        self.total.store(rates.total.unwrap_or(0), Ordering::Relaxed);
    }

    /// Limits in force.
    pub fn get(&self) -> Rates {
        let rate = |cell: &AtomicU64| Some(cell.load(Ordering::Relaxed)).filter(|rate| *rate > 0);
        Rates { connection: rate(&self.connection), total: rate(&self.total) }
    }

    /// How large the next frame may be: about 1/20 s of the lower rate.
    pub(super) fn frame(&self) -> u64 {
        let Rates { connection, total } = self.get();
        [connection, total].into_iter().flatten().map(|rate| (rate / 20).clamp(512, FRAME)).min().unwrap_or(FRAME)
    }

    /// Books `bytes` on both limits; the caller sends them after the returned delay.
    pub(super) fn reserve(&self, connection: &Pacer, bytes: u64) -> Duration {
        let rates = self.get();
        if rates == Rates::default() {
            return Duration::ZERO;
        }
        let now = Instant::now();
        let delay =
            |pacer: &Pacer, rate: Option<u64>| rate.map_or(Duration::ZERO, |rate| pacer.reserve(now, bytes, rate));
        delay(connection, rates.connection).max(delay(&self.pacer, rates.total))
    }
}

/// A line on which bytes are booked one after the other.
#[derive(Debug, Default)]
pub(super) struct Pacer(Mutex<Option<Instant>>);

impl Pacer {
    fn reserve(&self, now: Instant, bytes: u64, rate: u64) -> Duration {
        let mut free = self.0.lock().expect("no holder panics");
        let start = free.map_or(now, |free| free.max(now));
        *free = Some(start + Duration::from_secs_f64(bytes as f64 / rate as f64));
        start - now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bookings_follow_each_other_at_the_rate() {
        let pacer = Pacer::default();
        let now = Instant::now();
        assert_eq!(pacer.reserve(now, 500, 1000), Duration::ZERO);
        assert_eq!(pacer.reserve(now, 500, 1000), Duration::from_millis(500));
        assert_eq!(pacer.reserve(now, 1, 1000), Duration::from_secs(1));
        let later = now + Duration::from_secs(10);
        assert_eq!(pacer.reserve(later, 1, 1000), Duration::ZERO, "idle time earns no burst and costs nothing");
        assert_eq!(pacer.reserve(later, 1, 1000), Duration::from_millis(1));
    }

    #[test]
    fn the_total_holds_for_all_connections_together() {
        let limits = Limits::default();
        limits.set(Rates { connection: None, total: Some(1 << 20) });
        let lines = [Pacer::default(), Pacer::default()];
        let delays: Vec<_> = (0..8).map(|i| limits.reserve(&lines[i % 2], 1 << 20)).collect();
        assert!(delays[7] > Duration::from_secs(6), "{delays:?}");
    }
}
