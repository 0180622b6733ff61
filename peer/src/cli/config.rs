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

const IMPORT_CODES: &str = "\
Exit codes:
  0  everything that the file sets is in the printed configuration
  1  nothing is: the file is not there, is no configuration of dfdaemon, or sets nothing that has an equivalent
  2  used wrongly
  4  the configuration is printed, and keys that it names at its top are lost, or it has to be mended by hand";

#[derive(Debug, Subcommand)]
enum Action {
    /// Print dfdaemon's configuration (Go or Rust), its chart's values or its ConfigMap in our terms, and name what has no equivalent
    #[command(after_help = IMPORT_CODES)]
    Import {
        /// As in /etc/dragonfly/dfdaemon.yaml; also a ConfigMap, a List, several documents, or a chart's values
        file: PathBuf,
        /// The configuration to import where the file has several, as in seedClient
        #[arg(long, value_name = "NAME")]
        part: Option<String>,
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
        if let Some(Action::Import { file, part }) = &self.action {
            return imported(file, part.as_deref());
        }
        let loaded = self.settings.load()?;
        loaded.warnings.iter().for_each(|warning| eprintln!("pondhawk: {warning}"));
        Ok(loaded.config.to_yaml())
    }
}

/// The translated document. What is lost, or does not work in it, is an error that comes with the document.
fn imported(file: &Path, part: Option<&str>) -> Result<String, CliError> {
    let failed = |error: String| CliError::Task(format!("{}: {error}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|error| failed(error.to_string()))?;
    let imported = import::import(&text, part).map_err(|error| failed(error.to_string()))?;
    let done = imported.to_yaml();
    if imported.is_empty() {
        let message =
            format!("{}: sets nothing that has an equivalent here and differs from its default", file.display());
        return Err(CliError::Partly { done, message });
    }
    match imported.check() {
        Err(problem) => {
            let message = format!("{}: has to be mended by hand: {problem}", file.display());
            Err(CliError::Incomplete { done, message })
        }
        Ok(()) if imported.is_incomplete() => {
            let message =
                format!("{}: some keys are not taken over; the top of the document names them", file.display());
            Err(CliError::Incomplete { done, message })
        }
        Ok(()) => Ok(done),
    }
}
