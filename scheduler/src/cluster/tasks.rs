//! What is known of one task [pure].

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::mem::size_of;
use std::sync::Arc;
use std::time::Duration;

use super::digests::Digests;
use super::pieces::{Bits, FreeRuns};

/// One peer at one task: this and its bitmap are what 100,000 peers cost.
#[derive(Debug, Default)]
pub(super) struct Entry {
    pub(super) have: Bits,
    pub(super) links: Vec<u32>,
    pub(super) peer: u32,
    pub(super) held: u32,
    pub(super) connections: u8,
    pub(super) wants: bool,
    pub(super) can_fetch: bool,
    pub(super) complete: bool,
    /// In the task's `waiting`.
    pub(super) queued: bool,
    /// Not named by the inventory that is coming in.
    pub(super) unconfirmed: bool,
}

/// A run leased to a peer.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) task: u32,
    pub(super) peer: u32,
    pub(super) start: u32,
    pub(super) end: u32,
    /// Pieces of it that the peer does not hold yet.
    pub(super) left: u32,
    pub(super) moved: Duration,
}

/// A peer that holds leases on the task.
#[derive(Debug, Default)]
pub(super) struct Fetcher {
    pub(super) leases: u32,
    pub(super) left: u32,
    /// Pieces of its newest lease.
    pub(super) run: u32,
    pub(super) connections: u32,
}

#[derive(Debug)]
pub(super) struct Task {
    pub(super) id: [u8; 32],
    pub(super) len: u64,
    pub(super) pieces: u32,
    pub(super) host: Option<Arc<str>>,
    pub(super) entries: Vec<Entry>,
    pub(super) wanters: u32,
    pub(super) can_fetch: u32,
    pub(super) complete: u32,
    pub(super) free: FreeRuns,
    /// A holder left: pieces may be held by nobody that are not in `free`.
    pub(super) stale: bool,
    /// Active leases by their first piece.
    pub(super) leases: BTreeMap<u32, u64>,
    pub(super) fetchers: HashMap<u32, Fetcher>,
    /// Peers that could take a lease now; checked when their turn comes.
    pub(super) waiting: VecDeque<u32>,
    /// Peers by group, in tasks with many peers; may name peers that have left.
    pub(super) near: HashMap<u32, Vec<u32>>,
    pub(super) digests: Digests,
    pub(super) preheated: bool,
}

impl Task {
    pub(super) fn new(id: [u8; 32], len: u64, pieces: u32) -> Self {
        let mut free = FreeRuns::default();
        free.add(0..pieces);
        Self {
            id,
            len,
            pieces,
            host: None,
            entries: Vec::new(),
            wanters: 0,
            can_fetch: 0,
            complete: 0,
            free,
            stale: false,
            leases: BTreeMap::new(),
            fetchers: HashMap::new(),
            waiting: VecDeque::new(),
            near: HashMap::new(),
            digests: Digests::default(),
            preheated: false,
        }
    }

    /// Bytes that its peers take here, with what is allocated and unused.
    pub(super) fn peer_bytes(&self) -> usize {
        let entries = self.entries.capacity() * size_of::<Entry>();
        let apart: usize = self.entries.iter().map(|entry| entry.have.bytes() + entry.links.capacity() * 4).sum();
        let near: usize = self.near.values().map(|peers| peers.capacity() * 4 + 40).sum();
        entries + apart + near + self.waiting.capacity() * 4
    }
}
