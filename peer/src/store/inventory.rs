//! What the store can tell the swarm: pieces held and their digests, without marking a task as used.

use std::{fs::File, io, ops::Range, sync::atomic::Ordering};

use super::{
    Store, TaskMeta,
    held::{self, Slot},
};
use crate::task::{Bitmap, TaskId};

/// What is held of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    /// The task.
    pub task: TaskId,
    /// Its bytes.
    pub len: u64,
    /// Every piece is held; `have` is empty then.
    pub complete: bool,
    /// Pieces held, as rising runs.
    pub have: Vec<Range<u32>>,
}

impl Store {
    /// Everything that is held for certain: what an unclean stop left behind counts once it is checked. Tasks without a
    /// piece are left out. Blocks: reads the piece table of tasks that are incomplete and not open.
    pub fn inventory(&self) -> Vec<Holding> {
        let all = self.shelf.snapshot().into_iter().filter_map(|(meta, state, open)| {
            let (task, len, pieces) = (meta.id, meta.layout.len(), meta.layout.pieces());
            let have = match open {
                Some(held) => runs_of(held.bitmap()),
                None if !state.trusted.load(Ordering::Acquire) => Vec::new(),
                None if state.held_bytes.load(Ordering::Acquire) == len => whole(pieces),
                None => runs(self.slots(&meta).unwrap_or_default().into_iter().map(|(piece, _)| piece)),
            };
            let complete = have == whole(pieces);
            let holding = Holding { task, len, complete, have: if complete { Vec::new() } else { have } };
            (complete || !holding.have.is_empty()).then_some(holding)
        });
        all.collect()
    }

    /// Length of a task, and BLAKE3 of its pieces that are held for certain, in rising order. `None`: there is no such
    /// task. Blocks: reads the piece table.
    pub fn digests(&self, task: &TaskId) -> io::Result<Option<(u64, Vec<Slot>)>> {
        let Some((meta, state, open)) = self.shelf.peek(task) else { return Ok(None) };
        let digests = match open {
            Some(held) => held.digests()?,
            None if state.trusted.load(Ordering::Acquire) => self.slots(&meta)?,
            None => Vec::new(),
        };
        Ok(Some((meta.layout.len(), digests)))
    }

    /// Has `hook` called for every task that leaves the store, evicted or removed. It runs under the store's lock: it must
    /// be quick, and not call the store. Only the first hook counts; whether this was it.
    pub fn on_removed(&self, hook: Box<dyn Fn(TaskId) + Send + Sync>) -> bool {
        self.shelf.on_removed(hook)
    }

    /// Has `hook` called for every piece that an unclean stop left, once it is found good: its task, the task's bytes, and
    /// the piece. Only the first hook counts; whether this was it.
    pub fn on_found(&self, hook: Box<dyn Fn(TaskId, u64, u32) + Send + Sync>) -> bool {
        self.links.found.set(hook).is_ok()
    }

    fn slots(&self, meta: &TaskMeta) -> io::Result<Vec<Slot>> {
        let table = match File::open(self.shelf.paths().table(&meta.id)) {
            Ok(table) => table,
            // Evicted meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        Ok(held::read_slots(meta, &table)?.unwrap_or_default())
    }
}

fn whole(pieces: u32) -> Vec<Range<u32>> {
    std::iter::once(0..pieces).filter(|run| !run.is_empty()).collect()
}

fn runs_of(bitmap: &Bitmap) -> Vec<Range<u32>> {
    match bitmap.is_full() {
        true => whole(bitmap.len()),
        false => runs((0..bitmap.len()).filter(|&piece| bitmap.get(piece))),
    }
}

/// Rising pieces as runs.
fn runs(pieces: impl Iterator<Item = u32>) -> Vec<Range<u32>> {
    let mut runs: Vec<Range<u32>> = Vec::new();
    for piece in pieces {
        match runs.last_mut() {
            Some(run) if run.end == piece => run.end += 1,
            _ => runs.push(piece..piece + 1),
        }
    }
    runs
}
