//! When to ask an origin again, and after how long [pure].

use std::time::Duration;

/// What a failure means for the download that met it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Ask again: overload, a cut, silence.
    Transient {
        /// The origin's Retry-After.
        after: Option<Duration>,
        /// Whether the origin asks for fewer requests.
        throttled: bool,
    },
    /// This URL or these credentials are no longer good; another client's may be.
    Credentials,
    /// The node's own limit on connections: ask again, nobody failed.
    Busy,
    /// The object is another one now.
    Changed,
    /// The origin sends the whole object for a range.
    IgnoredRange,
    /// Asking again cannot help.
    Fatal,
}

impl Class {
    /// A transient failure that came without advice on when to ask again.
    pub const fn transient() -> Self {
        Self::Transient { after: None, throttled: false }
    }

    /// Whether the same request may succeed later.
    pub fn is_transient(self) -> bool {
        matches!(self, Self::Transient { .. } | Self::Busy)
    }
}

/// The class of a status other than 200 and 206 (RFC 9110 section 15; 429 is RFC 6585).
pub fn classify_status(status: u16, retry_after: Option<Duration>) -> Class {
    match status {
        401 | 403 => Class::Credentials,
        429 | 503 => Class::Transient { after: retry_after, throttled: status == 429 || retry_after.is_some() },
        501 | 505 => Class::Fatal,
        408 | 425 | 500..=599 => Class::Transient { after: retry_after, throttled: false },
        _ => Class::Fatal,
    }
}

/// How failures without progress are spaced and how many are borne.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// Before the first retry; doubles with each further one.
    pub base: Duration,
    /// The longest wait, also for a Retry-After.
    pub cap: Duration,
    /// Failures in a row without one new byte after which the origin counts as down.
    pub attempts: u32,
}

impl Default for Backoff {
    /// 6 attempts at 0.2, 0.4 ... 10 s: an outage of several seconds passes unnoticed, a dead origin is known within about 13 s.
    fn default() -> Self {
        Self { base: Duration::from_millis(200), cap: Duration::from_secs(10), attempts: 6 }
    }
}

impl Backoff {
    /// The wait before attempt number `failures` + 1, between a half and all of the doubled base so that many nodes spread out;
    /// `advice` is the origin's Retry-After, bounded by the cap. `None`: no attempt is left.
    pub fn delay(&self, failures: u32, advice: Option<Duration>, jitter: &mut Jitter) -> Option<Duration> {
        if failures >= self.attempts {
            return None;
        }
        let doubled = self.base.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(self.cap);
        let spread = doubled / 2 + (doubled / 2).mul_f64(jitter.unit());
        Some(advice.map_or(spread, |asked| asked.min(self.cap).max(spread)))
    }
}

/// A seeded stream of pseudo-random numbers (SplitMix64): the same seed gives the same schedule.
#[derive(Clone, Debug)]
pub struct Jitter(u64);

impl Jitter {
    /// The stream that belongs to `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number in 0..1.
    pub fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn delays_stay_between_half_the_base_and_the_cap(failures in 1_u32..6, advice: Option<u32>, seed: u64) {
            let backoff = Backoff::default();
            let advice = advice.map(|seconds| Duration::from_secs(seconds.into()));
            let delay = backoff.delay(failures, advice, &mut Jitter::new(seed)).unwrap();
            assert!(delay >= backoff.base / 2 && delay <= backoff.cap, "{delay:?}");
            assert!(advice.is_none_or(|asked| delay >= asked.min(backoff.cap)));
        }
    }

    #[test]
    fn the_attempts_run_out() {
        let backoff = Backoff::default();
        assert_eq!(backoff.delay(backoff.attempts, Some(Duration::ZERO), &mut Jitter::new(1)), None);
    }

    #[test]
    fn only_what_may_pass_is_asked_again() {
        for status in [408, 425, 429, 500, 502, 503, 504, 520] {
            assert!(classify_status(status, None).is_transient(), "{status}");
        }
        for status in [400, 404, 405, 410, 416, 451, 501] {
            assert_eq!(classify_status(status, None), Class::Fatal, "{status}");
        }
        assert_eq!([401, 403].map(|status| classify_status(status, None)), [Class::Credentials; 2]);
    }
}
