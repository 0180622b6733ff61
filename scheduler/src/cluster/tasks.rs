//! What is known of one task, and who is entered at it [pure].

use std::collections::{BTreeMap, VecDeque, hash_map};
use std::mem::size_of;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::budget::ENTRY_BYTES;
use super::digests::DigestTable;
use super::holders::HolderCounts;
use super::piece_set::PieceSet;
use super::pieces::{FreeRuns, pieces_of};
use super::{Cluster, ContentName, Map, TaskName};

/// Names in a group of a task beyond two for each peer there before it is tidied.
const STALE_NEAR: usize = 64;

/// One peer at one task: this and its set of pieces are what 100,000 peers cost.
#[derive(Debug, Default)]
pub(super) struct Entry {
    /// Empty where complete.
    pub(super) have: PieceSet,
    pub(super) links: Vec<u32>,
    pub(super) peer: u32,
    pub(super) held: u32,
    pub(super) connections: u8,
    /// Requests to the origin that it makes at once; 0: not told.
    pub(super) requests: u8,
    pub(super) wants: bool,
    pub(super) can_fetch: bool,
    pub(super) complete: bool,
    /// Bytes that it is charged with: see `budget`.
    pub(super) charged: u32,
    /// In the task's `waiting`.
    pub(super) queued: bool,
    pub(super) owes: Owes,
    /// To be linked up again soon: it has few links.
    pub(super) poor: bool,
}

/// What a peer that came back has still to say again; one byte, as 100,000 peers have one each.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Owes(u8);

impl Owes {
    /// Not named by the inventory that is coming in.
    pub(super) const HOLDINGS: u8 = 1;
    /// Wanted in a session before this one, and not yet in this one.
    pub(super) const WANT: u8 = 2;

    pub(super) fn set(&mut self, what: u8, owed: bool) {
        self.0 = if owed { self.0 | what } else { self.0 & !what };
    }

    pub(super) fn has(self, what: u8) -> bool {
        self.0 & what != 0
    }

    /// Whether it was owed until now.
    pub(super) fn settle(&mut self, what: u8) -> bool {
        let owed = self.has(what);
        self.set(what, false);
        owed
    }
}

/// A run leased to a peer.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) task: u32,
    pub(super) peer: u32,
    pub(super) start: u32,
    pub(super) end: u32,
    /// Pieces of it that nobody holds.
    pub(super) left: u32,
    pub(super) moved: Duration,
    /// Its key in `Cluster::lease_ends`.
    pub(super) due: Duration,
}

/// A peer that holds leases on the task.
#[derive(Debug, Default)]
pub(super) struct Fetcher {
    pub(super) leases: u32,
    /// Sum over its leases.
    pub(super) left: u32,
    /// Pieces of its newest lease.
    pub(super) run: u32,
    /// Pieces that it fetched between its last two reports.
    pub(super) step: Option<u32>,
    /// Taken out of the budget of `host`.
    pub(super) connections: u32,
    pub(super) host: Option<Arc<str>>,
}

/// A piece is held by somebody, leased, or free; a disputed piece counts as held by nobody.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) id: TaskName,
    pub(super) len: u64,
    pub(super) pieces: u32,
    pub(super) host: Option<Arc<str>>,
    /// As the first that knew it told.
    pub(super) name: Option<ContentName>,
    pub(super) entries: Vec<Entry>,
    pub(super) wanters: u32,
    pub(super) can_fetch: u32,
    /// Peers that hold everything.
    pub(super) complete: u32,
    /// By piece: how many of the others hold it.
    pub(super) holders: HolderCounts,
    pub(super) free: FreeRuns,
    /// Active leases by their first piece.
    pub(super) leases: BTreeMap<u32, u64>,
    pub(super) fetchers: BTreeMap<u32, Fetcher>,
    /// Peers that could take a lease now; checked when their turn comes.
    pub(super) waiting: VecDeque<u32>,
    /// Pieces that peers' clients wait for, where that is not all of the task. Apart from the entries: few have one.
    pub(super) windows: BTreeMap<u32, Box<[Range<u32>]>>,
    /// Peers by group, in tasks with many peers; may name peers that have left.
    pub(super) near: Map<u32, Vec<u32>>,
    pub(super) digests: DigestTable,
    pub(super) preheated: bool,
    /// No leases before.
    pub(super) settled: Duration,
    /// In its host's `pending`.
    pub(super) pending: bool,
}

impl Task {
    pub(super) fn new(id: TaskName, len: u64, pieces: u32) -> Self {
        let mut free = FreeRuns::default();
        free.add(0..pieces);
        Self {
            id,
            len,
            pieces,
            host: None,
            name: None,
            entries: Vec::new(),
            wanters: 0,
            can_fetch: 0,
            complete: 0,
            holders: HolderCounts::default(),
            free,
            leases: BTreeMap::new(),
            fetchers: BTreeMap::new(),
            waiting: VecDeque::new(),
            windows: BTreeMap::new(),
            near: Map::default(),
            digests: DigestTable::default(),
            preheated: false,
            settled: Duration::ZERO,
            pending: false,
        }
    }

    /// Leases that have a piece in `run`, rising.
    pub(super) fn leases_in(&self, run: &Range<u32>) -> Vec<u64> {
        let first = self.leases.range(..=run.start).next_back().map_or(run.start, |(&start, _)| start);
        self.leases.range(first..run.end.max(first)).map(|(_, &id)| id).collect()
    }

    /// Bytes that its peers take here, with what is allocated and unused.
    pub(super) fn peer_bytes(&self) -> usize {
        let entries = self.entries.capacity() * size_of::<Entry>();
        let apart: usize = self.entries.iter().map(|entry| entry.have.bytes() + entry.links.capacity() * 4).sum();
        let near: usize = self.near.values().map(|peers| peers.capacity() * 4 + 40).sum();
        let windows: usize = self.windows.values().map(|window| window.len() * size_of::<Range<u32>>() + 24).sum();
        entries + apart + near + windows + self.waiting.capacity() * 4
    }
}

impl Cluster {
    pub(super) fn task(&mut self, at: u32) -> Option<&mut Task> {
        self.tasks.get_mut(at as usize)?.as_deref_mut()
    }

    pub(super) fn seen(&self, at: u32) -> Option<&Task> {
        self.tasks.get(at as usize)?.as_deref()
    }

    pub(super) fn entry(&mut self, task: u32, peer: u32) -> Option<&mut Entry> {
        let &at = self.members.get(peer)?.tasks.get(&task)?;
        self.task(task)?.entries.get_mut(at as usize)
    }

    pub(super) fn seen_entry(&self, task: u32, peer: u32) -> Option<&Entry> {
        let &at = self.members.get(peer)?.tasks.get(&task)?;
        self.seen(task)?.entries.get(at as usize)
    }

    /// Tasks that a peer is entered at.
    pub(super) fn tasks_of(&self, peer: u32) -> Vec<u32> {
        self.members.get(peer).map(|member| member.tasks.keys().copied().collect()).unwrap_or_default()
    }

    /// The task of this name and length, entered if new, and this peer entered at it. `None` where the length
    /// contradicts what is known, or is no task's, or the peer's budget does not allow one more.
    pub(super) fn enter(&mut self, peer: u32, name: &TaskName, len: u64) -> Option<u32> {
        let tasks = &self.members.get(peer)?.tasks;
        let is_new = self.by_name.get(name).is_none_or(|at| !tasks.contains_key(at));
        if is_new && !self.has_budget(peer) {
            return None;
        }
        let at = match self.by_name.get(name) {
            Some(&at) => at,
            None => self.new_task(name, len)?,
        };
        let grouped = self.grouped(at);
        let task = self.tasks.get_mut(at as usize)?.as_deref_mut()?;
        if task.len != len {
            return None;
        }
        let member = self.members.get_mut(peer)?;
        if let hash_map::Entry::Vacant(place) = member.tasks.entry(at) {
            place.insert(u32::try_from(task.entries.len()).ok()?);
            if grouped {
                for &group in &member.groups {
                    let near = task.near.entry(group).or_default();
                    near.push(peer);
                    if near.len() > 2 * task.entries.len() + STALE_NEAR {
                        // Peers that left and came back are in it several times.
                        near.sort_unstable();
                        near.dedup();
                    }
                }
            }
            if task.entries.len() == task.entries.capacity() {
                // An eighth more rather than twice as much: a big cluster's memory is in here.
                task.entries.reserve_exact(task.entries.len() / 8 + 1);
            }
            let charged = u32::try_from(ENTRY_BYTES).unwrap_or(u32::MAX);
            task.entries.push(Entry { peer, charged, ..Entry::default() });
            member.claims += ENTRY_BYTES;
            self.claimed += ENTRY_BYTES;
        }
        Some(at)
    }

    fn new_task(&mut self, name: &TaskName, len: u64) -> Option<u32> {
        let task = Box::new(Task::new(*name, len, pieces_of(len)?));
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

    /// Takes a peer out of a task; the last one to go takes the task with it.
    pub(super) fn remove_entry(&mut self, now: Duration, at: u32, peer: u32) {
        self.end_leases(at, peer, true);
        self.lose_all(at, peer);
        self.stop_wanting(at, peer);
        self.unlink_all(now, at, peer);
        let Some(place) = self.members.get_mut(peer).and_then(|member| member.tasks.remove(&at)) else { return };
        let Some(task) = self.task(at) else { return };
        let gone = task.entries.swap_remove(place as usize);
        if gone.queued {
            task.waiting.retain(|&waiting| waiting != peer);
        }
        let moved = task.entries.get(place as usize).map(|entry| entry.peer);
        let empty = task.entries.is_empty();
        self.discharge(peer, gone.charged);
        if let Some(member) = moved.and_then(|moved| self.members.get_mut(moved)) {
            member.tasks.insert(at, place);
        }
        if empty && let Some(task) = self.tasks.get_mut(at as usize).and_then(Option::take) {
            self.digest_bytes -= task.digests.bytes();
            self.forget_reports(task.digests.reporters());
            self.by_name.remove(&task.id);
            self.fresh.remove(&at);
            self.free_tasks.push(at);
        }
    }
}
