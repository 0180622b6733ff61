//! A disk for tests: crashes after a number of operations, loses unsynced pages, or fails as told.

use std::{
    fs::File,
    io,
    ops::Range,
    os::unix::fs::FileExt,
    sync::{Arc, Mutex, PoisonError},
};

use super::Backend;
use crate::uring::Buf;

const PAGE: usize = 4096;

/// What is to go wrong.
#[derive(Default)]
struct Script {
    /// Mutating operations until the crash: that one is done in part, later ones not at all.
    crash_after: Option<u32>,
    /// The next reservations and writes of data find the disk full, this many times.
    full: u32,
    /// Raised by every write, if set.
    write_error: Option<i32>,
    /// Raised by every read, if set.
    read_error: Option<i32>,
    /// What each page held before it was written since the store was opened.
    unsynced: Vec<(Arc<File>, u64, Vec<u8>)>,
    mutations: u32,
    seed: u64,
}

/// Real files, and a [`Script`] of faults.
#[derive(Default)]
pub(in crate::store) struct Faulty {
    script: Mutex<Script>,
}

impl Faulty {
    pub(in crate::store) fn crashing_after(mutations: u32, seed: u64) -> Self {
        let script = Script { crash_after: Some(mutations), seed, ..Script::default() };
        Self { script: Mutex::new(script) }
    }

    pub(in crate::store) fn fill_disk_for(&self, operations: u32) {
        self.script().full = operations;
    }

    /// Whether the disk is full for this operation.
    fn is_full(&self) -> bool {
        let mut script = self.script();
        let full = script.full > 0;
        script.full = script.full.saturating_sub(1);
        full
    }

    pub(in crate::store) fn fail_writes_with(&self, errno: Option<i32>) {
        self.script().write_error = errno;
    }

    pub(in crate::store) fn fail_reads_with(&self, errno: Option<i32>) {
        self.script().read_error = errno;
    }

    /// Whether the crash has happened.
    pub(in crate::store) fn crashed(&self) -> bool {
        let script = self.script();
        script.crash_after.is_some_and(|after| script.mutations > after)
    }

    /// Power fails: each page written since the store was opened is, at random, as before or as written.
    pub(in crate::store) fn lose_power(&self) {
        let mut script = self.script();
        let unsynced = std::mem::take(&mut script.unsynced);
        for (file, offset, before) in unsynced.into_iter().rev() {
            if script.random(2) == 0 {
                file.write_all_at(&before, offset).unwrap();
            }
        }
    }

    fn script(&self) -> std::sync::MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mutate(&self, file: &Arc<File>, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut script = self.script();
        if let Some(errno) = script.write_error {
            return Err(io::Error::from_raw_os_error(errno));
        }
        let done = script.admit(bytes.len());
        script.remember(file, done, offset);
        file.write_all_at(&bytes[..done], offset)?;
        if done < bytes.len() { Err(crash()) } else { Ok(()) }
    }
}

impl Script {
    /// How much of an operation on `len` units still happens.
    fn admit(&mut self, len: usize) -> usize {
        self.mutations += 1;
        match self.crash_after {
            Some(after) if self.mutations > after + 1 => 0,
            Some(after) if self.mutations == after + 1 => self.random(len as u64) as usize,
            _ => len,
        }
    }

    fn remember(&mut self, file: &Arc<File>, len: usize, offset: u64) {
        let end = offset + len as u64;
        let mut at = offset;
        while at < end {
            let page_end = ((at / PAGE as u64 + 1) * PAGE as u64).min(end);
            let mut before = vec![0; (page_end - at) as usize];
            file.read_exact_at(&mut before, at).unwrap();
            self.unsynced.push((Arc::clone(file), at, before));
            at = page_end;
        }
    }

    /// SplitMix64.
    fn random(&mut self, below: u64) -> u64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.seed ^ (self.seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % below.max(1)
    }
}

fn crash() -> io::Error {
    io::Error::other("crashed")
}

impl Backend for Faulty {
    fn set_len(&self, file: &File, len: u64) -> io::Result<()> {
        if self.script().admit(1) == 0 {
            return Err(crash());
        }
        file.set_len(len)
    }

    async fn allocate(&self, _: &Arc<File>, _: Range<u64>) -> io::Result<()> {
        if self.is_full() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if self.script().admit(1) == 0 { Err(crash()) } else { Ok(()) }
    }

    async fn write(&self, file: &Arc<File>, buf: Buf, span: Range<usize>, offset: u64) -> (io::Result<()>, Buf) {
        if self.is_full() {
            return (Err(io::ErrorKind::StorageFull.into()), buf);
        }
        (self.mutate(file, &buf[span], offset), buf)
    }

    async fn write_small(&self, file: &Arc<File>, bytes: Vec<u8>, offset: u64) -> io::Result<()> {
        self.mutate(file, &bytes, offset)
    }

    async fn read(&self, file: &Arc<File>, mut buf: Buf, span: Range<usize>, offset: u64) -> (io::Result<usize>, Buf) {
        let failure = self.script().read_error;
        if let Some(errno) = failure {
            return (Err(io::Error::from_raw_os_error(errno)), buf);
        }
        // Short on purpose: callers must go on until they have all.
        let most = span.len().min(300 << 10);
        let result = file.read_at(&mut buf[span.start..span.start + most], offset);
        (result, buf)
    }
}
