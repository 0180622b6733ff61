//! The parts of the Rust toolchain that a minimal rustup profile leaves out.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::shell;

/// (cargo's subcommand, rustup's component)
const COMPONENTS: &[(&str, &str)] = &[("fmt", "rustfmt"), ("clippy", "clippy")];

/// Adds the components that formatting and linting need.
pub(crate) fn components(root: &Path) -> Result<()> {
    let works = |subcommand: &str| shell::output(shell::cargo(root).args([subcommand, "--version"])).is_ok();
    let absent: Vec<&str> =
        COMPONENTS.iter().filter(|(cargo, _)| !works(cargo)).map(|(_, component)| *component).collect();
    if absent.is_empty() {
        return Ok(());
    }
    if !shell::on_path("rustup") {
        bail!("{} missing, and no rustup to add them with", absent.join(" and "));
    }
    let mut rustup = Command::new("rustup");
    rustup.current_dir(root).args(["component", "add"]).args(&absent);
    shell::run(&mut rustup).context("rustup could not add a component")
}
