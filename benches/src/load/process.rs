//! What the processes under test use while they are loaded.

use std::fs;

use serde::Serialize;

use super::LoadError;
use crate::lab::{Usage, usage};

/// What the processes under test have used together, from the start of the load to its end.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ProcessUse {
    /// Their ids.
    pub pids: Vec<u32>,
    /// Of these, those that ended before the load did.
    pub ended: Vec<u32>,
    /// User and system time, to 10 ms for each process.
    pub cpu_seconds: f64,
    /// The largest sum of resident sizes seen, in bytes; four samples a second.
    pub rss_peak: u64,
    /// The last sum of resident sizes, in bytes.
    pub rss: u64,
}

/// The ids of the processes with this name, as `ps -C NAME` would list them.
pub fn named(name: &str) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    // The kernel keeps 15 bytes of a name.
    let kept = &name.as_bytes()[..name.len().min(15)];
    let is_named = |pid: &u32| fs::read(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim_ascii_end() == kept);
    let mut pids: Vec<u32> = pids.filter(is_named).collect();
    pids.sort_unstable();
    pids
}

/// Samples processes.
pub(super) struct Watch {
    processes: Vec<Watched>,
    sum: ProcessUse,
}

struct Watched {
    pid: u32,
    first: Usage,
    last: Usage,
}

impl Watch {
    pub(super) fn new(pids: &[u32]) -> Result<Self, LoadError> {
        let watch =
            |&pid: &u32| usage(pid).map(|first| Watched { pid, first, last: first }).ok_or(LoadError::Process(pid));
        let processes = pids.iter().map(watch).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { processes, sum: ProcessUse { pids: pids.to_vec(), ..ProcessUse::default() } })
    }

    /// What is counted starts now.
    pub(super) fn start(&mut self) {
        self.sample();
        self.processes.iter_mut().for_each(|process| process.first = process.last);
        self.sum.rss_peak = self.sum.rss;
        self.sum.cpu_seconds = 0.0;
    }

    /// Looks at all processes; what they have used by now.
    pub(super) fn sample(&mut self) -> &ProcessUse {
        self.sum.ended.clear();
        let mut resident = 0;
        for process in &mut self.processes {
            if let Some(now) = usage(process.pid) {
                process.last = now;
                resident += now.rss;
            } else {
                self.sum.ended.push(process.pid);
            }
        }
        self.sum.cpu_seconds =
            self.processes.iter().map(|process| process.last.cpu_seconds - process.first.cpu_seconds).sum();
        self.sum.rss = resident;
        self.sum.rss_peak = self.sum.rss_peak.max(resident);
        &self.sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_found_by_its_name_and_has_memory() {
        let comm = fs::read_to_string("/proc/self/comm").unwrap();
        let pids = named(comm.trim_end());
        assert!(pids.contains(&std::process::id()), "{pids:?}");
        let mut watch = Watch::new(&[std::process::id()]).unwrap();
        watch.start();
        let sum = watch.sample();
        assert!(sum.rss_peak > 0 && sum.ended.is_empty() && sum.cpu_seconds >= 0.0);
        assert!(matches!(Watch::new(&[u32::MAX]), Err(LoadError::Process(u32::MAX))));
    }
}
