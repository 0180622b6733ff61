//! Several hosts on one machine, for tests, demo and benchmarks: namespaces, cgroups, DNS, daemons. Root is needed for the first two.
//!
//! Everything cleans up after itself when dropped, also when a test panics. Nothing here runs on a shard, so it blocks.

mod cgroup;
pub mod cluster;
mod daemon;
mod disk;
mod dns;
mod hub_process;
mod netns;
mod sweep;
mod topology;
mod usage;

use std::{
    io,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

pub use self::{
    cgroup::Cgroup,
    daemon::Daemon,
    disk::Disk,
    dns::{DnsRecords, DnsServer},
    hub_process::HubProcess,
    netns::Netns,
    sweep::sweep,
    topology::{Attachment, Lab},
    usage::{Usage, descendants, reset_peak, thread_cpu, usage},
};

/// Why the lab could not be set up or used.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A tool could not be run or said no.
    #[error("{command}: {output}")]
    Command {
        /// The command line.
        command: String,
        /// What it wrote, or why it did not start.
        output: String,
    },
    /// A file or folder could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// No cgroup2 file system is mounted.
    #[error("no cgroup2 file system in /proc/mounts")]
    NoCgroup2,
    /// A binary of this workspace is not built.
    #[error("{path} is not there; build it with: {build}")]
    NotBuilt {
        /// Where it was looked for.
        path: PathBuf,
        /// The cargo command.
        build: String,
    },
    /// A daemon ended or did not do in time what was waited for.
    #[error("{name}: {what}; the end of its log:\n{tail}")]
    Daemon {
        /// The daemon.
        name: String,
        /// What went wrong.
        what: String,
        /// Last lines of its log.
        tail: String,
    },
    /// The hub answered something that is not its JSON.
    #[error("the hub's answer is not readable: {0}")]
    Answer(#[from] serde_json::Error),
}

impl LabError {
    fn file(path: &Path, source: io::Error) -> Self {
        Self::File { path: path.to_owned(), source }
    }
}

/// Whether a test that needs root can run. If not, says so and gives false; panics if PONDHAWK_TEST_REQUIRE_ALL is 1.
///
/// # Panics
/// As said.
pub fn root_or_skip(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        let required = std::env::var("PONDHAWK_TEST_REQUIRE_ALL").is_ok_and(|value| value == "1");
        assert!(!required, "{test} needs root, and PONDHAWK_TEST_REQUIRE_ALL=1 forbids leaving it out");
        eprintln!("left out, because it needs root: {test}");
    }
    root
}

/// A binary of this workspace, from the target folder that the running executable lies in.
pub fn binary(name: &str) -> Result<PathBuf, LabError> {
    let here = Path::new("/proc/self/exe");
    let exe = std::env::current_exe().map_err(|source| LabError::file(here, source))?;
    let mut folder = exe.parent().unwrap_or(Path::new("/"));
    if folder.ends_with("deps") || folder.ends_with("examples") {
        folder = folder.parent().unwrap_or(folder);
    }
    let path = folder.join(name);
    if path.is_file() {
        return Ok(path);
    }
    let package = match name {
        "pondhawk-hub" => "pondhawk-bench",
        other => other,
    };
    let release = if folder.ends_with("release") { " --release" } else { "" };
    Err(LabError::NotBuilt { path, build: format!("cargo build{release} -p {package} --bin {name}") })
}

/// A command whose environment has only PATH, HOME and LANG: what is inherited (SSL_*, proxies) would prove nothing.
pub fn clean_command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    let home = std::env::var_os("HOME").unwrap_or_else(|| "/".into());
    command.env_clear().env("PATH", PATH).env("HOME", home).env("LANG", "C.UTF-8");
    command
}

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs to its end; its standard output, or an error with everything it wrote if it fails.
pub fn run(command: &mut Command) -> Result<String, LabError> {
    let outcome = command.output();
    let failed = |output: String| LabError::Command { command: format!("{command:?}"), output };
    match outcome {
        Err(error) => Err(failed(error.to_string())),
        Ok(out) if out.status.success() => Ok(String::from_utf8_lossy(&out.stdout).into_owned()),
        Ok(out) => {
            let text = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
            Err(failed(format!("{}: {}", out.status, text.trim())))
        }
    }
}

/// Polls until `done` gives something, for at most `deadline`.
pub fn wait_until<T>(deadline: Duration, mut done: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(found) = done() {
            return Some(found);
        }
        if Instant::now() >= end {
            return None;
        }
        pause(Duration::from_millis(20));
    }
}

#[expect(clippy::disallowed_methods, reason = "the lab runs on no shard")]
fn pause(duration: Duration) {
    std::thread::sleep(duration);
}

/// Words given to a shell tool, from one line. Only for arguments without spaces.
fn tool(line: &str) -> Result<String, LabError> {
    let mut words = line.split_whitespace();
    let mut command = clean_command(words.next().unwrap_or("true"));
    run(command.args(words))
}

/// A number that no other lab object of this process has.
fn serial() -> u64 {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}
