//! What came of a load: for programs, and as a table for people.

use std::fmt;

use serde::Serialize;

use super::{Arrivals, Check, Errors, Idle, Latency, Pace, Plan, Popularity, ProcessUse, Shape, record::QUANTILES};

/// What came of a load. Times are from an operation's intended start.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// What was asked for.
    pub setup: Setup,
    /// From the start until the duration was over, or everything was done; throughput is of this time.
    pub seconds: f64,
    /// Bytes of bodies that came within these seconds.
    pub bytes: u64,
    /// Operations done within these seconds.
    pub completed: u64,
    /// Bytes of bodies, with what an open loop waited for at its end.
    pub all_bytes: u64,
    /// Operations done, with what an open loop waited for at its end; as many as have a time.
    pub all_completed: u64,
    /// Operations with an error.
    pub failed: u64,
    /// Operations of an open loop for which there was no room in the queue.
    pub not_started: u64,
    /// Operations under way when a closed loop's time was over, or the load was stopped.
    pub unfinished: u64,
    /// HTTP requests sent, redirects and parallel ranges included.
    pub requests: u64,
    /// Connections opened, without idle ones.
    pub connections: u64,
    /// Until the first byte of the body.
    pub first_byte: Latency,
    /// Until the last one.
    pub whole: Latency,
    /// Until the generator came to it; what is more than a millisecond here, it adds to all times of an open loop.
    pub lag: Latency,
    /// By kind.
    pub errors: Errors,
    /// User and system time of the generator's threads, in seconds.
    pub generator_cpu_seconds: f64,
    /// Of the processes under test, within `seconds`.
    pub process: Option<ProcessUse>,
    /// Of the idle connections.
    pub idle: Option<Idle>,
    /// Four times a second.
    pub series: Vec<Sample>,
}

/// How far a load was at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Sample {
    /// Since the start.
    pub seconds: f64,
    /// Bytes of bodies so far.
    pub bytes: u64,
    /// Operations done so far.
    pub completed: u64,
    /// Operations with an error so far.
    pub failed: u64,
    /// Median time of those done since the last sample; 0 if none was.
    pub p50_ms: f64,
    /// Of their times, the 99th percentile.
    pub p99_ms: f64,
    /// CPU time of the processes under test so far.
    pub cpu_seconds: f64,
    /// Their resident size now, in bytes.
    pub rss: u64,
}

/// What was asked for, in words. Header fields and queries of URLs are left out: they may hold secrets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Setup {
    /// The first URL.
    pub url: String,
    /// How many there are.
    pub objects: usize,
    /// Which was asked for how often, and what of it.
    pub shape: String,
    /// When.
    pub pace: String,
    /// What the bytes were held against.
    pub check: String,
    /// Threads of the generator.
    pub threads: usize,
    /// Of the choices.
    pub seed: u64,
}

impl Setup {
    pub(super) fn new(plan: &Plan) -> Self {
        let url = plan.urls.first().map_or("", String::as_str);
        let shape = match plan.shape {
            Shape::Whole => "whole objects".to_owned(),
            Shape::Random { bytes } => format!("random ranges of {}", size(bytes)),
            Shape::Sequential { bytes, .. } => format!("objects range by range, {} each", size(bytes)),
            Shape::Parallel { bytes, at_once } => format!("objects in ranges of {}, {at_once} at once", size(bytes)),
        };
        let popularity = match plan.popularity {
            Popularity::Uniform => String::new(),
            Popularity::InTurn => ", in turn".to_owned(),
            Popularity::Zipf(exponent) => format!(", Zipf {exponent}"),
        };
        let pace = match plan.pace {
            Pace::Closed { clients: 1 } => "closed loop of 1 client".to_owned(),
            Pace::Closed { clients } => format!("closed loop of {clients} clients"),
            Pace::Open { rate, arrivals, connections, .. } => {
                let arrivals = if arrivals == Arrivals::Poisson { "Poisson" } else { "constant" };
                format!("open loop of {rate}/s, {arrivals} arrivals, up to {connections} at once")
            }
        };
        let check = match plan.check {
            Check::Nothing => "lengths",
            Check::Sha256(_) => "SHA-256",
            Check::Copies(_) => "a copy, byte by byte",
        };
        Self {
            url: url.split(['?', '#']).next().unwrap_or_default().to_owned(),
            objects: plan.urls.len(),
            shape: shape + &popularity,
            pace,
            check: check.to_owned(),
            threads: plan.threads,
            seed: plan.seed,
        }
    }
}

impl Outcome {
    /// Throughput, in 10^9 bytes a second.
    pub fn gigabytes_per_second(&self) -> f64 {
        gigabytes(self.bytes) / self.seconds.max(f64::MIN_POSITIVE)
    }

    /// Operations done a second.
    pub fn operations_per_second(&self) -> f64 {
        self.completed as f64 / self.seconds.max(f64::MIN_POSITIVE)
    }

    /// CPU seconds of the processes under test for 10^9 bytes; none: no process was watched, or no byte came.
    pub fn cpu_seconds_per_gigabyte(&self) -> Option<f64> {
        let process = self.process.as_ref()?;
        (self.bytes > 0).then(|| process.cpu_seconds / gigabytes(self.bytes))
    }

    /// CPU seconds of the generator for 10^9 bytes; none: no byte came.
    pub fn generator_cpu_seconds_per_gigabyte(&self) -> Option<f64> {
        (self.all_bytes > 0).then(|| self.generator_cpu_seconds / gigabytes(self.all_bytes))
    }

    /// Names and values of all but times and errors, in the order in which they are read.
    pub(super) fn facts(&self) -> Vec<(&'static str, String)> {
        let setup = &self.setup;
        let more = if setup.objects > 1 { format!(" and {} more", setup.objects - 1) } else { String::new() };
        let mut facts = vec![
            ("target", setup.url.clone() + &more),
            ("load", format!("{}; {}", setup.pace, setup.shape)),
            ("checked", setup.check.clone()),
            (
                "throughput",
                format!("{:.3} GB/s, {:.1} operations/s", self.gigabytes_per_second(), self.operations_per_second()),
            ),
            ("time", format!("{:.2} s", self.seconds)),
            ("bytes", format!("{} ({})", self.bytes, size(self.bytes))),
            ("operations", self.operations()),
            ("requests", format!("{} over {} connections", self.requests, self.connections)),
        ];
        if let Some(process) = &self.process {
            facts.push(("under test", tested(process, self.cpu_seconds_per_gigabyte())));
        }
        if let Some(idle) = &self.idle {
            let error = idle.error.as_ref().map_or_else(String::new, |error| format!("; first error: {error}"));
            let Idle { wanted, opened, answered, .. } = idle;
            facts.push(("idle", format!("{opened} of {wanted} opened, {answered} answered at the end{error}")));
        }
        facts.push(("generator", self.generator()));
        facts
    }

    fn operations(&self) -> String {
        let counts = [
            (self.failed, "failed"),
            (self.not_started, "not started: the queue was full"),
            (self.unfinished, "unfinished at the end"),
        ];
        let counts = counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!(", {count} {what}"));
        format!("{} done{}", self.all_completed, counts.collect::<String>())
    }

    fn generator(&self) -> String {
        let each = per_gigabyte(self.generator_cpu_seconds_per_gigabyte());
        let mut text = format!("{:.2} CPU-s on {} threads{each}", self.generator_cpu_seconds, self.setup.threads);
        if self.lag.count() > 0 {
            let late = |share| self.lag.quantile(share).as_secs_f64() * 1e3;
            text += &format!("; behind its schedule by {:.3} ms (p50), {:.3} ms (p99)", late(0.5), late(0.99));
        }
        text
    }
}

fn tested(process: &ProcessUse, each: Option<f64>) -> String {
    let ids: Vec<String> = process.pids.iter().map(ToString::to_string).collect();
    let mut text = format!(
        "process {}: {:.2} CPU-s{}, resident {} at most",
        ids.join(", "),
        process.cpu_seconds,
        per_gigabyte(each),
        size(process.rss_peak)
    );
    if !process.ended.is_empty() {
        text += &format!("; {:?} ended before the load did", process.ended);
    }
    text
}

fn per_gigabyte(each: Option<f64>) -> String {
    each.map_or_else(String::new, |each| format!(" ({each:.3} a GB)"))
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in self.facts() {
            writeln!(f, "{name:<11} {value}")?;
        }
        writeln!(f)?;
        write!(f, "{:<11}", "ms")?;
        QUANTILES.iter().try_for_each(|(name, _)| write!(f, " {name:>10}"))?;
        for (name, latency) in [("first byte", &self.first_byte), ("whole", &self.whole)] {
            write!(f, "\n{name:<11}")?;
            for (_, share) in QUANTILES {
                write!(f, " {:>10.3}", latency.quantile(share).as_secs_f64() * 1e3)?;
            }
        }
        for (kind, failures) in &self.errors.0 {
            write!(f, "\n\n{} x {kind}; the first: {}", failures.count, failures.first)?;
        }
        Ok(())
    }
}

pub(super) fn gigabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}

/// In the largest binary unit that gives at least 1.
pub(super) fn size(bytes: u64) -> String {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let unit = units.iter().find(|(_, shift)| bytes >> shift > 0);
    let Some((name, shift)) = unit else { return format!("{bytes} B") };
    let value = bytes as f64 / (1_u64 << shift) as f64;
    if value.fract() == 0.0 { format!("{value} {name}") } else { format!("{value:.1} {name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setup_tells_no_secrets() {
        let plan = Plan {
            urls: vec!["https://example.org/a?signature=secret".to_owned(); 3],
            fields: vec![("authorization".to_owned(), "secret".to_owned())],
            ..Plan::default()
        };
        let text = serde_json::to_string(&Setup::new(&plan)).unwrap();
        assert!(text.contains("https://example.org/a\"") && !text.contains("secret"), "{text}");
    }

    #[test]
    fn sizes_are_read_in_their_unit() {
        assert_eq!([10, 10 << 20, 3 << 29].map(size), ["10 B", "10 MiB", "1.5 GiB"]);
    }
}
