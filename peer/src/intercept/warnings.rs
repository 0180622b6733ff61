//! Warnings that clients cause: one of a kind in a while, whatever the clients do [pure].

use std::{
    sync::{Mutex, PoisonError},
    time::Instant,
};

use crate::limits;

/// When a warning of one kind may be written again.
#[derive(Debug, Default)]
pub struct WarningLimit(Mutex<Option<Instant>>);

impl WarningLimit {
    /// Whether to write it now.
    pub fn allow(&self, now: Instant) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let due = last.is_none_or(|last| now.saturating_duration_since(last) >= limits::WARNING_PERIOD);
        if due {
            *last = Some(now);
        }
        due
    }
}

/// The warnings of the interception that clients can cause.
#[derive(Debug, Default)]
pub struct Warnings {
    /// A connection was not passed on.
    pub refused_pass: WarningLimit,
    /// A client holds its whole share of the connections.
    pub over_share: WarningLimit,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_is_written_once_a_period() {
        let (limit, now) = (WarningLimit::default(), Instant::now());
        assert!(limit.allow(now));
        assert!(!limit.allow(now + limits::WARNING_PERIOD / 2));
        assert!(limit.allow(now + limits::WARNING_PERIOD));
    }
}
