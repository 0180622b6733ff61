//! `pondhawk config`: print, check and explain configurations.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::{CliError, Settings};
use crate::config::{Config, import};

/// The command's arguments.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").required(true), subcommand_negates_reqs = true)]
pub(super) struct ConfigCommand {
    /// Print a complete configuration of the defaults, every key explained
    #[arg(long, group = "what")]
    example: bool,
    /// Check a file, without the environment
    #[arg(long, group = "what", value_name = "FILE")]
    check: Option<PathBuf>,
    /// Print what `up` would use with this file, environment and these flags
    #[arg(long, group = "what")]
    show: bool,
    #[command(flatten)]
    settings: Settings,
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Print dfdaemon's configuration (Go or Rust), its chart's values or its ConfigMap in our terms, and name what has no equivalent
    Import {
        /// As in /etc/dragonfly/dfdaemon.yaml
        file: PathBuf,
    },
}

impl ConfigCommand {
    pub(super) fn run(&self) -> Result<String, CliError> {
        if self.example {
            return Ok(Config::example());
        }
        if let Some(file) = &self.check {
            Config::load(Some(file), [], &self.settings.set)?;
            return Ok(format!("{}: ok\n", file.display()));
        }
        if let Some(Action::Import { file }) = &self.action {
            return imported(file);
        }
        let loaded = self.settings.load()?;
        loaded.warnings.iter().for_each(|warning| eprintln!("pondhawk: {warning}"));
        Ok(loaded.config.to_yaml())
    }
}

/// The translated document; what does not work in it is told, and is the caller's to mend.
fn imported(file: &Path) -> Result<String, CliError> {
    let failed = |error: String| CliError::Task(format!("{}: {error}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|error| failed(error.to_string()))?;
    let imported = import::import(&text).map_err(|error| failed(error.to_string()))?;
    if let Err(problem) = imported.check() {
        eprintln!("pondhawk: {}: has to be mended by hand: {problem}", file.display());
    }
    if !imported.dropped.is_empty() {
        eprintln!("pondhawk: some keys have no equivalent; the top of the document names them");
    }
    Ok(imported.to_yaml())
}
