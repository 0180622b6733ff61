//! `cargo xtask demo`: sets up and builds what the demo needs, and runs it. The demo itself is `pondhawk-demo` in benches/.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::setup::{self, Part};
use crate::shell;
use crate::steps::Steps;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Write the numbers to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Size of the model, as in 256M or 4G.
    #[arg(long, default_value = "256M")]
    size: String,
    /// A build without optimisation: sooner there, slower in the runs.
    #[arg(long)]
    quick: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if !shell::is_root() {
        bail!(
            "the demo makes network namespaces, a cgroup and BPF programs, so it needs root: sudo -E cargo xtask demo"
        );
    }
    let root = shell::root()?;
    let mut steps = Steps::new();
    let ready = steps.run("setup", || setup::prepare(&[Part::Build, Part::Demo]))
        && steps.run("build", || {
            let mut cargo = shell::cargo(&root);
            cargo.args(["build", "--bins"]);
            cargo.args(["--package=pondhawk", "--package=pondhawk-bench", "--package=pondhawk-scheduler"]);
            shell::run(cargo.args((!args.quick).then_some("--release")))
        });
    steps.finish()?;
    anyhow::ensure!(ready, "not everything that the demo needs is there");
    // Becomes the demo: a signal sent to this process then reaches the one that has namespaces to clean up.
    let error = command(&root, args)?.exec();
    Err(error).context("the demo does not start")
}

fn command(root: &std::path::Path, args: &Args) -> Result<Command> {
    let target = shell::target_dir(root);
    let binaries = target.join(if args.quick { "debug" } else { "release" });
    let mut demo = Command::new(binaries.join("pondhawk-demo"));
    demo.arg("--pondhawk").arg(binaries.join("pondhawk")).arg("--target").arg(&target).args(["--size", &args.size]);
    if let Some(json) = &args.json {
        let here = std::env::current_dir().context("the working directory is gone")?;
        demo.arg("--json").arg(here.join(json));
    }
    Ok(demo)
}
