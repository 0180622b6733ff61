//! `pondhawk up`: run a node.

use std::path::PathBuf;

use clap::Args;

use super::{CliError, Settings, logging};

/// The command's arguments.
#[derive(Debug, Args)]
pub(super) struct Up {
    #[command(flatten)]
    settings: Settings,
    /// Join this scheduler's cluster; the same as --set scheduler.join=HOST:PORT
    #[arg(long, value_name = "HOST:PORT")]
    scheduler: Option<String>,
    /// The file with the token to join with; the same as --set scheduler.token=FILE
    #[arg(long, value_name = "FILE", requires = "scheduler")]
    token: Option<PathBuf>,
}

impl Up {
    /// Runs until the node has drained.
    pub(super) fn run(mut self) -> Result<(), CliError> {
        self.settings.set.extend(self.scheduler.map(|join| format!("scheduler.join={join}")));
        self.settings.set.extend(self.token.map(|file| format!("scheduler.token={}", file.display())));
        let loaded = self.settings.load()?;
        logging::start(&loaded.config.log);
        loaded.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        crate::node::run(loaded.config).map_err(|error| CliError::Node(error.into()))
    }
}
