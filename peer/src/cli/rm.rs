//! `pondhawk rm`: drop tasks.

use std::fmt::Write;

use clap::Args;

use super::{CliError, Node, client};
use crate::admin::Task;

/// Digits that name a task at least, so that a slip of the finger names none.
const SHORTEST: usize = 8;

/// The command's arguments.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("which").required(true))]
pub(super) struct Rm {
    /// Ids of tasks, or their first digits as `ls` shows them (at least 8)
    #[arg(group = "which", value_name = "TASK")]
    tasks: Vec<String>,
    /// Every task that nobody uses and that is not pinned
    #[arg(long, group = "which")]
    all: bool,
    #[command(flatten)]
    node: Node,
}

impl Rm {
    pub(super) fn run(&self) -> Result<String, CliError> {
        let held: Vec<Task> = client::get(&self.node.place(), "/v1/tasks")?;
        let ids = match self.all {
            true => held.into_iter().map(|task| task.id).collect(),
            false => self.tasks.iter().map(|name| find(name, &held)).collect::<Result<Vec<_>, _>>()?,
        };
        self.remove(&ids)
    }

    fn remove(&self, ids: &[String]) -> Result<String, CliError> {
        let (mut done, mut in_use) = (String::new(), 0);
        let admin = self.node.place();
        for id in ids {
            match client::delete(&admin, &format!("/v1/tasks/{id}"))? {
                409 => in_use += 1,
                // Gone meanwhile is gone as well.
                _ => _ = writeln!(done, "removed {id}"),
            }
        }
        match in_use {
            0 => Ok(done),
            n => Err(CliError::Partly {
                done,
                message: format!("{n} of {} tasks are in use or pinned, and stay", ids.len()),
            }),
        }
    }
}

/// The one task that these digits begin.
pub(super) fn find(name: &str, held: &[Task]) -> Result<String, CliError> {
    let digits = name.to_ascii_lowercase();
    if digits.len() < SHORTEST || !digits.chars().all(|c| c.is_ascii_hexdigit()) {
        return Err(CliError::Task(format!("`{name}` names no task: give at least {SHORTEST} hexadecimal digits")));
    }
    let mut found = held.iter().filter(|task| task.id.starts_with(&digits));
    match (found.next(), found.next()) {
        (Some(task), None) => Ok(task.id.clone()),
        (None, _) => Err(CliError::Task(format!("no task begins with {name}"))),
        (Some(_), Some(_)) => Err(CliError::Task(format!("several tasks begin with {name}: give more digits"))),
    }
}
