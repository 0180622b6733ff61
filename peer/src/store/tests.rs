//! The store as its callers see it, over real files, with a disk that works, fails, or crashes.

mod crash;
mod faults;
mod inventory;
mod life;
mod room;

use std::{path::Path, sync::Arc, time::Duration};

use aws_lc_rs::digest::{SHA256, digest};
use tempfile::TempDir;

use super::{
    About, Held, Keeping, Options, Store, StoreError, TaskMeta,
    backend::{Disk, faulty::Faulty},
};
use crate::{
    task::{Layout, Proof, TaskId},
    uring::Pool,
};

pub(super) const MIB: u64 = 1 << 20;
/// Far longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);
const CHUNK: usize = 300 << 10;

/// A store's directory, and what to open it with.
struct Site {
    dir: TempDir,
    options: Options,
}

impl Site {
    fn new() -> Self {
        Self::with_quota(1 << 40)
    }

    fn with_quota(quota: u64) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), options: Options { quota, keep_free: 0 } }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn open(&self) -> Arc<Store> {
        Store::open(self.path(), self.options).unwrap()
    }

    fn open_faulty(&self, faulty: Faulty) -> (Arc<Store>, Arc<Faulty>) {
        let faulty = Arc::new(faulty);
        let store = Store::open_on(self.path(), self.options, Disk::Faulty(Arc::clone(&faulty))).unwrap();
        (store, faulty)
    }
}

/// A task of `len` bytes whose content follows from its number.
#[derive(Clone, Copy)]
struct Sample {
    number: u8,
    len: u64,
}

impl Sample {
    fn id(self) -> TaskId {
        TaskId([self.number; 32])
    }

    fn bytes(self) -> Vec<u8> {
        let mut out = vec![0; usize::try_from(self.len).unwrap()];
        blake3::Hasher::new_keyed(&[self.number; 32]).finalize_xof().fill(&mut out);
        out
    }

    fn layout(self) -> Layout {
        Layout::for_len(self.len).unwrap()
    }

    fn piece(self, index: u32) -> Vec<u8> {
        let bytes = self.layout().bytes_of(index);
        self.bytes()[usize::try_from(bytes.start).unwrap()..usize::try_from(bytes.end).unwrap()].to_vec()
    }

    fn meta(self) -> TaskMeta {
        TaskMeta {
            id: self.id(),
            layout: self.layout(),
            proof: None,
            about: About {
                label: format!("host/{}", self.number),
                headers: vec![("ETag".into(), b"\"x\"".to_vec())],
                etag: None,
            },
            keeping: Keeping::default(),
            created_unix: 1_700_000_000,
        }
    }

    fn named_by_sha256(self) -> TaskMeta {
        let sha256 = digest(&SHA256, &self.bytes()).as_ref().try_into().unwrap();
        TaskMeta { proof: Some(Proof::Sha256(sha256)), ..self.meta() }
    }

    async fn add(self, held: &Held, pool: &Pool, piece: u32) -> Result<(), StoreError> {
        add(held, pool, piece, &self.piece(piece)).await
    }

    async fn add_all(self, held: &Held, pool: &Pool) {
        for piece in 0..self.layout().pieces() {
            self.add(held, pool, piece).await.unwrap();
        }
    }

    /// Every piece that counts holds the right bytes; which they are.
    fn right_pieces(self, held: &Held) -> Vec<u32> {
        let all =
            std::fs::read(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(held.file().as_ref()))).unwrap();
        let expected = self.bytes();
        let counted: Vec<_> = (0..self.layout().pieces()).filter(|&piece| held.bitmap().get(piece)).collect();
        for &piece in &counted {
            let bytes = self.layout().bytes_of(piece);
            let range = usize::try_from(bytes.start).unwrap()..usize::try_from(bytes.end).unwrap();
            assert!(all[range.clone()] == expected[range], "piece {piece} of task {} is wrong", self.number);
        }
        counted
    }
}

/// Writes a piece in chunks, then commits it.
async fn add(held: &Held, pool: &Pool, piece: u32, bytes: &[u8]) -> Result<(), StoreError> {
    for (n, chunk) in bytes.chunks(CHUNK).enumerate() {
        let mut buf = pool.lease().await;
        buf[..chunk.len()].copy_from_slice(chunk);
        held.write(piece, u32::try_from(n * CHUNK).unwrap(), buf, chunk.len()).await.0?;
    }
    held.commit(piece, blake3::hash(bytes)).await
}

fn pool() -> Pool {
    Pool::new(1, 4, CHUNK)
}

/// Within a deadline that only a hang reaches.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, future).await.expect("it hangs")
}

fn on_ring<T>(future: impl Future<Output = T>) -> T {
    tokio_uring::start(future)
}

/// SplitMix64: a failure is a seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}
