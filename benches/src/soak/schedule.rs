//! The downloads and faults of a soak, drawn from its seed [pure].
//!
//! Each lane is a stream of its own, so that the n-th download of a node and the n-th fault of a lane depend on the seed alone, and
//! not on how fast the machine got there.

use std::time::Duration;

use crate::{clients::Client, hub::FaultKind, load::random::Random};

/// Nodes of the cluster.
pub const NODES: usize = 4;
/// Schedulers of the cluster.
pub const SCHEDULERS: usize = 3;

/// Streams of random numbers: downloads of node `n` use stream `n`.
const NODE_FAULTS: u64 = 100;
const SCHEDULER_FAULTS: u64 = 101;
const ORIGIN_FAULTS: u64 = 102;

/// A file that the hub offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileOffer {
    /// `owner/name`
    pub repo: &'static str,
    /// Path in the repository.
    pub path: &'static str,
    /// In bytes.
    pub size: u64,
    /// How the repository stores it.
    pub storage: Storage,
}

/// How a repository stores a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// On the CDN under its SHA-256.
    Lfs,
    /// In xorbs.
    Xet,
    /// Served by the Hub itself.
    Hub,
}

impl FileOffer {
    /// `owner/name/path`, as the hub's statistics and faults name it.
    pub fn label(&self) -> String {
        format!("{}/{}", self.repo, self.path)
    }
}

const MIB: u64 = 1 << 20;

/// All files. huggingface_hub hands only files above 50 MB to hf_transfer.
pub const FILES: [FileOffer; 8] = [
    FileOffer { repo: "owner/large", path: "weights.bin", size: 52 * MIB, storage: Storage::Lfs },
    FileOffer { repo: "owner/xet", path: "model.bin", size: 12 * MIB, storage: Storage::Xet },
    FileOffer { repo: "owner/model", path: "a.bin", size: MIB + 17, storage: Storage::Lfs },
    FileOffer { repo: "owner/model", path: "b.bin", size: 4 * MIB, storage: Storage::Lfs },
    FileOffer { repo: "owner/model", path: "c.bin", size: 7 * MIB + 4095, storage: Storage::Lfs },
    FileOffer { repo: "owner/model", path: "d.bin", size: 16 * MIB + 1, storage: Storage::Lfs },
    FileOffer { repo: "owner/model", path: "e.bin", size: 24 * MIB, storage: Storage::Lfs },
    FileOffer { repo: "owner/model", path: "config.json", size: 20_000, storage: Storage::Hub },
];
const LARGE: usize = 0;
const XET: usize = 1;
const FIRST_SMALL: usize = 2;
/// Where the files of `owner/model` on the CDN end.
const LAST_LFS: usize = 6;

/// How a client reaches its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientRoute {
    /// The node catches its connections; the client does not know of the node.
    Intercept,
    /// HTTPS_PROXY names the node.
    Proxy,
    /// The node takes the place of the Hub.
    Mirror,
}

impl ClientRoute {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Intercept => "interception",
            Self::Proxy => "proxy",
            Self::Mirror => "mirror",
        }
    }
}

/// One download.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DownloadPlan {
    /// Which client.
    pub client: Client,
    /// How it reaches its node.
    pub route: ClientRoute,
    /// Index in [`FILES`].
    pub file: usize,
    /// Whether the node is asked afterwards to drop what it holds, so that there is always something to fetch.
    pub drop_after: bool,
}

/// What happens to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeFault {
    /// SIGKILL, and a restart.
    Kill,
    /// SIGSTOP, and SIGCONT.
    Freeze,
    /// Its link is down.
    Unplug,
    /// Its disk is full.
    FillDisk,
}

/// What happens to a scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SchedulerFault {
    /// SIGKILL, and a restart.
    Kill,
    /// SIGSTOP, and SIGCONT.
    Freeze,
    /// Its link is down.
    Unplug,
}

/// What the origin does wrong, once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OriginFault {
    /// What.
    pub kind: FaultKind,
    /// Index in [`FILES`] of the only file concerned; none: the next request that it fits.
    pub file: Option<usize>,
}

/// A fault with its timing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultPlan<K> {
    /// Time without a fault in this lane before it.
    pub pause: Duration,
    /// What happens.
    pub kind: K,
    /// To which node or scheduler; 0 for the origin.
    pub target: usize,
    /// For how long.
    pub lasts: Duration,
}

/// Each client with its share of the downloads: the cheap ones run more often.
const CLIENT_SHARES: [(Client, u64); 10] = [
    (Client::Curl, 5),
    (Client::Wget, 2),
    (Client::Aria2, 3),
    (Client::GitLfs, 2),
    (Client::Hub017, 1),
    (Client::Hub036, 2),
    (Client::Hub1, 1),
    (Client::Hub2, 2),
    (Client::HfTransfer, 1),
    (Client::HfXet, 2),
];

/// The downloads of one node, without end.
#[derive(Debug)]
pub struct Downloads(Random);

impl Downloads {
    /// Those of node `node`.
    pub fn new(seed: u64, node: usize) -> Self {
        Self(Random::new(seed, node as u64))
    }
}

impl Iterator for Downloads {
    type Item = DownloadPlan;

    fn next(&mut self) -> Option<DownloadPlan> {
        let random = &mut self.0;
        let client = weighted(&CLIENT_SHARES, random);
        let route = [ClientRoute::Intercept, ClientRoute::Proxy, ClientRoute::Mirror][random.below(3) as usize];
        let small = FIRST_SMALL + random.below((FILES.len() - FIRST_SMALL) as u64) as usize;
        let file = match client {
            Client::HfTransfer => LARGE,
            Client::HfXet => XET,
            // Only what is a pointer in git.
            Client::GitLfs => small.min(LAST_LFS),
            _ if random.below(8) == 0 => XET,
            _ => small,
        };
        Some(DownloadPlan { client, route, file, drop_after: random.below(3) == 0 })
    }
}

/// What happens to nodes, without end.
#[derive(Debug)]
pub struct NodeFaults(Random);

impl NodeFaults {
    /// Those of this seed.
    pub fn new(seed: u64) -> Self {
        Self(Random::new(seed, NODE_FAULTS))
    }
}

impl Iterator for NodeFaults {
    type Item = FaultPlan<NodeFault>;

    fn next(&mut self) -> Option<Self::Item> {
        let shares = [(NodeFault::Kill, 4), (NodeFault::Freeze, 3), (NodeFault::Unplug, 3), (NodeFault::FillDisk, 3)];
        Some(plan(&mut self.0, &shares, NODES, (1500, 5000), (300, 4000)))
    }
}

/// What happens to schedulers, without end.
#[derive(Debug)]
pub struct SchedulerFaults(Random);

impl SchedulerFaults {
    /// Those of this seed.
    pub fn new(seed: u64) -> Self {
        Self(Random::new(seed, SCHEDULER_FAULTS))
    }
}

impl Iterator for SchedulerFaults {
    type Item = FaultPlan<SchedulerFault>;

    fn next(&mut self) -> Option<Self::Item> {
        let shares = [(SchedulerFault::Kill, 3), (SchedulerFault::Freeze, 2), (SchedulerFault::Unplug, 2)];
        Some(plan(&mut self.0, &shares, SCHEDULERS, (2000, 8000), (300, 6000)))
    }
}

/// What the origin does wrong, without end.
#[derive(Debug)]
pub struct OriginFaults(Random);

impl OriginFaults {
    /// Those of this seed.
    pub fn new(seed: u64) -> Self {
        Self(Random::new(seed, ORIGIN_FAULTS))
    }
}

impl Iterator for OriginFaults {
    type Item = FaultPlan<OriginFault>;

    fn next(&mut self) -> Option<Self::Item> {
        let after = self.0.below(3 * MIB);
        let file = FIRST_SMALL + self.0.below((LAST_LFS + 1 - FIRST_SMALL) as u64) as usize;
        let offset = self.0.below(FILES[file].size);
        let any = |kind| OriginFault { kind, file: None };
        let shares = [
            (any(FaultKind::Status503 { retry_after: None }), 2),
            (any(FaultKind::Status503 { retry_after: Some(1) }), 2),
            (any(FaultKind::Cut { after }), 3),
            (any(FaultKind::Reset { after }), 3),
            (any(FaultKind::Stall { after, millis: 2500 }), 3),
            (any(FaultKind::Forbidden), 2),
            (any(FaultKind::NoLength), 1),
            (any(FaultKind::IgnoreRange), 1),
            (any(FaultKind::Redirect), 1),
            (OriginFault { kind: FaultKind::CorruptByte { offset }, file: Some(file) }, 1),
        ];
        Some(plan(&mut self.0, &shares, 1, (1000, 4000), (1000, 5000)))
    }
}

/// `pause` and `lasts` are bounds in milliseconds.
fn plan<K: Clone>(
    random: &mut Random,
    shares: &[(K, u64)],
    targets: usize,
    pause: (u64, u64),
    lasts: (u64, u64),
) -> FaultPlan<K> {
    FaultPlan {
        pause: between(random, pause),
        kind: weighted(shares, random),
        target: random.below(targets as u64) as usize,
        lasts: between(random, lasts),
    }
}

fn between(random: &mut Random, (least, most): (u64, u64)) -> Duration {
    Duration::from_millis(least + random.below(most - least))
}

fn weighted<T: Clone>(shares: &[(T, u64)], random: &mut Random) -> T {
    let mut at = random.below(shares.iter().map(|(_, share)| share).sum());
    let found = shares.iter().find(|(_, share)| {
        let hit = at < *share;
        at = at.saturating_sub(*share);
        hit
    });
    found.unwrap_or(&shares[0]).0.clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_draws_the_same_downloads_and_faults() {
        let draw = |seed| {
            let downloads: Vec<_> = (0..NODES).flat_map(|node| Downloads::new(seed, node).take(50)).collect();
            let nodes: Vec<_> = NodeFaults::new(seed).take(50).collect();
            let schedulers: Vec<_> = SchedulerFaults::new(seed).take(50).collect();
            let origin: Vec<_> = OriginFaults::new(seed).take(50).collect();
            (downloads, nodes, schedulers, origin)
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn every_client_comes_by_every_route_and_gets_a_file_that_it_can_ask_for() {
        let downloads: Vec<_> = Downloads::new(1, 0).take(4000).collect();
        for client in Client::ALL {
            for route in [ClientRoute::Intercept, ClientRoute::Proxy, ClientRoute::Mirror] {
                assert!(
                    downloads.iter().any(|plan| plan.client == client && plan.route == route),
                    "{} by {}",
                    client.name(),
                    route.name()
                );
            }
        }
        for plan in downloads {
            match plan.client {
                Client::HfXet => assert_eq!(FILES[plan.file].storage, Storage::Xet),
                Client::HfTransfer => assert!(FILES[plan.file].size > 50_000_000),
                Client::GitLfs => assert_eq!(FILES[plan.file].storage, Storage::Lfs),
                _ => {}
            }
        }
    }

    #[test]
    fn faults_hit_every_target_in_every_way() {
        let faults: Vec<_> = NodeFaults::new(3).take(1000).collect();
        for target in 0..NODES {
            for kind in [NodeFault::Kill, NodeFault::Freeze, NodeFault::Unplug, NodeFault::FillDisk] {
                assert!(faults.iter().any(|fault| fault.target == target && fault.kind == kind), "{target} {kind:?}");
            }
        }
        let corrupt = |fault: &FaultPlan<OriginFault>| match fault.kind.kind {
            FaultKind::CorruptByte { offset } => {
                let file = FILES[fault.kind.file.expect("one file")];
                assert!(offset < file.size && file.storage == Storage::Lfs);
                true
            }
            _ => false,
        };
        assert!(OriginFaults::new(3).take(1000).filter(corrupt).count() > 10);
    }
}
