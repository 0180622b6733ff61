//! What is counted: times, errors, operations.

use std::{collections::BTreeMap, fmt, time::Duration};

use hdrhistogram::Histogram;
use serde::{Serialize, Serializer, ser::SerializeStruct as _};

/// Longer times count as this one.
const LONGEST: Duration = Duration::from_secs(3600);

/// The quantiles that reports name.
pub(super) const QUANTILES: [(&str, f64); 5] =
    [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)];

/// How long something took, in microseconds with three digits.
#[derive(Clone, Debug)]
pub struct Latency(Histogram<u64>);

impl Default for Latency {
    fn default() -> Self {
        let bounds = Histogram::new_with_bounds(1, LONGEST.as_micros() as u64, 3);
        Self(bounds.expect("the bounds are in order and the digits few"))
    }
}

impl Latency {
    /// Counts one time.
    pub fn record(&mut self, time: Duration) {
        self.0.saturating_record(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }

    /// Adds all that another has counted.
    pub fn add(&mut self, other: &Self) {
        self.0.add(&other.0).expect("all have the same bounds");
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// How many took at least this long, to the histogram's three digits.
    pub fn count_from(&self, time: Duration) -> u64 {
        self.0.count_between(time.as_micros() as u64, LONGEST.as_micros() as u64)
    }

    /// The time that this share of all, from 0 to 1, did not exceed; zero if there are none.
    pub fn quantile(&self, share: f64) -> Duration {
        Duration::from_micros(self.0.value_at_quantile(share))
    }

    /// The arithmetic mean; zero if there are none.
    pub fn mean(&self) -> Duration {
        Duration::from_secs_f64(self.0.mean() / 1e6)
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Quantiles and their times in milliseconds, denser towards the last; the largest one's quantile is that of a rank, not 1.
    pub fn curve(&self) -> Vec<(f64, f64)> {
        let last = 1.0 - 1.0 / (self.count() as f64 + 1.0);
        let steps = self.0.iter_quantiles(10).map(|step| step.quantile_iterated_to().min(last));
        let mut curve: Vec<(f64, f64)> = steps.map(|at| (at, self.0.value_at_quantile(at) as f64 / 1e3)).collect();
        curve.dedup_by(|a, b| a.0 == b.0);
        curve
    }
}

/// `{count, mean_us, p50_us, .., max_us}`.
impl Serialize for Latency {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let micros = |share| self.0.value_at_quantile(share);
        let mut fields = serializer.serialize_struct("Latency", 7)?;
        fields.serialize_field("count", &self.count())?;
        fields.serialize_field("mean_us", &self.0.mean())?;
        fields.serialize_field("p50_us", &micros(0.5))?;
        fields.serialize_field("p90_us", &micros(0.9))?;
        fields.serialize_field("p99_us", &micros(0.99))?;
        fields.serialize_field("p999_us", &micros(0.999))?;
        fields.serialize_field("max_us", &micros(1.0))?;
        fields.end()
    }
}

/// What went wrong with an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// No connection.
    Connect,
    /// No TLS session on it.
    Tls,
    /// The answer is not HTTP/1.1, or there is none.
    Protocol,
    /// Another status than 200, or 206 where a range was asked for.
    Status,
    /// Fewer bytes than announced.
    ShortBody,
    /// Other bytes than the right ones.
    Digest,
    /// Not done within the deadline.
    Timeout,
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "connect",
            Self::Tls => "TLS",
            Self::Protocol => "protocol",
            Self::Status => "status",
            Self::ShortBody => "short body",
            Self::Digest => "digest",
            Self::Timeout => "timeout",
        })
    }
}

/// Why an operation failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind}: {message}")]
pub(super) struct Failure {
    pub(super) kind: ErrorKind,
    pub(super) message: String,
}

impl Failure {
    pub(super) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

/// The failures of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failures {
    /// How many.
    pub count: u64,
    /// What the first one said.
    pub first: String,
}

/// The failures of all kinds that occurred.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Errors(pub BTreeMap<ErrorKind, Failures>);

impl Errors {
    /// How many of this kind.
    pub fn of(&self, kind: ErrorKind) -> u64 {
        self.0.get(&kind).map_or(0, |failures| failures.count)
    }

    /// How many of all kinds.
    pub fn count(&self) -> u64 {
        self.0.values().map(|failures| failures.count).sum()
    }

    pub(super) fn record(&mut self, failure: Failure) {
        let failures = self.0.entry(failure.kind).or_insert(Failures { count: 0, first: failure.message });
        failures.count += 1;
    }

    fn add(&mut self, other: Self) {
        for (kind, failures) in other.0 {
            let known = self.0.entry(kind).or_insert(Failures { count: 0, first: failures.first });
            known.count += failures.count;
        }
    }
}

/// What one thread has counted since it was last asked.
#[derive(Clone, Debug, Default)]
pub(super) struct Record {
    /// From an operation's intended start to its first byte.
    pub(super) first_byte: Latency,
    /// From its intended start to its end.
    pub(super) whole: Latency,
    /// From an arrival's intended start to when the generator came to it.
    pub(super) lag: Latency,
    pub(super) errors: Errors,
    /// Operations that came up, those below included.
    pub(super) arrived: u64,
    pub(super) completed: u64,
    /// For which there was no room in the queue.
    pub(super) not_started: u64,
    /// HTTP requests sent.
    pub(super) requests: u64,
    /// Connections opened.
    pub(super) connections: u64,
}

impl Record {
    /// Moves all counts over to `total`.
    pub(super) fn move_to(&mut self, total: &mut Self) {
        total.first_byte.add(&self.first_byte);
        total.whole.add(&self.whole);
        total.lag.add(&self.lag);
        total.errors.add(std::mem::take(&mut self.errors));
        total.arrived += std::mem::take(&mut self.arrived);
        total.completed += std::mem::take(&mut self.completed);
        total.not_started += std::mem::take(&mut self.not_started);
        total.requests += std::mem::take(&mut self.requests);
        total.connections += std::mem::take(&mut self.connections);
        self.first_byte.clear();
        self.whole.clear();
        self.lag.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_curve_ends_with_the_largest_and_is_drawable() {
        let mut latency = Latency::default();
        (1..=1000).for_each(|millis| latency.record(Duration::from_millis(millis)));
        let curve = latency.curve();
        assert!(curve.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1), "{curve:?}");
        let (quantile, millis) = curve[curve.len() - 1];
        assert!(quantile < 1.0 && quantile > 0.999 - 1e-6 && (millis - 1000.0).abs() < 2.0, "{quantile} {millis}");
        assert_eq!(latency.count_from(Duration::from_millis(900)), 101);
        assert!(Latency::default().curve().iter().all(|(at, _)| *at < 1.0));
    }

    #[test]
    fn errors_keep_the_first_message_of_a_kind() {
        let mut errors = Errors::default();
        for message in ["refused", "unreachable"] {
            errors.record(Failure::new(ErrorKind::Connect, message));
        }
        assert_eq!((errors.of(ErrorKind::Connect), errors.count()), (2, 2));
        assert_eq!(serde_json::to_string(&errors).unwrap(), r#"{"connect":{"count":2,"first":"refused"}}"#);
    }

    proptest! {
        #[test]
        fn quantiles_are_right_to_three_digits(mut micros in prop::collection::vec(1_u64..10_000_000, 1..300)) {
            let mut latency = Latency::default();
            micros.iter().for_each(|micros| latency.record(Duration::from_micros(*micros)));
            micros.sort_unstable();
            for share in [0.5, 0.9, 0.99, 1.0] {
                let rank = ((share * micros.len() as f64).ceil() as usize).clamp(1, micros.len());
                let (exact, found) = (micros[rank - 1] as f64, latency.quantile(share).as_micros() as f64);
                prop_assert!((found - exact).abs() <= exact / 1000.0 + 1.0, "{share}: {found} for {exact}");
            }
        }

        #[test]
        fn threads_together_count_what_each_did(a in prop::collection::vec(0_u64..9999, 0..50), b: u16) {
            let (mut total, mut thread, mut alone) = (Record::default(), Record::default(), Latency::default());
            for (number, micros) in a.iter().enumerate() {
                thread.whole.record(Duration::from_micros(*micros));
                alone.record(Duration::from_micros(*micros));
                thread.completed += 1;
                if number % 7 == usize::from(b % 7) {
                    thread.move_to(&mut total);
                }
            }
            thread.move_to(&mut total);
            prop_assert_eq!((total.completed, total.whole.count()), (a.len() as u64, a.len() as u64));
            prop_assert_eq!(total.whole.quantile(0.5), alone.quantile(0.5));
            prop_assert_eq!(thread.whole.count(), 0);
        }
    }
}
