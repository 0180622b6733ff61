//! Four nodes and three schedulers under real clients and random faults; see the library's module `soak`.
//!
//! Run by `cargo xtask soak`, which builds what this needs. Everything that it makes is gone when it ends, however it ends: it
//! runs in a mount namespace of its own, so that not even a kill leaves a mount behind.

#![deny(unsafe_code)]

use std::{
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::Command,
    sync::{Arc, atomic::AtomicBool},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use pondhawk_bench::{
    soak::{self, SoakOptions},
    stage::watch_signals,
};

/// Set in the process that is in the mount namespace.
const INSIDE: &str = "PONDHAWK_SOAK_INSIDE";

#[derive(Parser)]
struct Arguments {
    /// The node's binary.
    #[arg(long)]
    pondhawk: PathBuf,
    /// Cargo's target directory, where the clients are installed.
    #[arg(long)]
    target: PathBuf,
    /// How long, in minutes; checks come on top.
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// Of the downloads and faults; drawn from the clock by default.
    #[arg(long)]
    seed: Option<u64>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if std::env::var_os(INSIDE).is_none() {
        let mut inside = Command::new("unshare");
        inside.args(["--mount", "--propagation", "private"]).arg(std::env::current_exe()?);
        inside.args(std::env::args_os().skip(1)).env(INSIDE, "1");
        return Err(inside.exec()).context("unshare(1) does not start");
    }
    let drawn = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |now| now.as_secs());
    let options = SoakOptions {
        pondhawk: arguments.pondhawk,
        target: arguments.target,
        minutes: arguments.minutes,
        seed: arguments.seed.unwrap_or_else(drawn),
    };
    println!("seed {}", options.seed);
    let interrupted = Arc::new(AtomicBool::new(false));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.spawn(watch_signals(Arc::clone(&interrupted)));
    let report = soak::run(&options, &interrupted).with_context(|| format!("seed {}", options.seed))?;
    print!("{report}");
    if !report.violations.is_empty() {
        bail!("{} violations with seed {}", report.violations.len(), report.seed);
    }
    if report.interrupted {
        bail!("interrupted");
    }
    Ok(())
}
