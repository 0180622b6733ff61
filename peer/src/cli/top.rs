//! `pondhawk top`: what the node is doing, second by second.

mod frame;
mod screen;

use std::{
    io::{self, IsTerminal as _},
    time::{Duration, Instant},
};

use clap::Args;

use super::{CliError, Node, client};
use crate::admin::{Status, Task};
use frame::{Frame, Sample};
use screen::Screen;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(1);
/// What a frame has where no terminal says how large it is.
const PLAIN: (u16, u16) = (120, 60);

const KEYS: &str = "\
Keys: q or Ctrl-C ends.

Exit codes: 0 done, 1 failed, 2 used wrongly, 3 no node answers.";

/// The command's arguments.
#[derive(Debug, Args)]
#[command(after_help = KEYS)]
pub(super) struct Top {
    /// Print one frame, over a second, and end; so it is where the output is no terminal
    #[arg(long)]
    once: bool,
    /// Print one frame as JSON and end
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    node: Node,
}

impl Top {
    pub(super) fn run(&self) -> Result<String, CliError> {
        let begun = Instant::now();
        let first = self.look(begun)?;
        if self.json || self.once || !io::stdout().is_terminal() || !io::stdin().is_terminal() {
            screen::pause(EVERY);
            let frame = Frame::new(&first, self.look(begun)?);
            return Ok(match self.json {
                true => super::json(&frame),
                false => frame.lines(PLAIN).into_iter().map(|line| format!("{line}\n")).collect(),
            });
        }
        self.follow(begun, first).map(|()| String::new())
    }

    fn follow(&self, begun: Instant, first: Sample) -> Result<(), CliError> {
        let failed = |error: io::Error| CliError::Task(format!("the terminal: {error}"));
        let mut screen = Screen::take().map_err(failed)?;
        let mut before = first;
        loop {
            // What a lost node was doing is of no use: the screen is given back, and the error says so.
            let frame = Frame::new(&before, self.look(begun)?);
            screen.show(&frame.lines(screen.size())).map_err(failed)?;
            if screen.quits_within(EVERY).map_err(failed)? {
                return Ok(());
            }
            before = frame.into_sample();
        }
    }

    fn look(&self, begun: Instant) -> Result<Sample, CliError> {
        let status: Status = client::get(&self.node.place(), "/v1/status")?;
        let tasks: Vec<Task> = client::get(&self.node.place(), "/v1/tasks")?;
        Ok(Sample { at: begun.elapsed(), status, tasks })
    }
}
