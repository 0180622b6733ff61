//! A line a second on standard error.

use std::io::{IsTerminal as _, Write as _};

use super::{
    outcome::{Sample, gigabytes},
    record::{Latency, Record},
};

/// Samples in a line.
const SAMPLES: usize = 4;

/// The line, which on a terminal replaces the one before.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Times since the last line.
    whole: Latency,
    /// The sample that the last line ended with.
    last: Sample,
    has_named_errors: bool,
}

impl Progress {
    /// Takes what came with the last of the samples.
    pub(super) fn add(&mut self, series: &[Sample], window: &Record) {
        if !std::io::stderr().is_terminal() {
            return;
        }
        self.whole.add(&window.whole);
        if !self.has_named_errors
            && let Some((kind, failures)) = window.errors.0.first_key_value()
        {
            self.has_named_errors = true;
            let _ = writeln!(std::io::stderr(), "\r\x1b[2Kfirst error: {kind}: {}", failures.first);
        }
        if let Some(now) = series.last()
            && series.len().is_multiple_of(SAMPLES)
        {
            // That nobody reads it is no reason to end the load.
            let _ = write!(std::io::stderr(), "\r\x1b[2K{}", line(&self.last, now, &self.whole));
            self.last = now.clone();
            self.whole.clear();
        }
    }

    /// Takes the line away.
    pub(super) fn finish(self) {
        if std::io::stderr().is_terminal() {
            let _ = write!(std::io::stderr(), "\r\x1b[2K");
        }
    }
}

fn line(last: &Sample, now: &Sample, whole: &Latency) -> String {
    let seconds = (now.seconds - last.seconds).max(f64::MIN_POSITIVE);
    let millis = |share| whole.quantile(share).as_secs_f64() * 1e3;
    format!(
        "{:5.0} s  {:9.1} op/s  {:7.3} GB/s  p50 {:.3} ms  p99 {:.3} ms  errors {}",
        now.seconds,
        (now.completed - last.completed) as f64 / seconds,
        gigabytes(now.bytes - last.bytes) / seconds,
        millis(0.5),
        millis(0.99),
        now.failed
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_line_tells_of_what_came_since_the_last_one() {
        let at = |seconds, bytes, completed| Sample { seconds, bytes, completed, ..Sample::default() };
        let mut whole = Latency::default();
        whole.record(Duration::from_micros(250));
        let text = line(&at(1.0, 1_000_000_000, 10), &at(2.0, 3_500_000_000, 110), &whole);
        assert_eq!(text, "    2 s      100.0 op/s    2.500 GB/s  p50 0.250 ms  p99 0.250 ms  errors 0");
    }
}
