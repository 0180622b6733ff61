//! `pondhawk ls`: the tasks of the node.

use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;

use super::{CliError, Node, client, human};
use crate::admin::Task;

/// Digits of an id that the table shows; `rm` takes them.
const SHORT: usize = 12;

/// The command's arguments.
#[derive(Debug, Args)]
pub(super) struct Ls {
    /// Print what the node says, as a JSON list
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    node: Node,
}

impl Ls {
    pub(super) fn run(&self) -> Result<String, CliError> {
        let mut tasks: Vec<Task> = client::get(&self.node.place(), "/v1/tasks")?;
        tasks.sort_by(|a, b| b.used_unix.cmp(&a.used_unix).then_with(|| a.label.cmp(&b.label)));
        if self.json {
            return Ok(super::json(&tasks));
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let rows: Vec<_> = tasks.iter().map(|task| row(task, now)).collect();
        let held = tasks.iter().map(|task| task.held_bytes).sum();
        let table = human::table(["TASK", "SIZE", "HELD", "STATE", "USED", "FROM"], &rows, &[1, 2, 4]);
        Ok(format!("{table}{} tasks, {}\n", tasks.len(), human::size(held)))
    }
}

fn row(task: &Task, now: u64) -> [String; 6] {
    [
        human::printable(&task.id.chars().take(SHORT).collect::<String>()),
        human::size(task.bytes),
        human::percent(task.held_bytes, task.bytes),
        state(task),
        human::age(now.saturating_sub(task.used_unix)),
        human::printable(&task.label),
    ]
}

fn state(task: &Task) -> String {
    let state = match (task.verdict.as_str(), task.in_use, task.held_bytes == task.bytes) {
        ("mismatch", ..) => "mismatch",
        ("unreadable", ..) => "unreadable",
        (_, true, _) => "in use",
        ("verified", ..) => "verified",
        (_, _, true) => "whole",
        _ => "partial",
    };
    if task.pinned { format!("{state}, pinned") } else { state.to_owned() }
}
