//! The scheduler: its own core, and the time that it takes on this machine.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use pondhawk_scheduler::cluster::{Cluster, Directive, Event, Options, PeerId, PeerInfo, TaskName};

/// The scheduler, or none while it is down.
pub(super) struct Control {
    cluster: Option<Cluster>,
    seed: u64,
    /// By the cluster's number of a peer.
    nodes: Vec<u32>,
    pub(super) events: u64,
    pub(super) spent: Duration,
    /// Peer-tasks and their bytes, at the most.
    pub(super) memory: (usize, usize),
}

impl Control {
    pub(super) fn new(seed: u64) -> Self {
        let mut control =
            Self { cluster: None, seed, nodes: Vec::new(), events: 0, spent: Duration::ZERO, memory: (0, 0) };
        control.begin();
        control
    }

    /// A scheduler that knows nothing.
    pub(super) fn begin(&mut self) {
        self.seed += 1;
        self.cluster = Some(Cluster::new(Options { seed: self.seed, ..Options::default() }));
        self.nodes.clear();
    }

    pub(super) fn end(&mut self) {
        self.cluster = None;
    }

    pub(super) fn connect(&mut self, now: Duration, node: u32) -> Option<PeerId> {
        let cluster = self.cluster.as_mut()?;
        let peer = cluster.connect(info(node));
        if cluster.is_banned_peer(now, peer) {
            cluster.handle(now, peer, Event::Gone);
            return None;
        }
        let at = peer.0 as usize;
        self.nodes.resize(self.nodes.len().max(at + 1), u32::MAX);
        self.nodes[at] = node;
        Some(peer)
    }

    pub(super) fn hear(&mut self, now: Duration, peer: PeerId, events: Vec<Event>) -> Vec<(u32, Directive)> {
        let count = events.len() as u64;
        self.timed(count, |cluster| events.into_iter().for_each(|event| cluster.handle(now, peer, event)))
    }

    pub(super) fn tick(&mut self, now: Duration) -> Vec<(u32, Directive)> {
        self.timed(0, |cluster| cluster.tick(now))
    }

    /// Nodes whose sessions the scheduler ends.
    pub(super) fn banned(&mut self) -> Vec<u32> {
        let banned = self.cluster.as_mut().map(Cluster::take_banned).unwrap_or_default();
        banned.into_iter().map(|peer| self.nodes[peer.0 as usize]).collect()
    }

    /// Looks how much memory the cluster takes.
    pub(super) fn measure(&mut self) {
        if let Some(cluster) = &self.cluster {
            self.memory = self.memory.max(cluster.memory());
        }
    }

    fn timed(&mut self, events: u64, work: impl FnOnce(&mut Cluster)) -> Vec<(u32, Directive)> {
        let Some(cluster) = &mut self.cluster else { return Vec::new() };
        let begin = Instant::now();
        work(cluster);
        let told: Vec<(PeerId, Directive)> = std::iter::from_fn(|| cluster.poll()).collect();
        self.spent += begin.elapsed();
        self.events += events;
        told.into_iter().map(|(peer, directive)| (self.nodes[peer.0 as usize], directive)).collect()
    }
}

/// Racks of 20 in four zones.
fn info(node: u32) -> PeerInfo {
    let label = |key: &str, value: u32| (key.to_owned(), value.to_string());
    PeerInfo {
        name: name(node),
        address: ([10, 0, 0, 1], 65_010).into(),
        endpoints: 1,
        labels: vec![label("zone", node % 4), label("rack", node / 20)],
        seed: false,
    }
}

fn name(node: u32) -> Arc<str> {
    format!("n{node}").into()
}

/// The node of a name.
pub(super) fn node_of(name: &str) -> u32 {
    name.trim_start_matches('n').parse().expect("the names are made here")
}

/// The name of a node, for blame.
pub(super) fn name_of(node: u32) -> String {
    name(node).to_string()
}

/// The task of a file.
pub(super) fn task(file: u32) -> TaskName {
    let mut task = [0; 32];
    task[..4].copy_from_slice(&file.to_be_bytes());
    task
}

/// The file of a task.
pub(super) fn file_of(task: &TaskName) -> u32 {
    u32::from_be_bytes([task[0], task[1], task[2], task[3]])
}
