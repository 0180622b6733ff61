//! A task of which every piece had its digest and the whole was wrong: it is read once more [pure].
//!
//! Nothing tells which piece it is, so every digest is doubted: it is not told, and its piece is held by nobody, until
//! a peer other than the one that reported it has fetched it under a lease. Saying the same, that peer ends the doubt; saying
//! something else, it opens a dispute. So the cluster reads the task a second time, and not every peer for itself.

use std::ops::Range;
use std::time::Duration;

use super::piece_set::PieceSet;
use super::pieces::{append, subtract, without};
use super::{Cluster, Task};

/// A task is not doubted again before this.
const AGAIN: Duration = Duration::from_secs(120);
/// If nobody else reads anything for this long, those that reported a piece may read it again themselves.
const SECOND_OPINION: Duration = Duration::from_secs(5);

/// Digests of a task that are to be said once more.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    pub(super) pieces: PieceSet,
    left: u32,
    began: Option<Duration>,
    /// When one was last settled.
    moved: Duration,
}

impl Doubts {
    pub(super) fn any(&self) -> bool {
        self.left > 0
    }

    fn settle(&mut self, now: Duration, piece: u32, pieces: u32) {
        self.left -= self.pieces.clear(piece..piece + 1, pieces);
        self.moved = now;
    }
}

impl Task {
    /// Doubted pieces that a peer is not to read: those it holds, and while others could, those it reported.
    fn not_for(&self, now: Duration, entry: &super::tasks::Entry) -> Vec<Range<u32>> {
        let others = self.others_could(now);
        let mut runs = Vec::new();
        let doubted = self.digests.doubts.pieces.runs(0..self.pieces, true).into_iter().flatten();
        let not = |piece: &u32| {
            let own = || self.digests.said(*piece).is_some_and(|(by, _)| by == entry.peer);
            entry.complete || entry.have.has(*piece) || others && own()
        };
        doubted.filter(not).for_each(|piece| append(&mut runs, piece));
        runs
    }

    fn others_could(&self, now: Duration) -> bool {
        self.can_fetch > 1 && now < self.digests.doubts.moved + SECOND_OPINION
    }
}

impl Cluster {
    /// A peer held all pieces of the task, and they were not the whole that its name promises.
    pub(super) fn doubt(&mut self, now: Duration, at: u32) {
        let Some(task) = self.task(at) else { return };
        let doubts = &task.digests.doubts;
        if doubts.any() || doubts.began.is_some_and(|began| now < began + AGAIN) {
            return;
        }
        let known = task.digests.known.runs(0..task.pieces, true);
        let held = subtract(&known, &task.unheld(0..task.pieces));
        let pieces = task.digests.void_all();
        let left = pieces.count();
        task.digests.doubts = Doubts { pieces, left, began: Some(now), moved: now };
        self.counts.doubts += 1;
        held.iter().for_each(|run| self.unhold(at, run));
        self.again.insert(at);
    }

    /// A doubted digest is said once more. It counts from a peer that was to read the piece, as opposed to one that repeats what it
    /// verified a piece with.
    pub(super) fn read_again(&mut self, now: Duration, at: u32, peer: u32, piece: u32, digest: [u8; 32]) {
        let Some(task) = self.seen(at) else { return };
        let lease = task.leases_in(&(piece..piece + 1)).first().and_then(|id| self.leases.get(id));
        let Some((first, said)) = task.digests.said(piece).filter(|_| lease.is_some_and(|lease| lease.peer == peer))
        else {
            return;
        };
        if first == peer && task.others_could(now) {
            return;
        }
        if let Some(task) = self.task(at) {
            task.digests.doubts.settle(now, piece, task.pieces);
        }
        if said != digest && first != peer && !self.is_banned(now, first) {
            return self.contest(at, piece, (first, said), (peer, digest));
        }
        if said != digest {
            self.take_back(at, piece, &[peer]);
        }
        self.put_digest(at, peer, piece, digest);
        self.rehold(at, piece);
    }

    /// The window without what the peer is not to read.
    pub(super) fn undoubted(&self, now: Duration, at: u32, peer: u32, window: Vec<Range<u32>>) -> Vec<Range<u32>> {
        match (self.seen(at).filter(|task| task.digests.doubts.any()), self.seen_entry(at, peer)) {
            (Some(task), Some(entry)) => {
                task.not_for(now, entry).iter().fold(window, |window, run| without(&window, run))
            }
            _ => window,
        }
    }
}
