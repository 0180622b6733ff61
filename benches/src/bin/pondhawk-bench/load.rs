//! `pondhawk-bench load`: arguments to a plan, an outcome to a table and files.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use clap::{ArgGroup, Args};
use pondhawk_bench::load::{self, Arrivals, Check, ErrorKind, Outcome, Pace, Plan, Popularity, Shape};

const EXAMPLES: &str = "\
Examples:
  Throughput of 8 clients that download a file again and again, and what it costs the server:
    pondhawk-bench load --clients 8 --seconds 10 --process-name pondhawk http://node:8080/model.bin
  Latency at 500 requests a second for random MiB, with a report to look at:
    pondhawk-bench load --rate 500 --poisson --range 1MiB --html report.html https://node/model.bin
  As hf_transfer downloads, each byte compared with a copy:
    pondhawk-bench load --parallel 8 --requests 1 --verify-against model.bin https://node/model.bin
  The name of a Hub, the address of a node, the CA that the node signs with:
    pondhawk-bench load --connect node:443 --ca ca.pem --follow https://huggingface.co/gpt2/resolve/main/model.safetensors
  Many files, the first ones more often, while 5000 connections are idle:
    pondhawk-bench load --urls-from urls.txt --zipf 1 --rate 2000 --idle 5000

Times run from when an operation was meant to start. With --rate that is its arrival, whether or not the server has kept up, so
that a stall counts for all that arrive meanwhile. With --clients it is the end of the one before. An operation is a file, a range,
or with --parallel a file in many ranges.

Exits with 1 if nothing could be downloaded, or if a byte was wrong.";

/// Loads a server and reports throughput, latency, and the CPU time and memory of the processes under test.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
#[command(group(ArgGroup::new("shape").args(["range", "sequential", "parallel"])))]
#[command(group(ArgGroup::new("checks").args(["sha256", "verify_against"])))]
#[command(group(ArgGroup::new("objects").args(["urls", "urls_from"]).required(true).multiple(true)))]
pub(crate) struct Arguments {
    /// What to download; several are chosen from at random.
    #[arg(value_name = "URL")]
    urls: Vec<String>,
    /// File with more of them, one a line.
    #[arg(long, value_name = "FILE")]
    urls_from: Option<PathBuf>,
    /// Choose the n-th URL with a weight of 1/n^S instead of all equally often.
    #[arg(long, value_name = "S", conflicts_with = "in_turn")]
    zipf: Option<f64>,
    /// Take the URLs in their order instead: with --requests as many as there are, each once.
    #[arg(long)]
    in_turn: bool,

    /// Clients that each download one after the other (closed loop). The default is one client.
    #[arg(long, value_name = "N", conflicts_with = "rate", help_heading = "Pace")]
    clients: Option<usize>,
    /// Operations a second, whether or not earlier ones are done (open loop).
    #[arg(long, value_name = "R", help_heading = "Pace")]
    rate: Option<f64>,
    /// Random gaps between arrivals, as of independent clients, instead of equal ones.
    #[arg(long, requires = "rate", help_heading = "Pace")]
    poisson: bool,
    /// With so many operations under way, further arrivals wait.
    #[arg(long, value_name = "N", default_value_t = 1024, help_heading = "Pace")]
    connections: usize,
    /// With so many waiting, further arrivals are counted as not started.
    #[arg(long, value_name = "N", default_value_t = 100_000, help_heading = "Pace")]
    queue: usize,
    /// How long operations are started; 10 without --requests.
    #[arg(long, value_name = "S", help_heading = "Pace")]
    seconds: Option<f64>,
    /// How many operations are started.
    #[arg(long, value_name = "N", help_heading = "Pace")]
    requests: Option<u64>,
    /// Connections that are opened before, and must still answer afterwards.
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Pace")]
    idle: usize,

    /// Ranges of this size from anywhere in the file (KiB, MiB, GiB) instead of whole files.
    #[arg(long, value_name = "SIZE", value_parser = size, help_heading = "What is asked for")]
    range: Option<u64>,
    /// Ranges of this size, one after the other from start to end of a file.
    #[arg(long, value_name = "SIZE", value_parser = size, help_heading = "What is asked for")]
    sequential: Option<u64>,
    /// How many read like that with --rate; with --clients each client does.
    #[arg(long, value_name = "N", default_value_t = 1, requires = "sequential", requires = "rate",
        conflicts_with_all = ["range", "parallel"])]
    #[arg(help_heading = "What is asked for")]
    readers: usize,
    /// Whole files in ranges, so many at once over as many connections.
    #[arg(long, value_name = "N", help_heading = "What is asked for")]
    parallel: Option<usize>,
    /// Size of these ranges.
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "10MiB", requires = "parallel",
        conflicts_with_all = ["range", "sequential"])]
    #[arg(help_heading = "What is asked for")]
    chunk: u64,

    /// Where to connect, whatever host the URLs name.
    #[arg(long, value_name = "HOST:PORT", help_heading = "Connections")]
    connect: Option<String>,
    /// A forward proxy, which is asked for http:// URLs.
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "connect", help_heading = "Connections")]
    proxy: Option<String>,
    /// A CA certificate (PEM) to trust besides those of the system; may be repeated.
    #[arg(long, value_name = "FILE", help_heading = "Connections")]
    ca: Vec<PathBuf>,
    /// "Name: value" to be sent along; may be repeated.
    #[arg(long, short = 'H', value_parser = field, help_heading = "Connections")]
    header: Vec<(String, String)>,
    /// Follow redirects, up to five. Authorization and cookies go to the first host only.
    #[arg(long, help_heading = "Connections")]
    follow: bool,
    /// Seconds from an operation's intended start after which it has failed.
    #[arg(long, value_name = "S", default_value_t = 60.0, help_heading = "Connections")]
    timeout: f64,

    /// SHA-256 of the file; once for each URL. Not with ranges.
    #[arg(long, value_name = "HEX", help_heading = "Checks")]
    sha256: Vec<String>,
    /// A copy of the file that each byte is compared with; once for each URL.
    #[arg(long, value_name = "FILE", help_heading = "Checks")]
    verify_against: Vec<PathBuf>,

    /// Id of a process under test on this machine; may be repeated.
    #[arg(long, help_heading = "Measurement")]
    pid: Vec<u32>,
    /// Name of the processes under test on this machine.
    #[arg(long, value_name = "NAME", help_heading = "Measurement")]
    process_name: Option<String>,
    /// Threads of the generator [default: 2, or 1 on a single core].
    #[arg(long, value_name = "N", help_heading = "Measurement")]
    threads: Option<usize>,
    /// The same seed gives the same load.
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Measurement")]
    seed: u64,

    /// Write the figures to this file.
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    json: Option<PathBuf>,
    /// Write a page with figures and charts to this file.
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    html: Option<PathBuf>,
}

/// Plays the load and reports it.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let plan = plan(arguments)?;
    let stop = Arc::new(AtomicBool::new(false));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.spawn(watch_interrupt(Arc::clone(&stop)));
    let outcome = load::run_until(&plan, &stop)?;
    println!("{outcome}");
    if let Some(path) = &arguments.json {
        write(path, serde_json::to_string_pretty(&outcome)? + "\n")?;
    }
    if let Some(path) = &arguments.html {
        write(path, load::page(&outcome))?;
    }
    Ok(verdict(&outcome))
}

fn write(path: &Path, text: String) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn verdict(outcome: &Outcome) -> ExitCode {
    let is_bad = outcome.errors.of(ErrorKind::Digest) > 0 || (outcome.all_bytes == 0 && outcome.failed > 0);
    if is_bad { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// The first time the load ends early and is reported; the second time the process ends.
async fn watch_interrupt(stop: Arc<AtomicBool>) {
    while tokio::signal::ctrl_c().await.is_ok() {
        if stop.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    }
}

fn plan(arguments: &Arguments) -> Result<Plan> {
    Ok(Plan {
        urls: urls(arguments)?,
        popularity: match arguments.zipf {
            Some(exponent) => Popularity::Zipf(exponent),
            None if arguments.in_turn => Popularity::InTurn,
            None => Popularity::Uniform,
        },
        shape: shape(arguments),
        pace: pace(arguments),
        duration: match (arguments.seconds, arguments.requests) {
            (Some(seconds), _) => Some(duration("--seconds", seconds)?),
            (None, Some(_)) => None,
            (None, None) => Plan::default().duration,
        },
        requests: arguments.requests,
        threads: arguments.threads.unwrap_or_else(load::default_threads),
        idle: arguments.idle,
        connect: arguments.connect.clone(),
        proxy: arguments.proxy.clone(),
        authorities: arguments.ca.clone(),
        fields: arguments.header.clone(),
        deadline: duration("--timeout", arguments.timeout)?,
        follow: arguments.follow,
        check: check(arguments),
        processes: processes(arguments)?,
        seed: arguments.seed,
        progress: true,
    })
}

fn urls(arguments: &Arguments) -> Result<Vec<String>> {
    let mut urls = arguments.urls.clone();
    if let Some(path) = &arguments.urls_from {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        urls.extend(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned));
        if urls.is_empty() {
            bail!("there is no URL in {}", path.display());
        }
    }
    Ok(urls)
}

fn shape(arguments: &Arguments) -> Shape {
    match (arguments.range, arguments.sequential, arguments.parallel) {
        (Some(bytes), ..) => Shape::Random { bytes },
        (_, Some(bytes), _) => Shape::Sequential { bytes, readers: arguments.readers },
        (.., Some(at_once)) => Shape::Parallel { bytes: arguments.chunk, at_once },
        _ => Shape::Whole,
    }
}

fn pace(arguments: &Arguments) -> Pace {
    match arguments.rate {
        None => Pace::Closed { clients: arguments.clients.unwrap_or(1) },
        Some(rate) => Pace::Open {
            rate,
            arrivals: if arguments.poisson { Arrivals::Poisson } else { Arrivals::Constant },
            connections: arguments.connections,
            queue: arguments.queue,
        },
    }
}

fn check(arguments: &Arguments) -> Check {
    if !arguments.sha256.is_empty() {
        Check::Sha256(arguments.sha256.clone())
    } else if !arguments.verify_against.is_empty() {
        Check::Copies(arguments.verify_against.clone())
    } else {
        Check::Nothing
    }
}

fn processes(arguments: &Arguments) -> Result<Vec<u32>> {
    let mut processes = arguments.pid.clone();
    if let Some(name) = &arguments.process_name {
        let named = load::named(name);
        if named.is_empty() {
            bail!("no process is named {name:?}; `ps -e` lists the names");
        }
        processes.extend(named);
    }
    Ok(processes)
}

fn duration(name: &str, seconds: f64) -> Result<Duration> {
    let duration = Duration::try_from_secs_f64(seconds).ok().filter(|duration| !duration.is_zero());
    duration.with_context(|| format!("{name} {seconds}: seconds are a number above zero"))
}

fn field(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("a header field is NAME: VALUE")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match &text[digits.len()..] {
        "" | "B" => 0,
        "K" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        unit => return Err(format!("{unit:?} is none of KiB, MiB, GiB")),
    };
    let number: u64 = digits.parse().map_err(|error| format!("{digits:?}: {error}"))?;
    number.checked_mul(1 << shift).filter(|size| *size > 0).ok_or_else(|| "out of range".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn parsed(line: &str) -> Result<Plan> {
        plan(&Line::try_parse_from(format!("load {line}").split_whitespace())?.arguments)
    }

    #[test]
    fn one_client_downloads_for_ten_seconds_unless_told_otherwise() {
        let expected = Plan { urls: vec!["http://a/".to_owned()], progress: true, ..Plan::default() };
        assert_eq!(parsed("http://a/").unwrap(), expected);
    }

    #[test]
    fn options_become_a_plan() {
        let plan = parsed("--rate 50 --poisson --sequential 1MiB --readers 3 --requests 7 http://a/").unwrap();
        assert_eq!(plan.shape, Shape::Sequential { bytes: 1 << 20, readers: 3 });
        let pace = Pace::Open { rate: 50.0, arrivals: Arrivals::Poisson, connections: 1024, queue: 100_000 };
        assert_eq!((plan.pace, plan.duration, plan.requests), (pace, None, Some(7)));
        let plan = parsed("--clients 2 --parallel 8 http://a/").unwrap();
        assert_eq!(plan.shape, Shape::Parallel { bytes: 10 << 20, at_once: 8 });
    }

    #[test]
    fn what_makes_no_sense_together_is_refused() {
        for line in [
            "",
            "--rate 5 --clients 2 http://a/",
            "--poisson http://a/",
            "--range 1MiB --parallel 2 http://a/",
            "--readers 2 --range 1 --rate 1 http://a/",
            "--readers 2 --sequential 1 http://a/",
            "--chunk 1MiB http://a/",
            "--range 0 http://a/",
            "--range 1XB http://a/",
            "--seconds 0 http://a/",
            "--timeout -1 http://a/",
            "--process-name no-such-process http://a/",
            "-H nonsense http://a/",
        ] {
            assert!(parsed(line).is_err(), "{line}");
        }
    }
}
