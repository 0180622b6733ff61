//! The cluster as somebody sees it who looks: a bounded value, made only then [pure].
//!
//! What is shown of a task is what the scheduler knows: its name, its length and its origin's host. Work is bounded by the
//! constants below whatever the cluster's size: where there is more than fits, what is busy comes first, and how much is left
//! out is said.

mod detail;
mod nodes;
mod tasks;

use std::time::Duration;

use serde::Serialize;

use super::{Cluster, Counts, Totals};

pub use detail::{NodeDetail, NodeTask};
pub use nodes::{Node, State};
pub use tasks::{LeaseView, TaskView};

/// Nodes shown.
pub const MAX_NODES: usize = 1_000;
/// Tasks shown.
pub const MAX_TASKS: usize = 300;
/// Pairs of linked nodes shown.
pub const MAX_LINKS: usize = 4_000;
/// Places of nodes at tasks that are looked at for one snapshot.
const MAX_ENTRIES: usize = 100_000;

/// How much there is of what, now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Gauges {
    /// Nodes with a session.
    pub connected: usize,
    /// Nodes known: also those that have just left.
    pub known: usize,
    /// Nodes that are banned now.
    pub banned: usize,
    /// Nodes that others blame now, and that are not banned.
    pub blamed: usize,
    /// Tasks that a node holds something of, or wants.
    pub tasks: usize,
    /// Of those, tasks that a node wants.
    pub wanted_tasks: usize,
    /// Wishes: one for each node and task.
    pub wants: u64,
    /// Leases under way.
    pub leases: usize,
    /// Pieces of tasks on whose digest nodes disagree.
    pub disputes: usize,
    /// Bytes that digests take.
    pub digest_bytes: usize,
    /// Connections to origins that leases stand for.
    pub origin_connections: u32,
}

/// What is shown at once.
#[derive(Clone, Debug, Serialize)]
pub struct Snapshot {
    /// Seconds since the scheduler's start.
    pub uptime: u64,
    /// How much there is of what.
    pub gauges: Gauges,
    /// What has happened since the start.
    pub counts: Counts,
    /// What nodes have moved since the start.
    pub moved: Totals,
    /// Nodes by name; the busy ones where there are more than [`MAX_NODES`].
    pub nodes: Vec<Node>,
    /// Nodes that are not shown.
    pub more_nodes: usize,
    /// Tasks, the most wanted first.
    pub tasks: Vec<TaskView>,
    /// Tasks that are not shown.
    pub more_tasks: usize,
    /// Two places in `nodes`, and for how many tasks they are linked.
    pub links: Vec<(usize, usize, u32)>,
}

impl Cluster {
    /// Counts what there is: as much work as there are tasks and nodes.
    pub fn gauges(&self, now: Duration) -> Gauges {
        let mut gauges = Gauges {
            known: self.members.len(),
            tasks: self.by_name.len(),
            leases: self.leases.len(),
            digest_bytes: self.digest_bytes,
            origin_connections: self.hosts.values().map(|host| host.in_use).sum(),
            ..Gauges::default()
        };
        for (_, member) in self.members.iter() {
            let state = nodes::state(now, member);
            gauges.connected += usize::from(member.connected);
            gauges.banned += usize::from(state == State::Banned);
            gauges.blamed += usize::from(state == State::Blamed);
        }
        for task in self.tasks.iter().flatten() {
            gauges.wants += u64::from(task.wanters);
            gauges.wanted_tasks += usize::from(task.wanters > 0);
            gauges.disputes += task.digests.disputes.len();
        }
        gauges
    }

    /// What is shown to whoever looks.
    pub fn snapshot(&self, now: Duration) -> Snapshot {
        let gauges = self.gauges(now);
        let busy = self.busy();
        let (nodes, slots) = self.nodes(now, &busy);
        let tasks = self.task_views(now);
        Snapshot {
            uptime: now.as_secs(),
            gauges,
            counts: self.counts,
            moved: self.transferred(),
            more_nodes: gauges.known - nodes.len(),
            more_tasks: gauges.tasks - tasks.len(),
            links: self.links(&slots),
            nodes,
            tasks,
        }
    }

    fn peer_name(&self, peer: u32) -> Option<String> {
        self.members.get(peer).map(|member| member.info.name.to_string())
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "sets of pieces are lists of runs, also of one")]
mod tests;
