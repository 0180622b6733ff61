//! `pondhawk pin` and `unpin`: which tasks stay whatever room is needed.

use std::fmt::Write;

use clap::Args;

use super::{
    CliError, Node, client,
    get::{
        Patterns, Rights,
        progress::Progress,
        remote::{self, Places},
    },
    rm,
};
use crate::{admin::Task, task::id};

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed: no such task
  2  used wrongly
  3  no node answers, or the Hub does not have it for this user: see HF_TOKEN

A pinned task is never evicted and not removed by `rm`. It counts against the quota all the same: where pinned tasks leave
no room, files are passed through and not kept. `pondhawk preheat --pin` fetches and pins at once.";

/// The commands' arguments.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(super) struct Pin {
    /// Ids of tasks or their first digits (at least 8), URLs, or hf:// names
    #[arg(value_name = "TASK|URL|hf://...", required = true)]
    what: Vec<String>,
    #[command(flatten)]
    patterns: Patterns,
    #[command(flatten)]
    rights: Rights,
    #[command(flatten)]
    node: Node,
}

impl Pin {
    pub(super) fn run(&self, pinned: bool) -> Result<String, CliError> {
        let held: Vec<Task> = client::get(&self.node.place(), "/v1/tasks")?;
        let mut ids = Vec::new();
        for what in &self.what {
            match what.contains("://") {
                true => ids.extend(self.named(what, &held)?),
                false => ids.push(rm::find(what, &held)?),
            }
        }
        self.set(&ids, pinned)
    }

    fn set(&self, ids: &[String], pinned: bool) -> Result<String, CliError> {
        let mut done = String::new();
        let admin = self.node.place();
        for id in ids {
            let path = format!("/v1/tasks/{id}/pin");
            let there = match pinned {
                true => client::put(&admin, &path)?,
                false => client::delete(&admin, &path)? != 404,
            };
            if !there {
                return Err(CliError::Partly { done, message: format!("the task {id} is gone") });
            }
            let _ = writeln!(done, "{} {id}", if pinned { "pinned" } else { "unpinned" });
        }
        Ok(done)
    }

    /// The tasks of a URL, or of all that a name of the Hub stands for; each of them has to be here.
    fn named(&self, what: &str, held: &[Task]) -> Result<Vec<String>, CliError> {
        let runtime = super::get::runtime()?;
        let progress = Progress::new(true);
        let Places { places, .. } = runtime.block_on(remote::places(what, &self.rights, &self.patterns, &progress))?;
        let mut ids = Vec::new();
        // An empty file takes no room, and no node keeps it.
        for place in places.into_iter().filter(|place| place.size != Some(0)) {
            let label = id::label(&place.url);
            let here = held.iter().filter(|task| task.label == label).map(|task| task.id.clone());
            let before = ids.len();
            ids.extend(here);
            if ids.len() == before {
                return Err(CliError::Task(format!("{label} is not here; `pondhawk preheat --pin` fetches it")));
            }
        }
        Ok(ids)
    }
}
