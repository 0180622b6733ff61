//! `cargo xtask soak`: sets up and builds what a soak needs, and runs it. The soak itself is `pondhawk-soak` in benches/.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::setup::{self, Part};
use crate::shell;
use crate::steps::Steps;

/// The seed of the run that is part of the tests: the same downloads and faults each time.
const TEST_SEED: u64 = 13;
/// Its length in minutes.
const TEST_MINUTES: u64 = 2;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How many minutes; the checks come on top.
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// Seed of the downloads and faults, to play a run again; drawn from the clock by default.
    #[arg(long)]
    seed: Option<u64>,
    /// An optimised build: later there, more downloads a minute.
    #[arg(long)]
    release: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if !shell::is_root() {
        bail!(
            "a soak makes network namespaces, cgroups, mounts and BPF programs, so it needs root: sudo -E cargo xtask soak"
        );
    }
    let root = shell::root()?;
    let mut steps = Steps::new();
    let ready = steps.run("setup", || setup::prepare(&[Part::Build, Part::Test]))
        && steps.run("build", || {
            let mut cargo = shell::cargo(&root);
            cargo.args(["build", "--bins"]);
            cargo.args(["--package=pondhawk", "--package=pondhawk-bench", "--package=pondhawk-scheduler"]);
            shell::run(cargo.args(args.release.then_some("--release")))
        });
    steps.finish()?;
    anyhow::ensure!(ready, "not everything that the soak needs is there");
    // Becomes the soak: a signal sent to this process then reaches the one that has namespaces to clean up.
    let error = command(&root, args).exec();
    Err(error).context("the soak does not start")
}

/// The run that is part of the tests; the binaries are built.
pub(crate) fn short(root: &Path) -> Result<()> {
    shell::run(&mut command(root, &Args { minutes: TEST_MINUTES, seed: Some(TEST_SEED), release: false }))
}

fn command(root: &Path, args: &Args) -> Command {
    let target = shell::target_dir(root);
    let binaries = target.join(if args.release { "release" } else { "debug" });
    let mut soak = Command::new(binaries.join("pondhawk-soak"));
    soak.arg("--pondhawk").arg(binaries.join("pondhawk")).arg("--target").arg(&target);
    soak.args(["--minutes", &args.minutes.to_string()]);
    if let Some(seed) = args.seed {
        soak.args(["--seed", &seed.to_string()]);
    }
    soak
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_and_the_length_are_handed_on() {
        let command = command(Path::new("/tree"), &Args { minutes: 3, seed: Some(9), release: true });
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
        assert!(command.get_program().to_string_lossy().ends_with("release/pondhawk-soak"));
        assert_eq!(words[words.len() - 4..], ["--minutes", "3", "--seed", "9"]);
    }
}
