//! `pondhawk peers`: who may take part in the cluster whose scheduler this node is.

use clap::Args;
use pondhawk_scheduler::registry::command::RegistryCommand;

use super::{CliError, Settings};
use crate::node::SCHEDULER_DIR;

/// The command's arguments.
#[derive(Debug, Args)]
pub(super) struct Peers {
    #[command(flatten)]
    settings: Settings,
    #[command(subcommand)]
    command: RegistryCommand,
}

impl Peers {
    pub(super) fn run(&self) -> Result<String, CliError> {
        let config = self.settings.load()?.config;
        if config.scheduler.join.is_some() {
            return Err(CliError::Task(
                "this node joins another scheduler (scheduler.join): ask that one, with `pondhawk-scheduler peers`, `forget`, `deny`, `allow` or `denied`".to_owned(),
            ));
        }
        let dir = config.data_dir.join(SCHEDULER_DIR);
        if !dir.exists() {
            return Err(CliError::Task(format!("there is no {}: start the node first", dir.display())));
        }
        self.command.run(&dir, None).map_err(|error| CliError::Task(format!("{error:#}")))
    }
}
