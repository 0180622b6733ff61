//! What nodes say of their work since their start, and what it makes of the cluster's since the scheduler's [pure].
//!
//! Nothing is decided by it. A node's sums begin anew with each of its starts, and it may be away for a while: what it says
//! first after that is compared with what it said last, so that nothing counts twice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::Cluster;

/// Nodes that have left and whose sums are remembered; past it those of the lowest names are forgotten.
const MAX_DEPARTED: usize = 4_096;
/// A node that began this much earlier than the scheduler began with it: a node that is its own scheduler always does.
const TOGETHER: Duration = Duration::from_secs(5);

/// What a node says of how busy it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Piece requests of others that wait or are being served.
    pub uploads: u32,
    /// Bytes a second that it sends to others.
    pub upload_rate: u64,
    /// Its sums; `None`: it does not say.
    pub totals: Option<(Duration, Totals)>,
}

/// Sums of one node since its start, or of the cluster since the scheduler's. Bytes are of bodies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Bytes from origins.
    pub from_origin: u64,
    /// Bytes from other nodes.
    pub from_peers: u64,
    /// Bytes to clients.
    pub to_clients: u64,
    /// Bytes to other nodes.
    pub to_peers: u64,
    /// Requests answered.
    pub requests: u64,
    /// Those served from the store.
    pub hits: u64,
    /// Those served by a download under way.
    pub joined: u64,
    /// Those that began a download.
    pub misses: u64,
}

impl Totals {
    /// What came since `before`; all of it where the node has started anew.
    fn since(&self, before: &Self) -> Self {
        let (now, then) = (self.fields(), before.fields());
        if now.iter().zip(&then).any(|(now, then)| now < then) {
            return *self;
        }
        Self::of(std::array::from_fn(|field| now[field] - then[field]))
    }

    fn add(&mut self, more: &Self) {
        let (sums, more) = (self.fields(), more.fields());
        *self = Self::of(std::array::from_fn(|field| sums[field].saturating_add(more[field])));
    }

    fn fields(&self) -> [u64; 8] {
        let Self { from_origin, from_peers, to_clients, to_peers, requests, hits, joined, misses } = *self;
        [from_origin, from_peers, to_clients, to_peers, requests, hits, joined, misses]
    }

    fn of([from_origin, from_peers, to_clients, to_peers, requests, hits, joined, misses]: [u64; 8]) -> Self {
        Self { from_origin, from_peers, to_clients, to_peers, requests, hits, joined, misses }
    }
}

/// The cluster's sums, and the last ones of nodes that have left.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    pub(super) moved: Totals,
    departed: BTreeMap<Arc<str>, Totals>,
}

impl Traffic {
    /// A node leaves; it may come back.
    pub(super) fn depart(&mut self, name: &Arc<str>, last: Totals) {
        if self.departed.len() >= MAX_DEPARTED {
            self.departed.pop_first();
        }
        self.departed.insert(Arc::clone(name), last);
    }
}

impl Cluster {
    pub(super) fn load(&mut self, now: Duration, peer: u32, load: Load) {
        let Some(member) = self.members.get_mut(peer) else { return };
        let before = member.load.totals;
        member.load = Load { totals: load.totals.or(before), ..load };
        let Some((uptime, totals)) = load.totals else { return };
        let before = before.map(|(_, totals)| totals).or_else(|| self.traffic.departed.remove(&member.info.name));
        // What a node did before there was this scheduler is not this scheduler's to count.
        let unknown = if uptime <= now + TOGETHER { Totals::default() } else { totals };
        self.traffic.moved.add(&totals.since(&before.unwrap_or(unknown)));
    }

    /// What the nodes have moved since this scheduler began, as far as they say.
    pub fn transferred(&self) -> Totals {
        self.traffic.moved
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Event, Options, PeerId, PeerInfo};
    use super::*;

    fn connect(cluster: &mut Cluster, name: &str) -> PeerId {
        let address = ([10, 0, 0, 1], 65010).into();
        cluster.connect(PeerInfo { name: name.into(), address, endpoints: 1, labels: Vec::new(), seed: false })
    }

    fn says(cluster: &mut Cluster, now: u64, peer: PeerId, uptime: u64, from_origin: u64) {
        let totals = Some((Duration::from_secs(uptime), Totals { from_origin, ..Totals::default() }));
        let load = Load { uploads: 3, upload_rate: 7, totals };
        cluster.handle(Duration::from_secs(now), peer, Event::Load(load));
    }

    #[test]
    fn a_node_counts_from_its_own_start_or_from_the_schedulers() {
        let mut cluster = Cluster::new(Options::default());
        let old = connect(&mut cluster, "old");
        says(&mut cluster, 1, old, 1_000, 500);
        assert_eq!(cluster.transferred().from_origin, 0, "it was there before");
        says(&mut cluster, 2, old, 1_001, 520);
        assert_eq!(cluster.transferred().from_origin, 20);
        let new = connect(&mut cluster, "new");
        says(&mut cluster, 30, new, 5, 4);
        assert_eq!(cluster.transferred().from_origin, 24);
    }

    #[test]
    fn nothing_counts_twice_when_a_node_restarts_or_is_forgotten_and_comes_back() {
        let mut cluster = Cluster::new(Options::default());
        let first = connect(&mut cluster, "first");
        cluster.handle(Duration::ZERO, first, Event::InventoryStart);
        says(&mut cluster, 10, first, 5, 100);
        says(&mut cluster, 20, first, 5, 30);
        assert_eq!(cluster.transferred().from_origin, 130, "it has restarted");
        cluster.handle(Duration::from_secs(20), first, Event::Gone);
        cluster.tick(Duration::from_secs(100));
        assert_eq!(cluster.peers(), 0);
        let back = connect(&mut cluster, "first");
        says(&mut cluster, 100, back, 85, 31);
        assert_eq!(cluster.transferred().from_origin, 131);
    }

    #[test]
    fn a_node_that_says_nothing_of_its_sums_changes_none() {
        let mut cluster = Cluster::new(Options::default());
        let peer = connect(&mut cluster, "quiet");
        cluster.handle(Duration::from_secs(1), peer, Event::Load(Load { uploads: 1, ..Load::default() }));
        assert_eq!(cluster.transferred(), Totals::default());
    }
}
