//! What a soak prints.

use std::{fmt, path::PathBuf};

/// A node after a minute.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct NodeFigures {
    /// Resident memory in bytes.
    pub rss: u64,
    /// Open file descriptors.
    pub descriptors: usize,
    /// Tasks in the store.
    pub tasks: usize,
    /// Bytes that count against the store's quota.
    pub store_bytes: u64,
}

/// One minute.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MinuteReport {
    /// From 1.
    pub number: u64,
    /// How long it took with its check.
    pub seconds: f64,
    /// Files that clients got.
    pub downloads: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Faults.
    pub faults: u64,
    /// Failed tries that have an excuse.
    pub excused: u64,
    /// Broken promises.
    pub violations: u64,
    /// By node.
    pub nodes: Vec<NodeFigures>,
}

/// The whole run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SoakReport {
    /// Plays the same downloads and faults again.
    pub seed: u64,
    /// Each minute.
    pub minutes: Vec<MinuteReport>,
    /// Broken promises, the first hundred of them.
    pub violations: Vec<String>,
    /// Where the logs are kept, if there was a violation.
    pub logs: Option<PathBuf>,
    /// It was ended early.
    pub interrupted: bool,
}

impl SoakReport {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, ..Self::default() }
    }
}

impl fmt::Display for MinuteReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "minute {}: {} downloads, {:.1} MB, {} faults, {} excused failures, {} violations",
            self.number,
            self.downloads,
            self.bytes as f64 / 1e6,
            self.faults,
            self.excused,
            self.violations
        )?;
        for (number, node) in self.nodes.iter().enumerate() {
            write!(f, "; node-{number} {:.0} MB {} fds {} tasks", node.rss as f64 / 1e6, node.descriptors, node.tasks)?;
        }
        write!(f, " ({:.0} s)", self.seconds)
    }
}

impl fmt::Display for SoakReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:>6} {:>9} {:>9} {:>6} {:>7} {:>10} {:>11} {:>8} {:>12}",
            "minute", "downloads", "MB", "faults", "excused", "violations", "max RSS MB", "max fds", "max store MB"
        )?;
        for minute in &self.minutes {
            let most = |of: fn(&NodeFigures) -> u64| minute.nodes.iter().map(of).max().unwrap_or(0);
            writeln!(
                f,
                "{:>6} {:>9} {:>9.1} {:>6} {:>7} {:>10} {:>11.1} {:>8} {:>12.1}",
                minute.number,
                minute.downloads,
                minute.bytes as f64 / 1e6,
                minute.faults,
                minute.excused,
                minute.violations,
                most(|node| node.rss) as f64 / 1e6,
                most(|node| node.descriptors as u64),
                most(|node| node.store_bytes) as f64 / 1e6,
            )?;
        }
        let sum = |of: fn(&MinuteReport) -> u64| self.minutes.iter().map(of).sum::<u64>();
        writeln!(
            f,
            "in all: {} downloads, {:.1} MB, {} faults, {} excused failures, {} violations; seed {}",
            sum(|minute| minute.downloads),
            sum(|minute| minute.bytes) as f64 / 1e6,
            sum(|minute| minute.faults),
            sum(|minute| minute.excused),
            self.violations.len(),
            self.seed
        )?;
        self.violations.iter().try_for_each(|violation| writeln!(f, "violation: {violation}"))?;
        match &self.logs {
            Some(logs) => writeln!(f, "logs: {}", logs.display()),
            None => Ok(()),
        }
    }
}
