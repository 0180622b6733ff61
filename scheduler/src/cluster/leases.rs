//! Leases: who fetches which pieces from the origin [pure].

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::tasks::{Fetcher, Lease};
use super::{Cluster, Directive};

/// A lease is split for an idle peer only while this many pieces of it are untouched: fewer are under way already.
const MIN_SPLIT: u32 = 4;
/// Runs a peer gets one after the other when it shares the task: fast peers come back for more.
const ROUNDS: u32 = 4;
/// Longest run where several share.
const MAX_RUN: u32 = 64;
/// Pause of a host that asks for less without saying for how long.
const PAUSE: Duration = Duration::from_secs(5);
/// Longest pause that is believed.
const MAX_PAUSE: Duration = Duration::from_secs(60);
/// Hosts remembered; past it, hosts without leases are forgotten.
const MAX_HOSTS: usize = 4096;

/// Why a lease came back; see LeaseReturn in scheduler.proto.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "documented in scheduler.proto")]
pub enum ReturnReason {
    Expired,
    Refused,
    Throttled,
    Failed,
    Unneeded,
}

/// An origin host's share of the cluster.
#[derive(Debug, Default)]
pub(super) struct Host {
    in_use: u32,
    paused_until: Option<Duration>,
    /// Tasks that could lease had the host connections left.
    pending: VecDeque<u32>,
}

impl Cluster {
    pub(super) fn host(&mut self, name: &str) -> Option<Arc<str>> {
        if name.is_empty() {
            return None;
        }
        if let Some((known, _)) = self.hosts.get_key_value(name) {
            return Some(Arc::clone(known));
        }
        if self.hosts.len() >= MAX_HOSTS {
            self.hosts.retain(|_, host| host.in_use > 0 || !host.pending.is_empty());
        }
        let name: Arc<str> = name.into();
        self.hosts.insert(Arc::clone(&name), Host::default());
        Some(name)
    }

    pub(super) fn queue_for_lease(&mut self, at: u32, peer: u32) {
        let Some(entry) = self.entry(at, peer) else { return };
        if !std::mem::replace(&mut entry.queued, true)
            && let Some(task) = self.task(at)
        {
            task.waiting.push_back(peer);
        }
    }

    /// Grants leases while somebody waits, pieces are free and the host has connections left.
    pub(super) fn lease_out(&mut self, now: Duration, at: u32) {
        self.find_unheld(at);
        // Each turn takes one from the queue; only a split or a whole rest grants more than one lease.
        let mut turns = self.seen(at).map_or(0, |task| task.waiting.len().min(64));
        while turns > 0 {
            turns -= 1;
            let Some(peer) = self.task(at).and_then(|task| task.waiting.pop_front()) else { return };
            if let Some(entry) = self.entry(at, peer) {
                entry.queued = false;
            }
            let wants =
                self.seen_entry(at, peer).is_some_and(|entry| entry.wants && entry.can_fetch && !entry.complete);
            if !wants || !self.members.get(peer).is_some_and(|m| m.connected && m.banned_until.is_none_or(|t| t <= now))
            {
                continue;
            }
            if !self.reserve(now, at, peer) {
                self.queue_for_lease(at, peer);
                return;
            }
            if !self.grant(now, at, peer) {
                self.release_if_idle(at, peer);
                self.queue_for_lease(at, peer);
            }
        }
    }

    /// Takes the peer's connections out of the host's budget unless it has them already.
    fn reserve(&mut self, now: Duration, at: u32, peer: u32) -> bool {
        let budget = self.options.origin_connections;
        let default = self.options.peer_connections;
        let asked = self.seen_entry(at, peer).map_or(0, |entry| u32::from(entry.connections));
        let Some(task) = self.tasks.get_mut(at as usize).and_then(Option::as_mut) else { return false };
        if task.fetchers.contains_key(&peer) {
            return true;
        }
        let connections = if asked == 0 { default } else { asked }.min(budget);
        if let Some(host) = task.host.as_ref().and_then(|host| self.hosts.get_mut(host)) {
            let paused = host.paused_until.is_some_and(|until| until > now);
            if paused || host.in_use + connections > budget {
                if !host.pending.contains(&at) {
                    host.pending.push_back(at);
                }
                return false;
            }
            host.in_use += connections;
        }
        task.fetchers.insert(peer, Fetcher { connections, ..Fetcher::default() });
        true
    }

    fn grant(&mut self, now: Duration, at: u32, peer: u32) -> bool {
        let Some(task) = self.task(at) else { return false };
        if task.free.total() == 0 {
            return self.split(now, at, peer);
        }
        let sharing = task.can_fetch.max(1);
        if sharing == 1 {
            while let Some(run) = self.task(at).and_then(|task| task.free.take(u32::MAX)) {
                self.lease(now, at, peer, run);
            }
            return true;
        }
        let most = task.free.total().div_ceil(sharing.saturating_mul(ROUNDS)).clamp(1, MAX_RUN);
        let Some(run) = task.free.take(most) else { return false };
        self.lease(now, at, peer, run);
        true
    }

    fn lease(&mut self, now: Duration, at: u32, peer: u32, run: Range<u32>) {
        let id = self.next_lease;
        self.next_lease += 1;
        let silence = self.options.silence;
        let left = run.end - run.start;
        let Some(task) = self.task(at) else { return };
        let name = task.id;
        task.leases.insert(run.start, id);
        let fetcher = task.fetchers.entry(peer).or_default();
        fetcher.leases += 1;
        fetcher.left += left;
        fetcher.run = left;
        self.leases.insert(id, Lease { task: at, peer, start: run.start, end: run.end, left, moved: now });
        self.lease_ends.insert((now + silence, id));
        self.tell(peer, Directive::Lease { id, task: name, pieces: run, silence });
    }

    /// Gives an idle peer half of the largest untouched tail. The host's budget bounds how many leases a task has.
    fn split(&mut self, now: Duration, at: u32, peer: u32) -> bool {
        let Some(task) = self.seen(at) else { return false };
        let largest = task.leases.values().filter_map(|id| Some((*id, self.leases.get(id)?)));
        let Some((id, lease)) = largest.filter(|(_, lease)| lease.peer != peer).max_by_key(|(_, lease)| lease.left)
        else {
            return false;
        };
        let (holder, start, end) = (lease.peer, lease.start, lease.end);
        let Some(entry) = self.seen_entry(at, holder) else { return false };
        let tail = entry.have.after_last(start..end);
        if end - tail < MIN_SPLIT {
            return false;
        }
        let cut = tail + (end - tail).div_ceil(2);
        let silence = self.options.silence;
        let Some(lease) = self.leases.get_mut(&id) else { return false };
        lease.end = cut;
        lease.left -= end - cut;
        let Some(task) = self.task(at) else { return false };
        let name = task.id;
        if let Some(fetcher) = task.fetchers.get_mut(&holder) {
            fetcher.left -= end - cut;
        }
        self.tell(holder, Directive::Lease { id, task: name, pieces: start..cut, silence });
        self.lease(now, at, peer, cut..end);
        true
    }

    /// Counts newly held pieces to the leases they are in; ends those that are done.
    pub(super) fn count_to_leases(&mut self, now: Duration, at: u32, peer: u32, run: &Range<u32>) {
        let Some(task) = self.seen(at).filter(|task| task.fetchers.contains_key(&peer)) else { return };
        let first = task.leases.range(..=run.start).next_back().map_or(run.start, |(&start, _)| start);
        let touched: Vec<u64> = task.leases.range(first..run.end.max(first)).map(|(_, &id)| id).collect();
        for id in touched {
            let Some(lease) = self.leases.get(&id).filter(|lease| lease.peer == peer) else { continue };
            let inside = run.start.max(lease.start)..run.end.min(lease.end);
            if inside.start >= inside.end {
                continue;
            }
            let held = self.seen_entry(at, peer).map_or(0, |entry| entry.have.count(inside.clone()));
            let fresh = inside.end - inside.start - held;
            let Some(lease) = self.leases.get_mut(&id) else { continue };
            lease.moved = now;
            lease.left = lease.left.saturating_sub(fresh);
            let done = lease.left == 0;
            if let Some(fetcher) = self.task(at).and_then(|task| task.fetchers.get_mut(&peer)) {
                fetcher.left = fetcher.left.saturating_sub(fresh);
                if fetcher.left <= fetcher.run / 2 {
                    self.queue_for_lease(at, peer);
                }
            }
            if done {
                self.finish(id, false);
                self.release_if_idle(at, peer);
            }
        }
    }

    pub(super) fn touch(&mut self, now: Duration, peer: u32, id: u64) {
        if let Some(lease) = self.leases.get_mut(&id).filter(|lease| lease.peer == peer) {
            lease.moved = now;
        }
    }

    pub(super) fn returned(&mut self, now: Duration, peer: u32, id: u64, reason: ReturnReason, retry: Duration) {
        let Some(lease) = self.leases.get(&id).filter(|lease| lease.peer == peer) else { return };
        let at = lease.task;
        self.finish(id, false);
        match reason {
            ReturnReason::Expired | ReturnReason::Refused => {
                self.end_leases(now, at, peer, true);
                if let Some(entry) = self.entry(at, peer)
                    && std::mem::take(&mut entry.can_fetch)
                    && let Some(task) = self.task(at)
                {
                    task.can_fetch -= 1;
                }
            }
            ReturnReason::Throttled => {
                self.pause(now, at, retry);
                self.queue_for_lease(at, peer);
            }
            ReturnReason::Failed => self.queue_for_lease(at, peer),
            ReturnReason::Unneeded => {}
        }
        self.release_if_idle(at, peer);
        self.lease_out(now, at);
    }

    fn pause(&mut self, now: Duration, at: u32, retry: Duration) {
        let pause = if retry.is_zero() { PAUSE } else { retry.min(MAX_PAUSE) };
        let Some(task) = self.seen(at) else { return };
        let Some(host) = task.host.clone() else { return };
        let told: Vec<u32> = task.fetchers.keys().copied().collect();
        if let Some(state) = self.hosts.get_mut(&host) {
            state.paused_until = Some(now + pause);
            if !state.pending.contains(&at) {
                state.pending.push_back(at);
            }
        }
        for peer in told {
            self.tell(peer, Directive::Throttle { host: Arc::clone(&host), pause });
        }
    }

    /// Ends a lease; what its holder does not hold is free again.
    fn finish(&mut self, id: u64, tell: bool) {
        let Some(lease) = self.leases.remove(&id) else { return };
        let rest = match self.seen_entry(lease.task, lease.peer) {
            Some(entry) if entry.complete => Vec::new(),
            Some(entry) => entry.have.runs(lease.start..lease.end, false),
            None => std::iter::once(lease.start..lease.end).collect(),
        };
        if let Some(task) = self.task(lease.task) {
            task.leases.remove(&lease.start);
            // Somebody else may hold pieces of it by now only if it fetched without a lease: a second copy at worst.
            if task.complete == 0 {
                rest.into_iter().for_each(|run| task.free.add(run));
            }
            if let Some(fetcher) = task.fetchers.get_mut(&lease.peer) {
                fetcher.leases = fetcher.leases.saturating_sub(1);
                fetcher.left = fetcher.left.saturating_sub(lease.left);
            }
        }
        if tell {
            self.tell(lease.peer, Directive::LeaseEnd { id });
        }
    }

    pub(super) fn end_leases(&mut self, _now: Duration, at: u32, peer: u32, tell: bool) {
        let Some(task) = self.seen(at).filter(|task| task.fetchers.contains_key(&peer)) else { return };
        let ids: Vec<u64> = task.leases.values().copied().collect();
        for id in ids {
            if self.leases.get(&id).is_some_and(|lease| lease.peer == peer) {
                self.finish(id, tell);
            }
        }
        self.release_if_idle(at, peer);
    }

    fn release_if_idle(&mut self, at: u32, peer: u32) {
        let Some(task) = self.tasks.get_mut(at as usize).and_then(Option::as_mut) else { return };
        if task.fetchers.get(&peer).is_none_or(|fetcher| fetcher.leases > 0) {
            return;
        }
        let Some(fetcher) = task.fetchers.remove(&peer) else { return };
        if let Some(host) = task.host.as_ref().and_then(|host| self.hosts.get_mut(host)) {
            host.in_use = host.in_use.saturating_sub(fetcher.connections);
        }
    }

    pub(super) fn reclaim_silent(&mut self, now: Duration) {
        let silence = self.options.silence;
        while let Some(&(due, id)) = self.lease_ends.first()
            && due <= now
        {
            self.lease_ends.pop_first();
            let Some(lease) = self.leases.get(&id) else { continue };
            if lease.moved + silence > now {
                self.lease_ends.insert((lease.moved + silence, id));
                continue;
            }
            let (at, peer) = (lease.task, lease.peer);
            self.finish(id, true);
            self.release_if_idle(at, peer);
            // Last in the queue: others that can go first.
            self.queue_for_lease(at, peer);
            self.lease_out(now, at);
        }
    }

    /// Serves tasks that waited for a host's connections, each in its turn.
    pub(super) fn resume_hosts(&mut self, now: Duration) {
        let budget = self.options.origin_connections;
        let mut ready = Vec::new();
        for host in self.hosts.values_mut().filter(|host| !host.pending.is_empty() && host.in_use < budget) {
            if host.paused_until.is_none_or(|until| until <= now) {
                host.paused_until = None;
                ready.extend(host.pending.drain(..));
            }
        }
        for at in ready {
            self.lease_out(now, at);
        }
    }

    /// After a holder left: pieces that nobody holds and nobody fetches are free again.
    fn find_unheld(&mut self, at: u32) {
        let Some(task) = self.tasks.get_mut(at as usize).and_then(Option::as_mut) else { return };
        if !task.stale || task.complete > 0 || task.waiting.is_empty() {
            return;
        }
        task.stale = false;
        let pieces = task.pieces;
        let mut taken = super::pieces::Bits::default();
        for entry in &task.entries {
            entry.have.runs(0..pieces, true).into_iter().for_each(|run| {
                taken.set(run, pieces);
            });
        }
        for id in task.leases.values() {
            if let Some(lease) = self.leases.get(id) {
                taken.set(lease.start..lease.end, pieces);
            }
        }
        taken.runs(0..pieces, false).into_iter().for_each(|run| task.free.add(run));
    }
}
