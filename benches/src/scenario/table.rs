//! An outcome for the terminal.

use std::fmt;

use super::{Metric, Outcome, Report};

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.scenario.name, self.scenario.summary)?;
        let report = match &self.report {
            Ok(report) => report,
            Err(error) => return writeln!(f, "  FAILED: {error:#}"),
        };
        writeln!(f, "  {}", report.compares)?;
        write_metrics(f, report, self.noise.is_busy())?;
        for note in &report.notes {
            writeln!(f, "  {note}")?;
        }
        writeln!(f, "  {}", self.noise)
    }
}

/// The columns of a metric, as they are titled by [`TITLES`].
pub(super) fn columns(name: &str, metric: &Metric, busy: bool) -> [String; 6] {
    let spread = metric.spread.map_or(String::new(), |spread| format!(" ± {}", number(spread)));
    let ratio_spread = metric.ratio_spread().map_or(String::new(), |spread| format!(" ± {spread:.3}"));
    [
        name.to_owned(),
        format!("{}{spread} {}", number(metric.value), metric.unit).trim_end().to_owned(),
        metric.baseline.map_or(String::new(), number),
        metric.ratio.map_or(String::new(), |ratio| format!("{ratio:.3}{ratio_spread}")),
        metric.target.map_or(String::new(), |target| target.to_string()),
        metric.verdict(busy).to_string(),
    ]
}

/// What the columns are.
pub(super) const TITLES: [&str; 6] = ["metric", "value ± spread", "baseline", "ratio ± spread", "target", "met"];

fn write_metrics(f: &mut fmt::Formatter<'_>, report: &Report, busy: bool) -> fmt::Result {
    let mut rows = vec![TITLES.map(str::to_owned)];
    rows.extend(report.metrics.iter().map(|(name, metric)| columns(name, metric, busy)));
    let mut widths = [0; 6];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    for row in &rows {
        let mut line = String::from(" ");
        for (number, (cell, width)) in row.iter().zip(widths).enumerate() {
            // Words to the left, figures to the right.
            let text = if matches!(number, 0 | 5) { format!(" {cell:<width$}") } else { format!("  {cell:>width$}") };
            line.push_str(&text);
            if number == 4 {
                line.push(' ');
            }
        }
        writeln!(f, "{}", line.trim_end())?;
    }
    Ok(())
}

/// Four figures that matter, or all of a whole number.
pub(super) fn number(value: f64) -> String {
    let digits = match value.abs() {
        size if !size.is_finite() || size >= 1000.0 => 0,
        size if size >= 100.0 => 1,
        size if size >= 10.0 => 2,
        _ => 3,
    };
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::{super::*, *};

    #[test]
    fn numbers_have_the_figures_that_matter() {
        assert_eq!([0.12345, 9.5, 12.345, 123.45, 123_456.7].map(number), ["0.123", "9.5", "12.35", "123.5", "123457"]);
        assert_eq!([0.0, 1.0].map(number), ["0", "1"]);
    }

    #[test]
    fn the_table_says_what_is_met_and_what_the_machine_was_too_noisy_for() {
        let runs = [1.0, 1.01, 1.02];
        let mut report = Report::new("one thing beside another");
        report.add("seconds", Metric::timed("s", &runs).against(1.0).wanted(Target::RatioAtMost(1.15)));
        report.notes.push("links of 1 Gbit/s".to_owned());
        let mut outcome = Outcome { scenario: ALL[0], noise: Noise::default(), report: Ok(report) };
        let quiet = outcome.to_string();
        assert!(quiet.contains("1.01 ± 0.01 s") && quiet.contains("ratio <= 1.15  yes"), "{quiet}");
        outcome.noise.after = 0.5;
        let noisy = outcome.to_string();
        assert!(noisy.contains("ratio <= 1.15  too noisy to tell"), "{noisy}");
        outcome.report = Err(anyhow::anyhow!("cannot run here: needs root"));
        assert!(outcome.to_string().contains("FAILED: cannot run here: needs root"));
    }
}
