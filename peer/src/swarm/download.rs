//! The download of one task as a state machine [pure]: events in, actions out, no clock and no I/O.
//!
//! Times are durations since any fixed moment. A piece is *held*, *claimed* by one run, or free; a run is a sequence of
//! consecutive pieces fetched by one request, *active* or *parked* until it may be tried again from the byte where it stopped.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
    time::Duration,
};

use super::retry::{Backoff, Class, Jitter};
use crate::task::{Bitmap, Layout};

/// URLs of clients that are kept for one download; beyond it the oldest goes.
pub const MAX_SOURCES: usize = 16;
/// How long a run waits that found all of the node's connections to the host busy.
const BUSY_PAUSE: Duration = Duration::from_millis(100);

/// Settings of a download.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Runs at once at the start; one more with each piece done, up to `max_runs`.
    pub first_runs: usize,
    /// The most runs at once.
    pub max_runs: usize,
    /// Bytes in a run at most (at least one piece): long enough to hide a round trip, short enough to spread the tail.
    pub run_len: u64,
    /// How failures are borne.
    pub backoff: Backoff,
    /// Whether the whole task is fetched after its last reader left.
    pub finish_alone: bool,
    /// Of the jitter.
    pub seed: u64,
}

impl Default for Policy {
    fn default() -> Self {
        let backoff = Backoff::default();
        Self { first_runs: 4, max_runs: 16, run_len: 16 << 20, backoff, finish_alone: false, seed: 0 }
    }
}

/// Names a run; never used twice in a download.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RunId(pub u64);

/// Names one client's URL and headers; given by the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SourceId(pub u64);

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// A reader waits for these bytes.
    Want {
        /// Chosen by the driver.
        reader: u64,
        /// Clipped to the task.
        bytes: Range<u64>,
    },
    /// The reader left.
    Unwant {
        /// As in `Want`.
        reader: u64,
    },
    /// The first `valid` bytes of `piece` are written.
    Progress {
        /// Whose piece it is.
        run: RunId,
        /// The piece under way.
        piece: u32,
        /// Counted from the piece's start.
        valid: u32,
    },
    /// The piece is verified and durable.
    PieceDone {
        /// Whose piece it was.
        run: RunId,
        /// Now held.
        piece: u32,
    },
    /// The run came to its end, trimmed or not; what it claimed and did not finish is free again.
    RunEnded {
        /// Not used again.
        run: RunId,
    },
    /// The run stopped before its end.
    RunFailed {
        /// Which one.
        run: RunId,
        /// What the failure means.
        class: Class,
    },
    /// The disk refused a piece.
    DiskFailed,
    /// A client's URL to fetch with.
    UrlOffered {
        /// Names it in `Fetch`.
        source: SourceId,
    },
}

/// What the driver must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Fetch a run.
    Fetch(Fetch),
    /// The run must end after the piece that it is in.
    Trim(RunId),
    /// The run must stop at once; no event of it counts any more.
    Cancel(RunId),
    /// Every piece is held.
    Done,
    /// Waiting readers get no more bytes. After [`Reason::Credentials`] a new URL revives the download.
    Fail(Reason),
}

/// One request to the origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetch {
    /// Names it in events.
    pub run: RunId,
    /// Consecutive pieces.
    pub pieces: Range<u32>,
    /// Bytes of the first piece that are already written.
    pub from: u32,
    /// Whose URL to use.
    pub source: SourceId,
    /// The origin ignores ranges: ask for the whole object and pass over what is held.
    pub whole: bool,
}

/// Why a download fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// No client's URL is accepted any more.
    Credentials,
    /// Attempts in a row without one new byte.
    Exhausted,
    /// The origin's answer leaves no hope.
    Refused,
    /// The object is another one now.
    Changed,
    /// The disk failed.
    Disk,
}

/// The state of one download.
pub struct Download {
    layout: Layout,
    policy: Policy,
    held: Bitmap,
    ranged: bool,
    wants: BTreeMap<u64, Want>,
    served_last: u64,
    runs: Vec<Run>,
    next_run: u64,
    limit: usize,
    sources: VecDeque<SourceId>,
    phase: Phase,
    queued: VecDeque<Action>,
    jitter: Jitter,
}

struct Want {
    pieces: Range<u32>,
}

struct Run {
    id: RunId,
    pieces: Range<u32>,
    from: u32,
    source: SourceId,
    failures: u32,
    /// `None`: active.
    parked: Option<Duration>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running,
    Starved,
    Ended,
}

impl Download {
    /// A download of what `held` lacks. `ranged`: whether the origin serves ranges, as far as is known.
    pub fn new(layout: Layout, held: &Bitmap, ranged: bool, policy: Policy) -> Self {
        let copy = Bitmap::new(layout.pieces());
        for piece in (0..layout.pieces()).filter(|piece| held.get(*piece)) {
            copy.set(piece);
        }
        Self {
            layout,
            policy,
            held: copy,
            ranged,
            wants: BTreeMap::new(),
            served_last: 0,
            runs: Vec::new(),
            next_run: 0,
            limit: policy.first_runs.clamp(1, policy.max_runs.max(1)),
            sources: VecDeque::new(),
            phase: Phase::Running,
            queued: VecDeque::new(),
            jitter: Jitter::new(policy.seed),
        }
    }

    /// Takes note of an event. Events of runs that are over are ignored.
    pub fn handle(&mut self, now: Duration, event: Event) {
        match event {
            Event::Want { reader, bytes } => {
                let pieces = self.layout.covering(bytes.start..bytes.end.min(self.layout.len()));
                self.wants.insert(reader, Want { pieces });
            }
            Event::Unwant { reader } => self.unwant(reader),
            Event::Progress { run, piece, valid } => self.progress(run, piece, valid),
            Event::PieceDone { run, piece } => {
                self.held.set(piece);
                self.limit = (self.limit + 1).min(self.policy.max_runs.max(1));
                self.progress(run, piece + 1, 0);
            }
            Event::RunEnded { run } => self.runs.retain(|other| other.id != run),
            Event::RunFailed { run, class } => self.run_failed(now, run, class),
            Event::DiskFailed => self.fail(Reason::Disk),
            Event::UrlOffered { source } => self.url_offered(source),
        }
    }

    /// The next thing to do, `None` until the next event or [`Download::poll_timeout`].
    pub fn poll(&mut self, now: Duration) -> Option<Action> {
        if let Some(action) = self.queued.pop_front() {
            return Some(action);
        }
        if self.phase == Phase::Ended {
            return None;
        }
        if self.held.is_full() && self.runs.is_empty() {
            self.phase = Phase::Ended;
            return Some(Action::Done);
        }
        let Some(source) = self.sources.front().copied() else { return self.starve() };
        self.resume(now, source).or_else(|| self.begin(source))
    }

    /// When to poll again without an event.
    pub fn poll_timeout(&self) -> Option<Duration> {
        let full = self.active() >= self.slots();
        let stuck = full || self.sources.is_empty() || self.phase == Phase::Ended;
        if stuck { None } else { self.runs.iter().filter_map(|run| run.parked).min() }
    }

    /// Whether nothing runs, waits or is wanted: it may be put away.
    pub fn is_idle(&self) -> bool {
        // Without a URL the parked runs wait for nothing that comes by itself.
        let at_rest = self.runs.is_empty() || self.phase == Phase::Starved && self.active() == 0;
        at_rest && self.queued.is_empty() && (self.wants.is_empty() || self.phase == Phase::Ended)
    }

    fn unwant(&mut self, reader: u64) {
        self.wants.remove(&reader);
        if !self.wants.is_empty() || self.policy.finish_alone {
            return;
        }
        self.runs.retain(|run| run.parked.is_none());
        self.queued.extend(self.runs.iter().map(|run| Action::Trim(run.id)));
    }

    fn progress(&mut self, run: RunId, piece: u32, valid: u32) {
        if let Some(run) = self.runs.iter_mut().find(|other| other.id == run) {
            run.pieces.start = piece.min(run.pieces.end);
            run.from = valid;
            run.failures = 0;
        }
    }

    fn url_offered(&mut self, source: SourceId) {
        if self.sources.len() == MAX_SOURCES {
            self.sources.pop_front();
        }
        self.sources.push_back(source);
        if self.phase == Phase::Starved {
            self.phase = Phase::Running;
        }
    }

    fn run_failed(&mut self, now: Duration, id: RunId, class: Class) {
        let Some(index) = self.runs.iter().position(|run| run.id == id) else { return };
        match class {
            Class::Credentials => {
                let expired = self.runs[index].source;
                self.sources.retain(|source| *source != expired);
                self.park(index, now);
            }
            Class::Busy => self.park(index, now + BUSY_PAUSE),
            Class::Transient { after, throttled } => self.retry(index, now, after, throttled),
            Class::IgnoredRange if self.ranged => self.go_whole(index),
            Class::Changed => self.give_up(index, Reason::Changed),
            Class::IgnoredRange | Class::Fatal => self.give_up(index, Reason::Refused),
        }
    }

    fn retry(&mut self, index: usize, now: Duration, after: Option<Duration>, throttled: bool) {
        if throttled {
            self.limit = (self.limit / 2).max(1);
        }
        self.runs[index].failures += 1;
        match self.policy.backoff.delay(self.runs[index].failures, after, &mut self.jitter) {
            Some(delay) => self.park(index, now + delay),
            None => self.give_up(index, Reason::Exhausted),
        }
    }

    /// Keeps a run for later, unless nobody waits for it or it has nothing left to fetch.
    fn park(&mut self, index: usize, until: Duration) {
        let unwanted = self.wants.is_empty() && !self.policy.finish_alone;
        match unwanted || self.runs[index].pieces.is_empty() {
            true => drop(self.runs.swap_remove(index)),
            false => self.runs[index].parked = Some(until),
        }
    }

    /// From now on one request at a time for everything.
    fn go_whole(&mut self, failed: usize) {
        self.ranged = false;
        self.runs.swap_remove(failed);
        self.cancel_all();
    }

    fn give_up(&mut self, failed: usize, reason: Reason) {
        self.runs.swap_remove(failed);
        self.fail(reason);
    }

    fn fail(&mut self, reason: Reason) {
        if self.phase != Phase::Ended {
            self.phase = Phase::Ended;
            self.cancel_all();
            self.queued.push_back(Action::Fail(reason));
        }
    }

    fn cancel_all(&mut self) {
        let active = self.runs.drain(..).filter(|run| run.parked.is_none());
        self.queued.extend(active.map(|run| Action::Cancel(run.id)));
    }

    /// Without a URL: what runs may finish; then waiting readers must know.
    fn starve(&mut self) -> Option<Action> {
        let waiting = self.runs.iter().any(|run| run.parked.is_some()) || self.pick().is_some();
        if self.phase == Phase::Starved || self.active() > 0 || !waiting {
            return None;
        }
        self.phase = Phase::Starved;
        Some(Action::Fail(Reason::Credentials))
    }

    fn active(&self) -> usize {
        self.runs.iter().filter(|run| run.parked.is_none()).count()
    }

    fn slots(&self) -> usize {
        if self.ranged { self.limit } else { 1 }
    }

    /// The parked run that has been due longest, if one is due and a slot is free.
    fn resume(&mut self, now: Duration, source: SourceId) -> Option<Action> {
        if self.active() >= self.slots() {
            return None;
        }
        let due = self.runs.iter_mut().filter(|run| run.parked.is_some_and(|until| until <= now));
        let run = due.min_by_key(|run| (run.parked, run.id))?;
        // A new name: what the failed request may still have to say is of no interest.
        run.id = RunId(self.next_run);
        run.parked = None;
        run.source = source;
        self.next_run += 1;
        let fetch = Fetch { run: run.id, pieces: run.pieces.clone(), from: run.from, source, whole: !self.ranged };
        Some(Action::Fetch(fetch))
    }

    /// A new run, if there is a slot (parked runs keep theirs) and something to fetch.
    fn begin(&mut self, source: SourceId) -> Option<Action> {
        if self.runs.len() >= self.slots() {
            return None;
        }
        let pieces = self.pick()?;
        let id = RunId(self.next_run);
        self.next_run += 1;
        self.runs.push(Run { id, pieces: pieces.clone(), from: 0, source, failures: 0, parked: None });
        Some(Action::Fetch(Fetch { run: id, pieces, from: 0, source, whole: !self.ranged }))
    }

    /// The next pieces to fetch: first a piece that a reader stands before, readers taking turns; then the next free
    /// piece of a reader; without readers the first free piece at all.
    fn pick(&mut self) -> Option<Range<u32>> {
        self.wants.values_mut().for_each(|want| skip_held(&self.held, want));
        if self.wants.is_empty() {
            let all = 0..self.layout.pieces();
            let first = self.policy.finish_alone.then(|| self.first_free(all.clone())).flatten()?;
            return Some(self.extend(first, all.end));
        }
        let after = self.wants.range(self.served_last + 1..).chain(self.wants.range(..=self.served_last));
        let turns: Vec<_> = after.map(|(reader, want)| (*reader, want.pieces.clone())).collect();
        let stands = |(_, pieces): &&(u64, Range<u32>)| !pieces.is_empty() && !self.is_claimed(pieces.start);
        let urgent = turns.iter().find(stands).map(|(reader, pieces)| (*reader, pieces.start, pieces.end));
        let next = || {
            let mut free = turns.iter().map(|(reader, pieces)| (*reader, self.first_free(pieces.clone()), pieces.end));
            free.find_map(|(reader, first, end)| first.map(|first| (reader, first, end)))
        };
        let (reader, first, end) = urgent.or_else(next)?;
        self.served_last = reader;
        Some(self.extend(first, end))
    }

    /// From `first` on, free pieces up to `end`: not past a run's length, nor past a free piece that another reader stands before.
    fn extend(&self, first: u32, end: u32) -> Range<u32> {
        if !self.ranged {
            let last = self.wants.values().map(|want| want.pieces.end).max().unwrap_or(end);
            return first..last.max(end);
        }
        let longest = first.saturating_add(self.run_pieces(first, end)).min(end);
        let stops = |piece: &u32| {
            let stood_before = self.wants.values().any(|want| want.pieces.start == *piece && !want.pieces.is_empty());
            self.held.get(*piece) || self.is_claimed(*piece) || stood_before
        };
        first..(first + 1..longest).find(stops).unwrap_or(longest)
    }

    /// Pieces in a run: what is left is cut so that every slot gets two more runs, up to the policy's length.
    fn run_pieces(&self, first: u32, end: u32) -> u32 {
        let longest =
            u32::try_from(self.policy.run_len / u64::from(self.layout.piece_len())).unwrap_or(u32::MAX).max(1);
        let share = u32::try_from(2 * self.policy.max_runs.max(1)).unwrap_or(u32::MAX);
        let enough = longest.saturating_mul(share) as usize;
        let free = (first..end).filter(|piece| !self.held.get(*piece) && !self.is_claimed(*piece)).take(enough).count();
        u32::try_from(free).unwrap_or(u32::MAX).div_ceil(share).clamp(1, longest)
    }

    fn first_free(&self, pieces: Range<u32>) -> Option<u32> {
        let mut at = pieces.start;
        while at < pieces.end {
            match self.claim_over(at) {
                Some(claim) => at = claim.end,
                None if self.held.get(at) => at += 1,
                None => return Some(at),
            }
        }
        None
    }

    fn is_claimed(&self, piece: u32) -> bool {
        self.claim_over(piece).is_some()
    }

    fn claim_over(&self, piece: u32) -> Option<Range<u32>> {
        self.runs.iter().map(|run| run.pieces.clone()).find(|pieces| pieces.contains(&piece))
    }
}

/// Moves a reader's start to the piece that it stands before; held pieces stay held, so it never moves back.
fn skip_held(held: &Bitmap, want: &mut Want) {
    while !want.pieces.is_empty() && held.get(want.pieces.start) {
        want.pieces.start += 1;
    }
}

#[cfg(test)]
#[path = "download_tests.rs"]
mod tests;
