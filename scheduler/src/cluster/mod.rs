//! The scheduler's core: events of peers in, directives to peers out [pure].
//!
//! Work per event does not grow with a task's pieces: bitmaps are worked on by words, free pieces are kept as runs.

mod blame;
mod digests;
mod leases;
mod membership;
mod pieces;
mod select;
mod tasks;

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

pub use digests::DigestRun;
pub use leases::ReturnReason;
pub use membership::{PeerId, PeerInfo};
pub use pieces::pieces_of;

use membership::Members;
use tasks::{Entry, Lease, Task};

/// A task's name.
pub type TaskName = [u8; 32];

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
    /// A peer without a session for this long is forgotten.
    pub grace: Duration,
    /// How long a blamed peer is nobody's parent.
    pub ban: Duration,
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
            origin_connections: 64,
            peer_connections: 4,
            silence: Duration::from_secs(10),
            grace: Duration::from_secs(15),
            ban: Duration::from_secs(300),
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
    },
    Unwant {
        task: TaskName,
    },
    Progress(Progress),
    Load {
        uploads: u32,
    },
    LeaseReturn {
        lease: u64,
        reason: ReturnReason,
        retry_after: Duration,
    },
    Blame {
        peer: String,
        task: TaskName,
        piece: u32,
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
    pub digests: Vec<DigestRun>,
    pub alive: Vec<u64>,
}

/// What a peer is told.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the variants are the messages, documented in scheduler.proto")]
pub enum Directive {
    Link { task: TaskName, parent: Parent },
    Unlink { task: TaskName, peer: Arc<str> },
    Lease { id: u64, task: TaskName, pieces: Range<u32>, silence: Duration },
    LeaseEnd { id: u64 },
    Digests { task: TaskName, runs: Arc<[DigestRun]> },
    DigestsWanted { task: TaskName, pieces: Vec<Range<u32>> },
    Dispute { task: TaskName, piece: u32, first: Arc<str>, second: Arc<str>, refetch: bool },
    Preheat { task: TaskName, len: u64 },
    Throttle { host: Arc<str>, pause: Duration },
}

/// One end of a link, as told to the other.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the fields are those of the message Parent")]
pub struct Parent {
    pub name: Arc<str>,
    pub address: core::net::SocketAddr,
    pub seed: bool,
    pub nearness: u32,
    pub complete: bool,
}

/// The whole cluster as the scheduler knows it.
#[derive(Debug)]
pub struct Cluster {
    options: Options,
    members: Members,
    tasks: Vec<Option<Task>>,
    free_tasks: Vec<u32>,
    by_name: HashMap<TaskName, u32>,
    leases: HashMap<u64, Lease>,
    lease_ends: BTreeSet<(Duration, u64)>,
    next_lease: u64,
    hosts: HashMap<Arc<str>, leases::Host>,
    /// Tasks with digests to push.
    fresh: HashSet<u32>,
    expiring: VecDeque<(Duration, u32)>,
    out: VecDeque<(PeerId, Directive)>,
    random: u64,
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
            leases: HashMap::new(),
            lease_ends: BTreeSet::new(),
            next_lease: 1,
            hosts: HashMap::new(),
            fresh: HashSet::new(),
            expiring: VecDeque::new(),
            out: VecDeque::new(),
            random,
        }
    }

    /// A peer's session began. The id stays the same while the peer is known.
    pub fn connect(&mut self, info: PeerInfo) -> PeerId {
        PeerId(self.members.enter(info, &self.options.label_keys))
    }

    /// Takes one event of a connected peer; `now` never goes back.
    pub fn handle(&mut self, now: Duration, peer: PeerId, event: Event) {
        let at = peer.0;
        if self.members.get(at).is_none() {
            return;
        }
        match event {
            Event::Gone => self.gone(now, at),
            Event::InventoryStart => self.inventory(at, true),
            Event::InventoryEnd => self.inventory(at, false),
            Event::Held { task, len, complete, have } => {
                let progress = Progress { task, len, complete, added: have, ..Progress::default() };
                self.progress(now, at, &progress);
            }
            Event::Want { task, len, host, can_fetch, connections } => {
                self.want(now, at, task, len, &host, can_fetch, connections);
            }
            Event::Unwant { task } => self.unwant(now, at, &task),
            Event::Progress(progress) => self.progress(now, at, &progress),
            Event::Load { uploads } => {
                if let Some(member) = self.members.get_mut(at) {
                    member.uploads = uploads;
                }
            }
            Event::LeaseReturn { lease, reason, retry_after } => self.returned(now, at, lease, reason, retry_after),
            Event::Blame { peer, task, piece } => self.blame(now, at, &peer, &task, piece),
        }
    }

    /// Reclaims silent leases, forgets peers, pushes digests. Call every 50 ms or so.
    pub fn tick(&mut self, now: Duration) {
        self.reclaim_silent(now);
        while self.expiring.front().is_some_and(|&(at, _)| at <= now) {
            let Some((_, peer)) = self.expiring.pop_front() else { break };
            if self.members.get(peer).is_some_and(|member| !member.connected) {
                self.forget(now, peer);
            }
        }
        self.push_digests();
        self.resume_hosts(now);
    }

    /// The next directive and whom it is for.
    pub fn poll(&mut self) -> Option<(PeerId, Directive)> {
        self.out.pop_front()
    }

    /// Peers known, with or without a session.
    pub fn peers(&self) -> usize {
        self.members.len()
    }

    /// Tasks known.
    pub fn tasks(&self) -> usize {
        self.by_name.len()
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

    fn task(&mut self, at: u32) -> Option<&mut Task> {
        self.tasks.get_mut(at as usize)?.as_mut()
    }

    fn seen(&self, at: u32) -> Option<&Task> {
        self.tasks.get(at as usize)?.as_ref()
    }

    fn entry(&mut self, task: u32, peer: u32) -> Option<&mut Entry> {
        let &at = self.members.get(peer)?.tasks.get(&task)?;
        self.task(task)?.entries.get_mut(at as usize)
    }

    fn seen_entry(&self, task: u32, peer: u32) -> Option<&Entry> {
        let &at = self.members.get(peer)?.tasks.get(&task)?;
        self.seen(task)?.entries.get(at as usize)
    }

    fn tell(&mut self, peer: u32, directive: Directive) {
        if self.members.get(peer).is_some_and(|member| member.connected) {
            self.out.push_back((PeerId(peer), directive));
        }
    }

    fn name_of(&self, peer: u32) -> Arc<str> {
        self.members.get(peer).map_or_else(|| Arc::from(""), |member| Arc::clone(&member.info.name))
    }

    /// The task of this name and length, entered if new, and this peer entered at it. `None` where the length
    /// contradicts what is known.
    fn enter(&mut self, peer: u32, name: &TaskName, len: u64) -> Option<u32> {
        let at = match self.by_name.get(name) {
            Some(&at) => at,
            None => self.new_task(name, len)?,
        };
        let grouped = self.grouped(at);
        let task = self.tasks.get_mut(at as usize)?.as_mut()?;
        if task.len != len {
            return None;
        }
        let member = self.members.get_mut(peer)?;
        if let std::collections::hash_map::Entry::Vacant(place) = member.tasks.entry(at) {
            place.insert(u32::try_from(task.entries.len()).ok()?);
            if grouped {
                for &group in &member.groups {
                    task.near.entry(group).or_default().push(peer);
                }
            }
            if task.entries.len() == task.entries.capacity() {
                // An eighth more rather than twice as much: a big cluster's memory is in here.
                task.entries.reserve_exact(task.entries.len() / 8 + 4);
            }
            task.entries.push(Entry { peer, ..Entry::default() });
        }
        Some(at)
    }

    fn new_task(&mut self, name: &TaskName, len: u64) -> Option<u32> {
        let task = Task::new(*name, len, pieces_of(len)?);
        let at = match self.free_tasks.pop() {
            Some(at) => at,
            None => {
                self.tasks.push(None);
                u32::try_from(self.tasks.len() - 1).ok()?
            }
        };
        self.tasks[at as usize] = Some(task);
        self.by_name.insert(*name, at);
        Some(at)
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of the message")]
    fn want(
        &mut self,
        now: Duration,
        peer: u32,
        name: TaskName,
        len: u64,
        host: &str,
        can_fetch: bool,
        connections: u32,
    ) {
        let Some(at) = self.enter(peer, &name, len) else { return };
        let host = self.host(host);
        let Some(entry) = self.entry(at, peer) else { return };
        let (new, could) = (!entry.wants, entry.can_fetch);
        entry.wants = true;
        entry.can_fetch = can_fetch;
        entry.connections = u8::try_from(connections).unwrap_or(u8::MAX);
        if let Some(task) = self.task(at) {
            task.host = host.or(task.host.take());
            task.wanters += u32::from(new);
            task.can_fetch = task.can_fetch + u32::from(can_fetch) - u32::from(could);
        }
        if new {
            self.link_up(now, at, peer);
            self.tell_digests(at, peer);
            self.ask_digests(now, at);
            self.preheat(at);
        }
        if can_fetch {
            self.queue_for_lease(at, peer);
        }
        self.lease_out(now, at);
    }

    fn unwant(&mut self, now: Duration, peer: u32, name: &TaskName) {
        let Some(&at) = self.by_name.get(name) else { return };
        self.stop_wanting(at, peer);
        self.end_leases(now, at, peer, true);
        self.lease_out(now, at);
        if self.seen_entry(at, peer).is_some_and(|entry| entry.held == 0) {
            self.remove_entry(now, at, peer);
        }
    }

    fn stop_wanting(&mut self, at: u32, peer: u32) {
        let Some(entry) = self.entry(at, peer) else { return };
        let (wanted, could) = (entry.wants, entry.can_fetch);
        entry.wants = false;
        entry.can_fetch = false;
        if let Some(task) = self.task(at) {
            task.wanters -= u32::from(wanted);
            task.can_fetch -= u32::from(could);
        }
    }

    fn progress(&mut self, now: Duration, peer: u32, progress: &Progress) {
        if progress.gone {
            if let Some(&at) = self.by_name.get(&progress.task) {
                self.lose(at, peer, 0..u32::MAX);
                if self.seen_entry(at, peer).is_some_and(|entry| !entry.wants) {
                    self.remove_entry(now, at, peer);
                }
                self.lease_out(now, at);
            }
            return;
        }
        let Some(at) = self.enter(peer, &progress.task, progress.len) else { return };
        let pieces = self.seen(at).map_or(0, |task| task.pieces);
        if let Some(entry) = self.entry(at, peer) {
            entry.unconfirmed = false;
        }
        for run in &progress.lost {
            self.lose(at, peer, run.start..run.end.min(pieces));
        }
        for run in &progress.added {
            self.gain(now, at, peer, run.start.min(pieces)..run.end.min(pieces));
        }
        if progress.complete {
            self.gain(now, at, peer, 0..pieces);
        }
        for run in &progress.digests {
            self.report_digests(now, at, peer, run);
        }
        for &lease in &progress.alive {
            self.touch(now, peer, lease);
        }
        self.lease_out(now, at);
    }

    fn gain(&mut self, now: Duration, at: u32, peer: u32, run: Range<u32>) {
        let Some(pieces) = self.seen(at).map(|task| task.pieces) else { return };
        self.count_to_leases(now, at, peer, &run);
        let Some(entry) = self.entry(at, peer) else { return };
        if !entry.complete {
            entry.held += entry.have.set(run.clone(), pieces);
        }
        let completes = !entry.complete && entry.held == pieces;
        if completes {
            entry.complete = true;
            entry.have = pieces::Bits::default();
        }
        if let Some(task) = self.task(at) {
            task.free.remove(run);
            task.complete += u32::from(completes);
        }
        if completes {
            self.part_from_complete(at, peer);
        }
    }

    fn lose(&mut self, at: u32, peer: u32, run: Range<u32>) {
        let Some(pieces) = self.seen(at).map(|task| task.pieces) else { return };
        let Some(entry) = self.entry(at, peer) else { return };
        let was_complete = entry.complete;
        if was_complete {
            entry.complete = false;
            entry.have.set(0..pieces, pieces);
        }
        let before = entry.held;
        entry.held -= entry.have.clear(run.start..run.end.min(pieces));
        let lost = before != entry.held;
        if let Some(task) = self.task(at) {
            task.complete -= u32::from(was_complete);
            task.stale |= lost;
        }
    }

    /// Marks what an inventory does not name, and drops it at its end.
    fn inventory(&mut self, peer: u32, start: bool) {
        let tasks: Vec<u32> =
            self.members.get(peer).map(|member| member.tasks.keys().copied().collect()).unwrap_or_default();
        for at in tasks {
            let Some(entry) = self.entry(at, peer) else { continue };
            if start {
                entry.unconfirmed = true;
            } else if std::mem::take(&mut entry.unconfirmed) && entry.held > 0 {
                self.lose(at, peer, 0..u32::MAX);
            }
        }
    }

    fn gone(&mut self, now: Duration, peer: u32) {
        if let Some(member) = self.members.get_mut(peer) {
            member.connected = false;
            self.expiring.push_back((now + self.options.grace, peer));
        }
    }

    fn forget(&mut self, now: Duration, peer: u32) {
        let tasks: Vec<u32> =
            self.members.get(peer).map(|member| member.tasks.keys().copied().collect()).unwrap_or_default();
        for at in tasks {
            self.remove_entry(now, at, peer);
            self.lease_out(now, at);
        }
        self.members.leave(peer);
    }

    fn remove_entry(&mut self, now: Duration, at: u32, peer: u32) {
        self.lose(at, peer, 0..u32::MAX);
        self.stop_wanting(at, peer);
        self.end_leases(now, at, peer, true);
        self.unlink_all(now, at, peer);
        let Some(place) = self.members.get_mut(peer).and_then(|member| member.tasks.remove(&at)) else { return };
        let Some(task) = self.task(at) else { return };
        task.entries.swap_remove(place as usize);
        let moved = task.entries.get(place as usize).map(|entry| entry.peer);
        let empty = task.entries.is_empty();
        if let Some(member) = moved.and_then(|moved| self.members.get_mut(moved)) {
            member.tasks.insert(at, place);
        }
        if empty && let Some(task) = self.tasks.get_mut(at as usize).and_then(Option::take) {
            self.by_name.remove(&task.id);
            self.fresh.remove(&at);
            self.free_tasks.push(at);
        }
    }

    /// A seed that does not have a task others want is told once to want it too.
    fn preheat(&mut self, at: u32) {
        let Some(task) = self.seen(at).filter(|task| !task.preheated && task.complete == 0) else { return };
        let (name, len) = (task.id, task.len);
        let seed = self
            .members
            .iter()
            .find(|(_, member)| member.info.seed && member.connected && !member.tasks.contains_key(&at))
            .map(|(seed, _)| seed);
        if let Some(task) = self.task(at) {
            task.preheated = true;
        }
        if let Some(seed) = seed {
            self.tell(seed, Directive::Preheat { task: name, len });
        }
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
