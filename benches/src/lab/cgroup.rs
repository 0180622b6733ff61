//! Control groups of the unified hierarchy.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use super::{LabError, clean_command, serial, wait_until};

/// How the names of the lab's groups begin.
pub(super) const GROUPS: &str = "pondhawk-lab-";

/// A cgroup2 group of our own. When dropped, everything in it is killed and it is removed, with its children.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// A new group at the top of the hierarchy, named `pondhawk-lab-{name}-{pid}-{number}`.
    pub fn new(name: &str) -> Result<Self, LabError> {
        let name = format!("{GROUPS}{name}-{}-{}", std::process::id(), serial());
        Self::create(mount_point()?.join(name))
    }

    /// A group below this one; drop it first.
    pub fn child(&self, name: &str) -> Result<Self, LabError> {
        Self::create(self.path.join(name))
    }

    /// Takes over one that is there, to be removed when dropped.
    pub(super) fn adopt(path: PathBuf) -> Self {
        Self { path }
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A command that runs in this group.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = self.enter();
        command.arg(program);
        command
    }

    /// The same command, in this group, with PATH, HOME, LANG and the variables set on it, none inherited. Process id, arguments and
    /// working folder stay; redirections have to be set on the result.
    pub fn wrap(&self, inner: &Command) -> Command {
        let mut command = self.command(inner.get_program());
        command.args(inner.get_args());
        for (key, value) in inner.get_envs() {
            match value {
                Some(value) => command.env(key, value),
                None => command.env_remove(key),
            };
        }
        if let Some(folder) = inner.get_current_dir() {
            command.current_dir(folder);
        }
        command
    }

    /// Process ids in this group and below.
    pub fn pids(&self) -> Vec<i32> {
        pids(&self.path)
    }

    fn create(path: PathBuf) -> Result<Self, LabError> {
        fs::create_dir(&path).map_err(|source| LabError::file(&path, source))?;
        Ok(Self { path })
    }

    fn enter(&self) -> Command {
        let mut command = clean_command("sh");
        command.args(["-c", r#"echo $$ > "$0"/cgroup.procs && exec "$@""#]).arg(&self.path);
        command
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let emptied = wait_until(Duration::from_secs(5), || {
            let pids = self.pids();
            for pid in pids.iter().filter_map(|pid| Pid::from_raw(*pid)) {
                // It may have ended by itself since it was listed.
                let _ = kill_process(pid, Signal::KILL);
            }
            (pids.is_empty() && remove(&self.path).is_ok()).then_some(())
        });
        if emptied.is_none() && self.path.exists() {
            eprintln!("{} could not be removed", self.path.display());
        }
    }
}

pub(super) fn mount_point() -> Result<PathBuf, LabError> {
    let mounts = Path::new("/proc/self/mounts");
    let text = fs::read_to_string(mounts).map_err(|source| LabError::file(mounts, source))?;
    let found = text.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        let path = words.next()?;
        (words.next()? == "cgroup2").then(|| PathBuf::from(path))
    });
    found.ok_or(LabError::NoCgroup2)
}

fn children(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

fn pids(path: &Path) -> Vec<i32> {
    let text = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    let mut all: Vec<i32> = text.lines().filter_map(|line| line.parse().ok()).collect();
    all.extend(children(path).iter().flat_map(|child| pids(child)));
    all
}

fn remove(path: &Path) -> std::io::Result<()> {
    for child in children(path) {
        remove(&child)?;
    }
    fs::remove_dir(path)
}
