//! `cargo xtask chart`: renders the Helm chart without a cluster, checks what comes out, and keeps `deploy/kustomize` current.
//!
//! Helm itself and Kubernetes' schemas come from PyPI (`target/clients/chart`); what they are asked is in [`CHECK`].

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::setup::{self, Part};
use crate::shell;

const CHECK: &str = "xtask/src/chart/check.py";
const CHART: &str = "deploy/chart";
/// What is rendered from the chart's default values.
const KUSTOMIZED: &str = "deploy/kustomize/pondhawk.yaml";
const HEAD: &str =
    "# Rendered from deploy/chart by `cargo xtask chart --render`: change the chart, or patch this in an overlay.\n";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Write deploy/kustomize/pondhawk.yaml from the chart's default values, before checking.
    #[arg(long)]
    render: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    setup::prepare(&[Part::Chart])?;
    let root = shell::root()?;
    if args.render {
        let text = kustomized(&root)?;
        std::fs::write(root.join(KUSTOMIZED), text).with_context(|| format!("cannot write {KUSTOMIZED}"))?;
    }
    check(&root)
}

/// Everything about the chart that can be known without a cluster. The configuration files in it are checked by the peer's
/// binary, where it is built.
pub(crate) fn check(root: &Path) -> Result<()> {
    let out = shell::target_dir(root).join("chart");
    // What an earlier chart rendered would be checked again.
    if out.exists() {
        std::fs::remove_dir_all(&out).with_context(|| format!("cannot empty {}", out.display()))?;
    }
    std::fs::create_dir_all(&out).with_context(|| format!("cannot create {}", out.display()))?;
    shell::run(script(root)?.arg(&out)).context("the chart is wrong: see above")?;
    let committed = std::fs::read_to_string(root.join(KUSTOMIZED)).unwrap_or_default();
    if committed != kustomized(root)? {
        bail!("{KUSTOMIZED} is not what the chart gives: run `cargo xtask chart --render`");
    }
    configurations(root, &out)
}

/// What an installation with these values would apply, in namespace `pondhawk`.
pub(crate) fn rendered(root: &Path, values: &Path) -> Result<String> {
    shell::output(script(root)?.arg("--render").arg(values))
}

/// The default installation as one file.
fn kustomized(root: &Path) -> Result<String> {
    Ok(format!("{HEAD}{}", shell::output(script(root)?.arg("--render"))?))
}

/// The script on the chart, as far as both of its uses go.
fn script(root: &Path) -> Result<Command> {
    let python = shell::target_dir(root).join("clients/chart/bin/python");
    if !python.exists() {
        bail!("no Helm at {}: python3 with venv is needed, then `cargo xtask setup`", python.display());
    }
    let mut command = Command::new(python);
    command.arg(root.join(CHECK)).arg(root.join(CHART));
    Ok(command)
}

fn configurations(root: &Path, out: &Path) -> Result<()> {
    let pondhawk = shell::target_dir(root).join("debug/pondhawk");
    if !pondhawk.exists() {
        println!("  {} is not built: the configurations in the chart are not checked", pondhawk.display());
        return Ok(());
    }
    let files = configuration_files(out)?;
    if files.is_empty() {
        bail!("the chart rendered no configuration");
    }
    files.iter().try_for_each(|file| shell::run(Command::new(&pondhawk).args(["config", "--check"]).arg(file)))
}

fn configuration_files(out: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(out).with_context(|| format!("cannot read {}", out.display()))?;
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect();
    files.retain(|file| file.to_string_lossy().ends_with(".config.yaml"));
    files.sort();
    Ok(files)
}
