//! Who holds which pieces, and what follows for the leases [pure].

use std::ops::Range;
use std::time::Duration;

use super::piece_set::PieceSet;
use super::pieces::{subtract, tidied};
use super::sessions::{Check, LATER, TASKS_AT_ONCE};
use super::tasks::{Owes, Task};
use super::{Cluster, Progress, TaskName};

/// Peers whose scheduler has restarted are back after this; until then what they hold is not known, and pieces of tasks
/// that somebody came back with are not leased.
const RETURN: Duration = Duration::from_millis(2_500);
/// Of a task that is first heard of in an inventory others hold pieces too, and are about to say so: they all come when
/// another scheduler is gone.
const ALL_SAY_IT: Duration = Duration::from_secs(1);
/// A peer has this long after its inventory to say again what it wants.
const SAY_AGAIN: Duration = Duration::from_secs(5);

impl Task {
    /// A disputed piece is held by nobody, whatever peers have of it.
    pub(super) fn is_held(&self, piece: u32) -> bool {
        (self.complete > 0 || self.holders.get(piece) > 0) && !self.digests.is_disputed(piece)
    }

    /// The runs of `run` without a holder. Work follows from the runs that peers have reported, not from the length of `run`.
    pub(super) fn unheld(&self, run: Range<u32>) -> Vec<Range<u32>> {
        let run = run.start..run.end.min(self.pieces);
        let empty = if self.complete > 0 { Vec::new() } else { self.holders.empty_runs(run.clone()) };
        let disputed = self.digests.disputed_within(&run);
        match disputed.is_empty() {
            true => empty,
            false => tidied(empty.into_iter().chain(disputed).collect(), self.pieces, usize::MAX),
        }
    }

    /// The last piece of `run` without a holder.
    pub(super) fn last_unheld(&self, run: Range<u32>) -> Option<u32> {
        self.unheld(run).last().map(|run| run.end - 1)
    }

    /// Rising runs without the pieces whose holders do not count.
    fn undisputed(&self, runs: Vec<Range<u32>>) -> Vec<Range<u32>> {
        let (Some(first), Some(last)) = (runs.first(), runs.last()) else { return runs };
        match self.digests.disputed_within(&(first.start..last.end)) {
            disputed if disputed.is_empty() => runs,
            disputed => subtract(&runs, &disputed),
        }
    }
}

impl Cluster {
    pub(super) fn progress(&mut self, now: Duration, peer: u32, progress: &Progress) {
        if progress.gone {
            if let Some(&at) = self.by_name.get(&progress.task) {
                // One that neither held nor wanted it cannot have found it wrong.
                let took_part = self.seen_entry(at, peer).is_some_and(|entry| entry.held > 0 || entry.wants);
                self.lose_all(at, peer);
                self.put_away(now, at, peer);
                if progress.wrong && took_part {
                    self.doubt(now, at);
                }
                self.lease_out(now, at);
            }
            return;
        }
        let Some(at) = self.enter(peer, &progress.task, progress.len) else { return };
        if let Some(entry) = self.entry(at, peer) {
            entry.owes.set(Owes::HOLDINGS, false);
            if progress.requests > 0 {
                entry.requests = u8::try_from(progress.requests).unwrap_or(u8::MAX);
            }
        }
        for run in &progress.lost {
            self.lose(at, peer, run.clone());
        }
        let held = self.held_by(at, peer);
        for run in &progress.added {
            self.gain(now, at, peer, run.clone());
        }
        if progress.complete {
            self.complete(now, at, peer);
        }
        self.count_gained(self.held_by(at, peer).saturating_sub(held), &progress.digests);
        self.stepped(at, peer, &progress.digests);
        for run in &progress.digests {
            self.report_digests(now, at, peer, run);
        }
        for run in &progress.added {
            self.end_disputed(at, peer, run);
        }
        for &lease in &progress.alive {
            self.touch(now, peer, lease);
        }
        self.push_quiet(now, at);
        self.charge(at, peer);
        self.settle(now, at, peer);
    }

    fn held_by(&self, at: u32, peer: u32) -> u32 {
        self.seen_entry(at, peer).map_or(0, |entry| entry.held)
    }

    /// Pieces with a digest of the reporter's own came from the origin: it had no other to verify them against.
    fn count_gained(&mut self, pieces: u32, digests: &[super::DigestRun]) {
        let own: usize = digests.iter().map(|run| run.digests.len()).sum();
        let from_origin = u64::from(pieces).min(own as u64);
        self.counts.pieces_from_origin += from_origin;
        self.counts.pieces_from_peers += u64::from(pieces) - from_origin;
    }

    /// What an inventory says of a task is all that the peer holds of it.
    pub(super) fn confirm(
        &mut self,
        now: Duration,
        peer: u32,
        name: &TaskName,
        len: u64,
        complete: bool,
        have: Vec<Range<u32>>,
    ) {
        let new = !self.by_name.contains_key(name);
        let Some(at) = self.enter(peer, name, len) else { return };
        let settled = self.began.unwrap_or(now) + RETURN;
        let settled = if new { settled.max(now + ALL_SAY_IT) } else { settled };
        let Some(task) = self.task(at) else { return };
        let pieces = task.pieces;
        if now < settled {
            task.settled = settled;
        }
        let Some(entry) = self.entry(at, peer) else { return };
        entry.owes.set(Owes::HOLDINGS, false);
        if complete {
            self.complete(now, at, peer);
        } else {
            let have = tidied(have, pieces, usize::MAX);
            if entry.held > 0 {
                let all: Vec<Range<u32>> = std::iter::once(0..pieces).collect();
                subtract(&all, &have).into_iter().for_each(|run| self.lose(at, peer, run));
            }
            have.into_iter().for_each(|run| self.gain(now, at, peer, run));
        }
        self.charge(at, peer);
        self.settle(now, at, peer);
    }

    /// After a peer's holdings changed.
    fn settle(&mut self, now: Duration, at: u32, peer: u32) {
        let wanted = self.seen(at).is_some_and(|task| task.wanters > 0);
        let alone = |entry: &super::tasks::Entry| !entry.wants && entry.held > 0 && entry.links.is_empty();
        if wanted && self.seen_entry(at, peer).is_some_and(alone) {
            // A holder that nobody knows would leave its pieces neither leased nor within reach.
            self.link_up(now, at, peer);
        }
        self.put_away(now, at, peer);
        self.lease_out(now, at);
    }

    /// Forgets a peer at a task that it neither wants nor holds anything of.
    pub(super) fn put_away(&mut self, now: Duration, at: u32, peer: u32) {
        if self.seen_entry(at, peer).is_some_and(|entry| entry.held == 0 && !entry.wants) {
            self.remove_entry(now, at, peer);
        }
    }

    fn gain(&mut self, now: Duration, at: u32, peer: u32, run: Range<u32>) {
        let Some(pieces) = self.seen(at).map(|task| task.pieces) else { return };
        let run = run.start..run.end.min(pieces);
        let Some(entry) = self.entry(at, peer).filter(|entry| !entry.complete) else { return };
        let fresh = entry.have.runs(run.clone(), false);
        entry.held += entry.have.set(run.clone(), pieces);
        let completes = entry.held == pieces;
        self.moved(now, at, peer, &run);
        for run in fresh {
            self.count_up(at, peer, run);
        }
        if completes {
            self.complete(now, at, peer);
        }
    }

    fn count_up(&mut self, at: u32, peer: u32, run: Range<u32>) {
        let Some(task) = self.task(at) else { return };
        let first = task.holders.raise(run, task.pieces);
        let first = if task.complete == 0 { task.undisputed(first) } else { Vec::new() };
        if !first.is_empty() {
            self.hold(at, &first, peer);
        }
    }

    /// From now on the peer holds everything: its bitmap goes, a counter stands for it.
    fn complete(&mut self, now: Duration, at: u32, peer: u32) {
        let Some(pieces) = self.seen(at).map(|task| task.pieces) else { return };
        let Some(entry) = self.entry(at, peer).filter(|entry| !entry.complete) else { return };
        let had = std::mem::take(&mut entry.have).runs(0..pieces, true);
        entry.complete = true;
        entry.held = pieces;
        self.moved(now, at, peer, &(0..pieces));
        let Some(task) = self.task(at) else { return };
        let first = if task.complete == 0 { task.unheld(0..pieces) } else { Vec::new() };
        task.complete += 1;
        had.into_iter().for_each(|run| drop(task.holders.lower(run, pieces)));
        let held = task.undisputed(first);
        self.hold(at, &held, peer);
        self.part_from_complete(at, peer);
    }

    pub(super) fn lose(&mut self, at: u32, peer: u32, run: Range<u32>) {
        let Some(pieces) = self.seen(at).map(|task| task.pieces) else { return };
        let run = run.start..run.end.min(pieces);
        let Some(entry) = self.entry(at, peer) else { return };
        let was_complete = std::mem::take(&mut entry.complete);
        if was_complete {
            entry.have.set(0..pieces, pieces);
        }
        let gone = entry.have.runs(run.clone(), true);
        entry.held -= entry.have.clear(run, pieces);
        let Some(task) = self.task(at) else { return };
        if was_complete {
            task.complete -= 1;
            task.holders.raise(0..pieces, pieces);
        }
        let lost = !gone.is_empty();
        for run in gone {
            self.count_down(at, run);
        }
        if lost && self.seen_entry(at, peer).is_some_and(|entry| entry.can_fetch) {
            self.queue_for_lease(at, peer);
        }
    }

    pub(super) fn lose_all(&mut self, at: u32, peer: u32) {
        let others = self.seen(at).is_some_and(|task| task.complete > 1);
        let Some(entry) = self.entry(at, peer) else { return };
        if entry.complete && others {
            (entry.complete, entry.held) = (false, 0);
            let fetches = entry.can_fetch;
            if let Some(task) = self.task(at) {
                task.complete -= 1;
            }
            if fetches {
                self.queue_for_lease(at, peer);
            }
        } else if entry.held > 0 {
            self.lose(at, peer, 0..u32::MAX);
            if let Some(entry) = self.entry(at, peer) {
                entry.have = PieceSet::default();
            }
        }
    }

    fn count_down(&mut self, at: u32, run: Range<u32>) {
        let Some(task) = self.task(at) else { return };
        let last = task.holders.lower(run, task.pieces);
        let last = if task.complete == 0 { task.undisputed(last) } else { Vec::new() };
        for run in last {
            self.unhold(at, &run);
        }
    }

    /// Marks all that a peer was known for until its new inventory and wants name it.
    pub(super) fn inventory_start(&mut self, now: Duration, peer: u32) {
        if let Some(member) = self.members.get_mut(peer) {
            member.since = now;
            member.accusers.retain(|(.., silent)| !silent);
        }
        for at in self.tasks_of(peer) {
            if let Some(entry) = self.entry(at, peer) {
                entry.owes.set(Owes::HOLDINGS, entry.held > 0);
                entry.owes.set(Owes::WANT, entry.wants);
            }
        }
    }

    pub(super) fn inventory_end(&mut self, now: Duration, peer: u32) {
        self.drop_unnamed(now, peer);
        self.checks.insert((now + SAY_AGAIN, peer, Check::Wants));
    }

    /// What the inventory did not name is not held; of many tasks, the rest follows at later ticks.
    pub(super) fn drop_unnamed(&mut self, now: Duration, peer: u32) {
        let owed = |&at: &u32| self.seen_entry(at, peer).is_some_and(|entry| entry.owes.has(Owes::HOLDINGS));
        let mut unnamed: Vec<u32> = self.tasks_of(peer).into_iter().filter(owed).collect();
        if unnamed.len() > TASKS_AT_ONCE {
            unnamed.truncate(TASKS_AT_ONCE);
            self.checks.insert((now + LATER, peer, Check::Unnamed));
        }
        for at in unnamed {
            if let Some(entry) = self.entry(at, peer) {
                entry.owes.set(Owes::HOLDINGS, false);
            }
            self.lose_all(at, peer);
            self.put_away(now, at, peer);
            self.lease_out(now, at);
        }
    }
}
