//! What libFuzzer's log says about a run.

use std::path::PathBuf;

/// Above the lines of [`Report::line`].
pub(super) const HEADING: &str = "target               executions   a second    edges  of all  corpus  verdict";

/// One run of a target.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Report {
    executions: u64,
    per_second: u64,
    /// Edges of the program that were reached, and all that it has.
    edges: (u64, u64),
    /// Inputs that each cover something of their own.
    corpus: u64,
    /// What went wrong.
    pub(super) finding: Option<Finding>,
}

/// An input that fails.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Finding {
    /// Where it was written; `None` if the target failed without an input.
    pub(super) input: Option<PathBuf>,
    /// What the panic or libFuzzer said.
    pub(super) message: String,
}

impl Report {
    /// Reads the log of a run that ended well or not.
    pub(super) fn read(log: &str, success: bool) -> Self {
        let last = |key: &str| log.lines().rev().find_map(|line| number_after(line, key));
        let finding = (!success).then(|| Finding {
            input: log.lines().find_map(|line| line.split_once("Test unit written to ")).map(|(_, path)| path.into()),
            message: message(log),
        });
        Self {
            executions: last("stat::number_of_executed_units:").or_else(|| last("#")).unwrap_or(0),
            per_second: last("stat::average_exec_per_sec:").or_else(|| last("exec/s:")).unwrap_or(0),
            edges: (last("cov:").unwrap_or(0), last("Loaded 1 PC tables (").unwrap_or(0)),
            corpus: last("corp:").unwrap_or(0),
            finding,
        }
    }

    /// The run as a line of a table.
    pub(super) fn line(&self, name: &str) -> String {
        let verdict = if self.finding.is_none() { "ok" } else { "FOUND" };
        let (covered, all) = self.edges;
        format!(
            "{name:<20} {:>10} {:>10} {covered:>8} {all:>7} {:>7}  {verdict}",
            self.executions, self.per_second, self.corpus
        )
    }
}

fn number_after(line: &str, key: &str) -> Option<u64> {
    let (_, rest) = line.split_once(key)?;
    let digits: String = rest.trim_start().chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// The panic's lines up to the stack, or libFuzzer's own error.
fn message(log: &str) -> String {
    let is_start =
        |line: &&str| line.contains("panicked at") || line.contains("ERROR: libFuzzer") || line.contains("ALARM");
    let from_start = log.lines().skip_while(|line| !is_start(line));
    let is_end = |line: &&str| line.starts_with("note:") || line.starts_with("NOTE:") || line.starts_with("    #");
    let lines: Vec<&str> = from_start.take_while(|line| !is_end(line)).take(12).collect();
    if lines.is_empty() { "the target ended without a message".to_owned() } else { lines.join("\n") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSED: &str = "INFO: Loaded 1 PC tables (5120 PCs): 5120 [0x1,0x2),\n\
        #2\tINITED cov: 10 ft: 12 corp: 3/30b exec/s: 0 rss: 40Mb\n\
        #900\tDONE   cov: 77 ft: 120 corp: 21/1Kb lim: 4096 exec/s: 450 rss: 41Mb\n\
        stat::number_of_executed_units: 900\nstat::average_exec_per_sec:     450\n";

    #[test]
    fn figures_are_those_of_the_end_of_the_run() {
        let report = Report::read(PASSED, true);
        let expected = Report { executions: 900, per_second: 450, edges: (77, 5120), corpus: 21, finding: None };
        assert_eq!(report, expected);
    }

    #[test]
    fn a_finding_has_its_input_and_the_panic() {
        let log = "#5\tNEW    cov: 12 ft: 13 corp: 4/40b\n\nthread '<unnamed>' panicked at src/x.rs:1:2:\nno good\n\
            note: run with `RUST_BACKTRACE=1`\n==1== ERROR: libFuzzer: deadly signal\n\
            artifact_prefix='a/'; Test unit written to a/crash-0\n";
        let report = Report::read(log, false);
        let finding = report.finding.expect("it failed");
        assert_eq!(finding.input, Some(PathBuf::from("a/crash-0")));
        assert_eq!(finding.message, "thread '<unnamed>' panicked at src/x.rs:1:2:\nno good");
        assert_eq!((report.executions, report.edges.0), (5, 12));
    }
}
