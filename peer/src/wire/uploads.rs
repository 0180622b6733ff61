//! What a node gives to others at a time: places, memory and bytes a second, over all shards and links.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use crossbeam::queue::ArrayQueue;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{PeerId, rate::Bucket, shares::Shares};
use crate::swarm::exchange::Exchange;

/// Bytes of each read from disk, and of each write into a stream; the next is read while one is sent. Small enough that
/// what a link has under way stays in the CPU's cache between read and encryption.
pub(super) const BLOCK: usize = 128 << 10;
/// Blocks of the node: 32 MiB bound the memory of all uploads, whatever the number of peers. A block is taken before a
/// read and is free when the receiver has acknowledged its bytes.
const BLOCKS: usize = 256;
/// Blocks that one link can hold: 4 MiB is 10 Gbit/s for 3 ms, so no link needs more, and eight links that take nothing
/// are needed to starve the others, for at most the time after which a peer that takes nothing is dropped.
pub(super) const LINK_BLOCKS: usize = 32;
/// Free blocks that are kept: what one busy link turns over. More would make an idle node larger.
const KEPT: usize = LINK_BLOCKS;
/// Where the rate limit's backlog is longer than this, peers are told to come back later.
const MAX_BACKLOG: Duration = Duration::from_millis(500);

/// The bounds on uploads, shared by a node's shards.
///
/// Between links: each has an equal share of the places ([`Shares`]); blocks and bytes of the rate limit go to whoever asked
/// first, block by block, so that two links with equally many pieces under way get equal parts of disk and line.
pub struct Uploads {
    exchange: Arc<Exchange>,
    places: Mutex<Shares<PeerId>>,
    bucket: Mutex<Bucket>,
    permits: Arc<Semaphore>,
    free: ArrayQueue<Vec<u8>>,
}

/// Why a piece is not sent now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// All places are taken, or this peer's share of them.
    Full,
    /// More is under way than the rate limit lets through in this time.
    Backlog(Duration),
}

/// One upload's place.
pub(super) struct Upload {
    uploads: Arc<Uploads>,
    peer: PeerId,
}

/// Memory for one read and what is done with it. It may drop anywhere, as quinn does after the acknowledgement.
pub(super) struct Block {
    pub(super) bytes: Vec<u8>,
    pub(super) filled: usize,
    uploads: Arc<Uploads>,
    _permits: (OwnedSemaphorePermit, OwnedSemaphorePermit),
}

impl Uploads {
    /// At most `at_once` pieces at a time and `rate` bytes a second (0: no limit). Counts in `exchange` what leaves.
    pub fn new(exchange: Arc<Exchange>, at_once: u32, rate: u64) -> Arc<Self> {
        Arc::new(Self {
            exchange,
            places: Mutex::new(Shares::new(at_once)),
            bucket: Mutex::new(Bucket::new(rate)),
            permits: Arc::new(Semaphore::new(BLOCKS)),
            free: ArrayQueue::new(KEPT),
        })
    }

    /// Other bounds from now on; see [`Self::new`].
    pub fn set_bounds(&self, at_once: u32, rate: u64) {
        lock(&self.places).set_places(at_once);
        lock(&self.bucket).set_rate(rate);
    }

    pub(super) fn enter(self: &Arc<Self>, peer: &PeerId) -> Result<Upload, Refused> {
        let now = Instant::now();
        let backlog = lock(&self.bucket).debt(now);
        if backlog > MAX_BACKLOG {
            return Err(Refused::Backlog(backlog));
        }
        if !lock(&self.places).enter(peer, now) {
            return Err(Refused::Full);
        }
        self.exchange.uploads.fetch_add(1, Ordering::Relaxed);
        Ok(Upload { uploads: Arc::clone(self), peer: peer.clone() })
    }
}

impl Upload {
    /// Memory for a read: first the link's own share is waited for, then the node's.
    pub(super) async fn block(&self, link: &Arc<Semaphore>) -> Block {
        let own = Arc::clone(link).acquire_owned().await.expect("never closed");
        let node = Arc::clone(&self.uploads.permits).acquire_owned().await.expect("never closed");
        let bytes = self.uploads.free.pop().unwrap_or_else(|| vec![0; BLOCK]);
        Block { bytes, filled: 0, uploads: Arc::clone(&self.uploads), _permits: (own, node) }
    }

    /// Waits until so many bytes may leave.
    pub(super) async fn pace(&self, bytes: usize) {
        let wait = lock(&self.uploads.bucket).take(Instant::now(), bytes as u64);
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }

    pub(super) fn sent(&self, bytes: usize) {
        self.uploads.exchange.sent_to_peers.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        lock(&self.uploads.places).leave(&self.peer);
        self.uploads.exchange.uploads.fetch_sub(1, Ordering::Relaxed);
    }
}

impl AsRef<[u8]> for Block {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.filled]
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        // An operation that was given up keeps its memory; then there is nothing to give back.
        if bytes.len() == BLOCK {
            // Past what is kept, the memory goes.
            drop(self.uploads.free.push(bytes));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const _: () = assert!(LINK_BLOCKS * 4 <= BLOCKS);
