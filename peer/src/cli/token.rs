//! `pondhawk token`: lets other nodes join this one.

use std::time::{Duration, SystemTime};

use clap::Args;
use pondhawk_scheduler::authority::Authority;

use super::{CliError, Settings};
use crate::{config::Period, node::SCHEDULER_DIR};

/// The command's arguments.
#[derive(Debug, Args)]
pub(super) struct Token {
    #[command(flatten)]
    settings: Settings,
    /// How long the token is good for; a node that has joined does not need it again
    #[arg(long, value_name = "TIME", default_value = "24h")]
    ttl: Period,
}

impl Token {
    pub(super) fn run(&self) -> Result<String, CliError> {
        let config = self.settings.load()?.config;
        let dir = config.data_dir.join(SCHEDULER_DIR);
        if config.scheduler.join.is_some() {
            return Err(CliError::Task(
                "this node joins another scheduler (scheduler.join): ask that one, with `pondhawk-scheduler token`"
                    .to_owned(),
            ));
        }
        if !dir.exists() {
            return Err(CliError::Task(format!("there is no {}: start the node first", dir.display())));
        }
        let authority = Authority::open(&dir).map_err(|error| CliError::Task(error.to_string()))?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
        let token = authority.token(now, self.ttl.get()).map_err(|error| CliError::Task(error.to_string()))?;
        Ok(format!("{token}\n"))
    }
}
