//! Measures a flash crowd: nodes in namespaces with shaped links want one file at once.
//!
//! Prints how long the slowest client took against the fluid bound (nothing that sends each byte over these links is faster), and
//! how often each byte left the origin. Clients count bytes while the clock runs; afterwards every one downloads once more and
//! hashes. Needs root; `pondhawk`, `pondhawk-hub` and `pondhawk-scheduler` are those beside this program. Measure with --release.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use pondhawk_bench::crowd::{self, Setting};

/// Sizes take K, M, G (powers of 1024), rates k, m, g (powers of 1000).
#[derive(Clone, Debug, Parser)]
struct Arguments {
    /// Numbers of nodes to run with, one after the other.
    #[arg(long, value_delimiter = ',', default_value = "8")]
    nodes: Vec<usize>,
    /// Every node's link in bits a second and direction, as in 1g; 0: unshaped.
    #[arg(long, default_value = "1g", value_parser = rate)]
    rate: u64,
    /// The origin's link; that of --rate by default.
    #[arg(long, value_parser = rate)]
    origin_rate: Option<u64>,
    /// Largest packet on the links.
    #[arg(long)]
    mtu: Option<u32>,
    /// Size of the file.
    #[arg(long, default_value = "1G", value_parser = size)]
    size: u64,
    /// What the origin sends on each connection, in bytes a second, as in 50m.
    #[arg(long, value_parser = rate)]
    origin_per_connection: Option<u64>,
    /// Connections of a node to the origin (origin.connections_per_host); the node's default if not given.
    #[arg(long)]
    origin_connections: Option<u16>,
    /// Without a scheduler, so that every node downloads for itself: what there is to gain.
    #[arg(long)]
    alone: bool,
    /// Where the nodes keep their data while they run. A tmpfs takes the disk out of the measurement.
    #[arg(long, default_value = "/dev/shm")]
    data_in: PathBuf,
    /// Do not write, and drop when the clients start, as much memory as a run will use.
    #[arg(long)]
    no_warm_up: bool,
    /// Print each second what left the origin and what each node has. It costs a process a node each time.
    #[arg(long)]
    trace: bool,
    /// Write the numbers to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

impl Arguments {
    fn setting(&self) -> Setting {
        Setting {
            origin_rate: self.origin_rate.unwrap_or(self.rate),
            mtu: self.mtu,
            origin_per_connection: self.origin_per_connection,
            origin_connections: self.origin_connections,
            alone: self.alone,
            warm_up: !self.no_warm_up,
            trace: self.trace,
            ..Setting::new(self.size, self.rate, self.data_in.clone())
        }
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let interrupted = Arc::new(AtomicBool::new(false));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.spawn(watch_interrupt(Arc::clone(&interrupted)));
    let setting = arguments.setting();
    let mut runs = Vec::new();
    for &nodes in &arguments.nodes {
        if interrupted.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        let run = crowd::play(&setting, nodes)?;
        println!("{run}");
        runs.push(run);
    }
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string_pretty(&runs)?;
        std::fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    let wrong: usize = runs.iter().map(|run| run.wrong_clients).sum();
    if wrong > 0 {
        bail!("{wrong} clients did not get the right bytes");
    }
    Ok(())
}

/// The run under way is cleaned up at its end: no process is left behind.
async fn watch_interrupt(interrupted: Arc<AtomicBool>) {
    if tokio::signal::ctrl_c().await.is_ok() {
        interrupted.store(true, Ordering::Relaxed);
        eprintln!("stopping after this run, and cleaning up");
    }
}

fn size(text: &str) -> Result<u64, String> {
    scaled(text, &[("", 1), ("K", 1 << 10), ("M", 1 << 20), ("G", 1 << 30)])
}

fn rate(text: &str) -> Result<u64, String> {
    scaled(text, &[("", 1), ("k", 1_000), ("m", 1_000_000), ("g", 1_000_000_000)])
}

fn scaled(text: &str, units: &[(&str, u64)]) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = &text[digits.len()..];
    let (_, factor) = units.iter().find(|(name, _)| *name == unit).ok_or_else(|| format!("no unit {unit:?}"))?;
    let number: u64 = digits.parse().map_err(|error| format!("{digits:?}: {error}"))?;
    number.checked_mul(*factor).ok_or_else(|| "too large".to_owned())
}

#[cfg(test)]
mod tests {
    use super::{rate, size};

    #[test]
    fn sizes_are_binary_and_rates_decimal() {
        assert_eq!((size("1G"), rate("1g")), (Ok(1 << 30), Ok(1_000_000_000)));
        assert_eq!(rate("0"), Ok(0));
        assert!(size("1g").is_err() && rate("x").is_err());
    }
}
