//! A measured figure, what it is compared with, and whether that is good enough.

use std::fmt;

use serde::{Serialize, Serializer};

use super::stats::{median, ratios, spread};

/// A ratio that strays more than this from run to run shows no equality.
const WIDEST_EQUAL: f64 = 0.1;

/// One figure of a scenario. In JSON without what only the verdict needs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Metric {
    /// Median of the runs.
    pub value: f64,
    /// Of value, baseline and spread.
    pub unit: &'static str,
    /// Median of what it is compared with.
    pub baseline: Option<f64>,
    /// Median of the runs' ratios to the baseline's run beside each.
    pub ratio: Option<f64>,
    /// What is wanted.
    pub target: Option<Target>,
    /// Whether it is: none without a target, and where the runs cannot tell. Set by [`Metric::judge`].
    pub met: Option<bool>,
    /// Of the value, in its unit: half of the range of the runs. None of one run.
    pub spread: Option<f64>,
    #[serde(skip)]
    ratio_spread: Option<f64>,
    /// Whether what other processes do changes the value: a time, and not a count.
    #[serde(skip)]
    timed: bool,
}

/// What is wanted of a metric. In JSON as people read it, such as `ratio <= 1.15`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// The value is this or larger.
    AtLeast(f64),
    /// The value is this or smaller.
    AtMost(f64),
    /// The ratio is this or larger.
    RatioAtLeast(f64),
    /// The ratio is this or smaller.
    RatioAtMost(f64),
    /// The ratio does not differ from 1 by more than it differs from run to run.
    NoDifference,
}

/// How much can be told from a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The target is met.
    Met,
    /// It is not.
    Missed,
    /// Too noisy to tell: others used the processor, or the runs differ more among themselves than from the target.
    TooNoisy,
    /// One run does not tell.
    OneRun,
    /// Nothing is wanted of it, and if it is compared with something, the difference is larger than that between runs.
    NoTarget,
}

impl Metric {
    /// Runs of something that takes time, in this unit.
    ///
    /// # Panics
    /// If there is no run.
    pub fn timed(unit: &'static str, runs: &[f64]) -> Self {
        let value = median(runs).expect("a metric has at least one run");
        Self {
            value,
            unit,
            baseline: None,
            ratio: None,
            target: None,
            met: None,
            spread: spread(runs),
            ratio_spread: None,
            timed: true,
        }
    }

    /// Runs of something that is counted, such as bytes: what else the machine does is no part of it.
    ///
    /// # Panics
    /// If there is no run.
    pub fn counted(unit: &'static str, runs: &[f64]) -> Self {
        let metric = Self::timed(unit, runs);
        Self { timed: false, spread: metric.spread.or(Some(0.0)), ..metric }
    }

    /// Beside the runs of something else, each taken next to the one of ours with the same number.
    pub fn beside(mut self, ours: &[f64], theirs: &[f64]) -> Self {
        let each = ratios(ours, theirs);
        self.baseline = median(theirs);
        self.ratio = median(&each);
        self.ratio_spread = spread(&each);
        self
    }

    /// Compared with a figure that is not measured, such as a bound.
    pub fn against(mut self, bound: f64) -> Self {
        self.baseline = Some(bound);
        self.ratio = Some(self.value / bound);
        self.ratio_spread = self.spread.map(|spread| spread / bound);
        self
    }

    /// With something wanted of it.
    pub fn wanted(mut self, target: Target) -> Self {
        self.target = Some(target);
        self
    }

    /// Decides whether the target is met; `busy`: other processes used so much of the machine that times mean nothing.
    pub fn judge(&mut self, busy: bool) -> Verdict {
        let verdict = self.verdict(busy);
        self.met = match verdict {
            Verdict::Met => Some(true),
            Verdict::Missed => Some(false),
            Verdict::TooNoisy | Verdict::OneRun | Verdict::NoTarget => None,
        };
        verdict
    }

    /// The spread of [`Metric::ratio`].
    pub fn ratio_spread(&self) -> Option<f64> {
        self.ratio_spread
    }

    /// What [`Metric::judge`] decides.
    pub(super) fn verdict(&self, busy: bool) -> Verdict {
        let Some(target) = self.target else { return self.difference(busy) };
        let of_ratio = matches!(target, Target::RatioAtLeast(_) | Target::RatioAtMost(_) | Target::NoDifference);
        let (measured, spread) =
            if of_ratio { (self.ratio, self.ratio_spread) } else { (Some(self.value), self.spread) };
        match (measured, spread) {
            (None, _) => Verdict::NoTarget,
            (Some(_), _) if busy && self.timed => Verdict::TooNoisy,
            (Some(_), None) => Verdict::OneRun,
            (Some(measured), Some(spread)) => target.verdict(measured, spread),
        }
    }

    /// Without a target: whether it can be told at all that the two sides differ.
    fn difference(&self, busy: bool) -> Verdict {
        let (Some(ratio), Some(spread)) = (self.ratio, self.ratio_spread) else { return Verdict::NoTarget };
        let hidden = busy && self.timed || (ratio - 1.0).abs() < spread;
        if hidden { Verdict::TooNoisy } else { Verdict::NoTarget }
    }
}

impl Target {
    fn verdict(self, measured: f64, spread: f64) -> Verdict {
        let (met, certain) = match self {
            Self::AtLeast(bound) | Self::RatioAtLeast(bound) => (measured >= bound, (measured - bound).abs() >= spread),
            Self::AtMost(bound) | Self::RatioAtMost(bound) => (measured <= bound, (measured - bound).abs() >= spread),
            Self::NoDifference => ((measured - 1.0).abs() <= spread, spread <= WIDEST_EQUAL),
        };
        match (certain, met) {
            (false, _) => Verdict::TooNoisy,
            (true, true) => Verdict::Met,
            (true, false) => Verdict::Missed,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(bound) => write!(f, ">= {bound}"),
            Self::AtMost(bound) => write!(f, "<= {bound}"),
            Self::RatioAtLeast(bound) => write!(f, "ratio >= {bound}"),
            Self::RatioAtMost(bound) => write!(f, "ratio <= {bound}"),
            Self::NoDifference => write!(f, "no difference"),
        }
    }
}

impl Serialize for Target {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Met => "yes",
            Self::Missed => "NO",
            Self::TooNoisy => "too noisy to tell",
            Self::OneRun => "one run does not tell",
            Self::NoTarget => "",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seconds of five quiet runs beside five of a baseline.
    const THEIRS: [f64; 5] = [1.00, 1.02, 0.99, 1.01, 1.00];

    fn seconds(ours: &[f64; 5]) -> Metric {
        Metric::timed("s", ours).beside(ours, &THEIRS).wanted(Target::RatioAtMost(1.15))
    }

    #[test]
    fn a_seeded_slowdown_is_caught_and_its_absence_is_met() {
        let quiet = [1.01, 1.00, 1.00, 1.02, 0.99];
        let slowed = quiet.map(|seconds| seconds * 1.3);
        assert_eq!(seconds(&quiet).judge(false), Verdict::Met);
        let mut slow = seconds(&slowed);
        assert_eq!((slow.judge(false), slow.met), (Verdict::Missed, Some(false)));
    }

    #[test]
    fn what_other_processes_disturbed_proves_nothing() {
        let mut metric = seconds(&[1.0; 5]);
        assert_eq!((metric.judge(true), metric.met), (Verdict::TooNoisy, None));
        let mut counted = Metric::counted("B", &[290.0]).wanted(Target::AtMost(300.0));
        assert_eq!((counted.judge(true), counted.met), (Verdict::Met, Some(true)), "a count is not disturbed");
    }

    #[test]
    fn runs_that_differ_more_among_themselves_than_from_the_target_prove_nothing() {
        let mut metric = seconds(&[1.0, 1.3, 1.1, 1.2, 1.05]);
        assert_eq!((metric.judge(false), metric.met), (Verdict::TooNoisy, None));
        let mut once = Metric::timed("s", &[1.0]).against(1.0).wanted(Target::RatioAtMost(1.15));
        assert_eq!((once.judge(false), once.met), (Verdict::OneRun, None));
    }

    #[test]
    fn a_difference_counts_when_it_is_larger_than_that_between_runs() {
        let equal = |ours: &[f64; 5]| Metric::timed("s", ours).beside(ours, &THEIRS).wanted(Target::NoDifference);
        assert_eq!(equal(&[1.01, 1.00, 1.00, 1.02, 0.99]).judge(false), Verdict::Met);
        assert_eq!(equal(&THEIRS.map(|seconds| seconds * 1.05)).judge(false), Verdict::Missed);
        assert_eq!(equal(&[0.5, 1.5, 1.0, 1.0, 1.0]).judge(false), Verdict::TooNoisy, "anything would be equal");
    }

    #[test]
    fn a_difference_that_nothing_is_wanted_of_is_not_claimed_when_runs_stray_more() {
        let beside = |ours: &[f64; 5]| Metric::timed("s", ours).beside(ours, &THEIRS);
        assert_eq!(beside(&[1.2, 0.9, 1.0, 1.1, 0.95]).judge(false), Verdict::TooNoisy);
        assert_eq!(beside(&THEIRS.map(|seconds| seconds * 2.0)).judge(false), Verdict::NoTarget);
        assert_eq!(beside(&THEIRS.map(|seconds| seconds * 2.0)).judge(true), Verdict::TooNoisy);
        assert_eq!(Metric::timed("s", &THEIRS).judge(true), Verdict::NoTarget, "compared with nothing");
    }

    #[test]
    fn the_json_has_the_promised_keys_and_a_target_that_people_can_read() {
        let mut metric = seconds(&[1.01, 1.00, 1.00, 1.02, 0.99]);
        metric.judge(false);
        let json = serde_json::to_value(&metric).unwrap();
        let keys: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys, ["baseline", "met", "ratio", "spread", "target", "unit", "value"]);
        assert_eq!((json["target"].as_str(), json["met"].as_bool()), (Some("ratio <= 1.15"), Some(true)));
    }
}
