//! Pieces on disk: layout, index, eviction, recovery. See DESIGN.md beside this file.

mod backend;
mod clock;
mod error;
pub mod evict;
mod held;
pub(crate) mod index;
mod inventory;
mod keeper;
pub mod layout;
mod paths;
mod recover;
mod shelf;
mod verify;

use std::{
    fs::File,
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

pub use error::StoreError;
pub use held::{Held, Slot, User, Verdict};
pub use index::IndexError;
pub use inventory::Holding;

use backend::{Backend, Disk};
use held::{Files, Links, State};
use index::{Op, Record};
use paths::Paths;
use shelf::{Gone, Reservation, Shelf};
use verify::DigestQueue;

use crate::task::{Layout, Proof, TaskId};

/// Tasks made at once; the same task always waits for itself.
const CREATING: usize = 64;
/// How long a new task waits for room in the index thread's queue, or for evicted blocks to be free.
const INDEX_DEADLINE: Duration = Duration::from_secs(10);
/// What an empty file needs of a full disk, in bytes: a block of its directory.
const FILE_NEED: u64 = 4096;
/// How often it looks.
const INDEX_RETRY: Duration = Duration::from_millis(5);
/// How long `close` waits for commits under way.
const COMMIT_GRACE: Duration = Duration::from_secs(2);

/// What a task is: fixed when it is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskMeta {
    /// Its name in the cluster.
    pub id: TaskId,
    /// Its length and pieces.
    pub layout: Layout,
    /// What the whole is checked against, if its name tells.
    pub proof: Option<Proof>,
    /// What the origin says of it.
    pub about: About,
    /// For how long it is of use.
    pub keeping: Keeping,
    /// When it was first asked for, in Unix seconds.
    pub created_unix: u64,
}

/// How a task is kept, as the rule for its URL said when it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keeping {
    /// Past this, in Unix seconds, it goes as soon as nobody uses it.
    pub until_unix: Option<u64>,
    /// What goes first when room is needed.
    pub priority: Priority,
}

/// What goes first when room is needed: all of a lower priority before any of a higher one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// Before the others.
    Low,
    /// What no rule says otherwise of.
    #[default]
    Normal,
    /// After the others.
    High,
}

/// Where the bytes of a task lie, in a store's directory: a file with each piece at its place.
pub fn data_file(dir: &Path, id: &TaskId) -> PathBuf {
    Paths::new(dir).data(id)
}

/// What an origin says of a task beside its bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// Host and path without query, for people.
    pub label: String,
    /// The origin's response headers, to replay.
    pub headers: Vec<(String, Vec<u8>)>,
    /// The origin's strong validator, with its quotes.
    pub etag: Option<String>,
}

impl About {
    /// Of a task that other nodes speak of: its origin has told this node nothing yet.
    pub fn untold(host: &str) -> Self {
        Self { label: format!("{host} (from other nodes)"), ..Self::default() }
    }

    /// Whether the origin was asked.
    pub fn is_told(&self) -> bool {
        !self.headers.is_empty() || self.etag.is_some()
    }
}

/// How large a store may become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Bytes that all tasks together may take: their piece tables from their creation, their data as it arrives.
    pub quota: u64,
    /// Bytes of the file system to leave to others; idle tasks are evicted in the background for it.
    pub keep_free: u64,
}

/// A task as listings show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskInfo {
    /// Its name in the cluster.
    pub id: TaskId,
    /// Host and path without query.
    pub label: String,
    /// Bytes in the task.
    pub len: u64,
    /// Bytes of it that are here; after an unclean stop as last known, until the task is used.
    pub held: u64,
    /// What is known of the whole.
    pub verdict: Verdict,
    /// Whether somebody reads or downloads it now.
    pub in_use: bool,
    /// Whether it is never evicted.
    pub pinned: bool,
    /// When it was first asked for, in Unix seconds.
    pub created_unix: u64,
    /// When it was last used, in Unix milliseconds.
    pub last_used_ms: u64,
}

/// How full a store is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Bytes allowed.
    pub quota: u64,
    /// Bytes that the tasks have room for so far, piece tables included.
    pub reserved: u64,
    /// Bytes of pieces that are here.
    pub held: u64,
    /// How many tasks.
    pub tasks: usize,
    /// Tasks evicted since the start.
    pub evictions: u64,
}

/// The store of one peer: shared by its shards.
pub struct Store {
    shelf: Arc<Shelf>,
    links: Links,
    creating: [tokio::sync::Mutex<()>; CREATING],
    threads: Mutex<Option<Threads>>,
}

struct Threads {
    digest: JoinHandle<()>,
    index: JoinHandle<()>,
}

impl Store {
    /// Opens the store in `dir`, or makes one. Blocks: reads the index and the directory, but no task's data.
    pub fn open(dir: &Path, options: Options) -> Result<Arc<Self>, StoreError> {
        Self::open_on(dir, options, Disk::Ring)
    }

    /// The task, and marks it as used. Opens its files if they are not: two open(2) and one read of the piece table.
    ///
    /// A task stays as long as somebody has its `Held` or a [`User`] of it.
    /// After an unclean stop its pieces appear as they are checked: see [`Held::checked`].
    pub fn get(&self, id: &TaskId) -> Option<Arc<Held>> {
        match self.shelf.get(id, &self.links) {
            Ok(held) => held,
            Err(gone) => {
                tracing::warn!(task = %id, "a stored task's files are not its own; dropped");
                let gone = self.shelf.remove(id, Some(gone.generation));
                self.forget(&gone.map_or_else(Vec::new, |gone| vec![gone]));
                None
            }
        }
    }

    /// A task that holds these bytes of a xorb, whole and checked.
    pub fn covering(&self, xorb: &[u8; 32], bytes: &Range<u64>) -> Option<Arc<Held>> {
        self.get(&self.shelf.covering(xorb, bytes)?)
    }

    /// Makes the task, or gives the one that is there (whatever its meta says: compare). Its length is only a claim so far: idle
    /// tasks are evicted as its bytes arrive.
    ///
    /// [`StoreError::NoSpace`] means that all that may go would not be enough. Runs on a shard; dropping the future is safe.
    pub async fn create(self: &Arc<Self>, meta: TaskMeta) -> Result<Arc<Held>, StoreError> {
        let _turn = self.creating[usize::from(meta.id.0[0]) % CREATING].lock().await;
        if let Some(held) = self.get(&meta.id) {
            return Ok(held);
        }
        if self.links.closing.load(Ordering::SeqCst) {
            return Err(StoreError::Closed);
        }
        let (reservation, gone) = self.shelf.reserve(&meta)?;
        let freed = self.forget(&gone);
        let files = self.make_files(&meta, freed).await?;
        self.install(meta, reservation, files).await
    }

    /// Removes a task. Whoever has it open reads on; its name is free at once. Whether it was there.
    pub fn remove(&self, id: &TaskId) -> bool {
        self.remove_of(id, None)
    }

    /// The same of just this one, not of a task that was made under its name since.
    pub fn remove_held(&self, held: &Held) -> bool {
        self.remove_of(&held.meta.id, Some(held.state().generation))
    }

    fn remove_of(&self, id: &TaskId, generation: Option<u64>) -> bool {
        let gone = self.shelf.remove(id, generation);
        self.forget(&gone.map_or_else(Vec::new, |gone| vec![gone]));
        gone.is_some()
    }

    /// Keeps a task from eviction whatever room is needed, or no longer, over restarts too. Whether there is such a task;
    /// [`StoreError::Unrecorded`] when the index cannot remember it, or has too much to do.
    pub async fn pin(&self, id: &TaskId, pinned: bool) -> Result<bool, StoreError> {
        let Some((_, state, _)) = self.shelf.peek(id) else { return Ok(false) };
        let (done, is_done) = oneshot::channel();
        let op = Op::Pinned { id: *id, generation: state.generation, pinned, done };
        self.links.ops.try_send(op).map_err(|_| StoreError::Unrecorded)?;
        let durable = tokio::time::timeout(INDEX_DEADLINE, is_done).await;
        if !matches!(durable, Ok(Ok(true))) {
            return Err(StoreError::Unrecorded);
        }
        state.pinned.store(pinned, Ordering::Relaxed);
        Ok(true)
    }

    /// All tasks, last used first.
    pub fn list(&self) -> Vec<TaskInfo> {
        self.shelf.list()
    }

    /// Other bounds from now on. A store that is above them shrinks in the background, by tasks that nobody uses.
    pub fn set_options(&self, options: Options) {
        self.shelf.set_options(options);
    }

    /// How full the store is.
    pub fn usage(&self) -> Usage {
        self.shelf.usage()
    }

    /// Syncs everything and leaves the mark that spares the next start its checks. Blocks; later commits fail.
    pub fn close(&self) {
        self.links.closing.store(true, Ordering::SeqCst);
        let Some(threads) = self.threads.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        self.links.digests.stop();
        join(threads.digest);
        self.shelf.close_idle();
        let ready = self.sync_tasks();
        // They wait for room: the queue's reader lives until `Stop`.
        for op in [Op::Used(self.shelf.changed_uses()), Op::Trust(ready), Op::Stop] {
            drop(self.links.ops.send(op));
        }
        join(threads.index);
    }

    fn open_on(dir: &Path, options: Options, disk: Disk) -> Result<Arc<Self>, StoreError> {
        let paths = Paths::new(dir);
        let recovered = recover::recover(&paths)?;
        let shelf = Arc::new(Shelf::new(paths, options, recovered.entries, recovered.generations));
        let (ops, queue) = keeper::queue();
        let digests = Arc::new(DigestQueue::new());
        let threads = Threads {
            digest: verify::start(Arc::clone(&digests)).map_err(StoreError::disk("start the digest thread"))?,
            index: keeper::start(recovered.index, Arc::clone(&shelf), queue, recovered.lock)
                .map_err(StoreError::disk("start the index thread"))?,
        };
        let (closing, found) = (Arc::default(), Arc::default());
        let links = Links { disk, ops, digests, closing, found, shelf: Arc::downgrade(&shelf) };
        let creating = std::array::from_fn(|_| tokio::sync::Mutex::new(()));
        Ok(Arc::new(Self { shelf, links, creating, threads: Mutex::new(Some(threads)) }))
    }

    /// Makes a task's files, with the blocks of its piece table. Idle tasks are evicted as long as the disk has no room for them: no
    /// blocks, or no inodes.
    async fn make_files(&self, meta: &TaskMeta, mut freed: Option<oneshot::Receiver<()>>) -> Result<Files, StoreError> {
        let failed = || StoreError::disk("make a task's files");
        let (table, data) = loop {
            match self.make_empty_files(&meta.id) {
                Ok(files) => break files,
                Err(error) if error::is_full(&error) => self.make_room(FILE_NEED, &mut freed).await?,
                Err(error) => return Err(failed()(error)),
            }
        };
        let lengths = [(&table, layout::table_len(meta.layout)), (&data, meta.layout.len())];
        lengths.into_iter().try_for_each(|(file, len)| self.links.disk.set_len(file, len)).map_err(failed())?;
        self.allocate(&table, layout::table_len(meta.layout), freed).await?;
        let header = layout::encode_header(&meta.id, meta.layout).to_vec();
        self.links.disk.write_small(&table, header, 0).await.map_err(failed())?;
        Ok(Files { data, table, slots: Vec::new() })
    }

    /// Both files or none.
    fn make_empty_files(&self, id: &TaskId) -> io::Result<(Arc<File>, Arc<File>)> {
        let paths = self.shelf.paths();
        paths::make_dir(&paths.task_dir(id))?;
        let make = |path: &Path| File::options().read(true).write(true).create_new(true).open(path).map(Arc::new);
        let table = make(&paths.table(id))?;
        match make(&paths.data(id)) {
            Ok(data) => Ok((table, data)),
            Err(error) => {
                // What cannot be removed is dropped at the next start, as it has no record.
                let _ = std::fs::remove_file(paths.table(id));
                Err(error)
            }
        }
    }

    /// Reserves the blocks of a piece table. Each full disk costs at least one idle task, so it ends; what such a task gives back is
    /// far more than a table, so that many requests on a full disk do not cost a task each.
    async fn allocate(
        &self,
        table: &Arc<File>,
        len: u64,
        mut freed: Option<oneshot::Receiver<()>>,
    ) -> Result<(), StoreError> {
        loop {
            match self.links.disk.allocate(table, 0..len).await {
                Ok(()) => return Ok(()),
                Err(error) if error::is_full(&error) => self.make_room(len, &mut freed).await?,
                Err(error) => return Err(StoreError::disk("reserve a piece table's blocks")(error)),
            }
        }
    }

    /// Waits for what is being freed, or evicts idle tasks worth `need` bytes, at least one, and waits for theirs.
    async fn make_room(&self, need: u64, freed: &mut Option<oneshot::Receiver<()>>) -> Result<(), StoreError> {
        match freed.take() {
            // Late or lost: the next round evicts more, or says that there is no room.
            Some(freed) => drop(tokio::time::timeout(INDEX_DEADLINE, freed).await),
            None => self.links.free_disk(need).await?,
        }
        Ok(())
    }

    async fn install(&self, meta: TaskMeta, reservation: Reservation, files: Files) -> Result<Arc<Held>, StoreError> {
        let state = Arc::new(State::fresh(reservation.generation()));
        let record = Record { meta: meta.clone(), generation: reservation.generation(), verified: false };
        let mut op = Op::Put(Box::new(record), Arc::clone(&state));
        let deadline = Instant::now() + INDEX_DEADLINE;
        while let Err(full) = self.links.ops.try_send(op) {
            if Instant::now() > deadline || full.is_disconnected() {
                return Err(StoreError::Unrecorded);
            }
            op = full.into_inner();
            tokio::time::sleep(INDEX_RETRY).await;
        }
        let held = Held::new(meta, state, self.links.clone(), files);
        self.shelf.insert(reservation, &held);
        Ok(held)
    }

    /// See [`Links::forget`].
    fn forget(&self, gone: &[Gone]) -> Option<oneshot::Receiver<()>> {
        self.links.forget(gone)
    }

    /// Syncs the files of every task that can be trusted at the next start, and names these tasks.
    fn sync_tasks(&self) -> Vec<TaskId> {
        let deadline = Instant::now() + COMMIT_GRACE;
        let states = self.shelf.states();
        let trusted = states.into_iter().filter(|(id, state)| {
            wait_for_commits(state, deadline)
                && state.trusted.load(Ordering::Acquire)
                && (!state.dirty.load(Ordering::Acquire) || self.sync_task(id))
        });
        trusted.map(|(id, _)| id).collect()
    }

    fn sync_task(&self, id: &TaskId) -> bool {
        let paths = self.shelf.paths();
        let sync = |path: &Path| -> io::Result<()> { File::options().write(true).open(path)?.sync_data() };
        let result = sync(&paths.data(id)).and_then(|()| sync(&paths.table(id)));
        if let Err(error) = &result {
            tracing::error!(task = %id, %error, "a task could not be synced; it will be checked at the next start");
        }
        result.is_ok()
    }
}

impl Drop for Store {
    /// Without [`Store::close`] the next start checks everything. The directory is free afterwards.
    fn drop(&mut self) {
        let Some(threads) = self.threads.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        self.links.closing.store(true, Ordering::SeqCst);
        self.links.digests.stop();
        join(threads.digest);
        drop(self.links.ops.send(Op::Stop));
        join(threads.index);
    }
}

/// Whether no commit is under way, or none soon.
fn wait_for_commits(state: &State, deadline: Instant) -> bool {
    while state.committing.load(Ordering::SeqCst) > 0 {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::park_timeout(INDEX_RETRY);
    }
    true
}

fn join(thread: JoinHandle<()>) {
    if thread.join().is_err() {
        tracing::error!("a thread of the store panicked");
    }
}

#[cfg(test)]
mod tests;
