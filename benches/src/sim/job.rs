//! One file at one node: the peer's own machine, what is on disk, and what the driver would know.

use std::{collections::BTreeMap, ops::Range, time::Duration};

use pondhawk::{
    swarm::download::{Download, LinkId, Policy, Reach, RunId, Wanted},
    task::{Bitmap, Layout},
};
use pondhawk_scheduler::cluster::{DigestRun, Event, Progress, TaskName};

/// What a piece contains, and what a digest is of.
pub(super) type Version = u8;
/// Not held; no digest.
pub(super) const NOTHING: Version = 0;
/// What the origin has.
pub(super) const RIGHT: Version = 1;
/// What a liar makes of it.
pub(super) const WRONG: Version = 2;

/// The rest of a run that is being fetched from the origin.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) end: u32,
    pub(super) trimmed: bool,
}

/// A piece that a link is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) parent: u32,
    /// When the parent will have sent it, and this node will have taken it, once it is on its way.
    pub(super) way: Option<(Duration, Duration)>,
}

/// See the module.
pub(super) struct Job {
    pub(super) layout: Layout,
    /// While a client waits.
    pub(super) machine: Option<Box<Download>>,
    /// What is on disk, by piece.
    pub(super) held: Vec<Version>,
    /// What the scheduler said, by piece.
    pub(super) digests: Vec<Version>,
    /// Nodes to be linked with, and the link while there is one.
    pub(super) parents: BTreeMap<u32, Option<LinkId>>,
    pub(super) links: BTreeMap<LinkId, u32>,
    pub(super) next_link: u64,
    pub(super) runs: BTreeMap<RunId, Running>,
    /// Pieces that links are asked for.
    pub(super) asked: BTreeMap<(LinkId, u32), Asked>,
    /// Not yet reported to the scheduler.
    pub(super) added: Vec<u32>,
    pub(super) fetched: Vec<u32>,
    pub(super) gone: bool,
    /// What goes was complete, and wrong.
    pub(super) wrong: bool,
    /// Pieces that came from peers.
    pub(super) from_peers: Vec<bool>,
    /// Times that it was wrong.
    pub(super) mismatches: u32,
    pub(super) alive_at: Duration,
    /// Not yet told to followers.
    pub(super) fresh: Vec<u32>,
    pub(super) have_due: bool,
    pub(super) said: Option<Wanted>,
    /// Believes no peer: what it had was wrong.
    pub(super) alone: bool,
}

impl Job {
    pub(super) fn new(len: u64) -> Self {
        let layout = Layout::for_len(len).expect("a scenario's files are short");
        let pieces = layout.pieces() as usize;
        Self {
            layout,
            machine: None,
            held: vec![NOTHING; pieces],
            digests: vec![NOTHING; pieces],
            parents: BTreeMap::new(),
            links: BTreeMap::new(),
            next_link: 0,
            runs: BTreeMap::new(),
            asked: BTreeMap::new(),
            added: Vec::new(),
            fetched: Vec::new(),
            gone: false,
            wrong: false,
            from_peers: vec![false; pieces],
            mismatches: 0,
            alive_at: Duration::ZERO,
            fresh: Vec::new(),
            have_due: false,
            said: None,
            alone: false,
        }
    }

    /// A new machine over what is on disk.
    pub(super) fn start(&mut self, seed: u64) {
        let held = Bitmap::new(self.layout.pieces());
        for piece in (0..self.layout.pieces()).filter(|&piece| self.has(piece)) {
            held.set(piece);
        }
        let policy = Policy { seed, ..Policy::default() };
        self.machine = Some(Box::new(Download::new(self.layout, &held, Reach::Ranges, policy)));
    }

    /// The process is gone; the disk stays.
    pub(super) fn stop(&mut self) {
        let held = std::mem::take(&mut self.held);
        let (alone, mismatches, next_link) = (self.alone, self.mismatches, self.next_link);
        *self = Self { held, alone, mismatches, next_link, ..Self::new(self.layout.len()) };
    }

    /// Nothing of it is on disk any more; whether the node believes no peer from now on.
    pub(super) fn drop_wrong(&mut self, complete: bool) {
        self.held.fill(NOTHING);
        self.from_peers.fill(false);
        (self.added, self.fetched, self.fresh) = (Vec::new(), Vec::new(), Vec::new());
        (self.gone, self.wrong) = (true, complete);
        self.mismatches += 1;
        self.alone = self.mismatches > 1;
    }

    pub(super) fn has(&self, piece: u32) -> bool {
        self.held[piece as usize] != NOTHING
    }

    pub(super) fn bytes_of(&self, piece: u32) -> u64 {
        let bytes = self.layout.bytes_of(piece);
        bytes.end - bytes.start
    }

    pub(super) fn runs_held(&self) -> Vec<Range<u32>> {
        runs((0..self.layout.pieces()).filter(|&piece| self.has(piece)))
    }

    /// The digests of pieces as this node knows them from its disk.
    pub(super) fn digest_runs(&self, pieces: &[u32]) -> Vec<DigestRun> {
        let digest = |piece: u32| [self.held[piece as usize]; 32];
        let runs = runs(pieces.iter().copied().filter(|&piece| self.has(piece)));
        runs.into_iter().map(|run| DigestRun { first: run.start, digests: run.map(digest).collect() }).collect()
    }

    /// What changed since the last report, as events.
    pub(super) fn report(&mut self, task: TaskName, now: Duration, alive_every: Duration) -> Vec<Event> {
        let len = self.layout.len();
        let mut events = Vec::new();
        if std::mem::take(&mut self.gone) {
            let wrong = std::mem::take(&mut self.wrong);
            events.push(Event::Progress(Progress { task, len, gone: true, wrong, ..Progress::default() }));
        }
        let mut alive = Vec::new();
        if !self.runs.is_empty() && now >= self.alive_at + alive_every {
            self.alive_at = now;
            let machine = self.machine.as_ref();
            let leases = self.runs.values().filter_map(|run| machine?.lease_of(run.end.saturating_sub(1)));
            alive = leases.collect();
            alive.sort_unstable();
            alive.dedup();
        }
        if self.added.is_empty() && alive.is_empty() {
            return events;
        }
        self.added.sort_unstable();
        self.fetched.sort_unstable();
        let digests = self.digest_runs(&self.fetched);
        let added = runs(self.added.drain(..).filter(|&piece| self.held[piece as usize] != NOTHING));
        self.fetched.clear();
        let requests = self.machine.as_ref().map_or(0, |machine| u32::try_from(machine.requests()).unwrap_or(u32::MAX));
        events.push(Event::Progress(Progress { task, len, added, digests, alive, requests, ..Progress::default() }));
        events
    }
}

/// Rising pieces as runs.
pub(super) fn runs(pieces: impl IntoIterator<Item = u32>) -> Vec<Range<u32>> {
    let mut runs: Vec<Range<u32>> = Vec::new();
    for piece in pieces {
        match runs.last_mut() {
            Some(last) if last.end == piece => last.end += 1,
            _ => runs.push(piece..piece + 1),
        }
    }
    runs
}
