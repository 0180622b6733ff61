//! The binary as a process of its own.

#![allow(dead_code, reason = "each test file uses its part")]

use std::cell::RefCell;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// Far longer than anything here takes.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// The binary, without the environment of whoever runs the tests.
pub(crate) fn binary() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pondhawk-scheduler"));
    command.env_clear();
    command
}

/// A scheduler that runs; its log lines come over the channel.
pub(crate) struct Up {
    child: Child,
    lines: mpsc::Receiver<String>,
    /// Those that came before one that was waited for: what runs at the same time is logged in any order.
    passed: RefCell<Vec<String>>,
}

impl Up {
    /// Starts it on free ports, with what `more` adds to the command.
    pub(crate) fn start(dir: &Path, more: impl FnOnce(&mut Command)) -> Self {
        let mut command = binary();
        command.args(["up", "--listen", "127.0.0.1:0", "--page", "127.0.0.1:0", "--data-dir"]).arg(dir);
        more(&mut command);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || log.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, lines, passed: RefCell::default() }
    }

    /// The process.
    pub(crate) fn child(&self) -> &Child {
        &self.child
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    /// The first line that has these words and was not given before.
    pub(crate) fn line_with(&self, words: &str) -> String {
        let mut passed = self.passed.borrow_mut();
        if let Some(at) = passed.iter().position(|line| line.contains(words)) {
            return passed.remove(at);
        }
        loop {
            let next = self.lines.recv_timeout(LONG);
            let line = next.unwrap_or_else(|_| panic!("no {words:?} in the log: {passed:#?}"));
            if line.contains(words) {
                return line;
            }
            passed.push(line);
        }
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
