//! Warnings that strangers can cause: one of a kind in a while, with a count of those left out [pure].

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The least time between two warnings of one kind.
pub const WARNING_PERIOD: Duration = Duration::from_secs(10);

/// When a warning of one kind may be written again. A party without a certificate must not be able to fill the log in which
/// an operator looks for the messages of members.
#[derive(Debug, Default)]
pub struct WarningLimit(Mutex<Option<LastWarning>>);

#[derive(Debug)]
struct LastWarning {
    at: Instant,
    left_out: u64,
}

impl WarningLimit {
    /// Whether to write a warning at `now`: if so, how many were left out since the last one.
    pub fn allow(&self, now: Instant) -> Option<u64> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = last.as_mut().filter(|last| now.saturating_duration_since(last.at) < WARNING_PERIOD) {
            last.left_out = last.left_out.saturating_add(1);
            return None;
        }
        let left_out = last.as_ref().map_or(0, |last| last.left_out);
        *last = Some(LastWarning { at: now, left_out: 0 });
        Some(left_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_is_written_once_a_period_with_the_number_of_those_left_out() {
        let (limit, now) = (WarningLimit::default(), Instant::now());
        assert_eq!(limit.allow(now), Some(0));
        for _ in 0..1000 {
            assert_eq!(limit.allow(now + WARNING_PERIOD / 2), None);
        }
        assert_eq!(limit.allow(now + WARNING_PERIOD), Some(1000));
        assert_eq!(limit.allow(now + WARNING_PERIOD * 2), Some(0));
    }
}
