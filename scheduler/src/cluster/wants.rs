//! Who wants what, and which of its pieces [pure].

use std::ops::Range;
use std::time::Duration;

use super::pieces::{tidied, without};
use super::tasks::Owes;
use super::{Cluster, ContentName, TaskName};

/// Runs of a window that a peer may name.
const MAX_WINDOW: usize = 64;
/// Runs of a window with what the peer gave back cut out of it.
const MAX_CUT_WINDOW: usize = 128;

/// What a Want says beside the task.
pub(super) struct Wanting<'a> {
    pub(super) host: &'a str,
    pub(super) can_fetch: bool,
    pub(super) connections: u32,
    pub(super) wanted: Option<Vec<Range<u32>>>,
    pub(super) name: Option<ContentName>,
}

impl Cluster {
    pub(super) fn want(&mut self, now: Duration, peer: u32, name: &TaskName, len: u64, wanting: Wanting<'_>) {
        let Some(at) = self.enter(peer, name, len) else { return };
        self.note_name(peer, at, wanting.host, wanting.name);
        let Some(task) = self.task(at) else { return };
        match wanting.wanted {
            None => task.windows.remove(&peer),
            Some(runs) => task.windows.insert(peer, tidied(runs, task.pieces, MAX_WINDOW).into()),
        };
        self.charge(at, peer);
        let Some(task) = self.task(at) else { return };
        // Without a host there is no budget to fetch within.
        let can_fetch = wanting.can_fetch && task.host.is_some();
        let Some(entry) = self.entry(at, peer) else { return };
        let (new, could) = (!entry.wants, entry.can_fetch);
        let again = entry.owes.settle(Owes::WANT);
        entry.wants = true;
        entry.can_fetch = can_fetch;
        entry.connections = u8::try_from(wanting.connections).unwrap_or(u8::MAX);
        if let Some(task) = self.task(at) {
            task.wanters += u32::from(new);
            task.can_fetch = task.can_fetch + u32::from(can_fetch) - u32::from(could);
        }
        if again {
            self.tell_links(at, peer);
        }
        if new || again {
            self.link_up(now, at, peer);
            self.tell_digests(at, peer);
            self.ask_digests(now, at);
            self.preheat_a_seed(at);
        }
        match can_fetch {
            true => self.queue_for_lease(at, peer),
            false => self.end_leases(at, peer, true),
        }
        self.lease_out(now, at);
    }

    pub(super) fn unwant(&mut self, now: Duration, peer: u32, name: &TaskName) {
        let Some(&at) = self.by_name.get(name) else { return };
        self.stop_wanting(at, peer);
        self.end_leases(at, peer, true);
        self.put_away(now, at, peer);
        self.lease_out(now, at);
    }

    pub(super) fn stop_wanting(&mut self, at: u32, peer: u32) {
        let Some(entry) = self.entry(at, peer) else { return };
        let wanted = std::mem::take(&mut entry.wants);
        entry.owes.set(Owes::WANT, false);
        if let Some(task) = self.task(at) {
            task.wanters -= u32::from(wanted);
            task.windows.remove(&peer);
        }
        self.stop_fetching(at, peer);
    }

    /// Until its next Want.
    pub(super) fn stop_fetching(&mut self, at: u32, peer: u32) {
        let could = self.entry(at, peer).is_some_and(|entry| std::mem::take(&mut entry.can_fetch));
        if let Some(task) = self.task(at) {
            task.can_fetch -= u32::from(could);
        }
    }

    /// What the peer may be leased: what its clients wait for, but no disputed piece that it has an opinion on.
    pub(super) fn window(&self, now: Duration, at: u32, peer: u32) -> Vec<Range<u32>> {
        let (Some(task), Some(entry)) = (self.seen(at), self.seen_entry(at, peer)) else { return Vec::new() };
        let said = task.windows.get(&peer).map(|window| window.to_vec());
        let window = said.unwrap_or_else(|| std::iter::once(0..task.pieces).collect());
        let known = task.digests.disputed().filter(|(piece, by)| by(peer) || entry.complete || entry.have.has(*piece));
        let window = known.fold(window, |rest, (piece, _)| without(&rest, &(piece..piece + 1)));
        self.undoubted(now, at, peer, window)
    }

    /// The peer gave these pieces back: it gets no lease on them before its next Want.
    pub(super) fn narrow(&mut self, at: u32, peer: u32, run: &Range<u32>) {
        let Some(task) = self.task(at) else { return };
        let said = task.windows.get(&peer).map(|window| window.to_vec());
        let window = said.unwrap_or_else(|| std::iter::once(0..task.pieces).collect());
        let mut left = without(&window, run);
        left.truncate(MAX_CUT_WINDOW);
        task.windows.insert(peer, left.into());
    }

    /// Where the task comes from, and what its name is made of.
    pub(super) fn note_name(&mut self, peer: u32, at: u32, host: &str, name: Option<ContentName>) {
        let host = self.host(peer, host);
        let Some(task) = self.task(at) else { return };
        task.host = host.or(task.host.take());
        task.name = task.name.take().or(name);
    }

    /// A seed that does not have a task others want is told once to want it too.
    fn preheat_a_seed(&mut self, at: u32) {
        let Some(task) = self.task(at).filter(|task| !task.preheated && task.complete == 0) else { return };
        if task.name.is_none() {
            return;
        }
        task.preheated = true;
        let fits = |seed: &u32| {
            self.members.get(*seed).is_some_and(|member| member.connected && !member.tasks.contains_key(&at))
        };
        let seeds: Vec<u32> = self.members.seeds().filter(fits).collect();
        if !seeds.is_empty() {
            let seed = seeds[self.random(seeds.len())];
            self.preheat(at, seed, false);
        }
    }
}
