//! From a directory to a store: lock, version, index, and the files that belong to it.

use std::{
    collections::HashSet,
    ffi::OsStr,
    fs::{self, File},
    io::{self, Read, Seek, Write},
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::{Arc, Weak},
    time::SystemTime,
};

use rustix::fs::FlockOperation;

use super::{
    StoreError,
    error::is_full,
    held::State,
    index::{Index, Loaded, Op},
    layout,
    paths::Paths,
    shelf::Entry,
};
use crate::task::TaskId;

/// The format of DESIGN.md.
const VERSION: u32 = 1;

/// A store's directory, ours alone and in order.
pub(super) struct Recovered {
    /// Held as long as the index is open.
    pub(super) lock: File,
    pub(super) index: Index,
    pub(super) entries: Vec<Entry>,
    /// The first generation that was never used.
    pub(super) generations: u64,
}

/// Takes a directory over: makes it if need be, and drops what belongs to no task.
pub(super) fn recover(paths: &Paths) -> Result<Recovered, StoreError> {
    paths.make_dirs().map_err(StoreError::disk("make the store's directories"))?;
    let lock = lock(paths)?;
    check_version(paths)?;
    let (mut index, loaded) = open_index(paths)?;
    let (kept, lost): (Vec<_>, Vec<_>) = loaded.into_iter().partition(|loaded| has_files(paths, loaded));
    let entries: Vec<_> = kept.into_iter().map(|loaded| entry(paths, loaded)).collect();
    let orphans = drop_orphans(paths, &entries).map_err(StoreError::disk("clean the store up"))?;
    let ops: Vec<_> = lost.iter().map(forget).collect();
    if !ops.is_empty() {
        index.apply(&ops)?;
    }
    let unchecked = entries.iter().filter(|entry| !entry.state.trusted.load(std::sync::atomic::Ordering::Relaxed));
    tracing::info!(
        dir = %paths.dir().display(), tasks = entries.len(), unchecked = unchecked.count(), lost = lost.len(), orphans,
        "store opened"
    );
    let generations = index.epoch() << 32;
    Ok(Recovered { lock, index, entries, generations })
}

/// Opens the index. It writes when it opens, so on a full disk tasks are given up for it, those written longest ago first: without an
/// index it is not known which were used or pinned, and a node that does not start serves none of them.
fn open_index(paths: &Paths) -> Result<(Index, Vec<Loaded>), StoreError> {
    loop {
        match Index::open(paths.index(), paths.broken_index()) {
            Err(error) if error.is_full() => {
                let freed = paths.empty_trash().and_then(|()| remove_oldest(paths));
                match freed.map_err(StoreError::disk("make room for the index"))? {
                    Some(task) => tracing::warn!(%task, "the disk is full: a task makes room for the store's index"),
                    None => return Err(error.into()),
                }
            }
            result => return Ok(result?),
        }
    }
}

/// Removes the files of the task whose data was written longest ago; none: there is no task.
fn remove_oldest(paths: &Paths) -> io::Result<Option<TaskId>> {
    let mut oldest: Option<(SystemTime, TaskId)> = None;
    for dir in fs::read_dir(paths.tasks())? {
        for file in fs::read_dir(dir?.path())? {
            let file = file?;
            let Some(task) = task_of(&file.path()) else { continue };
            let written = file.metadata()?.modified()?;
            if oldest.is_none_or(|(before, _)| written < before) {
                oldest = Some((written, task));
            }
        }
    }
    let Some((_, task)) = oldest else { return Ok(None) };
    for path in [paths.data(&task), paths.table(&task)] {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(Some(task))
}

fn lock(paths: &Paths) -> Result<File, StoreError> {
    let failed = || StoreError::disk("lock the store");
    let mut file =
        File::options().read(true).write(true).create(true).truncate(false).open(paths.lock()).map_err(failed())?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut holder = String::new();
            // The holder may not have written its number yet.
            let pid = file.read_to_string(&mut holder).ok().and_then(|_| holder.trim().parse().ok());
            return Err(StoreError::Locked { dir: paths.dir().to_owned(), pid });
        }
        Err(errno) => return Err(failed()(errno.into())),
    }
    let written = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
    match written {
        // The number is for people; a full disk has no block for it.
        Err(error) if !is_full(&error) => Err(failed()(error)),
        _ => Ok(file),
    }
}

fn check_version(paths: &Paths) -> Result<(), StoreError> {
    let failed = || StoreError::disk("read the store's version");
    let found = match fs::read_to_string(paths.version()) {
        Ok(found) => found.trim().to_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(failed()(error)),
    };
    match found.parse::<u32>() {
        Ok(VERSION) => Ok(()),
        // Missing, or torn by a crash at the very first start.
        _ if found.is_empty() => fs::write(paths.version(), format!("{VERSION}\n")).map_err(failed()),
        _ => Err(StoreError::Version { dir: paths.dir().to_owned(), found, known: VERSION }),
    }
}

fn has_files(paths: &Paths, loaded: &Loaded) -> bool {
    let meta = &loaded.record.meta;
    let len = fs::metadata(paths.data(&meta.id)).map(|found| found.len());
    len.is_ok_and(|len| len == meta.layout.len()) && paths.table(&meta.id).is_file()
}

/// A task takes the room of its blocks, or of the pieces that the index knows where a file system compresses.
fn entry(paths: &Paths, loaded: Loaded) -> Entry {
    let Loaded { record, last_used, held_bytes, trusted, pinned } = loaded;
    let blocks = fs::metadata(paths.data(&record.meta.id)).map_or(0, |found| found.blocks() * 512);
    let room = blocks.min(layout::in_blocks(record.meta.layout.len())).max(layout::in_blocks(held_bytes));
    let state = State::loaded(record.generation, trusted, record.verified, last_used, held_bytes);
    state.room.store(room, std::sync::atomic::Ordering::Relaxed);
    state.pinned.store(pinned, std::sync::atomic::Ordering::Relaxed);
    Entry { meta: record.meta, state: Arc::new(state), held: Weak::new() }
}

fn forget(loaded: &Loaded) -> Op {
    Op::Remove { id: loaded.record.meta.id, generation: loaded.record.generation, freed: None }
}

/// Unlinks the files of tasks that are not among `entries`, and those in the trash. How many there were.
fn drop_orphans(paths: &Paths, entries: &[Entry]) -> io::Result<usize> {
    paths.empty_trash()?;
    let known: HashSet<TaskId> = entries.iter().map(|entry| entry.meta.id).collect();
    let mut dropped = 0;
    for dir in fs::read_dir(paths.tasks())? {
        let dir = dir?;
        if !dir.file_type()?.is_dir() {
            continue;
        }
        for file in fs::read_dir(dir.path())? {
            let path = file?.path();
            // Names that are not ours are somebody's mistake, and not ours to delete.
            if task_of(&path).is_some_and(|id| !known.contains(&id)) {
                fs::remove_file(&path)?;
                dropped += 1;
            }
        }
    }
    Ok(dropped)
}

fn task_of(path: &Path) -> Option<TaskId> {
    let ours = matches!(path.extension().and_then(OsStr::to_str), Some("data" | "pieces"));
    ours.then(|| path.file_stem()?.to_str()?.parse().ok()).flatten()
}
