//! `pondhawk config`: print, check and explain configurations.

use std::path::PathBuf;

use clap::Args;

use super::{CliError, Settings};
use crate::config::Config;

/// The command's arguments.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").required(true))]
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
        let loaded = self.settings.load()?;
        loaded.warnings.iter().for_each(|warning| eprintln!("pondhawk: {warning}"));
        Ok(loaded.config.to_yaml())
    }
}
