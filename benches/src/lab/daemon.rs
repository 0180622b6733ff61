//! A program that runs beside a test.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use super::{LabError, Usage, usage, wait_until};

const TAIL_LINES: usize = 40;

/// A running program with its log. When dropped it is killed; if that is because of a panic, the end of its log is printed.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    log: PathBuf,
    child: Child,
    ended: Option<ExitStatus>,
}

impl Daemon {
    /// Starts it with both outputs appended to the file `log`.
    pub fn spawn(name: &str, command: &mut Command, log: &Path) -> Result<Self, LabError> {
        let out = File::options().create(true).append(true).open(log).map_err(|source| LabError::file(log, source))?;
        let err = out.try_clone().map_err(|source| LabError::file(log, source))?;
        let spawned = command.stdin(Stdio::null()).stdout(out).stderr(err).spawn();
        let child = spawned
            .map_err(|error| LabError::Command { command: format!("{command:?}"), output: error.to_string() })?;
        Ok(Self { name: name.to_owned(), log: log.to_owned(), child, ended: None })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until a line of its log contains `text`; gives the first such line.
    pub fn wait_for_log(&mut self, text: &str, deadline: Duration) -> Result<String, LabError> {
        let log = self.log.clone();
        self.wait(&format!("a log line with {text:?}"), deadline, |_| {
            let lines = fs::read_to_string(&log).unwrap_or_default();
            lines.lines().find(|line| line.contains(text)).map(str::to_owned)
        })
    }

    /// Waits until something listens on this TCP port in the program's network namespace.
    pub fn wait_for_port(&mut self, port: u16, deadline: Duration) -> Result<(), LabError> {
        self.wait(&format!("a listener on port {port}"), deadline, |pid| listens(pid, port).then_some(()))
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<(), LabError> {
        if self.ended.is_some() {
            return Err(self.error("has ended already"));
        }
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).map_err(|errno| self.error(&format!("cannot be signalled: {errno}")))
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) -> Result<ExitStatus, LabError> {
        self.signal(Signal::KILL)?;
        self.wait_for_exit(Duration::from_secs(10))
    }

    /// SIGTERM, and waits for the end.
    pub fn terminate(&mut self, deadline: Duration) -> Result<ExitStatus, LabError> {
        self.signal(Signal::TERM)?;
        self.wait_for_exit(deadline)
    }

    /// SIGSTOP: it stays, but does nothing.
    pub fn freeze(&self) -> Result<(), LabError> {
        self.signal(Signal::STOP)
    }

    /// SIGCONT.
    pub fn thaw(&self) -> Result<(), LabError> {
        self.signal(Signal::CONT)
    }

    /// Waits until it ends by itself.
    pub fn wait_for_exit(&mut self, deadline: Duration) -> Result<ExitStatus, LabError> {
        wait_until(deadline, || self.exited()).ok_or_else(|| self.error("did not end in time"))
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.exited().is_none()
    }

    /// CPU time and memory so far; none: it has ended.
    pub fn usage(&self) -> Option<Usage> {
        usage(self.pid())
    }

    /// The last lines of its log.
    pub fn tail(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }

    fn wait<T>(
        &mut self,
        what: &str,
        deadline: Duration,
        mut found: impl FnMut(u32) -> Option<T>,
    ) -> Result<T, LabError> {
        let pid = self.pid();
        let outcome = wait_until(deadline, || match found(pid) {
            Some(found) => Some(Ok(found)),
            None => self.exited().map(Err),
        });
        match outcome {
            Some(Ok(found)) => Ok(found),
            Some(Err(status)) => Err(self.error(&format!("ended with {status} before {what}"))),
            None => Err(self.error(&format!("no {what} within {deadline:?}"))),
        }
    }

    /// How it ended; none: it runs.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten();
        }
        self.ended
    }

    fn error(&self, what: &str) -> LabError {
        LabError::Daemon { name: self.name.clone(), what: what.to_owned(), tail: self.tail() }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.is_running() {
            // Both fail only if it has ended in the meantime.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- the end of the log of {}:\n{}\n---", self.name, self.tail());
        }
    }
}

/// Reads /proc/PID/net/tcp and tcp6 (proc_pid_net(5)): local address in the second column, state 0A is LISTEN.
fn listens(pid: u32, port: u16) -> bool {
    let suffix = format!(":{port:04X}");
    ["tcp", "tcp6"].iter().any(|table| {
        let text = fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        text.lines().any(|line| {
            let columns: Vec<&str> = line.split_whitespace().take(4).collect();
            matches!(columns.as_slice(), [_, local, _, "0A"] if local.ends_with(&suffix))
        })
    })
}
