//! When a certificate has to be replaced, by the wall clock [pure].
//!
//! A certificate's life is in wall time, while timers run in the machine's uptime: they stand still in suspend and do not
//! follow a clock that is set. So the validity is compared with the time of day every few seconds.

use std::time::Duration;

/// How often a certificate is looked at.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(5);
/// The wait after a renewal that failed.
pub(crate) const RETRY_AFTER: Duration = Duration::from_secs(60);

/// The life of a certificate, in Unix seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Validity {
    /// The first second at which it is valid.
    pub(crate) not_before: u64,
    /// The last one.
    pub(crate) not_after: u64,
}

impl Validity {
    /// Whether others accept the certificate at `now`.
    pub(crate) fn holds(&self, now: u64) -> bool {
        (self.not_before..=self.not_after).contains(&now)
    }

    /// Whether the certificate has to be replaced at `now`: less than half of its life is left, or the clock was set to a time
    /// before it.
    pub(crate) fn is_due(&self, now: u64) -> bool {
        !self.holds(now) || now >= self.not_before.midpoint(self.not_after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_replaced_at_half_its_life_and_whenever_the_clock_leaves_it() {
        let validity = Validity { not_before: 1_000, not_after: 2_000 };
        for (now, holds, is_due) in [
            (999, false, true),
            (1_000, true, false),
            (1_499, true, false),
            (1_500, true, true),
            (2_000, true, true),
            (2_001, false, true),
            (0, false, true),
            (u64::MAX, false, true),
        ] {
            assert_eq!((validity.holds(now), validity.is_due(now)), (holds, is_due), "{now}");
        }
    }
}
