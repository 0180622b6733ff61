//! Digests of pieces: the first report counts until somebody disagrees [pure].

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::pieces::Bits;
use super::{Cluster, Directive};

/// A holder that was asked for digests has this long.
const ASK_AGAIN: Duration = Duration::from_secs(3);
/// Claims kept of a disputed piece.
const MAX_CLAIMS: usize = 8;
/// Disputes open at once in a task; past it the oldest is dropped.
const MAX_DISPUTES: usize = 64;

/// BLAKE3 of consecutive pieces.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct DigestRun {
    /// Piece of the first one.
    pub first: u32,
    /// In order.
    pub digests: Vec<[u8; 32]>,
}

#[derive(Debug, Default)]
pub(super) struct Digests {
    known: Bits,
    values: Vec<[u8; 32]>,
    /// Who reported first; as long as `values`.
    reporters: Vec<u32>,
    fresh: Vec<u32>,
    asked: Option<(u32, Duration)>,
    /// Piece and claims.
    disputes: Vec<(u32, Vec<Claim>)>,
}

/// Who says what.
type Claim = (u32, [u8; 32]);

impl Digests {
    fn put(&mut self, piece: u32, pieces: u32, peer: u32, digest: [u8; 32]) {
        if self.values.is_empty() {
            self.values = vec![[0; 32]; pieces as usize];
            self.reporters = vec![u32::MAX; pieces as usize];
        }
        self.known.set(piece..piece + 1, pieces);
        self.values[piece as usize] = digest;
        self.reporters[piece as usize] = peer;
        self.fresh.push(piece);
    }

    fn runs(&self, within: impl IntoIterator<Item = Range<u32>>) -> Vec<DigestRun> {
        let values = |run: Range<u32>| self.values[run.start as usize..run.end as usize].to_vec();
        within
            .into_iter()
            .flat_map(|within| self.known.runs(within, true))
            .map(|run| DigestRun { first: run.start, digests: values(run) })
            .collect()
    }
}

impl Cluster {
    pub(super) fn report_digests(&mut self, now: Duration, at: u32, peer: u32, run: &DigestRun) {
        for (piece, digest) in (run.first..).zip(&run.digests) {
            let Some(task) = self.task(at) else { return };
            if piece >= task.pieces {
                return;
            }
            let pieces = task.pieces;
            if task.digests.disputes.iter().any(|(disputed, _)| *disputed == piece) {
                self.claim(now, at, peer, piece, *digest);
            } else if !task.digests.known.has(piece) {
                task.digests.put(piece, pieces, peer, *digest);
                self.fresh.insert(at);
            } else if task.digests.values[piece as usize] != *digest {
                self.dispute(now, at, peer, piece, *digest);
            }
        }
    }

    fn dispute(&mut self, _now: Duration, at: u32, second: u32, piece: u32, digest: [u8; 32]) {
        let Some(task) = self.task(at) else { return };
        let first = task.digests.reporters[piece as usize];
        let claims = vec![(first, task.digests.values[piece as usize]), (second, digest)];
        task.digests.known.clear(piece..piece + 1);
        if task.digests.disputes.len() >= MAX_DISPUTES {
            task.digests.disputes.remove(0);
        }
        task.digests.disputes.push((piece, claims));
        let name = task.id;
        let names = (self.name_of(first), self.name_of(second));
        for peer in [first, second] {
            let refetch = self.seen_entry(at, peer).is_some_and(|entry| entry.can_fetch);
            self.lose(at, peer, piece..piece + 1);
            let (first, second) = names.clone();
            self.tell(peer, Directive::Dispute { task: name, piece, first, second, refetch });
        }
    }

    /// One more claim in a dispute. What two peers claim independently is right; whoever ever claimed otherwise is
    /// banned. A peer that changes its mind to another's claim confesses.
    fn claim(&mut self, now: Duration, at: u32, peer: u32, piece: u32, digest: [u8; 32]) {
        let Some(task) = self.task(at) else { return };
        let pieces = task.pieces;
        let Some(place) = task.digests.disputes.iter().position(|(disputed, _)| *disputed == piece) else { return };
        let claims = &mut task.digests.disputes[place].1;
        if !claims.contains(&(peer, digest)) && claims.len() < MAX_CLAIMS {
            claims.push((peer, digest));
        }
        if claims.iter().filter(|(_, claimed)| *claimed == digest).count() < 2 {
            return;
        }
        let (_, claims) = task.digests.disputes.swap_remove(place);
        task.digests.put(piece, pieces, peer, digest);
        self.fresh.insert(at);
        for (liar, _) in claims.into_iter().filter(|(_, claimed)| *claimed != digest) {
            self.ban(now, liar);
        }
    }

    /// All that is known, to a peer that begins to want.
    pub(super) fn tell_digests(&mut self, at: u32, peer: u32) {
        let Some(task) = self.seen(at) else { return };
        let (name, runs) = (task.id, task.digests.runs(std::iter::once(0..task.pieces)));
        if !runs.is_empty() {
            self.tell(peer, Directive::Digests { task: name, runs: runs.into() });
        }
    }

    /// What came since the last push, to all that want the task: one message however many pieces.
    pub(super) fn push_digests(&mut self) {
        for at in std::mem::take(&mut self.fresh) {
            let Some(task) = self.task(at) else { continue };
            let mut fresh = std::mem::take(&mut task.digests.fresh);
            fresh.sort_unstable();
            fresh.dedup();
            let mut bits = Bits::default();
            fresh.iter().for_each(|&piece| {
                bits.set(piece..piece + 1, task.pieces);
            });
            let runs: Arc<[DigestRun]> = task.digests.runs(bits.runs(0..task.pieces, true)).into();
            let name = task.id;
            let told: Vec<u32> = task.entries.iter().filter(|entry| entry.wants).map(|entry| entry.peer).collect();
            for peer in told.into_iter().filter(|_| !runs.is_empty()) {
                self.tell(peer, Directive::Digests { task: name, runs: Arc::clone(&runs) });
            }
        }
    }

    /// Asks a holder for the digests that are missing: after a restart nobody reports them by himself.
    pub(super) fn ask_digests(&mut self, now: Duration, at: u32) {
        let Some(task) = self.seen(at) else { return };
        let missing = task.digests.known.runs(0..task.pieces, false);
        if missing.is_empty() || task.digests.asked.is_some_and(|(_, when)| when + ASK_AGAIN > now) {
            return;
        }
        let before = task.digests.asked.map(|(peer, _)| peer);
        // A holder other than the one asked last, and the one with most.
        let best = task.entries.iter().filter(|entry| entry.held > 0 && Some(entry.peer) != before);
        let Some(holder) = best.max_by_key(|entry| entry.held).map(|entry| entry.peer) else { return };
        let name = task.id;
        if let Some(task) = self.task(at) {
            task.digests.asked = Some((holder, now));
        }
        self.tell(holder, Directive::DigestsWanted { task: name, pieces: missing });
    }
}
