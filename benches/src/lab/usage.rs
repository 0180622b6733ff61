//! What a process has used, from /proc.

use std::{fs, path::PathBuf, time::Duration};

use rustix::time::{ClockId, clock_gettime};

use super::LabError;

/// Accounting of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// User and system time of all its threads, in seconds.
    pub cpu_seconds: f64,
    /// Largest resident size so far, in bytes.
    pub rss_peak: u64,
    /// Resident size, in bytes.
    pub rss: u64,
}

/// CPU time of the calling thread: what others take from its core meanwhile does not count.
pub fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

/// The children of a process, and theirs.
pub fn descendants(pid: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let parents: Vec<(u32, u32)> = pids.filter_map(|pid| Some((pid, parent(pid)?))).collect();
    let mut found = vec![pid];
    let mut looked = 0;
    while let Some(&of) = found.get(looked) {
        found.extend(parents.iter().filter(|(_, parent)| *parent == of).map(|(pid, _)| *pid));
        looked += 1;
    }
    found.split_off(1)
}

/// The fourth field of /proc/PID/stat (proc_pid_stat(5)).
fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// Reads /proc/PID/stat and status (proc_pid_stat(5)); none: there is no such process.
pub fn usage(pid: u32) -> Option<Usage> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name in parentheses, which may hold anything; fields are counted after it.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    Some(Usage {
        cpu_seconds: ticks as f64 / rustix::param::clock_ticks_per_second() as f64,
        rss_peak: kibibytes(&status, "VmHWM:"),
        rss: kibibytes(&status, "VmRSS:"),
    })
}

/// Has [`Usage::rss_peak`] start anew from what is resident now (proc_pid_clear_refs(5)).
pub fn reset_peak(pid: u32) -> Result<(), LabError> {
    let path = PathBuf::from(format!("/proc/{pid}/clear_refs"));
    fs::write(&path, "5").map_err(|source| LabError::file(&path, source))
}

fn kibibytes(status: &str, key: &str) -> u64 {
    let value = status.lines().find_map(|line| line.strip_prefix(key));
    value.and_then(|value| value.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) << 10
}
