//! CPU time of the two sides of one process.

use std::{collections::HashMap, fs};

/// Seconds since each side's thread began, with its io_uring workers.
pub(crate) struct Sides {
    pub(crate) seed: f64,
    pub(crate) leech: f64,
}

/// Sums up /proc/self/task. A worker of io_uring is named after the thread that it works for.
pub(crate) fn by_side() -> Sides {
    let mut names = HashMap::new();
    let mut times = HashMap::new();
    for task in fs::read_dir("/proc/self/task").unwrap() {
        let path = task.unwrap().path();
        let id: u32 = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
        // It may end while we look.
        let read = |file| fs::read_to_string(path.join(file)).unwrap_or_default();
        let nanos: u64 = read("schedstat").split(' ').next().and_then(|field| field.parse().ok()).unwrap_or(0);
        names.insert(id, read("comm").trim().to_owned());
        times.insert(id, nanos as f64 / 1e9);
    }
    let side_of = |id: &u32| {
        let name = &names[id];
        let owner = name.strip_prefix("iou-wrk-").and_then(|owner| owner.parse().ok());
        owner.and_then(|owner: u32| names.get(&owner)).unwrap_or(name).clone()
    };
    let sum = |side: &str| times.iter().filter(|(id, _)| side_of(id) == side).map(|(_, time)| time).sum();
    Sides { seed: sum("seed"), leech: sum("leech") }
}
