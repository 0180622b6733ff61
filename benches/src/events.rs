//! How fast the scheduler's core takes events, and what a peer at a task costs it.

use std::time::{Duration, Instant};

use pondhawk_scheduler::cluster::{Cluster, DigestRun, Event, Options, PeerId, PeerInfo, Progress};

use crate::lab::thread_cpu;

/// Ticks come after so many events: the scheduler's process ticks by time, and takes many in between.
const EVENTS_A_TICK: u64 = 5_000;
/// Reports of each peer, of so many pieces each.
const REPORTS: u32 = 10;
const PIECES_A_REPORT: u32 = 10;

/// What the core is given.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Connected peers, each with one task.
    pub peers: u32,
    /// Different tasks among them.
    pub tasks: u32,
    /// Pieces of a task.
    pub pieces: u32,
}

/// What it took.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    /// Events handled.
    pub events: u64,
    /// Directives that came of them.
    pub directives: u64,
    /// Processor time of the one thread.
    pub cpu: Duration,
    /// Bytes of the core's memory for each pair of peer and task.
    pub bytes_a_peer_task: f64,
}

impl Taken {
    /// On one core.
    pub fn events_a_second(&self) -> f64 {
        self.events as f64 / self.cpu.as_secs_f64().max(f64::MIN_POSITIVE)
    }
}

/// Peers want tasks, then report their pieces ten at a time, in an order of their own.
///
/// # Panics
/// If a load has no task or no piece.
pub fn run(load: &Load) -> Taken {
    let mut core = Core::new();
    let peers: Vec<PeerId> = (0..load.peers).map(|n| core.cluster.connect(info(n))).collect();
    let len = u64::from(load.pieces) << if load.pieces > 1_000 { 24 } else { 20 };
    let task = |n: u32| {
        let mut name = [0; 32];
        name[..4].copy_from_slice(&(n % load.tasks).to_be_bytes());
        name
    };
    let begin = thread_cpu();
    for (n, &peer) in (0..).zip(&peers) {
        let host = format!("hub{}", n % 3);
        core.take(
            peer,
            Event::Want { task: task(n), len, host, can_fetch: true, connections: 0, wanted: None, name: None },
        );
    }
    for round in 0..REPORTS {
        for (n, &peer) in (0u32..).zip(&peers) {
            let first = (n.wrapping_mul(2_654_435_761) % load.pieces + round * PIECES_A_REPORT) % load.pieces;
            let digests = vec![DigestRun { first, digests: vec![[1; 32]] }];
            let added = std::iter::once(first..first + PIECES_A_REPORT).collect();
            core.take(peer, Event::Progress(Progress { task: task(n), len, added, digests, ..Progress::default() }));
        }
    }
    let cpu = thread_cpu().saturating_sub(begin);
    let (count, bytes) = core.cluster.memory();
    let bytes_a_peer_task = bytes as f64 / count.max(1) as f64;
    Taken { events: core.events, directives: core.directives, cpu, bytes_a_peer_task }
}

struct Core {
    cluster: Cluster,
    begin: Instant,
    events: u64,
    directives: u64,
}

impl Core {
    fn new() -> Self {
        Self { cluster: Cluster::new(Options::default()), begin: Instant::now(), events: 0, directives: 0 }
    }

    fn take(&mut self, peer: PeerId, event: Event) {
        let now = self.begin.elapsed();
        self.cluster.handle(now, peer, event);
        self.events += 1;
        if self.events.is_multiple_of(EVENTS_A_TICK) {
            self.cluster.tick(now);
        }
        self.directives += std::iter::from_fn(|| self.cluster.poll()).count() as u64;
    }
}

fn info(n: u32) -> PeerInfo {
    let label = |key: &str, value: u32| (key.to_owned(), value.to_string());
    PeerInfo {
        name: format!("p{n}").into(),
        address: ([10, 0, 0, 1], 65_010).into(),
        endpoints: 1,
        labels: vec![label("zone", n % 4), label("rack", n % 200)],
        seed: n < 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_peer_wants_once_and_reports_ten_times() {
        let taken = run(&Load { peers: 40, tasks: 5, pieces: 100 });
        assert_eq!(taken.events, 40 * 11);
        assert!(taken.directives > 0 && taken.bytes_a_peer_task > 0.0 && taken.events_a_second() > 0.0);
    }
}
