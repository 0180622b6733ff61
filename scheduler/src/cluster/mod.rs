//! The scheduler's core: events of peers in, directives to peers out [pure].
//!
//! Work per event does not grow with a task's pieces: what is done once a piece is done when the piece is reported,
//! free pieces are kept as runs, bitmaps are worked on by words. The same events give the same directives: nothing here
//! is ordered by a random hash.

mod blame;
mod budget;
mod counts;
mod digests;
mod disputes;
mod doubts;
mod holders;
mod holdings;
mod hosts;
mod invariants;
mod leases;
mod membership;
mod piece_set;
mod pieces;
mod select;
mod sessions;
pub mod snapshot;
mod spread;
mod tasks;
mod traffic;
mod wants;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::{BuildHasherDefault, DefaultHasher};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

pub use counts::Counts;
pub use digests::{CHUNK as DIGESTS_AT_ONCE, DigestRun};
pub use leases::ReturnReason;
pub use membership::{PeerId, PeerInfo};
pub use pieces::pieces_of;
pub use spread::{Scope, Spreading};
pub use traffic::{Load, Totals};

use membership::Members;
use sessions::Check;
use spread::Spread;
use tasks::{Lease, Task};
use traffic::Traffic;
use wants::Wanting;

/// A map by the cluster's own numbers, with a fixed hash: its order is the same in every run.
type Map<K, V> = HashMap<K, V, BuildHasherDefault<DefaultHasher>>;

/// A task's name.
pub type TaskName = [u8; 32];

/// What a task's name is made of: peers' business, at most 64 bytes.
pub type ContentName = Arc<[u8]>;

/// What can be set; the defaults suit a cluster of machines in one data centre.
#[derive(Clone, Debug)]
pub struct Options {
    /// Labels that say where a peer stands, coarse to fine.
    pub label_keys: Vec<String>,
    /// Links a peer is given for a task.
    pub parents: usize,
    /// Links a peer may have for a task, counting those that others asked for.
    pub max_links: usize,
    /// Links chosen at random among them, so that groups stay connected.
    pub random_parents: usize,
    /// Connections to one origin host over the whole cluster.
    pub origin_connections: u32,
    /// Connections of a peer that does not say.
    pub peer_connections: u32,
    /// A lease without progress for this long returns to the pool.
    pub silence: Duration,
    /// The leases of a peer without a session for this long end, and what only it holds may be fetched by others.
    pub absence: Duration,
    /// A peer without a session for this long is forgotten.
    pub grace: Duration,
    /// How long a blamed peer is nobody's parent.
    pub ban: Duration,
    /// Bytes of digests kept over all tasks, at about 68 a piece.
    pub digest_memory: usize,
    /// Bytes that the claims of all peers may take together before those with more than an equal share are refused.
    pub claim_memory: usize,
    /// Seeds the random choices.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            label_keys: vec!["zone".to_owned(), "rack".to_owned()],
            parents: 12,
            max_links: 16,
            random_parents: 3,
            origin_connections: 256,
            peer_connections: 4,
            silence: Duration::from_secs(5),
            absence: Duration::from_secs(3),
            grace: Duration::from_secs(15),
            ban: Duration::from_secs(300),
            digest_memory: 64 << 20,
            claim_memory: 512 << 20,
            seed: 1,
        }
    }
}

/// What a peer tells. Sets of pieces are disjoint runs; runs past the task's end are cut off.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the fields are those of the messages, documented in scheduler.proto")]
pub enum Event {
    /// The session ended.
    Gone,
    /// An inventory begins: what is not named before `InventoryEnd` is not held.
    InventoryStart,
    Held {
        task: TaskName,
        len: u64,
        complete: bool,
        have: Vec<Range<u32>>,
    },
    InventoryEnd,
    Want {
        task: TaskName,
        len: u64,
        host: String,
        can_fetch: bool,
        connections: u32,
        /// `None`: all of the task.
        wanted: Option<Vec<Range<u32>>>,
        name: Option<ContentName>,
    },
    Unwant {
        task: TaskName,
    },
    /// Others are to hold the task too.
    Spread {
        task: TaskName,
        len: u64,
        host: String,
        name: Option<ContentName>,
        scope: Scope,
        pin: bool,
    },
    Progress(Progress),
    Load(Load),
    LeaseReturn {
        lease: u64,
        reason: ReturnReason,
        retry_after: Duration,
    },
    Blame {
        peer: String,
        task: TaskName,
        piece: u32,
        /// SILENT or MISSING: no sign of bad intent.
        silent: bool,
    },
}

/// Changes of one task at one peer.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "the fields are those of TaskProgress, documented in scheduler.proto")]
pub struct Progress {
    pub task: TaskName,
    pub len: u64,
    pub added: Vec<Range<u32>>,
    pub lost: Vec<Range<u32>>,
    pub complete: bool,
    pub gone: bool,
    pub wrong: bool,
    pub digests: Vec<DigestRun>,
    pub alive: Vec<u64>,
    pub requests: u32,
}

/// What a peer is told.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the variants are the messages, documented in scheduler.proto")]
pub enum Directive {
    Link {
        task: TaskName,
        parent: Parent,
    },
    Unlink {
        task: TaskName,
        peer: Arc<str>,
    },
    Lease {
        id: u64,
        task: TaskName,
        pieces: Range<u32>,
        silence: Duration,
    },
    LeaseEnd {
        id: u64,
    },
    /// At most [`DIGESTS_AT_ONCE`]: 32 KiB.
    Digests {
        task: TaskName,
        runs: Arc<[DigestRun]>,
    },
    DigestsWanted {
        task: TaskName,
        pieces: Vec<Range<u32>>,
    },
    Dispute {
        task: TaskName,
        piece: u32,
        first: Arc<str>,
        second: Arc<str>,
        refetch: bool,
    },
    Preheat {
        task: TaskName,
        len: u64,
        host: Arc<str>,
        name: Option<ContentName>,
        pin: bool,
    },
    Spreading {
        task: TaskName,
        spreading: Spreading,
    },
    Throttle {
        host: Arc<str>,
        pause: Duration,
    },
}

/// One end of a link, as told to the other.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the fields are those of the message Parent")]
pub struct Parent {
    pub name: Arc<str>,
    pub address: core::net::SocketAddr,
    pub endpoints: u16,
    pub seed: bool,
    pub nearness: u32,
    pub complete: bool,
}

/// The whole cluster as the scheduler knows it.
#[derive(Debug)]
pub struct Cluster {
    options: Options,
    members: Members,
    tasks: Vec<Option<Box<Task>>>,
    free_tasks: Vec<u32>,
    by_name: HashMap<TaskName, u32>,
    leases: Map<u64, Lease>,
    lease_ends: BTreeSet<(Duration, u64)>,
    next_lease: u64,
    /// Tasks where more could be leased.
    again: BTreeSet<u32>,
    /// Tasks and peers that get no lease before that time.
    cooling: BTreeSet<(Duration, u32, u32)>,
    hosts: BTreeMap<Arc<str>, hosts::Host>,
    /// Tasks with digests to push.
    fresh: BTreeSet<u32>,
    digest_bytes: usize,
    /// Tasks in the order in which digests were kept for them.
    digest_order: VecDeque<u32>,
    /// When to look for missing digests of a task.
    seeks: BTreeSet<(Duration, u32)>,
    /// Tasks and peers with few links, and when to look for more.
    poor: BTreeSet<(Duration, u32, u32)>,
    checks: BTreeSet<(Duration, u32, Check)>,
    spreads: BTreeMap<TaskName, Spread>,
    banned: Vec<PeerId>,
    /// Peers over their budget, until they are taken.
    refused: Vec<PeerId>,
    /// What the claims of all members take.
    claimed: usize,
    /// When the first event came.
    began: Option<Duration>,
    out: VecDeque<(PeerId, Directive)>,
    random: u64,
    traffic: Traffic,
    counts: Counts,
}

impl Cluster {
    /// An empty cluster.
    pub fn new(options: Options) -> Self {
        let random = options.seed | 1;
        Self {
            options,
            members: Members::default(),
            tasks: Vec::new(),
            free_tasks: Vec::new(),
            by_name: HashMap::new(),
            leases: Map::default(),
            lease_ends: BTreeSet::new(),
            next_lease: 1,
            again: BTreeSet::new(),
            cooling: BTreeSet::new(),
            hosts: BTreeMap::new(),
            fresh: BTreeSet::new(),
            digest_bytes: 0,
            digest_order: VecDeque::new(),
            seeks: BTreeSet::new(),
            poor: BTreeSet::new(),
            checks: BTreeSet::new(),
            spreads: BTreeMap::new(),
            banned: Vec::new(),
            refused: Vec::new(),
            claimed: 0,
            began: None,
            out: VecDeque::new(),
            random,
            traffic: Traffic::default(),
            counts: Counts::default(),
        }
    }

    /// A peer's session began. The id stays the same while the peer is known.
    pub fn connect(&mut self, info: PeerInfo) -> PeerId {
        PeerId(self.members.enter(info, &self.options.label_keys))
    }

    /// Where the peer's session comes from: accusations and digests of peers from one address count as one voice.
    pub fn set_origin(&mut self, peer: PeerId, from: core::net::IpAddr) {
        self.members.set_origin(peer.0, from);
    }

    /// The name of a peer that is known.
    pub fn name(&self, peer: PeerId) -> Option<Arc<str>> {
        self.members.get(peer.0).map(|member| Arc::clone(&member.info.name))
    }

    /// Takes one event of a connected peer; `now` never goes back.
    pub fn handle(&mut self, now: Duration, peer: PeerId, event: Event) {
        let at = peer.0;
        if self.members.get(at).is_none() {
            return;
        }
        self.began.get_or_insert(now);
        self.counts.events += 1;
        // What it says is gone with its session, which is about to end.
        if self.members.get(at).is_some_and(|member| member.refused) && !matches!(event, Event::Gone) {
            return;
        }
        // What a banned peer says it holds or has seen is not believed.
        let believed = !self.is_banned(now, at);
        match event {
            Event::Gone => self.gone(now, at),
            Event::InventoryStart => self.inventory_start(now, at),
            Event::InventoryEnd => self.inventory_end(now, at),
            Event::Held { task, len, complete, have } if believed => {
                self.confirm(now, at, &task, len, complete, have);
            }
            Event::Want { task, len, host, can_fetch, connections, wanted, name } => {
                self.want(now, at, &task, len, Wanting { host: &host, can_fetch, connections, wanted, name });
            }
            Event::Spread { task, len, host, name, scope, pin } if believed => {
                // Its Want may still be on its way.
                if let Some(place) = self.enter(at, &task, len) {
                    self.note_name(at, place, &host, name);
                }
                self.spread(now, Some(at), &task, &scope, pin);
            }
            Event::Unwant { task } => self.unwant(now, at, &task),
            Event::Progress(progress) if believed => self.progress(now, at, &progress),
            Event::Load(load) => self.load(now, at, load),
            Event::LeaseReturn { lease, reason, retry_after } => self.returned(now, at, lease, reason, retry_after),
            Event::Blame { peer, task, silent, .. } if believed => self.blame(now, at, &peer, &task, silent),
            Event::Held { .. } | Event::Progress(_) | Event::Blame { .. } | Event::Spread { .. } => {}
        }
    }

    /// Does what is due: reclaims silent leases, forgets peers, pushes digests. Call every 50 ms or so.
    pub fn tick(&mut self, now: Duration) {
        self.reclaim_silent(now);
        self.check_peers(now);
        self.push_digests(now);
        self.seek_again(now);
        self.link_poor(now);
        self.look_at_spreads(now);
        self.lease_again(now);
        self.resume_hosts(now);
    }

    /// The next directive and whom it is for.
    pub fn poll(&mut self) -> Option<(PeerId, Directive)> {
        self.out.pop_front()
    }

    /// As [`Event::Spread`], of a task that is known, on an operator's wish. Whether it is known, and by what its name is made of.
    pub fn spread_known(&mut self, now: Duration, task: &TaskName, scope: &Scope, pin: bool) -> bool {
        let known = self.by_name.get(task).and_then(|&at| self.seen(at)).is_some_and(|task| task.name.is_some());
        if known {
            self.spread(now, None, task, scope, pin);
        }
        known
    }

    /// Whether anybody holds something of this task, or wants it.
    pub fn knows(&self, task: &TaskName) -> bool {
        self.by_name.contains_key(task)
    }

    /// How far the spread of a task is; none where there is none, or it is over.
    pub fn spread_of(&self, now: Duration, task: &TaskName) -> Option<Spreading> {
        self.spreads.get(task).map(|spread| self.spreading(now, task, spread))
    }

    /// Peers known, with or without a session.
    pub fn peers(&self) -> usize {
        self.members.len()
    }

    /// Tasks known.
    pub fn tasks(&self) -> usize {
        self.by_name.len()
    }

    /// Leases under way.
    pub fn leases(&self) -> usize {
        self.leases.len()
    }

    /// What has happened so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Whether the peer is banned: what it says is not heard, it has no links and gets no leases. Its session is to be
    /// ended, so that its own clients are served as without a scheduler.
    pub fn is_banned_peer(&self, now: Duration, peer: PeerId) -> bool {
        self.is_banned(now, peer.0)
    }

    /// Those that were banned since the last call.
    pub fn take_banned(&mut self) -> Vec<PeerId> {
        std::mem::take(&mut self.banned)
    }

    /// Peer-tasks known, and the bytes they take.
    pub fn memory(&self) -> (usize, usize) {
        let tasks = self.tasks.iter().flatten();
        let (count, bytes) =
            tasks.fold((0, 0), |(count, bytes), task| (count + task.entries.len(), bytes + task.peer_bytes()));
        // A map's entry is key, value and a control byte.
        let maps: usize = self.members.iter().map(|(_, member)| member.tasks.capacity() * 9 * 8 / 7).sum();
        (count, bytes + maps)
    }

    fn tell(&mut self, peer: u32, directive: Directive) {
        if self.members.get(peer).is_some_and(|member| member.connected) {
            self.out.push_back((PeerId(peer), directive));
        }
    }

    fn name_of(&self, peer: u32) -> Arc<str> {
        self.members.get(peer).map_or_else(|| Arc::from(""), |member| Arc::clone(&member.info.name))
    }

    /// xorshift64: choices need no better, and a seed replays them.
    fn random(&mut self, below: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        usize::try_from(self.random % below.max(1) as u64).unwrap_or(0)
    }
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "sets of pieces are lists of runs, also of one")]
mod tests;
