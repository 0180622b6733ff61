//! The machine under the cluster: daemons with a log, settings that are put back, what a run left behind.

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};

/// What kubelet sets.
const SETTINGS: [&str; 3] =
    ["/proc/sys/vm/overcommit_memory", "/proc/sys/kernel/panic", "/proc/sys/kernel/panic_on_oops"];

/// Puts back what it was given as path, value, path, value, once its standard input ends; whatever happens to us.
const KEEPER: &str = "trap '' INT TERM HUP; cat >/dev/null; while [ $# -gt 1 ]; do echo \"$2\" >\"$1\"; shift 2; done";

/// The kernel's settings as they were, put back at the end of this process, however it ends.
pub(super) struct Settings(Child);

impl Settings {
    pub(super) fn save() -> Result<Self> {
        let mut keeper = Command::new("sh");
        keeper.args(["-c", KEEPER, "keeper"]).stdin(Stdio::piped()).stdout(Stdio::null());
        for path in SETTINGS {
            keeper.arg(path).arg(fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?.trim());
        }
        Ok(Self(keeper.spawn().context("cannot start what puts the kernel's settings back")?))
    }
}

impl Drop for Settings {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Where kubelet keeps what pods say.
const POD_LOGS: [&str; 2] = ["/var/log/pods", "/var/log/containers"];

/// What pods of before have said; what a run adds is removed when it went well, and is there to be read if not.
pub(super) struct PodLogs(HashSet<PathBuf>);

impl PodLogs {
    pub(super) fn before() -> Self {
        Self(pod_logs().collect())
    }

    pub(super) fn remove_new(&self) -> Result<()> {
        for path in pod_logs().filter(|path| !self.0.contains(path)) {
            let removed = if path.is_symlink() { fs::remove_file(&path) } else { fs::remove_dir_all(&path) };
            removed.with_context(|| format!("cannot remove {}", path.display()))?;
        }
        Ok(())
    }
}

fn pod_logs() -> impl Iterator<Item = PathBuf> {
    POD_LOGS.iter().filter_map(|dir| fs::read_dir(dir).ok()).flatten().flatten().map(|entry| entry.path())
}

/// A process that ends with this; its output is in a file.
pub(super) struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts it with its log in `folder/run`.
    pub(super) fn start(name: &str, command: &mut Command, folder: &Path) -> Result<Self> {
        let log = folder.join("run").join(format!("{name}.log"));
        let file = File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
        let errors = file.try_clone().context("cannot share a log")?;
        // By which what a run left is found.
        command.current_dir(folder.join("run"));
        command.stdin(Stdio::null()).stdout(file).stderr(errors);
        let child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        println!("  {name}: pid {}, log {}", child.id(), log.display());
        Ok(Self { child, log })
    }

    /// All that it said.
    pub(super) fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = Command::new("kill").arg(self.child.id().to_string()).stderr(Stdio::null()).status();
        for _ in 0..50 {
            if matches!(self.child.try_wait(), Ok(Some(_)) | Err(_)) {
                return;
            }
            std::thread::park_timeout(Duration::from_millis(100));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a run starts, by itself or by way of containerd.
const PROGRAMS: [&str; 8] = [
    "containerd",
    "containerd-shim-runc-v2",
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "pondhawk-hub",
];

/// Ends what a run left running, and takes away what is mounted below its directory.
pub(super) fn sweep(run: &Path) {
    for process in left(run) {
        let _ = Command::new("kill").args(["-9", &process]).stderr(Stdio::null()).status();
    }
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut points: Vec<&str> = mounts.lines().filter_map(|line| line.split(' ').nth(1)).collect();
    points.retain(|point| Path::new(point).starts_with(run));
    // What lies deeper goes first.
    points.sort_unstable_by_key(|point| std::cmp::Reverse(point.len()));
    for point in points {
        let _ = Command::new("umount").args(["--lazy", point]).stderr(Stdio::null()).status();
    }
}

/// Those of [`PROGRAMS`] that work in this directory or below.
fn left(run: &Path) -> Vec<String> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let ours = |name: &String| {
        let of = |link: &str| fs::read_link(format!("/proc/{name}/{link}")).unwrap_or_default();
        let program = of("exe").file_name().map(|program| program.to_string_lossy().into_owned());
        program.is_some_and(|program| PROGRAMS.contains(&program.as_str())) && of("cwd").starts_with(run)
    };
    names.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())).filter(ours).collect()
}

/// Removes empty control groups, the deepest first.
pub(super) fn remove_cgroup(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path());
        }
    }
    // One that still has processes stays.
    let _ = fs::remove_dir(path);
}
