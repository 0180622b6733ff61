//! CPU time of the two sides of one process.

use std::{fs, io::ErrorKind};

use rustix::time::{ClockId, clock_gettime};

use super::End;

/// Seconds since each side's threads began.
pub(crate) struct Sides {
    pub(crate) seed: f64,
    pub(crate) leech: f64,
    /// Of the whole process, with threads that have ended.
    pub(crate) process: f64,
}

/// Sums up /proc/self/task. The store names its threads the same on both sides; the core that they inherited tells them apart.
pub(crate) fn by_side(seed: &End, leech: &End) -> Sides {
    let mut sides = Sides { seed: 0.0, leech: 0.0, process: process() };
    for task in fs::read_dir("/proc/self/task").unwrap() {
        let path = task.unwrap().path();
        // It may end while we look.
        let read = |file| match fs::read_to_string(path.join(file)) {
            Err(error) if error.kind() != ErrorKind::NotFound && error.raw_os_error() != Some(3) => panic!("{error}"),
            text => text.unwrap_or_default(),
        };
        let nanos: u64 = read("schedstat").split(' ').next().and_then(|field| field.parse().ok()).unwrap_or(0);
        let status = read("status");
        let cores = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap_or_default().trim();
        for (end, time) in [(seed, &mut sides.seed), (leech, &mut sides.leech)] {
            if cores == end.core.to_string() {
                *time += nanos as f64 / 1e9;
            }
        }
    }
    sides
}

fn process() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
