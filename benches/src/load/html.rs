//! The report of a load as one page that needs nothing else.

use super::{Latency, Outcome, Sample, outcome::gigabytes, record::QUANTILES};
use crate::chart::{self, Axis, Line, Scale, escape};

const STYLE: &str = "\
body{font:15px/1.45 system-ui,sans-serif;max-width:900px;margin:2rem auto;padding:0 1rem;\
background:var(--ground);color:var(--ink)}h1{font-size:1.4rem;margin:0 0 1rem}\
table{border-collapse:collapse;margin:0 0 2rem}th,td{padding:.2rem .9rem .2rem 0;text-align:left;vertical-align:top}\
th{font-weight:500;color:var(--faint);white-space:nowrap}td{overflow-wrap:anywhere}\
.numbers th,.numbers td{text-align:right;font-variant-numeric:tabular-nums}\
.numbers th:first-child{text-align:left}.errors td:first-child{text-align:right}";

const TIME: Axis<'_> = Axis { label: "time since the start (s)", scale: Scale::Linear };

/// An HTML page with the outcome's figures and charts. It has no script and loads nothing.
pub fn page(outcome: &Outcome) -> String {
    let mut body = String::from("<h1>Load test</h1>\n");
    let facts = outcome.facts();
    let row = |(name, value): &(&str, String)| format!("<tr><th>{name}</th><td>{}</td></tr>\n", escape(value));
    body += &format!("<table>{}</table>\n", facts.iter().map(row).collect::<String>());
    body += &errors(outcome);
    body += &latencies(outcome);
    body += &percentiles(outcome);
    body += &throughput(&outcome.series);
    body += &times(&outcome.series);
    if outcome.process.is_some() {
        body += &cores(&outcome.series);
        body += &memory(&outcome.series);
    }
    format!(
        "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'>\
         <meta name='viewport' content='width=device-width,initial-scale=1'>\
         <title>Load test of {}</title><style>{}{STYLE}</style></head>\n<body>\n{body}</body></html>\n",
        escape(&outcome.setup.url),
        chart::STYLE
    )
}

fn errors(outcome: &Outcome) -> String {
    if outcome.errors.0.is_empty() {
        return String::new();
    }
    let row = |(kind, failures): (&super::ErrorKind, &super::Failures)| {
        format!("<tr><td>{}</td><td>{kind}</td><td>{}</td></tr>\n", failures.count, escape(&failures.first))
    };
    let rows: String = outcome.errors.0.iter().map(row).collect();
    format!("<table class='errors'><tr><th>errors</th><th>kind</th><th>the first one</th></tr>\n{rows}</table>\n")
}

fn latencies(outcome: &Outcome) -> String {
    let head: String = QUANTILES.iter().map(|(name, _)| format!("<th>{name}</th>")).collect();
    let row = |name: &str, latency: &Latency| {
        let millis = |share| latency.quantile(share).as_secs_f64() * 1e3;
        let cells: String = QUANTILES.iter().map(|(_, share)| format!("<td>{:.3}</td>", millis(*share))).collect();
        format!("<tr><th>{name}</th>{cells}</tr>\n")
    };
    let rows = row("first byte", &outcome.first_byte) + &row("whole", &outcome.whole);
    format!("<table class='numbers'><tr><th>ms from the intended start</th>{head}</tr>\n{rows}</table>\n")
}

fn percentiles(outcome: &Outcome) -> String {
    let x = Axis { label: "share of operations", scale: Scale::Percentile };
    let y = Axis { label: "at most (ms)", scale: Scale::Log };
    let line = |name, latency: &Latency| Line { name, points: latency.curve() };
    let lines = [line("to the last byte", &outcome.whole), line("to the first byte", &outcome.first_byte)];
    chart::lines("Latency by percentile", x, y, &lines)
}

fn throughput(series: &[Sample]) -> String {
    let y = Axis { label: "GB/s", scale: Scale::Linear };
    let points = rates(series, |sample| gigabytes(sample.bytes));
    chart::lines("Throughput", TIME, y, &[Line { name: "bytes of bodies", points }])
}

fn times(series: &[Sample]) -> String {
    let y = Axis { label: "ms", scale: Scale::Log };
    let points = |of: fn(&Sample) -> f64| series.iter().map(|sample| (moment(sample), of(sample))).collect();
    let lines = [
        Line { name: "p99 of each quarter of a second", points: points(|sample| sample.p99_ms) },
        Line { name: "median", points: points(|sample| sample.p50_ms) },
    ];
    chart::lines("Time to the last byte, of the operations done at a time", TIME, y, &lines)
}

fn cores(series: &[Sample]) -> String {
    let y = Axis { label: "cores in use", scale: Scale::Linear };
    let points = rates(series, |sample| sample.cpu_seconds);
    chart::lines("CPU of the processes under test", TIME, y, &[Line { name: "user and system time", points }])
}

fn memory(series: &[Sample]) -> String {
    let y = Axis { label: "MiB", scale: Scale::Linear };
    let mebibytes = |sample: &Sample| (moment(sample), sample.rss as f64 / f64::from(1 << 20));
    let points = series.iter().map(mebibytes).collect();
    chart::lines("Memory of the processes under test", TIME, y, &[Line { name: "resident", points }])
}

/// To 10 ms: a sample that comes a little after the last second is no reason for a longer axis.
fn moment(sample: &Sample) -> f64 {
    (sample.seconds * 100.0).round() / 100.0
}

/// What grew by how much a second, from one sample to the next.
fn rates(series: &[Sample], of: impl Fn(&Sample) -> f64) -> Vec<(f64, f64)> {
    /// A shorter last interval would draw its noise, not its rate.
    const SHORTEST: f64 = 0.1;
    let mut last = Sample::default();
    let mut points = Vec::with_capacity(series.len());
    for sample in series {
        let seconds = sample.seconds - last.seconds;
        if seconds >= SHORTEST {
            points.push((moment(sample), (of(sample) - of(&last)) / seconds));
            last = sample.clone();
        }
    }
    points
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_of_what_came_between_two_samples() {
        let at = |seconds, bytes| Sample { seconds, bytes, ..Sample::default() };
        let series = [at(0.5, 100), at(1.0, 400), at(1.01, 500)];
        assert_eq!(rates(&series, |sample| sample.bytes as f64), [(0.5, 200.0), (1.0, 600.0)]);
    }
}
