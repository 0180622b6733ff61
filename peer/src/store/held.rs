//! One task as it lies in the store: what is there, what may be served, and how to add to it.

use std::{
    fs::File,
    io,
    ops::Range,
    path::Path,
    sync::{
        Arc, Mutex, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use crossbeam::channel::Sender;
use tokio::sync::{Notify, SetOnce, futures::Notified, oneshot};

use super::{
    About, StoreError, TaskMeta,
    backend::{Backend, Disk},
    clock, error,
    index::Op,
    layout,
    shelf::{Gone, Shelf},
    verify::DigestQueue,
};
use crate::{
    task::{Bitmap, TaskId},
    uring::Buf,
};

/// How long a commit waits for the task's index record to be durable.
const RECORD_DEADLINE: Duration = Duration::from_secs(30);
/// How long a write waits for the blocks of evicted tasks to be free.
const FREED_DEADLINE: Duration = Duration::from_secs(10);
/// Room is reserved ahead of a task's writes by this part of what it has received...
const AHEAD_PART: u64 = 2;
/// ...but at most 16 MiB in a step: a download that stops leaves no more than that unused in each place that it wrote to.
const AHEAD_MOST: u64 = 16 << 20;
/// 1 MiB: what is shorter the file system allocates with the write.
const AHEAD_LEAST: u64 = 1 << 20;
/// How often a waiter offers the task to the digest thread again, in case its queue was full.
const NUDGE_EVERY: Duration = Duration::from_secs(1);

/// A piece that is held, and the BLAKE3 of its bytes.
pub type Slot = (u32, [u8; 32]);

/// What the check of the whole says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Verdict {
    /// The task's name carries no hash that could be checked.
    NotNeeded,
    /// Not all is there, or not all is checked yet.
    Pending,
    /// The bytes are those that the name promises, as far as that can be told: see [`crate::task::xorb`].
    Verified,
    /// They are not: cut the reply, remove the task, blame who sent it.
    Mismatch,
    /// The disk did not give the bytes back: cut the reply, remove the task, blame the disk.
    Unreadable,
}

/// What outlives an open task: shared by its map entry and whoever has it open.
pub(super) struct State {
    pub(super) generation: u64,
    /// Every slot on disk is known good.
    pub(super) trusted: AtomicBool,
    /// Data or slots were written that `close` has to sync.
    pub(super) dirty: AtomicBool,
    /// The whole was found right.
    pub(super) verified: AtomicBool,
    pub(super) held_bytes: AtomicU64,
    /// Bytes of data that the quota has room for, in whole blocks; what is held of the task never takes more. Changed only under
    /// the shelf's lock.
    pub(super) room: AtomicU64,
    /// Unix milliseconds, strictly increasing over the store's gets.
    pub(super) last_used: AtomicU64,
    /// `last_used` or `held_bytes` are newer than the index has them.
    pub(super) use_changed: AtomicBool,
    pub(super) removed: AtomicBool,
    /// What its origin said of it after the task was made without that.
    pub(super) described: OnceLock<About>,
    /// Never evicted.
    pub(super) pinned: AtomicBool,
    /// Commits under way.
    pub(super) committing: AtomicU32,
    /// The digest thread has the task open.
    pub(super) digesting: AtomicU32,
    users: AtomicU32,
    recorded: SetOnce<bool>,
}

impl State {
    /// A new task, nothing in it.
    pub(super) fn fresh(generation: u64) -> Self {
        Self {
            generation,
            trusted: AtomicBool::new(true),
            dirty: AtomicBool::new(true),
            verified: AtomicBool::new(false),
            held_bytes: AtomicU64::new(0),
            room: AtomicU64::new(0),
            last_used: AtomicU64::new(0),
            use_changed: AtomicBool::new(true),
            removed: AtomicBool::new(false),
            described: OnceLock::new(),
            pinned: AtomicBool::new(false),
            committing: AtomicU32::new(0),
            digesting: AtomicU32::new(0),
            users: AtomicU32::new(0),
            recorded: SetOnce::new(),
        }
    }

    /// A task as the index has it.
    pub(super) fn loaded(generation: u64, trusted: bool, verified: bool, last_used: u64, held_bytes: u64) -> Self {
        Self {
            trusted: AtomicBool::new(trusted),
            dirty: AtomicBool::new(false),
            verified: AtomicBool::new(verified),
            last_used: AtomicU64::new(last_used),
            held_bytes: AtomicU64::new(held_bytes),
            use_changed: AtomicBool::new(false),
            recorded: SetOnce::new_with(Some(true)),
            ..Self::fresh(generation)
        }
    }

    pub(super) fn set_recorded(&self, durable: bool) {
        // A second answer can't come: a task is put once.
        let _ = self.recorded.set(durable);
    }

    pub(super) fn has_users(&self) -> bool {
        self.users.load(Ordering::Acquire) > 0
    }

    pub(super) fn touch(&self, now: u64) {
        self.last_used.fetch_max(now, Ordering::Relaxed);
        self.use_changed.store(true, Ordering::Relaxed);
    }
}

/// What an open task needs of its store.
#[derive(Clone)]
pub(super) struct Links {
    pub(super) disk: Disk,
    pub(super) ops: Sender<Op>,
    pub(super) digests: Arc<DigestQueue>,
    pub(super) closing: Arc<AtomicBool>,
    pub(super) found: Arc<OnceLock<Found>>,
    /// Gone once the store is: a task that is still written to needs no room then.
    pub(super) shelf: Weak<Shelf>,
}

impl Links {
    /// Evicts idle tasks worth `need` bytes on a disk that is full, and waits until their blocks are free.
    pub(super) async fn free_disk(&self, need: u64) -> Result<(), StoreError> {
        let gone = self.shelf.upgrade().and_then(|shelf| shelf.evict(need.max(1)));
        if let Some(freed) = self.forget(&gone.ok_or(StoreError::NoSpace { need })?) {
            // Late or lost: the caller's next try evicts more, or finds that there is no room.
            let _ = tokio::time::timeout(FREED_DEADLINE, freed).await;
        }
        Ok(())
    }

    /// Has the index forget tasks that left the shelf; says when their blocks are free.
    pub(super) fn forget(&self, gone: &[Gone]) -> Option<oneshot::Receiver<()>> {
        let (last, others) = gone.split_last()?;
        for &Gone { id, generation } in others {
            // A lost one is a record without files, which the next start drops.
            drop(self.ops.try_send(Op::Remove { id, generation, freed: None }));
        }
        let (freed, is_freed) = oneshot::channel();
        let op = Op::Remove { id: last.id, generation: last.generation, freed: Some(freed) };
        drop(self.ops.try_send(op));
        Some(is_freed)
    }
}

/// Hears of a piece that an unclean stop left and that is good after all: its task, the task's bytes, and the piece.
pub(super) type Found = Box<dyn Fn(TaskId, u64, u32) + Send + Sync>;

/// One open task, shared by all shards.
///
/// Its pieces only ever become more. To wait for something without missing it, take [`Self::changed`] *before* looking:
///
/// ```ignore
/// loop {
///     let changed = held.changed();
///     if held.valid_end(at) > at { break }
///     changed.await;
/// }
/// ```
pub struct Held {
    /// What the task is.
    pub meta: TaskMeta,
    bitmap: Bitmap,
    /// Bytes of each piece, from its start, that may be served before the piece is complete.
    valid: Box<[AtomicU32]>,
    /// Bytes of each piece, from its start, that have room in the quota.
    admitted: Box<[AtomicU32]>,
    /// The sum of `admitted`; held while it grows.
    admission: Mutex<u64>,
    data: Arc<File>,
    table: Arc<File>,
    state: Arc<State>,
    links: Links,
    verdict: AtomicU8,
    /// Slots found at an unclean start whose pieces are not hashed yet.
    unchecked: Mutex<Vec<(u32, [u8; 32])>>,
    checked: AtomicBool,
    /// The digest thread has the task, or has it in its queue.
    pub(super) queued: AtomicBool,
    changed: Notify,
    /// Like `changed`, but not for advances: the digest thread need not wake for them.
    counted: Notify,
    this: Weak<Held>,
}

/// The task's files, and which slots its table has.
pub(super) struct Files {
    pub(super) data: Arc<File>,
    pub(super) table: Arc<File>,
    pub(super) slots: Vec<(u32, [u8; 32])>,
}

/// While it lives, the task is not evicted.
#[derive(Debug)]
pub struct User {
    held: Arc<Held>,
}

impl User {
    /// The task.
    pub fn held(&self) -> &Arc<Held> {
        &self.held
    }
}

impl Drop for User {
    fn drop(&mut self) {
        self.held.state.touch(clock::now_ms());
        self.held.state.users.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Held {
    /// Which pieces are there: verified by whoever committed them, and on this disk.
    pub fn bitmap(&self) -> &Bitmap {
        &self.bitmap
    }

    /// Bytes in pieces that count.
    pub fn held_bytes(&self) -> u64 {
        self.state.held_bytes.load(Ordering::Relaxed)
    }

    /// The data file: byte `n` of the task is byte `n` of the file. Read only what [`Self::valid_end`] allows.
    pub fn file(&self) -> &Arc<File> {
        &self.data
    }

    /// Keeps the task from eviction.
    pub fn user(self: &Arc<Self>) -> User {
        self.state.users.fetch_add(1, Ordering::AcqRel);
        User { held: Arc::clone(self) }
    }

    /// Writes `buf[..n]` at byte `at` of a piece, and nothing more: the piece does not count for it.
    ///
    /// What is held or may be served already is left as it is: a peer's bytes, which are proven only with the whole
    /// piece, never take the place of bytes that a client may be reading. Dropping the future is safe, but the write may
    /// land later.
    pub async fn write(&self, piece: u32, at: u32, buf: Buf, n: usize) -> (Result<(), StoreError>, Buf) {
        let offset = match self.place(piece, at, n as u64) {
            Ok(offset) => offset,
            Err(error) => return (Err(error), buf),
        };
        let valid = self.valid[piece as usize].load(Ordering::Acquire);
        let there = (valid.saturating_sub(at) as usize).min(n);
        if self.bitmap.get(piece) || there == n {
            return (Ok(()), buf);
        }
        if let Err(error) = self.admit(piece, at.saturating_add(u32::try_from(n).unwrap_or(u32::MAX))).await {
            return (Err(error), buf);
        }
        let mut buf = buf;
        loop {
            let (result, back) = self.links.disk.write(&self.data, buf, there..n, offset + there as u64).await;
            buf = back;
            match result {
                // Bytes that are here pay for the room that they need. Each round costs an idle task, so it ends.
                Err(error) if error::is_full(&error) => {
                    if let Err(error) = self.links.free_disk(n as u64).await {
                        return (Err(error), buf);
                    }
                }
                result => return (result.map_err(|error| self.write_error(error, n as u64)), buf),
            }
        }
    }

    /// The first `valid` bytes of a piece may be served before the piece is complete: their source needs no more proof than
    /// its TLS. Call it after their write has completed, for they are served from the file. It never goes back.
    pub fn advance(&self, piece: u32, valid: u32) {
        let Some(mark) = self.valid.get(piece as usize) else { return };
        let bytes = self.meta.layout.bytes_of(piece);
        let most = u32::try_from(bytes.end - bytes.start).expect("a piece is at most 16 MiB");
        if mark.fetch_max(valid.min(most), Ordering::AcqRel) < valid {
            self.changed.notify_waiters();
        }
    }

    /// The piece's data is written and hashes to `digest`: it counts from now, and survives a kill of the process.
    ///
    /// Waits until the task's index record is durable, which it nearly always is by then.
    pub async fn commit(&self, piece: u32, digest: blake3::Hash) -> Result<(), StoreError> {
        self.place(piece, 0, 0)?;
        if self.bitmap.get(piece) {
            return Ok(());
        }
        let _busy = Committing::begin(self)?;
        self.state.dirty.store(true, Ordering::Release);
        self.write_slot(piece, layout::encode_slot(&self.meta.id, piece, digest.as_bytes())).await?;
        match tokio::time::timeout(RECORD_DEADLINE, self.state.recorded.wait()).await {
            Ok(true) => {}
            Ok(false) | Err(_) => return Err(StoreError::Unrecorded),
        }
        self.count(piece);
        self.nudge();
        Ok(())
    }

    /// The end of the run of bytes that starts at `offset` and may be served; `offset` itself if there are none.
    pub fn valid_end(&self, offset: u64) -> u64 {
        let whole = self.meta.layout;
        if self.bitmap.is_full() || offset >= whole.len() {
            return whole.len().max(offset);
        }
        let mut end = offset;
        for piece in whole.piece_at(offset)..whole.pieces() {
            let bytes = whole.bytes_of(piece);
            let valid = match self.bitmap.get(piece) {
                true => bytes.end,
                false => bytes.start + u64::from(self.valid[piece as usize].load(Ordering::Acquire)),
            };
            end = end.max(valid);
            if valid < bytes.end {
                break;
            }
        }
        end
    }

    /// Resolves at the next advance, commit, verdict or removal *after this call*, even before it is awaited.
    pub fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// Waits until bytes from `offset` may be served, and gives their end; `offset` itself if the verdict changed or the
    /// task was removed meanwhile. The caller sets the deadline.
    pub async fn wait_valid(&self, offset: u64) -> u64 {
        let before = self.verdict();
        loop {
            let changed = self.changed();
            let end = self.valid_end(offset);
            if end > offset || self.verdict() != before || self.is_removed() {
                return end;
            }
            self.wait_nudging(changed).await;
        }
    }

    /// What is known of the whole.
    pub fn verdict(&self) -> Verdict {
        match self.verdict.load(Ordering::Acquire) {
            0 => Verdict::NotNeeded,
            2 => Verdict::Verified,
            3 => Verdict::Mismatch,
            4 => Verdict::Unreadable,
            _ => Verdict::Pending,
        }
    }

    /// Sets the verdict; [`Verdict::Verified`] is remembered over restarts.
    pub fn set_verdict(&self, verdict: Verdict) {
        self.verdict.store(verdict as u8, Ordering::Release);
        let verified = verdict == Verdict::Verified;
        if self.state.verified.swap(verified, Ordering::AcqRel) != verified {
            let op = Op::Verified { id: self.meta.id, generation: self.state.generation, verified };
            // Only advisory: if it gets lost, the whole is hashed once more.
            drop(self.links.ops.try_send(op));
        }
        self.wake_all();
    }

    /// What the origin says of it.
    pub fn about(&self) -> &About {
        self.state.described.get().unwrap_or(&self.meta.about)
    }

    /// Notes what the origin says of a task that was made without that; a task that has it keeps it. Remembered over restarts.
    pub fn describe(&self, about: About) {
        if self.about().is_told() || !about.is_told() || self.state.described.set(about).is_err() {
            return;
        }
        let (id, generation, about) = (self.meta.id, self.state.generation, self.about().clone());
        // Only advisory: if it gets lost, the next client's request brings it again.
        drop(self.links.ops.try_send(Op::Described { id, generation, about: Box::new(about) }));
    }

    /// Waits until the verdict is no longer pending, or the task was removed. The caller sets the deadline.
    pub async fn settled(&self) -> Verdict {
        loop {
            let changed = self.changed();
            if self.verdict() != Verdict::Pending || self.is_removed() {
                return self.verdict();
            }
            self.wait_nudging(changed).await;
        }
    }

    /// Waits until all that an unclean stop left behind is checked: what [`Self::bitmap`] lacks then is really not there.
    /// Call it before fetching. Immediate after a clean stop. The caller sets the deadline.
    pub async fn checked(&self) {
        loop {
            let changed = self.changed();
            if self.is_checked() || self.is_removed() {
                return;
            }
            self.wait_nudging(changed).await;
        }
    }

    /// Resolves at the next commit, verdict or removal *after this call*: like [`Self::changed`], but not for advances.
    pub fn counted(&self) -> Notified<'_> {
        self.counted.notified()
    }

    /// BLAKE3 of the pieces that are held, from the piece table, in rising order. Blocks: one read of the whole table.
    pub fn digests(&self) -> io::Result<Vec<Slot>> {
        let slots = read_slots(&self.meta, &self.table)?.unwrap_or_default();
        Ok(slots.into_iter().filter(|(piece, _)| self.bitmap.get(*piece)).collect())
    }

    /// Whether the task was removed or evicted; its bytes stay readable here.
    pub fn is_removed(&self) -> bool {
        self.state.removed.load(Ordering::Acquire)
    }
}

/// For the rest of the store.
impl Held {
    /// Opens the task's files. `None` if they are not those of this task.
    pub(super) fn open(
        meta: &TaskMeta,
        state: &Arc<State>,
        links: &Links,
        data: &Path,
        table: &Path,
    ) -> Result<Option<Arc<Self>>, StoreError> {
        let Some(files) = open_files(meta, data, table).map_err(StoreError::disk("open a task"))? else {
            return Ok(None);
        };
        Ok(Some(Self::new(meta.clone(), Arc::clone(state), links.clone(), files)))
    }

    /// A task over its open files.
    pub(super) fn new(meta: TaskMeta, state: Arc<State>, links: Links, files: Files) -> Arc<Self> {
        let pieces = meta.layout.pieces();
        let trusted = state.trusted.load(Ordering::Acquire);
        let complete = files.slots.len() == pieces as usize;
        let none = || (0..pieces).map(|_| AtomicU32::new(0)).collect();
        let held = Arc::new_cyclic(|this| Self {
            bitmap: Bitmap::new(pieces),
            valid: none(),
            admitted: none(),
            admission: Mutex::default(),
            data: files.data,
            table: files.table,
            verdict: AtomicU8::new(initial_verdict(&meta, &state, complete) as u8),
            unchecked: Mutex::default(),
            checked: AtomicBool::new(trusted),
            queued: AtomicBool::new(false),
            changed: Notify::new(),
            counted: Notify::new(),
            this: Weak::clone(this),
            meta,
            state,
            links,
        });
        // Checked or not, they take their room.
        for (piece, _) in &files.slots {
            held.mark_admitted(held.meta.layout.bytes_of(*piece));
        }
        let found = files.slots.iter().map(|(piece, _)| held.meta.layout.bytes_of(*piece));
        *held.admission.lock().unwrap_or_else(PoisonError::into_inner) =
            found.map(|bytes| bytes.end - bytes.start).sum();
        if trusted {
            for (piece, _) in files.slots {
                held.bitmap.set(piece);
            }
        } else {
            *held.unchecked.lock().unwrap_or_else(PoisonError::into_inner) = files.slots;
        }
        held
    }

    /// This is the one `Held` of its task now: what it found corrects what the index believed.
    pub(super) fn install(&self) {
        let whole = self.meta.layout;
        let held = (0..whole.pieces()).filter(|&piece| self.bitmap.get(piece)).map(|piece| whole.bytes_of(piece));
        self.state.held_bytes.store(held.map(|bytes| bytes.end - bytes.start).sum(), Ordering::Release);
        if self.verdict() == Verdict::Pending {
            self.set_verdict(Verdict::Pending);
        }
        self.nudge();
    }

    /// Bytes of the task that need room in the quota, in whole blocks.
    pub(super) fn admitted(&self) -> u64 {
        layout::in_blocks(*self.admission.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn state(&self) -> &Arc<State> {
        &self.state
    }

    pub(super) fn is_checked(&self) -> bool {
        self.checked.load(Ordering::Acquire)
    }

    /// The slots that wait for their check.
    pub(super) fn take_unchecked(&self) -> Vec<(u32, [u8; 32])> {
        std::mem::take(&mut *self.unchecked.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// All slots are checked; `trusted` if the bad ones could be erased.
    pub(super) fn set_checked(&self, trusted: bool) {
        // Found good in the page cache of a process that died: still to be synced.
        self.state.dirty.store(true, Ordering::Release);
        self.state.trusted.store(trusted, Ordering::Release);
        self.checked.store(true, Ordering::Release);
        self.wake_all();
    }

    /// Counts a piece as held and wakes who waits.
    pub(super) fn count(&self, piece: u32) {
        if self.bitmap.set(piece) {
            let bytes = self.meta.layout.bytes_of(piece);
            self.state.held_bytes.fetch_add(bytes.end - bytes.start, Ordering::AcqRel);
            self.state.use_changed.store(true, Ordering::Relaxed);
            self.wake_all();
        }
    }

    /// Counts a piece that an unclean stop left.
    pub(super) fn count_found(&self, piece: u32) {
        self.count(piece);
        if let Some(found) = self.links.found.get() {
            found(self.meta.id, self.meta.layout.len(), piece);
        }
    }

    /// Makes a slot say that the piece is not there.
    pub(super) async fn erase_slot(&self, piece: u32) -> Result<(), StoreError> {
        self.state.dirty.store(true, Ordering::Release);
        self.write_slot(piece, [0; layout::SLOT_LEN]).await
    }

    pub(super) async fn read(&self, buf: Buf, span: Range<usize>, offset: u64) -> (io::Result<usize>, Buf) {
        self.links.disk.read(&self.data, buf, span, offset).await
    }

    /// Whether the digest thread has something to do here.
    pub(super) fn needs_digest(&self) -> bool {
        (!self.is_checked() || self.verdict() == Verdict::Pending) && !self.is_removed()
    }

    /// Offers the task to the digest thread, unless it has it.
    pub(super) fn nudge(&self) {
        if self.needs_digest() && !self.queued.swap(true, Ordering::AcqRel) && !self.links.digests.push(&self.this) {
            self.queued.store(false, Ordering::Release);
        }
    }

    /// The task left the store.
    pub(super) fn wake_removed(&self) {
        self.wake_all();
    }

    /// The end of the run of whole pieces that are held and cover the bytes from `offset`.
    pub(super) fn counted_end(&self, offset: u64) -> u64 {
        let whole = self.meta.layout;
        let first = whole.piece_at(offset);
        let missing = (first..whole.pieces()).find(|&piece| !self.bitmap.get(piece));
        missing.map_or(whole.len(), |piece| whole.bytes_of(piece).start).max(offset)
    }

    /// A piece that was held is not there any more, so what is known of the whole is void.
    pub(super) fn distrust(&self) {
        if self.verdict() == Verdict::Verified {
            self.set_verdict(Verdict::Pending);
        }
    }

    fn wake_all(&self) {
        self.changed.notify_waiters();
        self.counted.notify_waiters();
    }

    async fn wait_nudging(&self, changed: Notified<'_>) {
        self.nudge();
        // A timeout only means another look.
        let _ = tokio::time::timeout(NUDGE_EVERY, changed).await;
    }

    async fn write_slot(&self, piece: u32, slot: [u8; layout::SLOT_LEN]) -> Result<(), StoreError> {
        let written = self.links.disk.write_small(&self.table, slot.to_vec(), layout::slot_offset(piece)).await;
        written.map_err(|error| self.write_error(error, layout::SLOT_LEN as u64))
    }

    /// Makes room for a piece up to `end`, in the quota and on the disk.
    ///
    /// Idle tasks are evicted for bytes that have arrived and for nothing else. What fits beside them is reserved ahead, in
    /// steps that grow with the task, so that a file has few extents and a fallocate(2) covers many writes.
    async fn admit(&self, piece: u32, end: u32) -> Result<(), StoreError> {
        let Some(shelf) = self.links.shelf.upgrade() else { return Ok(()) };
        let (bytes, gone) = {
            let mut sum = self.admission.lock().unwrap_or_else(PoisonError::into_inner);
            let have = self.admitted[piece as usize].load(Ordering::Acquire);
            if have >= end {
                return Ok(());
            }
            let ahead = (*sum / AHEAD_PART).min(AHEAD_MOST);
            let room = |len: u64| layout::in_blocks(*sum + len).saturating_sub(self.state.room.load(Ordering::Relaxed));
            let (least, most) = (u64::from(end - have), self.admissible(piece, have, u64::from(end - have) + ahead));
            let (len, gone) = match shelf.grow(&self.meta.id, &self.state, room(most), false) {
                Ok(gone) => (most, gone),
                Err(_) => (least, shelf.grow(&self.meta.id, &self.state, room(least), true)?),
            };
            *sum += len;
            let start = self.meta.layout.bytes_of(piece).start + u64::from(have);
            self.mark_admitted(start..start + len);
            ((start..start + len).clone(), gone)
        };
        drop(shelf);
        drop(self.links.forget(&gone));
        if bytes.end - bytes.start >= AHEAD_LEAST {
            // Only for the sake of speed: whether there is room on the disk the write tells.
            drop(self.links.disk.allocate(&self.data, bytes).await);
        }
        Ok(())
    }

    /// How many bytes from byte `have` of a piece on may be admitted in one go, `most` at most: those up to the next piece that
    /// has begun.
    fn admissible(&self, piece: u32, have: u32, most: u64) -> u64 {
        let whole = self.meta.layout;
        let begun = |next: &u32| self.admitted[*next as usize].load(Ordering::Acquire) > 0;
        let last = whole.piece_at((whole.bytes_of(piece).start + u64::from(have) + most).min(whole.len() - 1));
        let stop = (piece + 1..=last).find(begun).map_or(whole.len(), |next| whole.bytes_of(next).start);
        most.min(stop - whole.bytes_of(piece).start - u64::from(have))
    }

    fn mark_admitted(&self, bytes: Range<u64>) {
        for piece in self.meta.layout.covering(bytes.clone()) {
            let of_piece = self.meta.layout.bytes_of(piece);
            let end = u32::try_from(of_piece.end.min(bytes.end) - of_piece.start).expect("a piece is at most 16 MiB");
            self.admitted[piece as usize].store(end, Ordering::Release);
        }
    }

    /// Where byte `at` of the piece is in the file, if `n` bytes fit there.
    fn place(&self, piece: u32, at: u32, n: u64) -> Result<u64, StoreError> {
        let bytes = self.meta.layout.bytes_of(piece);
        let start = bytes.start + u64::from(at);
        if bytes.is_empty() || start.saturating_add(n) > bytes.end {
            let at = u64::from(at);
            return Err(StoreError::OutOfBounds { piece, at, end: at.saturating_add(n) });
        }
        Ok(start)
    }

    fn write_error(&self, source: io::Error, need: u64) -> StoreError {
        match error::is_full(&source) {
            true => StoreError::NoSpace { need },
            false => StoreError::Disk { what: "write a piece", source },
        }
    }
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (held, pieces) = (self.bitmap.count(), self.bitmap.len());
        write!(f, "Held({}, {held} of {pieces} pieces, {:?})", self.meta.id, self.verdict())
    }
}

/// A commit under way: `close` does not trust a task that has one.
struct Committing<'a>(&'a State);

impl<'a> Committing<'a> {
    fn begin(held: &'a Held) -> Result<Self, StoreError> {
        // Counted before looking: either `close` sees the count, or we see that it closes.
        held.state.committing.fetch_add(1, Ordering::SeqCst);
        let guard = Self(&held.state);
        match (held.links.closing.load(Ordering::SeqCst), held.is_removed()) {
            (true, _) => Err(StoreError::Closed),
            (_, true) => Err(StoreError::Removed),
            _ => Ok(guard),
        }
    }
}

impl Drop for Committing<'_> {
    fn drop(&mut self) {
        self.0.committing.fetch_sub(1, Ordering::SeqCst);
    }
}

fn initial_verdict(meta: &TaskMeta, state: &State, complete: bool) -> Verdict {
    match meta.proof {
        None => Verdict::NotNeeded,
        Some(_) if complete && state.verified.load(Ordering::Acquire) => Verdict::Verified,
        Some(_) => Verdict::Pending,
    }
}

fn open_files(meta: &TaskMeta, data: &Path, table: &Path) -> io::Result<Option<Files>> {
    let (Some(data), Some(table)) = (open_existing(data)?, open_existing(table)?) else { return Ok(None) };
    let complete = data.metadata()?.len() == meta.layout.len();
    let slots = read_slots(meta, &table)?.filter(|_| complete);
    Ok(slots.map(|slots| Files { data: Arc::new(data), table: Arc::new(table), slots }))
}

fn open_existing(path: &Path) -> io::Result<Option<File>> {
    match File::options().read(true).write(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}

/// The slots that a task's table has. `None` if it is another task's.
pub(super) fn read_slots(meta: &TaskMeta, table: &File) -> io::Result<Option<Vec<Slot>>> {
    use std::os::unix::fs::FileExt;
    // Not `metadata().len()`: the length comes from our own layout, whatever the file claims.
    let mut bytes = vec![0; usize::try_from(layout::table_len(meta.layout)).map_err(io::Error::other)?];
    let mut filled = 0;
    while filled < bytes.len() {
        match table.read_at(&mut bytes[filled..], filled as u64)? {
            0 => break,
            n => filled += n,
        }
    }
    bytes.truncate(filled);
    Ok(layout::decode_table(&meta.id, meta.layout, &bytes))
}
