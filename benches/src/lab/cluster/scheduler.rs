//! `pondhawk-scheduler` as a process.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::{START, network::Host};
use crate::lab::{Daemon, LabError, binary, run, serial};

const PORT: u16 = 65100;

/// A scheduler that can be killed and started again on the same state.
#[derive(Debug)]
pub struct SchedulerProcess {
    daemon: Mutex<Option<Daemon>>,
    host: Host,
    binary: PathBuf,
    arguments: Vec<String>,
    folder: PathBuf,
}

impl SchedulerProcess {
    pub(super) fn start(host: Host, folder: &Path, arguments: &[&str]) -> Result<Self, LabError> {
        let folder = folder.join("scheduler");
        fs::create_dir_all(&folder).map_err(|source| LabError::file(&folder, source))?;
        let (daemon, arguments) = (Mutex::new(None), arguments.iter().map(|word| (*word).to_owned()).collect());
        let scheduler = Self { daemon, host, binary: binary("pondhawk-scheduler")?, arguments, folder };
        scheduler.restart()?;
        Ok(scheduler)
    }

    /// One more, with the state of another: its CA, its tokens' secret and the trust root.
    pub(super) fn replica(host: Host, folder: &Path, of: &Self) -> Result<Self, LabError> {
        let data = folder.join("scheduler/data");
        fs::create_dir_all(&data).map_err(|source| LabError::file(&data, source))?;
        for entry in fs::read_dir(of.data_dir()).map_err(|source| LabError::file(&of.data_dir(), source))?.flatten() {
            // With its mode, which the scheduler insists on; the lock is each one's own.
            fs::copy(entry.path(), data.join(entry.file_name()))
                .map_err(|source| LabError::file(&entry.path(), source))?;
        }
        let arguments: Vec<&str> = of.arguments.iter().map(String::as_str).collect();
        Self::start(host, folder, &arguments)
    }

    /// Starts it where none runs; gives back when it listens.
    pub fn restart(&self) -> Result<(), LabError> {
        let mut command = self.host.netns().command(&self.binary);
        command.arg("up").arg("--listen").arg(format!("0.0.0.0:{PORT}")).arg("--data-dir").arg(self.data_dir());
        command.args(&self.arguments);
        let mut daemon = Daemon::spawn("pondhawk-scheduler", &mut command, &self.log_path())?;
        daemon.wait_for_port(PORT, START)?;
        *self.daemon() = Some(daemon);
        Ok(())
    }

    /// SIGKILL.
    pub fn kill(&self) -> Result<(), LabError> {
        match self.daemon().take() {
            Some(mut daemon) => daemon.kill().map(drop),
            None => Ok(()),
        }
    }

    /// SIGSTOP.
    pub fn freeze(&self) -> Result<(), LabError> {
        self.daemon().as_ref().map_or(Ok(()), Daemon::freeze)
    }

    /// SIGCONT.
    pub fn thaw(&self) -> Result<(), LabError> {
        self.daemon().as_ref().map_or(Ok(()), Daemon::thaw)
    }

    /// A file with a fresh join token that is good for `ttl`, as in `24h`, for any number of nodes.
    pub fn token(&self, ttl: &str) -> Result<PathBuf, LabError> {
        let mut command = self.host.netns().command(&self.binary);
        command.arg("token").arg("--data-dir").arg(self.data_dir()).args(["--reusable", "--ttl", ttl]);
        let token = run(&mut command)?;
        let path = self.folder.join(format!("token-{}", serial()));
        fs::write(&path, token).map_err(|source| LabError::file(&path, source))?;
        Ok(path)
    }

    /// Where nodes join.
    pub fn address(&self) -> SocketAddr {
        (self.host.v4(), PORT).into()
    }

    /// Its machine.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Its process; none: it does not run.
    pub fn pid(&self) -> Option<u32> {
        self.daemon().as_ref().map(Daemon::pid)
    }

    /// Whether its process is there.
    pub fn is_running(&self) -> bool {
        self.daemon().as_mut().is_some_and(Daemon::is_running)
    }

    /// All that it has logged in all its lives.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    /// Where it logs.
    pub fn log_path(&self) -> PathBuf {
        self.folder.join("scheduler.log")
    }

    /// Its `--data-dir`.
    pub fn data_dir(&self) -> PathBuf {
        self.folder.join("data")
    }

    fn daemon(&self) -> MutexGuard<'_, Option<Daemon>> {
        self.daemon.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
