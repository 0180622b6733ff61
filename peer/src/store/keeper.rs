//! The index thread: makes changes of the index durable, frees removed files, keeps the store below its marks.

use std::{
    fs::File,
    io,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::{
    clock,
    index::{Index, IndexError, Op},
    shelf::{Gone, Shelf},
};

/// Changes on their way to the index; past it `create` waits and advisory ones are dropped.
const QUEUE_LEN: usize = 1024;
/// Changes made durable by one fsync.
const BATCH: usize = 256;
/// How often the store's size is looked at.
const TICK: Duration = Duration::from_secs(1);
/// How often last uses are written down: what an unclean stop may forget of the LRU order.
const USED_EVERY: Duration = Duration::from_secs(10);
/// Freed for the index itself when the disk is full.
const INDEX_ROOM: u64 = 16 << 20;

/// The queue to the index thread.
pub(super) fn queue() -> (Sender<Op>, Receiver<Op>) {
    bounded(QUEUE_LEN)
}

/// Starts the index thread. It ends after [`Op::Stop`], and only then lets `lock` go.
pub(super) fn start(index: Index, shelf: Arc<Shelf>, ops: Receiver<Op>, lock: File) -> io::Result<JoinHandle<()>> {
    let keeper = Keeper { index, shelf, ops, used_at: Instant::now(), failing: false };
    let body = move || {
        keeper.run();
        drop(lock);
    };
    std::thread::Builder::new().name("pondhawk-index".into()).spawn(body)
}

struct Keeper {
    index: Index,
    shelf: Arc<Shelf>,
    ops: Receiver<Op>,
    used_at: Instant,
    failing: bool,
}

impl Keeper {
    fn run(mut self) {
        let mut next_tick = Instant::now() + TICK;
        loop {
            match self.ops.recv_deadline(next_tick) {
                Ok(first) => {
                    let mut batch = vec![first];
                    batch.extend(self.ops.try_iter().take(BATCH - 1));
                    if self.handle(batch) {
                        return;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if Instant::now() >= next_tick {
                self.tick();
                next_tick = Instant::now() + TICK;
            }
        }
    }

    /// Whether this was the last batch.
    fn handle(&mut self, batch: Vec<Op>) -> bool {
        let durable = self.commit(&batch);
        if batch.iter().any(|op| matches!(op, Op::Remove { .. })) {
            self.empty_trash();
        }
        let mut last = false;
        for op in batch {
            match op {
                Op::Put(_, state) => state.set_recorded(durable),
                Op::Pinned { done, .. } => drop(done.send(durable)),
                Op::Remove { freed: Some(freed), .. } => drop(freed.send(())),
                Op::Stop => last = true,
                _ => {}
            }
        }
        last
    }

    fn commit(&mut self, batch: &[Op]) -> bool {
        let mut result = self.index.apply(batch);
        if result.as_ref().is_err_and(IndexError::is_full) {
            self.evict(INDEX_ROOM);
            result = self.index.apply(batch);
        }
        match result {
            Ok(()) => self.failing = false,
            Err(error) => {
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::error!(%error, "the store's index cannot be written; new tasks will not be kept");
                }
            }
        }
        !self.failing
    }

    fn tick(&mut self) {
        // What a full queue did not tell us of.
        self.empty_trash();
        let expired = self.shelf.expire(clock::now_ms() / 1000);
        self.forget(expired);
        if let Some(excess) = self.shelf.excess() {
            self.evict(excess);
        }
        if self.used_at.elapsed() >= USED_EVERY {
            self.used_at = Instant::now();
            let used = self.shelf.changed_uses();
            if !used.is_empty() {
                self.commit(&[Op::Used(used)]);
            }
        }
    }

    fn evict(&mut self, bytes: u64) {
        let gone = self.shelf.trim(bytes);
        self.forget(gone);
    }

    fn forget(&mut self, gone: Vec<Gone>) {
        let ops: Vec<_> =
            gone.into_iter().map(|gone| Op::Remove { id: gone.id, generation: gone.generation, freed: None }).collect();
        if !ops.is_empty() {
            self.empty_trash();
            // Blocks first: they are what is short. A record without files is dropped at the next start anyhow.
            if let Err(error) = self.index.apply(&ops) {
                tracing::warn!(%error, "evicted tasks stay in the index until the next start");
            }
        }
    }

    fn empty_trash(&self) {
        if let Err(error) = self.shelf.paths().empty_trash() {
            tracing::warn!(%error, "removed files still take room on the disk");
        }
    }
}
