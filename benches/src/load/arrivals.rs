//! When the requests of an open loop are meant to start.

use std::time::Duration;

use serde::Serialize;

use super::random::Random;

/// How arrivals follow each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Arrivals {
    /// Equal gaps.
    #[default]
    Constant,
    /// Exponentially distributed gaps, as of many clients that know nothing of each other.
    Poisson,
}

/// The intended starts, counted from the start of the load; without end.
#[derive(Clone, Debug)]
pub(super) struct Times {
    arrivals: Arrivals,
    /// Arrivals a second.
    rate: f64,
    random: Random,
    /// How many came before.
    number: u64,
    /// When the last one came, in seconds.
    last: f64,
}

impl Times {
    pub(super) fn new(arrivals: Arrivals, rate: f64, random: Random) -> Self {
        Self { arrivals, rate, random, number: 0, last: 0.0 }
    }
}

impl Iterator for Times {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.last = match self.arrivals {
            // By multiplication, as a sum of gaps would drift.
            Arrivals::Constant => self.number as f64 / self.rate,
            Arrivals::Poisson => self.last - (1.0 - self.random.unit()).ln() / self.rate,
        };
        self.number += 1;
        Some(Duration::try_from_secs_f64(self.last).unwrap_or(Duration::MAX))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn times(arrivals: Arrivals, rate: f64, seed: u64) -> Times {
        Times::new(arrivals, rate, Random::new(seed, 0))
    }

    #[test]
    fn constant_arrivals_have_equal_gaps_and_do_not_drift() {
        let nth = |n| times(Arrivals::Constant, 3.0, 1).nth(n).unwrap();
        assert_eq!(nth(0), Duration::ZERO);
        assert_eq!(nth(3_000_000), Duration::from_secs(1_000_000));
    }

    #[test]
    fn poisson_gaps_have_the_mean_and_the_spread_of_an_exponential_distribution() {
        let count = 100_000;
        let all: Vec<f64> = times(Arrivals::Poisson, 50.0, 7).take(count).map(|at| at.as_secs_f64()).collect();
        let gaps: Vec<f64> = all.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((mean * 50.0 - 1.0).abs() < 0.02, "{mean}");
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.02, "{variance}");
    }

    proptest! {
        #[test]
        fn arrivals_never_go_back_and_a_seed_repeats_them(rate in 0.1_f64..1e6, seed: u64, poisson: bool) {
            let arrivals = if poisson { Arrivals::Poisson } else { Arrivals::Constant };
            let once: Vec<Duration> = times(arrivals, rate, seed).take(500).collect();
            prop_assert!(once.is_sorted());
            prop_assert_eq!(once, times(arrivals, rate, seed).take(500).collect::<Vec<_>>());
        }
    }
}
