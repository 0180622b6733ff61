//! `cargo xtask setup`: finds or installs every tool that building, testing and the demo need.
//!
//! On Debian 12 missing packages are installed with apt; on any other system the missing tools are listed with the way to
//! get them, and setup goes on with what it can do there. Running it again does nothing that was done before.

pub(crate) mod clients;
mod packages;
mod rust;
mod system;

use std::time::Instant;

use anyhow::Result;
use clap::ValueEnum;

use crate::shell;
use clients::Client;

/// A part of the project that needs tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// Compiling everything, the BPF programs too.
    Build,
    /// What the demo runs.
    Demo,
    /// What the tests run.
    Test,
    /// What the benchmarks compare with.
    Bench,
    /// Making and running the container image.
    Image,
    /// Making the Debian package.
    Deb,
    /// Running the node on other kernels.
    Vm,
    /// What checks the Helm chart; the tests do so too.
    Chart,
    /// A Kubernetes node on this machine.
    Kube,
}

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only what these parts need; when not given, all that building, demo, tests and benchmarks need.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let all = [Part::Build, Part::Demo, Part::Test, Part::Bench];
    prepare(if args.only.is_empty() { &all } else { &args.only })
}

/// Makes sure that these parts have what they need. Tools that cannot be had here are listed and are no error: what needs
/// them says so itself.
pub(crate) fn prepare(parts: &[Part]) -> Result<()> {
    let started = Instant::now();
    let root = shell::root()?;
    let missing = packages::missing(parts);
    if missing.is_empty() {
        println!("  tools: all found");
    } else {
        system::provide(&missing)?;
    }
    if parts.contains(&Part::Test) {
        rust::components(&root)?;
    }
    let wanted: Vec<&Client> = clients::CLIENTS.iter().filter(|client| client.wanted_by(parts)).collect();
    clients::install(&shell::target_dir(&root), &wanted)?;
    println!("  setup took {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}
