//! `cargo xtask vm`: the node on other kernels. Each boots under emulation with static binaries and nothing else, catches a real
//! connection with its BPF programs, downloads, and serves from its store; a table says what works where.

mod kernels;
mod machine;
mod verdict;

use anyhow::{Result, bail};

use crate::{
    setup::{self, Part},
    shell, statics,
};
use kernels::Archive;
use verdict::Outcome;

/// How long the file is that is downloaded.
const FILE_BYTES: u64 = 24 << 20;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Series of Debian's kernels, as in 6.1; `newest` is the newest that there is.
    #[arg(value_name = "KERNEL", default_values = ["5.10", "6.1", "6.12", "newest"])]
    kernels: Vec<String>,
    /// Print what the machines wrote on their consoles, not only that of those that failed.
    #[arg(long)]
    verbose: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    setup::prepare(&[Part::Build, Part::Vm])?;
    let dir = shell::target_dir(&shell::root()?).join("vm");
    let built = statics::static_binaries()?;
    let archive = Archive::open(&dir)?;
    let mut outcomes = Vec::new();
    for series in &args.kernels {
        let kernel = archive.kernel(series)?;
        println!("==> {}", kernel.release);
        let console = machine::boot(&dir, &kernel, &built)?;
        let outcome = Outcome::read(&kernel.release, &console);
        if args.verbose || outcome.is_failure() {
            println!("{console}");
        }
        println!("    {}", outcome.verdict());
        outcomes.push(outcome);
    }
    println!("\n{}", verdict::table(&outcomes));
    let failed: Vec<&str> =
        outcomes.iter().filter(|outcome| outcome.is_failure()).map(|outcome| outcome.release.as_str()).collect();
    if failed.is_empty() {
        return Ok(());
    }
    bail!("the node does not do its work on {}", failed.join(", "))
}
