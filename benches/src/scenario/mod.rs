//! Scenarios: each measures one promise of the project beside what people would otherwise run.
//!
//! To add one: a file here with a `pub(super) const` [`Scenario`] and its entry in [`ALL`]. It measures in rounds that take the sides in turn,
//! and hands back a [`Report`] of [`Metric`]s; whether their targets are met, the noise of the machine, table, JSON and HTML are done here.

mod bed;
mod cold;
mod connections;
mod flash_crowd;
mod intercept;
mod local_hit;
mod machine;
mod many_small;
mod memory;
mod metric;
mod micro;
mod need;
mod noise;
mod page;
mod peer_link;
mod scheduler;
mod seed_five;
mod stats;
mod table;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{Result, bail, ensure};

pub use self::{
    machine::Machine,
    metric::{Metric, Target, Verdict},
    need::Need,
    noise::Noise,
    page::page,
    stats::{median, ratios, spread},
};

/// Every scenario, in the order in which `all` runs them.
pub const ALL: &[Scenario] = &[
    seed_five::SCENARIO,
    local_hit::SCENARIO,
    cold::SCENARIO,
    flash_crowd::SCENARIO,
    peer_link::SCENARIO,
    many_small::SCENARIO,
    connections::SCENARIO,
    scheduler::SCENARIO,
    intercept::SCENARIO,
    memory::SCENARIO,
    micro::SCENARIO,
];

/// Something that can be measured with one command.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// As on the command line.
    pub name: &'static str,
    /// What it shows, in a line.
    pub summary: &'static str,
    /// What has to be there.
    pub needs: &'static [Need],
    /// Measures. Everything that it sets up is gone when it returns, in error too.
    pub run: fn(&Context) -> Result<Report>,
}

/// How scenarios are to be run.
#[derive(Clone, Debug)]
pub struct Context {
    /// Cargo's target directory: the Python clients are in it.
    pub target: PathBuf,
    /// Where nodes keep their data while they run. A tmpfs takes the disk out of the measurement.
    pub data_in: PathBuf,
    /// Small files and few rounds: whether it works, not how fast it is.
    pub quick: bool,
    /// The built wire bench of the peer.
    pub wire: Option<PathBuf>,
    /// The built `rival-iroh`.
    pub rival: Option<PathBuf>,
    /// Becomes true when the run is to end early.
    pub interrupted: Arc<AtomicBool>,
}

impl Context {
    /// So many rounds; two of a quick run, the fewest that have a spread.
    pub fn rounds(&self, full: usize) -> usize {
        if self.quick { 2 } else { full }
    }

    /// This; of a quick run that.
    pub fn pick<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }

    /// Fails when the run is to end early. For between two steps.
    pub fn go_on(&self) -> Result<()> {
        ensure!(!self.interrupted.load(Ordering::Relaxed), "interrupted");
        Ok(())
    }
}

/// Tells on the standard error output how far a scenario is.
pub(crate) fn say(what: impl std::fmt::Display) {
    eprintln!("    {what}");
}

/// What a scenario found out.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// What is compared with what, in a sentence or two.
    pub compares: String,
    /// By name.
    pub metrics: Vec<(String, Metric)>,
    /// What the chart shows.
    pub chart: String,
    /// The chart's bars: label, length, and what is written at it.
    pub bars: Vec<(String, f64, String)>,
    /// What else a reader has to know.
    pub notes: Vec<String>,
}

impl Report {
    /// An empty one.
    pub fn new(compares: impl Into<String>) -> Self {
        Self { compares: compares.into(), ..Self::default() }
    }

    /// Adds a metric.
    pub fn add(&mut self, name: impl Into<String>, metric: Metric) {
        self.metrics.push((name.into(), metric));
    }
}

/// How a scenario went.
#[derive(Debug)]
pub struct Outcome {
    /// Which.
    pub scenario: Scenario,
    /// What the rest of the machine did.
    pub noise: Noise,
    /// What it found out; or why it could not.
    pub report: Result<Report>,
}

/// Runs one, looks at the noise before and after, and judges.
pub fn play(scenario: &Scenario, context: &Context) -> Outcome {
    let mut noise = Noise::default();
    let report = measured(scenario, context, &mut noise);
    Outcome { scenario: *scenario, noise, report }
}

fn measured(scenario: &Scenario, context: &Context, noise: &mut Noise) -> Result<Report> {
    let missing: Vec<String> = scenario.needs.iter().filter_map(|need| need.missing(context)).collect();
    if !missing.is_empty() {
        bail!("cannot run here: {}", missing.join("; "));
    }
    noise.before = noise::others(&context.interrupted)?;
    context.go_on()?;
    let mut report = (scenario.run)(context)?;
    noise.after = noise::others(&context.interrupted)?;
    for (_, metric) in &mut report.metrics {
        metric.judge(noise.is_busy());
    }
    Ok(report)
}

/// `{"scenario": {"metric": {..}}}` of these; a scenario that failed has no metrics.
pub fn json(outcomes: &[Outcome]) -> serde_json::Result<String> {
    let mut figures = BTreeMap::new();
    for outcome in outcomes {
        let metrics = outcome.report.iter().flat_map(|report| &report.metrics);
        let metrics: BTreeMap<&str, &Metric> = metrics.map(|(name, metric)| (name.as_str(), metric)).collect();
        figures.insert(outcome.scenario.name, metrics);
    }
    serde_json::to_string_pretty(&figures).map(|text| text + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(report: Result<Report>) -> Outcome {
        Outcome { scenario: ALL[0], noise: Noise::default(), report }
    }

    #[test]
    fn every_scenario_has_a_name_of_its_own() {
        let mut names: Vec<&str> = ALL.iter().map(|scenario| scenario.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
    }

    #[test]
    fn the_json_is_scenario_metric_figure_and_a_failed_scenario_has_none() {
        let mut report = Report::new("x");
        report.add("seconds", Metric::timed("s", &[1.0, 1.1]));
        let text = json(&[outcome(Ok(report))]).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["seed-five"]["seconds"]["unit"], "s");
        let failed = json(&[outcome(Err(anyhow::anyhow!("broken")))]).unwrap();
        assert_eq!(failed.split_whitespace().collect::<String>(), r#"{"seed-five":{}}"#);
    }
}
