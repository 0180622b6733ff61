//! How long to wait before a collector that failed is tried again, and what of it to tell [pure].

use std::time::Duration;

/// The first pause, and the longest.
const PAUSE: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(30)];

/// A collector's failures in a row.
#[derive(Debug, Default)]
pub(super) struct Outage {
    pause: Option<Duration>,
}

impl Outage {
    /// It failed: how long to leave it alone, and whether that is news.
    pub(super) fn failed(&mut self) -> (Duration, bool) {
        let is_news = self.pause.is_none();
        let pause = self.pause.map_or(PAUSE[0], |pause| (pause * 2).min(PAUSE[1]));
        self.pause = Some(pause);
        (pause, is_news)
    }

    /// It took what it was given: whether that is news.
    pub(super) fn worked(&mut self) -> bool {
        self.pause.take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_told_once_and_so_is_its_end() {
        let mut outage = Outage::default();
        assert!(!outage.worked());
        let told: Vec<bool> = (0..9).map(|_| outage.failed().1).collect();
        assert_eq!(told.iter().filter(|told| **told).count(), 1);
        assert!(told[0] && outage.worked() && !outage.worked());
        assert!(outage.failed().1, "the next one is news again");
    }

    #[test]
    fn pauses_double_up_to_half_a_minute() {
        let mut outage = Outage::default();
        let pauses: Vec<u64> = (0..7).map(|_| outage.failed().0.as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
    }
}
