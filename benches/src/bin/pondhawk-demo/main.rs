//! Unmodified clients on three nodes of a cluster download one model, which leaves the origin once, and none of them knows.
//!
//! Run by `cargo xtask demo`, which builds and installs what this needs. Everything that it makes (namespaces, a cgroup,
//! BPF programs, files) is gone when it ends, however it ends.

#![deny(unsafe_code)]

mod report;
mod story;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use pondhawk_bench::stage::watch_signals;

use report::Report;

#[derive(Parser)]
struct Arguments {
    /// The node's binary.
    #[arg(long)]
    pondhawk: PathBuf,
    /// Cargo's target directory, where the clients are installed.
    #[arg(long)]
    target: PathBuf,
    /// Size of the model: bytes, or with K, M or G.
    #[arg(long, default_value = "256M", value_parser = size)]
    size: u64,
    /// Write the numbers to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let interrupted = Arc::new(AtomicBool::new(false));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.spawn(watch_signals(Arc::clone(&interrupted)));
    let report = story::tell(&arguments, &interrupted)?;
    if let Some(path) = &arguments.json {
        write_json(path, &report)?;
    }
    let complaints = report.complaints();
    if !complaints.is_empty() {
        bail!("this is not what the demo is meant to show: {}", complaints.join("; "));
    }
    Ok(())
}

fn write_json(path: &PathBuf, report: &Report) -> Result<()> {
    let text = serde_json::to_string_pretty(report)?;
    std::fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    println!("numbers: {}", path.display());
    Ok(())
}

fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match text[digits.len()..].trim_end_matches("iB") {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        _ => return Err("expected bytes, or a number with K, M or G".to_owned()),
    };
    let number: u64 = digits.parse().map_err(|error| format!("{digits:?}: {error}"))?;
    let bytes = number.checked_mul(1 << shift).ok_or("too large")?;
    if bytes < 1 << 20 { Err("at least 1M: smaller files do not come from the CDN".to_owned()) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes_are_read_with_and_without_a_unit() {
        assert_eq!(size("256M"), Ok(256 << 20));
        assert_eq!(size("4GiB"), Ok(4 << 30));
        assert_eq!(size("2097152"), Ok(2 << 20));
        assert!(size("10").is_err() && size("M").is_err() && size("5X").is_err() && size("99999999999G").is_err());
    }
}
