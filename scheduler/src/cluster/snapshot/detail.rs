//! All that is known of one node [pure].

use std::time::Duration;

use serde::Serialize;

use super::super::Cluster;
use super::hex;

/// Tasks of one node that are shown.
const MAX_TASKS: usize = 200;

/// A node's part in the cluster.
#[derive(Clone, Debug, Serialize)]
pub struct NodeDetail {
    /// Its name.
    pub name: String,
    /// Those that blame it now.
    pub accusers: Vec<String>,
    /// Those that it blames now.
    pub accuses: Vec<String>,
    /// Its tasks: those that it wants first.
    pub tasks: Vec<NodeTask>,
    /// Tasks that are not shown.
    pub more_tasks: usize,
}

/// A node at one task.
#[derive(Clone, Debug, Serialize)]
pub struct NodeTask {
    /// 64 hexadecimal digits.
    pub name: String,
    /// Bytes of the whole.
    pub bytes: u64,
    /// Pieces of the whole.
    pub pieces: u32,
    /// Pieces that the node holds.
    pub held: u32,
    /// Whether its clients wait for it.
    pub wants: bool,
    /// Whether it may fetch from the origin.
    pub can_fetch: bool,
    /// Pieces that it has leases on and that nobody holds.
    pub leased: u32,
    /// With whom it is linked.
    pub links: Vec<String>,
}

impl Cluster {
    /// What is known of the node of this name.
    pub fn node_detail(&self, now: Duration, name: &str) -> Option<NodeDetail> {
        let slot = self.members.named(name)?;
        let member = self.members.get(slot)?;
        let mut at: Vec<u32> = self.tasks_of(slot);
        let idle = |at: &u32| self.seen_entry(*at, slot).is_none_or(|entry| !entry.wants);
        at.sort_unstable_by_key(|task| (idle(task), *task));
        let more_tasks = at.len().saturating_sub(MAX_TASKS);
        let valid = |until: Duration, peer: u32| self.peer_name(peer).filter(|_| until > now);
        Some(NodeDetail {
            name: member.info.name.to_string(),
            accusers: member.accusers.iter().filter_map(|&(peer, until, _)| valid(until, peer)).collect(),
            accuses: member.accused.iter().filter_map(|&(peer, until)| valid(until, peer)).collect(),
            tasks: at.into_iter().take(MAX_TASKS).filter_map(|task| self.node_task(task, slot)).collect(),
            more_tasks,
        })
    }

    fn node_task(&self, at: u32, peer: u32) -> Option<NodeTask> {
        let (task, entry) = (self.seen(at)?, self.seen_entry(at, peer)?);
        Some(NodeTask {
            name: hex(&task.id),
            bytes: task.len,
            pieces: task.pieces,
            held: entry.held,
            wants: entry.wants,
            can_fetch: entry.can_fetch,
            leased: task.fetchers.get(&peer).map_or(0, |fetcher| fetcher.left),
            links: entry.links.iter().filter_map(|&other| self.peer_name(other)).collect(),
        })
    }
}
