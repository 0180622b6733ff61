//! `pondhawk token`: lets other nodes join this one, or people look at its scheduler's page.

use std::time::{Duration, SystemTime};

use clap::Args;
use pondhawk_scheduler::{authority::Authority, page};

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
    /// Print the token of the scheduler's page (scheduler.page) instead: it is good until --rotate, and lets nobody join
    #[arg(long, conflicts_with = "ttl")]
    page: bool,
    /// Make another token for the page first: the one of before and all cookies are worthless at once
    #[arg(long, requires = "page")]
    rotate: bool,
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
        if self.page {
            let token = page::token(&dir, self.rotate).map_err(|error| CliError::Task(error.to_string()))?;
            return Ok(format!("{token}\n"));
        }
        let authority = Authority::open(&dir).map_err(|error| CliError::Task(error.to_string()))?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
        let token = authority.token(now, self.ttl.get()).map_err(|error| CliError::Task(error.to_string()))?;
        Ok(format!("{token}\n"))
    }
}
