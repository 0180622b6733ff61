//! The tasks of a store in memory: who is there, what it costs, who goes when room is needed.

use std::{
    collections::{HashMap, VecDeque},
    ops::Range,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{
    Options, StoreError, TaskInfo, TaskMeta, Usage, Verdict, clock,
    evict::{self, Candidate},
    held::{Held, Links, State},
    layout,
    paths::Paths,
};
use crate::task::{Proof, TaskId};

/// Idle tasks whose files stay open, so that the next request for them opens nothing.
const KEEP_OPEN: usize = 128;
/// Background eviction starts above this part of the quota...
const HIGH_WATER_PERCENT: u64 = 95;
/// ...and ends below this one.
const LOW_WATER_PERCENT: u64 = 90;
/// 4 MiB: what the piece tables of new tasks may take beyond the quota. Nothing has been received for them yet, so nothing
/// that was received is evicted for them; background eviction, or the first bytes, bring the store below the quota again.
pub(super) const NEW_TABLES: u64 = 4 << 20;

/// All tasks of a store, behind one lock that is never held over data I/O.
pub(super) struct Shelf {
    paths: Paths,
    options: Mutex<Options>,
    inner: Mutex<Inner>,
    next_generation: AtomicU64,
    clock: AtomicU64,
    removed: OnceLock<Box<dyn Fn(TaskId) + Send + Sync>>,
}

#[derive(Default)]
struct Inner {
    entries: HashMap<TaskId, Entry>,
    recent: VecDeque<Arc<Held>>,
    reserved: u64,
    evictions: u64,
}

/// One task.
pub(super) struct Entry {
    pub(super) meta: TaskMeta,
    pub(super) state: Arc<State>,
    pub(super) held: Weak<Held>,
}

/// A task that was removed, for the index to forget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gone {
    pub(super) id: TaskId,
    pub(super) generation: u64,
}

/// Room in the quota for a task that is being made. Dropped before [`Shelf::insert`], it is given back with the files.
pub(super) struct Reservation {
    shelf: Arc<Shelf>,
    id: TaskId,
    bytes: u64,
    generation: u64,
    kept: bool,
}

impl Shelf {
    /// A shelf with what recovery found. `generations` start above all that were ever used.
    pub(super) fn new(paths: Paths, options: Options, entries: Vec<Entry>, generations: u64) -> Self {
        let reserved = entries.iter().map(Entry::cost).sum();
        let newest = entries.iter().map(|entry| entry.state.last_used.load(Ordering::Relaxed)).max().unwrap_or(0);
        let entries = entries.into_iter().map(|entry| (entry.meta.id, entry)).collect();
        Self {
            paths,
            options: Mutex::new(options),
            inner: Mutex::new(Inner { entries, reserved, ..Inner::default() }),
            next_generation: AtomicU64::new(generations),
            clock: AtomicU64::new(newest),
            removed: OnceLock::new(),
        }
    }

    /// Other bounds from now on. A store that is above them shrinks as idle tasks are evicted in the background.
    pub(super) fn set_options(&self, options: Options) {
        *self.options.lock().unwrap_or_else(PoisonError::into_inner) = options;
    }

    fn options(&self) -> Options {
        *self.options.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn paths(&self) -> &Paths {
        &self.paths
    }

    /// The task, opened if it wasn't, and marked as used. A task whose files are not its own is reported as gone.
    pub(super) fn get(&self, id: &TaskId, links: &Links) -> Result<Option<Arc<Held>>, Gone> {
        let (meta, state) = {
            let mut inner = self.lock();
            let Some(entry) = inner.entries.get(id) else { return Ok(None) };
            entry.state.touch(self.tick());
            if let Some(held) = entry.held.upgrade() {
                inner.keep_open(&held);
                return Ok(Some(held));
            }
            (entry.meta.clone(), Arc::clone(&entry.state))
        };
        let opened = Held::open(&meta, &state, links, &self.paths.data(id), &self.paths.table(id));
        match opened {
            Ok(Some(held)) => Ok(self.install(&held)),
            Ok(None) => Err(Gone { id: *id, generation: state.generation }),
            Err(error) => {
                tracing::warn!(task = %id, %error, "a stored task cannot be opened");
                Ok(None)
            }
        }
    }

    /// The task that holds these bytes of a xorb, and was found right. Looks at every task: for requests that would go to the
    /// origin otherwise.
    pub(super) fn covering(&self, xorb: &[u8; 32], bytes: &Range<u64>) -> Option<TaskId> {
        let covers = |entry: &&Entry| match entry.meta.proof {
            Some(Proof::Xorb(claim)) if claim.hash == *xorb => {
                let end = claim.first.saturating_add(entry.meta.layout.len());
                claim.first <= bytes.start && bytes.end <= end && entry.state.verified.load(Ordering::Acquire)
            }
            _ => false,
        };
        self.lock().entries.values().find(covers).map(|entry| entry.meta.id)
    }

    /// Makes room for a task's piece table in the quota. What its length claims is only looked at: a task that could not become
    /// complete even if every idle one went is refused, and none goes before bytes are there (see [`Self::grow`]). The exception
    /// are tasks that hold nothing either.
    pub(super) fn reserve(self: &Arc<Self>, meta: &TaskMeta) -> Result<(Reservation, Vec<Gone>), StoreError> {
        let (whole, need) = (layout::cost(meta.layout), layout::table_cost(meta.layout));
        let mut inner = self.lock();
        let quota = self.options().quota;
        let beyond = |bytes: u64, quota: u64| inner.reserved.saturating_add(bytes).saturating_sub(quota);
        let candidates = inner.candidates();
        if evict::victims(&candidates, beyond(whole, quota)).is_none() {
            return Err(StoreError::NoSpace { need: whole });
        }
        let empty: Vec<_> = candidates.into_iter().filter(|candidate| candidate.empty).collect();
        let idle = empty.iter().filter(|candidate| candidate.may_go()).map(|candidate| candidate.bytes).sum();
        if beyond(need, quota.saturating_add(NEW_TABLES)) > idle {
            return Err(StoreError::NoSpace { need });
        }
        let victims = evict::victims(&empty, beyond(need, quota).min(idle)).unwrap_or_default();
        let gone = self.drop_victims(&mut inner, &victims);
        inner.reserved += need;
        let generation = self.next_generation.fetch_add(1, Ordering::Relaxed);
        let shelf = Arc::clone(self);
        Ok((Reservation { shelf, id: meta.id, bytes: need, generation, kept: false }, gone))
    }

    /// Makes room in the quota for `need` more bytes of a task, which have arrived; with `evict` in place of idle tasks. A task that
    /// has left the store needs none: its blocks go with its files.
    pub(super) fn grow(&self, id: &TaskId, state: &State, need: u64, evict: bool) -> Result<Vec<Gone>, StoreError> {
        let mut inner = self.lock();
        let ours = |entry: &Entry| entry.state.generation == state.generation;
        if !inner.entries.get(id).is_some_and(ours) {
            return Ok(Vec::new());
        }
        let excess = inner.reserved.saturating_add(need).saturating_sub(self.options().quota);
        let victims = match (excess, evict) {
            (0, _) => Vec::new(),
            (_, false) => return Err(StoreError::NoSpace { need }),
            (_, true) => {
                let mut candidates = inner.candidates();
                candidates.retain(|candidate| candidate.key != *id);
                evict::victims(&candidates, excess).ok_or(StoreError::NoSpace { need })?
            }
        };
        let gone = self.drop_victims(&mut inner, &victims);
        inner.reserved += need;
        state.room.fetch_add(need, Ordering::Relaxed);
        Ok(gone)
    }

    /// The task that the reservation was for is there.
    pub(super) fn insert(&self, mut reservation: Reservation, held: &Arc<Held>) {
        let entry = Entry { meta: held.meta.clone(), state: Arc::clone(held.state()), held: Arc::downgrade(held) };
        let mut inner = self.lock();
        entry.state.touch(self.tick());
        inner.entries.insert(reservation.id, entry);
        inner.account(held);
        inner.keep_open(held);
        reservation.kept = true;
        drop(inner);
        held.install();
    }

    /// Evicts idle tasks worth at least `bytes`, oldest use first; `None` and no eviction if there are not that many.
    pub(super) fn evict(&self, bytes: u64) -> Option<Vec<Gone>> {
        let mut inner = self.lock();
        let victims = evict::victims(&inner.candidates(), bytes)?;
        Some(self.drop_victims(&mut inner, &victims))
    }

    /// Evicts idle tasks worth `bytes`, or all of them.
    pub(super) fn trim(&self, bytes: u64) -> Vec<Gone> {
        let mut inner = self.lock();
        let candidates = inner.candidates();
        let idle = candidates.iter().filter(|candidate| candidate.may_go()).map(|candidate| candidate.bytes).sum();
        let victims = evict::victims(&candidates, bytes.min(idle)).unwrap_or_default();
        self.drop_victims(&mut inner, &victims)
    }

    /// Drops idle tasks that were to be kept until before `now_unix`, unless they are pinned.
    pub(super) fn expire(&self, now_unix: u64) -> Vec<Gone> {
        let mut inner = self.lock();
        let over = |entry: &Entry| entry.meta.keeping.until_unix.is_some_and(|until| until < now_unix);
        let due = |(_, entry): &(&TaskId, &Entry)| {
            over(entry) && !entry.state.pinned.load(Ordering::Relaxed) && !inner.in_use(entry)
        };
        let due: Vec<TaskId> = inner.entries.iter().filter(due).map(|(id, _)| *id).collect();
        self.drop_victims(&mut inner, &due)
    }

    /// How much must go to be below the marks again, if the store is above one.
    pub(super) fn excess(&self) -> Option<u64> {
        let Options { quota, keep_free } = self.options();
        let reserved = self.lock().reserved;
        let over_quota = match reserved > quota / 100 * HIGH_WATER_PERCENT {
            true => reserved.saturating_sub(quota / 100 * LOW_WATER_PERCENT),
            false => 0,
        };
        let over_disk = keep_free.saturating_sub(free_bytes(self.paths.dir()).unwrap_or(u64::MAX));
        Some(over_quota.max(over_disk)).filter(|&excess| excess > 0)
    }

    /// Removes a task, if it is (still) there and of this generation, where one is given.
    pub(super) fn remove(&self, id: &TaskId, generation: Option<u64>) -> Option<Gone> {
        let mut inner = self.lock();
        let entry = inner.entries.get(id)?;
        if generation.is_some_and(|generation| generation != entry.state.generation) {
            return None;
        }
        self.drop_entry(&mut inner, id)
    }

    pub(super) fn list(&self) -> Vec<TaskInfo> {
        let inner = self.lock();
        let mut all: Vec<_> = inner.entries.values().map(|entry| entry.info(inner.in_use(entry))).collect();
        drop(inner);
        all.sort_by_key(|info| std::cmp::Reverse(info.last_used_ms));
        all
    }

    pub(super) fn usage(&self) -> Usage {
        let inner = self.lock();
        Usage {
            quota: self.options().quota,
            reserved: inner.reserved,
            held: inner.entries.values().map(|entry| entry.state.held_bytes.load(Ordering::Relaxed)).sum(),
            tasks: inner.entries.len(),
            evictions: inner.evictions,
        }
    }

    /// Last uses and held bytes that the index does not know yet.
    pub(super) fn changed_uses(&self) -> Vec<(TaskId, u64, u64)> {
        let inner = self.lock();
        let changed = inner.entries.iter().filter(|(_, entry)| entry.state.use_changed.swap(false, Ordering::Relaxed));
        changed
            .map(|(id, entry)| {
                let state = &entry.state;
                (*id, state.last_used.load(Ordering::Relaxed), state.held_bytes.load(Ordering::Relaxed))
            })
            .collect()
    }

    /// Every task's id and state.
    pub(super) fn states(&self) -> Vec<(TaskId, Arc<State>)> {
        self.lock().entries.iter().map(|(id, entry)| (*id, Arc::clone(&entry.state))).collect()
    }

    /// Has `hook` called for every task that leaves from now on, under the lock: whoever makes the task anew comes later.
    pub(super) fn on_removed(&self, hook: Box<dyn Fn(TaskId) + Send + Sync>) -> bool {
        self.removed.set(hook).is_ok()
    }

    /// Every task with what is known of it, whether it is open or not; uses are not touched.
    pub(super) fn snapshot(&self) -> Vec<(TaskMeta, Arc<State>, Option<Arc<Held>>)> {
        let inner = self.lock();
        let all = inner.entries.values();
        all.map(|entry| (entry.meta.clone(), Arc::clone(&entry.state), entry.held.upgrade())).collect()
    }

    /// As [`Self::snapshot`], of one task.
    pub(super) fn peek(&self, id: &TaskId) -> Option<(TaskMeta, Arc<State>, Option<Arc<Held>>)> {
        let inner = self.lock();
        let entry = inner.entries.get(id)?;
        Some((entry.meta.clone(), Arc::clone(&entry.state), entry.held.upgrade()))
    }

    /// Lets go of idle open files.
    pub(super) fn close_idle(&self) {
        let recent = std::mem::take(&mut self.lock().recent);
        drop(recent);
    }

    /// Of two that opened the task at once the first stays; `None` if it was removed meanwhile.
    fn install(&self, held: &Arc<Held>) -> Option<Arc<Held>> {
        let mut inner = self.lock();
        let entry = inner.entries.get_mut(&held.meta.id)?;
        if entry.state.generation != held.state().generation {
            return None;
        }
        if let Some(first) = entry.held.upgrade() {
            return Some(first);
        }
        entry.held = Arc::downgrade(held);
        inner.account(held);
        inner.keep_open(held);
        held.install();
        Some(Arc::clone(held))
    }

    fn drop_victims(&self, inner: &mut Inner, victims: &[TaskId]) -> Vec<Gone> {
        inner.evictions += victims.len() as u64;
        victims.iter().filter_map(|id| self.drop_entry(inner, id)).collect()
    }

    fn drop_entry(&self, inner: &mut Inner, id: &TaskId) -> Option<Gone> {
        let entry = inner.entries.remove(id)?;
        inner.reserved -= entry.cost();
        inner.recent.retain(|held| held.meta.id != *id);
        entry.state.removed.store(true, Ordering::Release);
        self.paths.discard(id, entry.state.generation);
        if let Some(held) = entry.held.upgrade() {
            held.wake_removed();
        }
        if let Some(removed) = self.removed.get() {
            removed(*id);
        }
        Some(Gone { id: *id, generation: entry.state.generation })
    }

    /// Strictly later than all before, so that LRU order has no ties.
    fn tick(&self) -> u64 {
        let now = clock::now_ms();
        let advance = |last: u64| Some(now.max(last + 1));
        let last = self.clock.fetch_update(Ordering::Relaxed, Ordering::Relaxed, advance);
        last.map_or(now, |last| now.max(last + 1))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn candidates(&self) -> Vec<Candidate<TaskId>> {
        let candidate = |(id, entry): (&TaskId, &Entry)| Candidate {
            key: *id,
            bytes: entry.cost(),
            empty: entry.state.room.load(Ordering::Relaxed) == 0,
            priority: entry.meta.keeping.priority,
            last_used: entry.state.last_used.load(Ordering::Relaxed),
            in_use: self.in_use(entry),
            pinned: entry.state.pinned.load(Ordering::Relaxed),
        };
        self.entries.iter().map(candidate).collect()
    }

    /// Whether anybody but this shelf and the digest thread has the task: a guard, or just the `Held`.
    fn in_use(&self, entry: &Entry) -> bool {
        let holders = entry.held.strong_count();
        if entry.state.has_users() || holders == 0 {
            return holders > 0;
        }
        let ours = usize::from(self.recent.iter().any(|held| held.meta.id == entry.meta.id));
        let digesting = entry.state.digesting.load(Ordering::Acquire) as usize;
        holders > ours + digesting
    }

    /// What an open task is seen to hold takes room, whatever the index and the file system said at the start.
    fn account(&mut self, held: &Held) {
        let room = &held.state().room;
        let lacking = held.admitted().saturating_sub(room.load(Ordering::Relaxed));
        room.fetch_add(lacking, Ordering::Relaxed);
        self.reserved += lacking;
    }

    fn keep_open(&mut self, held: &Arc<Held>) {
        if let Some(at) = self.recent.iter().position(|recent| Arc::ptr_eq(recent, held)) {
            self.recent.remove(at);
        } else if self.recent.len() == KEEP_OPEN {
            self.recent.pop_front();
        }
        self.recent.push_back(Arc::clone(held));
    }
}

impl Entry {
    /// What the task takes from the quota, and its removal gives back. Changes only under the shelf's lock.
    fn cost(&self) -> u64 {
        layout::table_cost(self.meta.layout) + self.state.room.load(Ordering::Relaxed)
    }

    fn info(&self, in_use: bool) -> TaskInfo {
        let verified = self.state.verified.load(Ordering::Relaxed);
        let closed = match (self.meta.proof, verified) {
            (None, _) => Verdict::NotNeeded,
            (Some(_), true) => Verdict::Verified,
            (Some(_), false) => Verdict::Pending,
        };
        TaskInfo {
            id: self.meta.id,
            label: self.state.described.get().unwrap_or(&self.meta.about).label.clone(),
            len: self.meta.layout.len(),
            held: self.state.held_bytes.load(Ordering::Relaxed),
            verdict: self.held.upgrade().map_or(closed, |held| held.verdict()),
            in_use,
            pinned: self.state.pinned.load(Ordering::Relaxed),
            created_unix: self.meta.created_unix,
            last_used_ms: self.state.last_used.load(Ordering::Relaxed),
        }
    }
}

impl Reservation {
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        self.shelf.paths.discard(&self.id, self.generation);
        self.shelf.lock().reserved -= self.bytes;
        if let Err(error) = self.shelf.paths.empty_trash() {
            tracing::debug!(%error, "the trash waits for the next removal");
        }
    }
}

/// Bytes that the file system has left for us.
pub(super) fn free_bytes(dir: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(dir).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}
