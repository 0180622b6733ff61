//! Tasks as shown [pure].

use std::cmp::Reverse;
use std::time::Duration;

use serde::Serialize;

use super::super::tasks::Task;
use super::super::{Cluster, Spreading, TaskName};
use super::{MAX_TASKS, hex};

/// Nodes named of those that want a task, and leases named.
const NAMED: usize = 12;
/// Cells of the strip that shows where a task's pieces are.
const CELLS: u32 = 48;
/// Pieces looked at for one of them.
const LOOKS: u32 = 32;

/// A task. There is no URL and no file's name in it, as the scheduler knows none.
#[derive(Clone, Debug, Serialize)]
pub struct TaskView {
    /// 64 hexadecimal digits.
    pub name: String,
    /// The origin's host, once somebody has said that it wants the task.
    pub host: Option<String>,
    /// Bytes.
    pub bytes: u64,
    /// Pieces.
    pub pieces: u32,
    /// Pieces that at least one node holds.
    pub held: u32,
    /// Pieces whose digest is known.
    pub digests: u32,
    /// Pieces on whose digest nodes disagree.
    pub disputes: usize,
    /// Nodes that hold some of it or want it.
    pub nodes: usize,
    /// Nodes that hold all of it.
    pub complete: u32,
    /// How many want it.
    pub wanters: u32,
    /// Some of those that want it.
    pub wanted_by: Vec<String>,
    /// Pieces that are leased and not held.
    pub leased: u32,
    /// Leases on it.
    pub lease_count: usize,
    /// Some of them.
    pub leases: Vec<LeaseView>,
    /// How many nodes hold a part of the task, from its beginning to its end: of each part the piece that fewest hold. Of a
    /// large part some pieces only.
    pub strip: Vec<u8>,
    /// Whether nodes can be told to hold it: somebody has said what its name is made of.
    pub spreadable: bool,
    /// How far that is, where they were told and it is not over.
    pub spread: Option<Spreading>,
}

/// Who fetches what from the origin.
#[derive(Clone, Debug, Serialize)]
pub struct LeaseView {
    /// The node.
    pub node: String,
    /// Its first piece.
    pub first: u32,
    /// Pieces.
    pub pieces: u32,
    /// Those that nobody holds yet.
    pub left: u32,
}

impl Cluster {
    /// The most wanted ones first, then those that most nodes have.
    pub(super) fn task_views(&self, now: Duration) -> Vec<TaskView> {
        let mut all: Vec<&Task> = self.tasks.iter().flatten().map(Box::as_ref).collect();
        let rank =
            |task: &&Task| -> Reverse<(u32, usize, TaskName)> { Reverse((task.wanters, task.entries.len(), task.id)) };
        if all.len() > MAX_TASKS {
            all.select_nth_unstable_by_key(MAX_TASKS, rank);
            all.truncate(MAX_TASKS);
        }
        all.sort_unstable_by_key(rank);
        all.into_iter().map(|task| self.task_view(now, task)).collect()
    }

    fn task_view(&self, now: Duration, task: &Task) -> TaskView {
        let leases = task.leases.values().filter_map(|id| self.leases.get(id));
        let leased = leases.clone().map(|lease| lease.left).sum();
        let lease = |lease: &super::super::Lease| {
            let node = self.peer_name(lease.peer)?;
            Some(LeaseView { node, first: lease.start, pieces: lease.end - lease.start, left: lease.left })
        };
        let wanting = task.entries.iter().filter(|entry| entry.wants).take(if task.wanters > 0 { NAMED } else { 0 });
        TaskView {
            name: hex(&task.id),
            host: task.host.as_ref().map(ToString::to_string),
            bytes: task.len,
            pieces: task.pieces,
            held: task.pieces.saturating_sub(task.free.total()).saturating_sub(leased),
            digests: task.digests.known.count(),
            disputes: task.digests.disputes.len(),
            nodes: task.entries.len(),
            complete: task.complete,
            wanters: task.wanters,
            wanted_by: wanting.filter_map(|entry| self.peer_name(entry.peer)).collect(),
            leased,
            lease_count: task.leases.len(),
            leases: leases.take(NAMED).filter_map(lease).collect(),
            strip: strip(task),
            spreadable: task.name.is_some(),
            spread: self.spread_of(now, &task.id),
        }
    }
}

fn strip(task: &Task) -> Vec<u8> {
    let cells = CELLS.min(task.pieces);
    let edge = |cell: u32| {
        let piece = u64::from(cell) * u64::from(task.pieces) / u64::from(cells.max(1));
        u32::try_from(piece).unwrap_or(task.pieces)
    };
    let cell = |cell: u32| {
        let part = edge(cell)..edge(cell + 1);
        let step = part.len().div_ceil(LOOKS as usize).max(1);
        let fewest = part.step_by(step).map(|piece| task.holders.get(piece)).min().unwrap_or(0);
        u8::try_from(fewest.saturating_add(task.complete)).unwrap_or(u8::MAX)
    };
    (0..cells).map(cell).collect()
}
