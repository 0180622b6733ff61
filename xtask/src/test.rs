//! `cargo xtask test`: everything that must hold before a change is merged, in the order of the cheapest first.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::chart;
use crate::fuzz;
use crate::setup::{self, Part};
use crate::shell;
use crate::soak;
use crate::steps::Steps;
use crate::tidy;

/// Tests that need root, BPF, a kernel feature or a client skip themselves with a message where it is missing; with this
/// variable set they fail instead.
const REQUIRE_ALL: &str = "PONDHAWK_TEST_REQUIRE_ALL";

/// Seconds for which each fuzz target runs here: enough to notice a fault near the corpus, not to search for new ones.
const FUZZ_SECONDS: u32 = 5;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Formatting, lints, tidy and the unit tests: nothing that needs root, a client or a network namespace.
    #[arg(long)]
    quick: bool,
    /// Fail instead of skipping when something that a test needs is missing; the default for root.
    #[arg(long)]
    require_all: bool,
    /// Run only the tests whose name contains this, and none of the checks before.
    filter: Option<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let root = shell::root()?;
    let mut steps = Steps::new();
    if !args.quick {
        steps.run("setup", || setup::prepare(&[Part::Build, Part::Test]));
    }
    if args.filter.is_none() {
        check(&root, &mut steps);
    }
    // The binaries first: integration tests start `pondhawk` and `pondhawk-hub`.
    let built = steps.run("build", || shell::run(shell::cargo(&root).args(["build", "--workspace"])));
    if args.filter.is_none() && !args.quick {
        steps.run("chart", || chart::check(&root));
    }
    if built {
        steps.run("test", || shell::run(&mut cargo_test(&root, args)));
    }
    if built && !args.quick && args.filter.is_none() {
        steps.run("fuzz", || fuzz::run_all(FUZZ_SECONDS));
        soak_step(&root, args, &mut steps);
    }
    steps.finish()
}

fn soak_step(root: &Path, args: &Args, steps: &mut Steps) {
    if shell::is_root() || args.require_all {
        steps.run("soak", || soak::short(root));
    } else {
        println!("  left out, because it needs root: two minutes of soak");
    }
}

fn check(root: &Path, steps: &mut Steps) {
    steps.run("format", || shell::run(shell::cargo(root).args(["fmt", "--all", "--check"])));
    steps.run("tidy", tidy::run);
    let clippy = ["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"];
    steps.run("clippy", || shell::run(shell::cargo(root).args(clippy)));
}

fn cargo_test(root: &Path, args: &Args) -> Command {
    let mut command = shell::cargo(root);
    command.args(["test", "--workspace", "--no-fail-fast"]);
    if args.quick {
        command.args(["--lib", "--bins"]);
    }
    if let Some(filter) = &args.filter {
        command.arg(filter);
    }
    if args.require_all || (shell::is_root() && !args.quick) {
        command.env(REQUIRE_ALL, "1");
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(args: &Args) -> Vec<String> {
        cargo_test(Path::new("."), args).get_args().map(|word| word.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn quick_leaves_out_integration_tests_and_a_filter_is_handed_on() {
        let args = Args { quick: true, require_all: false, filter: Some("range".to_owned()) };
        assert_eq!(words(&args), ["test", "--workspace", "--no-fail-fast", "--lib", "--bins", "range"]);
    }
}
