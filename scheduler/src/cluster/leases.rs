//! Leases: who fetches which pieces from the origin [pure].

use std::ops::Range;
use std::time::Duration;

use super::pieces::without;
use super::tasks::Lease;
use super::{Cluster, Directive};

/// A lease is split for an idle peer only while this many pieces of it are untouched.
const MIN_SPLIT: u32 = 2;
/// Runs a peer gets one after the other when it shares the task: fast peers come back for more.
const ROUNDS: u32 = 4;
/// Longest run where several share.
const MAX_RUN: u32 = 64;
/// A peer's first run is not shorter than this while there is enough for everybody.
const ENOUGH: u64 = 16 << 20;
/// Later ones have this many times what it fetched between its last two reports: a fast peer must not run out of work, and a slow
/// one not sit on it.
const STEPS: u32 = 10;
/// Bytes that a peer asks for in one request to the origin at most: what it has begun is cut from no lease.
const REQUEST: u64 = 1 << 20;
/// Bytes that it may hold and not have reported yet, for the same reason, as long as none of its reports tells.
const UNREPORTED: u64 = 8 << 20;
/// Runs that a peer alone gets at once.
const RUNS_ALONE: u32 = 32;
/// A peer that uses its share of a host's connections waits this long for another task's turn.
const SHARE_PAUSE: Duration = Duration::from_millis(200);
/// Peers whose wait for a lease ends in one tick; more wait for the next one.
const COOLED_AT_ONCE: usize = 4_096;
/// Peers looked at in one event.
const TURNS: usize = 16;
/// A peer whose lease failed, or fell silent, waits this long for the next, and twice as long each time until one moves.
const COOLING: Duration = Duration::from_secs(1);
const MAX_COOLING: Duration = Duration::from_secs(64);

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

impl Cluster {
    pub(super) fn queue_for_lease(&mut self, at: u32, peer: u32) {
        let Some(entry) = self.entry(at, peer) else { return };
        if !std::mem::replace(&mut entry.queued, true)
            && let Some(task) = self.task(at)
        {
            task.waiting.push_back(peer);
        }
    }

    /// Grants leases while somebody waits, pieces are free or can be split off, and the host has connections left.
    pub(super) fn lease_out(&mut self, now: Duration, at: u32) {
        if self.seen(at).is_some_and(|task| now < task.settled) {
            self.again.insert(at);
            return;
        }
        let waiting = self.seen(at).map_or(0, |task| task.waiting.len());
        for _ in 0..TURNS.min(waiting) {
            let Some(task) = self.task(at).filter(|task| task.free.total() > 0 || !task.leases.is_empty()) else {
                return;
            };
            let Some(peer) = task.waiting.pop_front() else { return };
            // From its own leases nothing can be split off for it, but for others.
            let takes_any =
                !task.windows.contains_key(&peer) && !task.digests.any_disputed() && !task.fetchers.contains_key(&peer);
            if let Some(entry) = self.entry(at, peer) {
                entry.queued = false;
            }
            if !self.can_fetch(at, peer) || !self.is_hungry(at, peer) {
                continue;
            }
            if let Some(until) = self.barred(now, peer) {
                self.cooling.insert((until, at, peer));
                continue;
            }
            if self.is_over_origin_share(at, peer) {
                self.cooling.insert((now + SHARE_PAUSE, at, peer));
                continue;
            }
            if !self.reserve(now, at, peer) {
                self.queue_first(at, peer);
                if !self.feed(now, at) {
                    return;
                }
            } else if !self.grant(now, at, peer) {
                self.release_if_idle(at, peer);
                if takes_any {
                    // Nothing for it: nothing for anybody.
                    return self.queue_first(at, peer);
                }
                self.queue_for_lease(at, peer);
            }
        }
        // What is doubted is for others now, and for those that wait later.
        if waiting > TURNS || self.seen(at).is_some_and(|task| task.digests.doubts.any() && !task.waiting.is_empty()) {
            self.again.insert(at);
        }
    }

    /// Those whose turns ran out, and those that had to wait.
    pub(super) fn lease_again(&mut self, now: Duration) {
        for at in std::mem::take(&mut self.again) {
            self.lease_out(now, at);
        }
        for _ in 0..COOLED_AT_ONCE {
            let Some((_, at, peer)) = self.cooling.first().copied().filter(|&(due, ..)| due <= now) else { return };
            self.cooling.pop_first();
            self.queue_for_lease(at, peer);
            self.lease_out(now, at);
        }
    }

    fn can_fetch(&self, at: u32, peer: u32) -> bool {
        let fit = |entry: &super::tasks::Entry| entry.wants && entry.can_fetch && !entry.complete;
        self.seen_entry(at, peer).is_some_and(fit) && self.members.get(peer).is_some_and(|member| member.connected)
    }

    /// Until when it gets no lease because of what it did.
    fn barred(&self, now: Duration, peer: u32) -> Option<Duration> {
        let member = self.members.get(peer)?;
        member.banned_until.max(Some(member.cool_at)).filter(|&until| until > now)
    }

    /// Without a lease, or far through what it has.
    fn is_hungry(&self, at: u32, peer: u32) -> bool {
        let fetcher = self.seen(at).and_then(|task| task.fetchers.get(&peer));
        fetcher.is_none_or(|fetcher| fetcher.left <= (fetcher.run / 2).max(self.requests(at, peer)))
    }

    /// Requests to the origin that a holder of leases makes at once.
    fn requests(&self, at: u32, peer: u32) -> u32 {
        let told = self.seen_entry(at, peer).map_or(0, |entry| u32::from(entry.requests));
        let connections = || self.seen(at).and_then(|task| task.fetchers.get(&peer)).map_or(1, |own| own.connections);
        if told > 0 { told } else { connections() }
    }

    /// A report came, with these pieces from the origin.
    pub(super) fn stepped(&mut self, at: u32, peer: u32, fetched: &[super::DigestRun]) {
        let Some(fetcher) = self.task(at).and_then(|task| task.fetchers.get_mut(&peer)) else { return };
        let pieces = fetched.iter().map(|run| u32::try_from(run.digests.len()).unwrap_or(u32::MAX));
        match pieces.fold(0, u32::saturating_add) {
            0 => {}
            step => fetcher.step = Some(step),
        }
    }

    /// First again: its turn was for nothing.
    fn queue_first(&mut self, at: u32, peer: u32) {
        if let Some(entry) = self.entry(at, peer) {
            entry.queued = true;
        }
        if let Some(task) = self.task(at) {
            task.waiting.push_front(peer);
        }
    }

    /// The host has no connections left: whoever has some and is hungry goes on.
    fn feed(&mut self, now: Duration, at: u32) -> bool {
        let Some(task) = self.seen(at).filter(|task| task.free.total() > 0) else { return false };
        let fetchers: Vec<u32> = task.fetchers.keys().copied().collect();
        let hungry =
            |&peer: &u32| self.is_hungry(at, peer) && self.can_fetch(at, peer) && self.barred(now, peer).is_none();
        let Some(peer) = fetchers.into_iter().find(hungry) else { return false };
        self.reserve(now, at, peer) && self.grant(now, at, peer)
    }

    fn grant(&mut self, now: Duration, at: u32, peer: u32) -> bool {
        let window = self.window(now, at, peer);
        let at_once = (self.options.origin_connections / self.options.peer_connections.max(1)).max(1);
        let requests = self.requests(at, peer);
        let Some(task) = self.task(at) else { return false };
        if task.can_fetch <= 1 {
            let mut granted = false;
            for _ in 0..RUNS_ALONE {
                let Some(run) = self.task(at).and_then(|task| task.free.take_within(&window, u32::MAX)) else { break };
                self.lease(now, at, peer, run);
                granted = true;
            }
            return granted;
        }
        let sharing = task.can_fetch.min(at_once);
        let free = task.free.count_within(&window, MAX_RUN * ROUNDS * sharing);
        let enough = match task.fetchers.get(&peer).and_then(|fetcher| fetcher.step) {
            Some(step) => step.saturating_mul(STEPS).max(requests),
            None => u32::try_from(ENOUGH * u64::from(task.pieces) / task.len.max(1)).unwrap_or(MAX_RUN),
        };
        let most = free.div_ceil(sharing).min(enough.max(free / (sharing * ROUNDS))).clamp(1, MAX_RUN);
        match task.free.take_within(&window, most) {
            Some(run) => self.lease(now, at, peer, run),
            None => return self.split(now, at, peer, &window),
        }
        true
    }

    fn lease(&mut self, now: Duration, at: u32, peer: u32, run: Range<u32>) {
        let id = self.next_lease;
        self.counts.leases += 1;
        self.next_lease += 1;
        let silence = self.options.silence;
        let Some(task) = self.task(at) else { return };
        let left = task.unheld(run.clone()).iter().map(|run| run.end - run.start).sum();
        let name = task.id;
        task.leases.insert(run.start, id);
        let fetcher = task.fetchers.entry(peer).or_default();
        fetcher.leases += 1;
        fetcher.left += left;
        fetcher.run = run.end - run.start;
        let due = now + silence;
        self.leases.insert(id, Lease { task: at, peer, start: run.start, end: run.end, left, moved: now, due });
        self.lease_ends.insert((due, id));
        self.tell(peer, Directive::Lease { id, task: name, pieces: run, silence });
    }

    /// Gives an idle peer half of the largest untouched tail in its window. The host's budget bounds how many leases a
    /// task has.
    fn split(&mut self, now: Duration, at: u32, peer: u32, window: &[Range<u32>]) -> bool {
        let Some(task) = self.seen(at) else { return false };
        let others = task.leases.values().filter(|id| self.leases.get(id).is_some_and(|lease| lease.peer != peer));
        let tails = others.filter_map(|&id| Some((id, self.tail(id, window)?)));
        let Some((id, tail)) = tails.max_by_key(|(_, tail)| tail.end - tail.start) else { return false };
        // Others may hold the end of it by now.
        let Some(last) = task.last_unheld(tail.clone()) else { return false };
        let cut = (tail.start + (tail.end - tail.start) / 2).min(last);
        self.shorten(id, cut);
        self.lease(now, at, peer, cut..tail.end);
        true
    }

    /// What the holder has not begun and the window includes, up to the lease's end. It goes through a lease from its
    /// start on, a request a connection.
    fn tail(&self, id: u64, window: &[Range<u32>]) -> Option<Range<u32>> {
        let lease = self.leases.get(&id)?;
        let entry = self.seen_entry(lease.task, lease.peer)?;
        let task = self.seen(lease.task)?;
        let step = task.fetchers.get(&lease.peer)?.step;
        let piece_len = task.len.div_ceil(u64::from(task.pieces.max(1))).max(1);
        let pieces = |bytes: u64| u32::try_from(bytes / piece_len).unwrap_or(u32::MAX).max(1);
        let unreported = step.map_or(pieces(UNREPORTED), |step| step.saturating_mul(2));
        let begun = self.requests(lease.task, lease.peer).saturating_mul(pieces(REQUEST)).saturating_add(unreported);
        let begun = entry.have.after_last(lease.start..lease.end).saturating_add(begun);
        let within = window.iter().find(|part| part.contains(&(lease.end - 1)))?;
        let tail = begun.max(within.start)..lease.end;
        (tail.start < tail.end && tail.end - tail.start >= MIN_SPLIT).then_some(tail)
    }

    /// Moves a lease's end forward and tells its holder; what is cut off is somebody else's affair.
    fn shorten(&mut self, id: u64, end: u32) {
        let silence = self.options.silence;
        let Some(lease) = self.leases.get_mut(&id) else { return };
        let cut = end..std::mem::replace(&mut lease.end, end);
        let (at, holder, pieces) = (lease.task, lease.peer, lease.start..end);
        let Some(task) = self.tasks.get_mut(at as usize).and_then(Option::as_deref_mut) else { return };
        let gone: u32 = task.unheld(cut).iter().map(|run| run.end - run.start).sum();
        lease.left -= gone;
        if let Some(fetcher) = task.fetchers.get_mut(&holder) {
            fetcher.left -= gone;
            fetcher.run = pieces.end - pieces.start;
        }
        let (name, done) = (task.id, lease.left == 0);
        self.tell(holder, Directive::Lease { id, task: name, pieces, silence });
        if done {
            self.finish(id, false);
            self.release_if_idle(at, holder);
        }
        if self.is_hungry(at, holder) {
            self.queue_for_lease(at, holder);
        }
    }

    /// A peer's report covers `run`: its leases there moved.
    pub(super) fn moved(&mut self, now: Duration, at: u32, peer: u32, run: &Range<u32>) {
        let Some(task) = self.seen(at).filter(|task| task.fetchers.contains_key(&peer)) else { return };
        for id in task.leases_in(run) {
            self.touch(now, peer, id);
        }
    }

    pub(super) fn touch(&mut self, now: Duration, peer: u32, id: u64) {
        if let Some(lease) = self.leases.get_mut(&id).filter(|lease| lease.peer == peer) {
            lease.moved = now;
            if let Some(member) = self.members.get_mut(peer) {
                member.lapses = 0;
            }
        }
    }

    fn cool(&mut self, now: Duration, at: u32, peer: u32) {
        let Some(member) = self.members.get_mut(peer) else { return };
        let pause = COOLING.saturating_mul(1 << member.lapses.min(16)).min(MAX_COOLING);
        member.lapses = member.lapses.saturating_add(1);
        member.cool_at = now + pause;
        self.cooling.insert((now + pause, at, peer));
    }

    /// Pieces that nobody held are held now: they are not free, and leases on them are nearer to their end. Where
    /// another than the holder has them (it fetched without a lease), the holder is told to leave them.
    pub(super) fn hold(&mut self, at: u32, runs: &[Range<u32>], by: u32) {
        let mut touched = Vec::new();
        for run in runs {
            let Some(task) = self.tasks.get_mut(at as usize).and_then(Option::as_deref_mut) else { return };
            task.free.remove(run.clone());
            for id in task.leases_in(run) {
                let Some(lease) = self.leases.get_mut(&id) else { continue };
                let held = run.end.min(lease.end).saturating_sub(run.start.max(lease.start));
                lease.left -= held;
                if let Some(fetcher) = task.fetchers.get_mut(&lease.peer) {
                    fetcher.left -= held;
                }
                if held > 0 && touched.last() != Some(&id) {
                    touched.push(id);
                }
            }
        }
        for id in touched {
            let Some(lease) = self.leases.get(&id) else { continue };
            let holder = lease.peer;
            if lease.left == 0 {
                self.finish(id, holder != by);
                self.release_if_idle(at, holder);
            } else if holder != by {
                self.trim(id);
            }
            if self.is_hungry(at, holder) {
                self.queue_for_lease(at, holder);
            }
        }
    }

    /// Ends leases of which the peer has done its part, though what it fetched is disputed.
    pub(super) fn end_disputed(&mut self, at: u32, peer: u32, run: &Range<u32>) {
        let Some(task) = self.seen(at).filter(|task| task.digests.any_disputed()) else { return };
        let Some(entry) = self.seen_entry(at, peer) else { return };
        let own = |id: &u64| self.leases.get(id).filter(|lease| lease.peer == peer);
        let done = |lease: &Lease| {
            let mut left = task.unheld(lease.start..lease.end).into_iter();
            left.all(|run| entry.complete || entry.have.count_within(run.clone()) == run.end - run.start)
        };
        let ended: Vec<u64> = task.leases_in(run).into_iter().filter(|id| own(id).is_some_and(done)).collect();
        for id in ended {
            self.finish(id, false);
            self.queue_for_lease(at, peer);
        }
        self.release_if_idle(at, peer);
    }

    /// Cuts pieces that are held off a lease's end.
    fn trim(&mut self, id: u64) {
        let Some(lease) = self.leases.get(&id) else { return };
        let Some(task) = self.seen(lease.task) else { return };
        let last = task.last_unheld(lease.start..lease.end);
        if let Some(last) = last.filter(|last| last + 1 < lease.end) {
            self.shorten(id, last + 1);
        }
    }

    /// Pieces that nobody holds any more: a lease's again, or free.
    pub(super) fn unhold(&mut self, at: u32, run: &Range<u32>) {
        let Some(task) = self.tasks.get_mut(at as usize).and_then(Option::as_deref_mut) else { return };
        let mut free: Vec<Range<u32>> = std::iter::once(run.clone()).collect();
        for id in task.leases_in(run) {
            let Some(lease) = self.leases.get_mut(&id) else { continue };
            let leased = run.start.max(lease.start)..run.end.min(lease.end);
            if leased.is_empty() {
                continue;
            }
            let count = leased.end - leased.start;
            lease.left += count;
            if let Some(fetcher) = task.fetchers.get_mut(&lease.peer) {
                fetcher.left += count;
            }
            free = without(&free, &leased);
        }
        free.into_iter().for_each(|run| task.free.add(run));
    }

    pub(super) fn returned(&mut self, now: Duration, peer: u32, id: u64, reason: ReturnReason, retry: Duration) {
        let Some(lease) = self.leases.get(&id).filter(|lease| lease.peer == peer) else { return };
        let (at, run) = (lease.task, lease.start..lease.end);
        match reason {
            ReturnReason::Expired | ReturnReason::Refused => {
                self.end_leases(at, peer, true);
                self.stop_fetching(at, peer);
            }
            ReturnReason::Throttled => {
                self.pause(now, at, peer, retry);
                self.queue_for_lease(at, peer);
            }
            ReturnReason::Failed => self.cool(now, at, peer),
            ReturnReason::Unneeded => {
                self.narrow(at, peer, &run);
                self.queue_for_lease(at, peer);
            }
        }
        self.finish(id, false);
        self.release_if_idle(at, peer);
        self.lease_out(now, at);
    }

    /// Ends a lease; what nobody holds of it is free again.
    fn finish(&mut self, id: u64, tell: bool) {
        let Some(lease) = self.leases.remove(&id) else { return };
        self.lease_ends.remove(&(lease.due, id));
        if let Some(task) = self.task(lease.task) {
            task.leases.remove(&lease.start);
            if lease.left > 0 {
                task.unheld(lease.start..lease.end).into_iter().for_each(|run| task.free.add(run));
            }
            if let Some(fetcher) = task.fetchers.get_mut(&lease.peer) {
                fetcher.leases -= 1;
                fetcher.left -= lease.left;
            }
        }
        if tell {
            self.tell(lease.peer, Directive::LeaseEnd { id });
        }
    }

    pub(super) fn end_leases(&mut self, at: u32, peer: u32, tell: bool) {
        let Some(task) = self.seen(at).filter(|task| task.fetchers.contains_key(&peer)) else { return };
        let ids: Vec<u64> = task.leases.values().copied().collect();
        for id in ids {
            if self.leases.get(&id).is_some_and(|lease| lease.peer == peer) {
                self.finish(id, tell);
            }
        }
        self.release_if_idle(at, peer);
    }

    pub(super) fn reclaim_silent(&mut self, now: Duration) {
        let silence = self.options.silence;
        while let Some((_, id)) = self.lease_ends.first().copied().filter(|&(due, _)| due <= now) {
            self.lease_ends.pop_first();
            let Some(lease) = self.leases.get_mut(&id) else { continue };
            if lease.moved + silence > now {
                lease.due = lease.moved + silence;
                self.lease_ends.insert((lease.due, id));
                continue;
            }
            let (at, peer) = (lease.task, lease.peer);
            self.counts.leases_silent += 1;
            self.finish(id, true);
            self.release_if_idle(at, peer);
            self.cool(now, at, peer);
            self.lease_out(now, at);
        }
    }
}
