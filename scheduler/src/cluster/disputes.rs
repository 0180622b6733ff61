//! Pieces on whose digest peers disagree, and who lied [pure].

use std::ops::Range;
use std::time::Duration;

use super::digests::Digests;
use super::pieces::tidied;
use super::{Cluster, Directive};

/// Claims kept of a disputed piece.
const MAX_CLAIMS: usize = 16;
/// Of which one peer makes this many: one that changes its mind confesses.
const MAX_CLAIMS_A_PEER: usize = 2;
/// Disputes open at once in a task; past it the oldest is dropped, and the piece waits for a first report again.
const MAX_DISPUTES: usize = 64;

/// A disputed piece.
#[derive(Debug)]
pub(super) struct Dispute {
    pub(super) piece: u32,
    claims: Vec<Claim>,
}

/// Who says what.
pub(super) type Claim = (u32, [u8; 32]);

impl Digests {
    /// Whether what was said of the piece does not count.
    pub(super) fn is_disputed(&self, piece: u32) -> bool {
        self.doubts.pieces.has(piece) || self.disputes.iter().any(|dispute| dispute.piece == piece)
    }

    /// The same for all pieces of a run: rising, disjoint.
    pub(super) fn disputed_within(&self, run: &Range<u32>) -> Vec<Range<u32>> {
        if !self.any_disputed() {
            return Vec::new();
        }
        let disputed = self.disputes.iter().map(|dispute| dispute.piece).filter(|piece| run.contains(piece));
        let single = disputed.map(|piece| piece..piece + 1);
        tidied(self.doubts.pieces.runs(run.clone(), true).into_iter().chain(single).collect(), run.end, usize::MAX)
    }

    /// Whether there is any such piece.
    pub(super) fn any_disputed(&self) -> bool {
        self.doubts.any() || !self.disputes.is_empty()
    }

    /// The pieces on which peers disagree, and whether a peer is a party to each.
    pub(super) fn disputed(&self) -> impl Iterator<Item = (u32, impl Fn(u32) -> bool)> {
        self.disputes.iter().map(|dispute| (dispute.piece, |peer| dispute.claims.iter().any(|&(by, _)| by == peer)))
    }
}

impl Cluster {
    /// Somebody says otherwise than the first reporter.
    pub(super) fn dispute(&mut self, at: u32, second: u32, piece: u32, digest: [u8; 32]) {
        let Some(task) = self.task(at) else { return };
        let Some((first, known)) = task.digests.of(piece) else { return };
        let was_held = task.is_held(piece);
        task.digests.void(piece, task.pieces);
        if first == second {
            // It fetched the piece again and got other bytes; nobody else has seen it at the origin yet.
            self.take_back(at, piece, &[second]);
            return self.put_digest(at, second, piece, digest);
        }
        if was_held {
            self.unhold(at, &(piece..piece + 1));
        }
        self.contest(at, piece, (first, known), (second, digest));
    }

    /// Two disagree on a piece that counts as held by nobody: so it stays until a third peer has fetched it; both fetch it
    /// again.
    pub(super) fn contest(&mut self, at: u32, piece: u32, first: Claim, second: Claim) {
        self.counts.disputes += 1;
        let Some(task) = self.task(at) else { return };
        let dropped = (task.digests.disputes.len() >= MAX_DISPUTES).then(|| task.digests.disputes.remove(0));
        task.digests.disputes.push(Dispute { piece, claims: vec![first, second] });
        if let Some(dropped) = dropped {
            self.rehold(at, dropped.piece);
        }
        let parties = (first.0, second.0);
        for peer in [first.0, second.0] {
            let refetch = self.seen_entry(at, peer).is_some_and(|entry| entry.can_fetch);
            self.lose(at, peer, piece..piece + 1);
            self.tell_dispute(at, peer, piece, parties, refetch);
        }
    }

    /// One more claim in a dispute. What two peers claim independently, from different addresses, is right, and what one claims against liars;
    /// whoever ever claimed otherwise is banned. A peer that changes its mind to another's claim confesses; one that repeats itself changes nothing.
    pub(super) fn claim(&mut self, now: Duration, at: u32, peer: u32, piece: u32, digest: [u8; 32]) {
        let Some(task) = self.task(at) else { return };
        let Some(place) = task.digests.disputes.iter().position(|dispute| dispute.piece == piece) else { return };
        let claims = &mut task.digests.disputes[place].claims;
        let own = claims.iter().filter(|&&(by, _)| by == peer).count();
        if claims.contains(&(peer, digest)) || own >= MAX_CLAIMS_A_PEER || claims.len() >= MAX_CLAIMS {
            return;
        }
        claims.push((peer, digest));
        let same: Vec<u32> = claims.iter().filter(|(_, claimed)| *claimed == digest).map(|&(by, _)| by).collect();
        let others = claims.iter().map(|&(by, _)| by).filter(|&by| by != peer).collect::<Vec<_>>();
        let seconded = self.members.independent(same.into_iter()) > 1;
        if !seconded && !others.into_iter().all(|other| self.is_banned(now, other)) {
            return;
        }
        let Some(task) = self.task(at) else { return };
        let claims = task.digests.disputes.swap_remove(place).claims;
        self.rehold(at, piece);
        self.decide(now, at, piece, peer, digest, &claims);
    }

    fn decide(&mut self, now: Duration, at: u32, piece: u32, last: u32, digest: [u8; 32], claims: &[Claim]) {
        let right: Vec<u32> = claims.iter().filter(|claim| claim.1 == digest).map(|claim| claim.0).collect();
        if claims[0].1 != digest {
            self.take_back(at, piece, &right);
        }
        self.put_digest(at, last, piece, digest);
        for &(liar, _) in claims.iter().filter(|(_, claimed)| *claimed != digest) {
            if self.is_banned(now, liar) {
                continue;
            }
            self.ban(now, liar, self.options.ban);
            self.suspect_reports(liar);
        }
    }

    /// What a liar was the first to say is disputed from now on, by whoever fetches it next. Those that verified pieces
    /// with it keep them, and find out by the content's own name.
    fn suspect_reports(&mut self, liar: u32) {
        for at in self.tasks_of(liar) {
            let Some(task) = self.seen(at) else { continue };
            for piece in task.digests.reported_by(liar, task.pieces) {
                let Some(task) = self.task(at) else { continue };
                let Some((_, said)) = task.digests.of(piece) else { continue };
                let was_held = task.is_held(piece);
                task.digests.void(piece, task.pieces);
                if task.digests.disputes.len() < MAX_DISPUTES {
                    task.digests.disputes.push(Dispute { piece, claims: vec![(liar, said)] });
                    if was_held {
                        self.unhold(at, &(piece..piece + 1));
                    }
                }
            }
            self.again.insert(at);
        }
    }

    /// All but `right` count as not holding the piece: they verified it with a digest that was a lie.
    pub(super) fn take_back(&mut self, at: u32, piece: u32, right: &[u32]) {
        let Some(task) = self.seen(at) else { return };
        let holds = |entry: &&super::tasks::Entry| entry.complete || entry.have.has(piece);
        let holders: Vec<u32> = task.entries.iter().filter(holds).map(|entry| entry.peer).collect();
        for peer in holders.into_iter().filter(|peer| !right.contains(peer)) {
            self.lose(at, peer, piece..piece + 1);
        }
    }

    /// A piece that is not disputed any more counts as held by those that have it.
    pub(super) fn rehold(&mut self, at: u32, piece: u32) {
        let Some(task) = self.seen(at).filter(|task| task.is_held(piece)) else { return };
        let lease = task.leases_in(&(piece..piece + 1)).first().and_then(|id| self.leases.get(id));
        let by = lease.filter(|lease| self.seen_entry(at, lease.peer).is_some_and(|entry| entry.have.has(piece)));
        let by = by.map_or(u32::MAX, |lease| lease.peer);
        let run = piece..piece + 1;
        self.hold(at, std::slice::from_ref(&run), by);
    }

    fn tell_dispute(&mut self, at: u32, peer: u32, piece: u32, (first, second): (u32, u32), refetch: bool) {
        let Some(task) = self.seen(at).map(|task| task.id) else { return };
        let (first, second) = (self.name_of(first), self.name_of(second));
        self.tell(peer, Directive::Dispute { task, piece, first, second, refetch });
    }
}
