//! What the claims of a peer may take of the scheduler's memory [pure].
//!
//! Everything that a peer says it holds or wants is charged to it: each task that it is entered at, and each run of pieces there,
//! because runs are what fragments the tables that the peers of a task share. Invariant: a member's `claims` is the sum
//! of `charged` over its entries, and `Cluster::claimed` the sum over all members.

use std::ops::Range;

use super::tasks::Entry;
use super::{Cluster, PeerId};

/// What an entry costs where the peer is the only one at its task: entry, task, and their places in tables.
pub(super) const ENTRY_BYTES: usize = 640;
/// What a run of pieces costs: two steps among the counts of holders, and one run among the free ones.
const RUN_BYTES: usize = 72;
/// Tasks that a peer may be entered at. Its claims about others are passed over: a node that holds more is known for a part of it.
pub(super) const MAX_TASKS_A_PEER: usize = 32_768;
/// What the claims of one peer may take: all its tasks, and some 150,000 runs of pieces.
const PEER_BYTES: usize = 32 << 20;
/// A peer may always claim this much, whatever the others take.
const LEAST_SHARE: usize = 1 << 20;
/// One peer's part of the memory for digests: past it its own oldest digests make room.
pub(super) const DIGEST_SHARES: usize = 8;
/// But a peer always has this many bytes of them.
pub(super) const LEAST_DIGESTS: usize = 64 << 10;

const _: () = assert!(MAX_TASKS_A_PEER * ENTRY_BYTES < PEER_BYTES);

impl Entry {
    fn cost(&self, window: usize) -> usize {
        let runs = self.have.run_count() * RUN_BYTES + self.have.bytes();
        ENTRY_BYTES + runs + window * size_of::<Range<u32>>()
    }
}

impl Cluster {
    /// Whether a peer may be entered at one more task.
    pub(super) fn has_budget(&self, peer: u32) -> bool {
        self.members.get(peer).is_some_and(|member| {
            member.tasks.len() < MAX_TASKS_A_PEER && !self.is_over_share(member.claims + ENTRY_BYTES)
        })
    }

    /// Charges what an entry takes now, and refuses a peer that is over its budget.
    pub(super) fn charge(&mut self, at: u32, peer: u32) {
        let window = self.seen(at).and_then(|task| task.windows.get(&peer)).map_or(0, |window| window.len());
        let Some(entry) = self.entry(at, peer) else { return };
        let cost = entry.cost(window);
        let before = std::mem::replace(&mut entry.charged, u32::try_from(cost).unwrap_or(u32::MAX)) as usize;
        self.move_claims(peer, before, cost);
        let Some(claims) = self.members.get(peer).map(|member| member.claims) else { return };
        if claims > PEER_BYTES || cost > ENTRY_BYTES && self.is_over_share(claims) {
            self.refuse(peer);
        }
    }

    /// Takes a charge back, where an entry ends.
    pub(super) fn discharge(&mut self, peer: u32, charged: u32) {
        self.move_claims(peer, charged as usize, 0);
    }

    /// Those that are over their budget since the last call. Their sessions are to be ended.
    pub fn take_refused(&mut self) -> Vec<PeerId> {
        std::mem::take(&mut self.refused)
    }

    fn move_claims(&mut self, peer: u32, before: usize, after: usize) {
        if let Some(member) = self.members.get_mut(peer) {
            member.claims = (member.claims + after).saturating_sub(before);
            self.claimed = (self.claimed + after).saturating_sub(before);
        }
    }

    /// While all claims together take too much, those that take more than an equal share of the memory get no more.
    fn is_over_share(&self, claims: usize) -> bool {
        let memory = self.options.claim_memory;
        self.claimed > memory && claims > (memory / self.members.len().max(1)).max(LEAST_SHARE)
    }

    /// Hears nothing more of a peer until its session has ended, and then drops what it claimed.
    fn refuse(&mut self, peer: u32) {
        let Some(member) = self.members.get_mut(peer).filter(|member| !member.refused) else { return };
        member.refused = true;
        self.counts.refusals += 1;
        self.refused.push(PeerId(peer));
    }
}
