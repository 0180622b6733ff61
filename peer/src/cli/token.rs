//! `pondhawk token`: lets other nodes join this one, or people look at its scheduler's page.

use std::time::{Duration, SystemTime};

use clap::Args;
use pondhawk_scheduler::{
    authority::{Authority, TokenTerms},
    page,
};

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
    /// Only a node of this name can join with it
    #[arg(long, value_name = "NODE")]
    name: Option<String>,
    /// How many nodes can join with it
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    uses: u32,
    /// Any number of nodes can join with it until it expires: for machines that are set up alike, where it is kept as a secret
    #[arg(long, conflicts_with = "uses")]
    reusable: bool,
    /// Print the token of the scheduler's page (scheduler.page) instead: it is good until --rotate, and lets nobody join
    #[arg(long, conflicts_with_all = ["ttl", "name", "uses", "reusable"])]
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
        let terms = TokenTerms { name: self.name.clone(), uses: (!self.reusable).then_some(self.uses) };
        let token =
            authority.limited_token(now, self.ttl.get(), &terms).map_err(|error| CliError::Task(error.to_string()))?;
        Ok(format!("{token}\n"))
    }
}
