//! The download of one task as a state machine [pure]: events in, actions out, no clock and no I/O.
//!
//! Times are durations since any fixed moment. A piece is *held*, *busy* with one run or one link, or free; a run is a
//! sequence of consecutive pieces fetched from the origin by one request, *active* or *parked* until it may be tried again from
//! the byte where it stopped; a link is a peer that is asked for single pieces whose digest is known.
//!
//! While a scheduler leads, only pieces that it leased are fetched from the origin; what links have comes from them. A piece
//! that a reader stands before and nobody brings is fetched without a lease in the end.

mod bits;
mod leases;
mod links;
mod pace;
mod plan;

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
    time::Duration,
};

use super::retry::{Backoff, Class, Jitter};
use crate::task::{Bitmap, Layout};
use bits::Bits;
use leases::Leases;
use links::Links;
use pace::Pace;

/// URLs of clients that are kept for one download; beyond it the oldest goes.
pub const MAX_SOURCES: usize = 16;
/// How long a run waits that found all of the node's connections to the host busy.
const BUSY_PAUSE: Duration = Duration::from_millis(100);
/// After so many refusals in a row for want of capacity the scheduler hears of it.
const THROTTLED_OFTEN: u32 = 3;

/// Settings of a download.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Runs at once at the start; one more with each piece done, up to `max_runs`.
    pub first_runs: usize,
    /// The most runs at once.
    pub max_runs: usize,
    /// Bytes in a run at most (at least one piece): long enough to hide a round trip, short enough to spread the tail.
    pub run_len: u64,
    /// The same under a scheduler, which may give the rest of a lease to others at any time, and while there are links, to
    /// whom it does: what runs have begun should not be much of the task.
    pub led_run_len: [u64; 2],
    /// How failures are borne.
    pub backoff: Backoff,
    /// Whether the whole task is fetched after its last reader left.
    pub finish_alone: bool,
    /// Whether readers wait for links, for as long as they like, though there is no URL. Over with the first one.
    pub from_links: bool,
    /// Of the jitter.
    pub seed: u64,
}

impl Default for Policy {
    fn default() -> Self {
        let backoff = Backoff::default();
        Self {
            first_runs: 4,
            max_runs: 16,
            run_len: 16 << 20,
            led_run_len: [4 << 20, 1 << 20],
            backoff,
            finish_alone: false,
            from_links: false,
            seed: 0,
        }
    }
}

/// Names a run; never used twice in a download.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RunId(pub u64);

/// Names one client's URL and headers; given by the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SourceId(pub u64);

/// Names a connection to a peer; never used twice in a download.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkId(pub u64);

/// What one request to the origin can bring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Any pieces.
    Ranges,
    /// Everything or nothing: the origin ignores ranges. It is never leased.
    Whole,
    /// Everything or nothing: its URL is signed for exactly the task's bytes. Who may fetch the piece that a reader stands
    /// before fetches the rest with it; the others wait for links.
    Window,
}

/// Who decides what is fetched from the origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leader {
    /// This node alone.
    None,
    /// A scheduler whose session was lost: its leases go on for a while.
    Lost,
    /// A scheduler that knows what it told this download before.
    Same,
    /// A scheduler that knows nothing of earlier leases.
    New,
}

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
    /// From now on this one leads. The first such event makes the download tell what it wants.
    Led(Leader),
    /// These pieces may be fetched from the origin; an id told before gets other ones.
    Leased {
        /// Names it.
        lease: u64,
        /// Consecutive.
        pieces: Range<u32>,
    },
    /// The lease is over.
    LeaseEnded {
        /// Which one.
        lease: u64,
    },
    /// A peer can be asked.
    LinkUp {
        /// Chosen by the driver.
        link: LinkId,
    },
    /// It has these pieces.
    LinkHas {
        /// Which one.
        link: LinkId,
        /// Consecutive.
        pieces: Range<u32>,
    },
    /// It has nothing of the task any more.
    LinkForgot {
        /// Which one.
        link: LinkId,
    },
    /// It wants to be left alone.
    LinkBusy {
        /// Which one.
        link: LinkId,
        /// For how long.
        pause: Duration,
    },
    /// It is over. What is still asked of it is answered for one by one.
    LinkDown {
        /// Which one.
        link: LinkId,
    },
    /// The digests of these pieces are known.
    Known {
        /// Consecutive.
        pieces: Range<u32>,
    },
    /// The digest of the piece is void.
    Disputed {
        /// Which one.
        piece: u32,
    },
    /// A piece that is held was verified with a digest that was wrong.
    Refuted {
        /// Which one.
        piece: u32,
    },
    /// A piece that was asked for came, verified and durable.
    PeerPiece {
        /// From whom.
        link: LinkId,
        /// Now held.
        piece: u32,
    },
    /// It did not come, for whatever reason; nothing writes at it any more.
    PeerFailed {
        /// From whom.
        link: LinkId,
        /// Free again.
        piece: u32,
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
    /// Ask a peer for a piece.
    Ask {
        /// Whom.
        link: LinkId,
        /// For what.
        piece: u32,
    },
    /// Stop what was asked for; it is answered for by [`Event::PeerFailed`], or has come.
    Stop {
        /// Of whom.
        link: LinkId,
        /// What.
        piece: u32,
    },
    /// What is left of a lease goes back to the scheduler.
    Return {
        /// Which one.
        lease: u64,
        /// Why.
        why: GiveBack,
    },
    /// What this node wants of the task now.
    Tell(Wanted),
}

/// Why a lease goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GiveBack {
    /// No client's URL is accepted any more.
    Expired,
    /// The origin asks for less.
    Throttled(Option<Duration>),
    /// It failed too often.
    Failed,
    /// Nobody here waits for it.
    Unneeded,
}

/// What a node wants of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Nothing.
    Nothing,
    /// Pieces.
    Pieces {
        /// Whether there is a URL to fetch with.
        can_fetch: bool,
        /// Rising runs, at most [`MAX_WANTED`]; none: all.
        runs: Option<Vec<Range<u32>>>,
    },
}

/// Runs in [`Wanted::Pieces`]; what is beyond is told when earlier ones are held.
pub const MAX_WANTED: usize = 64;

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
    /// A piece of a peer is not what the origin has.
    Refuted,
}

/// The state of one download.
pub struct Download {
    layout: Layout,
    policy: Policy,
    held: Bits,
    /// Pieces that a run or a link brings.
    busy: Bits,
    reach: Reach,
    wants: BTreeMap<u64, Want>,
    served_last: u64,
    runs: Vec<Run>,
    next_run: u64,
    limit: usize,
    /// In place of the limit while links wait for what the runs bring.
    pace: Pace,
    sources: VecDeque<SourceId>,
    phase: Phase,
    queued: VecDeque<Action>,
    jitter: Jitter,
    links: Links,
    leases: Leases,
    /// When a link last brought a piece.
    fed: Option<Duration>,
    /// Set once there is somebody to tell.
    told: Option<Wanted>,
    may_tell: Duration,
    next_look: Duration,
}

struct Want {
    /// From the first piece that is not held.
    pieces: Range<u32>,
    /// As it was asked for.
    all: Range<u32>,
    /// The piece it stands before, and since when.
    stands: (u32, Duration),
}

struct Run {
    id: RunId,
    pieces: Range<u32>,
    from: u32,
    source: SourceId,
    failures: u32,
    /// Since when it is at the piece, if it began it.
    since: Option<Duration>,
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
    /// A download of what `held` lacks. `reach`: as far as is known.
    pub fn new(layout: Layout, held: &Bitmap, reach: Reach, policy: Policy) -> Self {
        let pieces = layout.pieces();
        let mut copy = Bits::new(pieces);
        for piece in (0..pieces).filter(|piece| held.get(*piece)) {
            copy.set(piece);
        }
        Self {
            layout,
            policy,
            held: copy,
            busy: Bits::new(pieces),
            reach,
            wants: BTreeMap::new(),
            served_last: 0,
            runs: Vec::new(),
            next_run: 0,
            limit: policy.first_runs.clamp(1, policy.max_runs.max(1)),
            pace: Pace::new(layout.piece_len()),
            sources: VecDeque::new(),
            phase: Phase::Running,
            queued: VecDeque::new(),
            jitter: Jitter::new(policy.seed),
            links: Links::new(pieces, layout.piece_len(), policy.seed),
            leases: Leases::new(pieces),
            fed: None,
            told: None,
            may_tell: Duration::ZERO,
            next_look: Duration::ZERO,
        }
    }

    /// Takes note of an event. Events of runs and links that are over are ignored.
    pub fn handle(&mut self, now: Duration, event: Event) {
        match event {
            Event::Want { reader, bytes } => {
                let all = self.layout.covering(bytes.start..bytes.end.min(self.layout.len()));
                self.wants.insert(reader, Want { pieces: all.clone(), stands: (all.start, now), all });
            }
            Event::Unwant { reader } => self.unwant(reader),
            Event::Progress { run, piece, valid } => self.progress(run, piece, valid),
            Event::PieceDone { run, piece } => {
                self.held.set(piece);
                self.limit = (self.limit + 1).min(self.policy.max_runs.max(1));
                self.took(now, run);
                self.progress(run, piece + 1, 0);
            }
            Event::RunEnded { run } => self.end_run(run),
            Event::RunFailed { run, class } => self.run_failed(now, run, class),
            Event::DiskFailed => self.fail(Reason::Disk),
            Event::UrlOffered { source } => self.url_offered(source),
            Event::Led(leader) => self.led(now, leader),
            Event::Leased { lease, pieces } => self.leased(lease, pieces),
            Event::LeaseEnded { lease } => {
                self.leases.remove(lease);
                self.trim_unleased();
            }
            Event::LinkUp { link } => self.links.up(link),
            Event::LinkHas { link, pieces } => self.links.has(link, pieces),
            Event::LinkForgot { link } => self.links.forgot(link),
            Event::LinkBusy { link, pause } => self.links.pause(link, now + pause),
            Event::LinkDown { link } => {
                let stopped = self.links.down(link);
                self.queued.extend(stopped.into_iter().map(|piece| Action::Stop { link, piece }));
            }
            Event::Known { pieces } => self.links.known(pieces),
            Event::Disputed { piece } => self.links.disputed(piece),
            Event::Refuted { .. } => self.fail(Reason::Refuted),
            Event::PeerPiece { link, piece } => {
                let bytes = self.layout.bytes_of(piece);
                self.answered(now, link, piece, Some(bytes.end - bytes.start));
                self.held.set(piece);
                self.fed = Some(now);
            }
            Event::PeerFailed { link, piece } => self.answered(now, link, piece, None),
        }
    }

    /// The next thing to do, `None` until the next event or [`Download::poll_timeout`].
    pub fn poll(&mut self, now: Duration) -> Option<Action> {
        if self.phase != Phase::Ended && self.told.is_some() {
            self.look(now);
        }
        if let Some(action) = self.queued.pop_front() {
            return Some(action);
        }
        if self.phase == Phase::Ended {
            return None;
        }
        if self.held.is_full() && self.runs.is_empty() && !self.links.any_asked() {
            self.phase = Phase::Ended;
            return Some(Action::Done);
        }
        if let Some(told) = self.tell(now) {
            return Some(told);
        }
        let fetch = match self.sources.front().copied() {
            Some(source) => self.resume(now, source).or_else(|| self.begin(now, source)),
            None => self.starve(),
        };
        fetch.or_else(|| self.ask(now))
    }

    /// When to poll again without an event.
    pub fn poll_timeout(&self) -> Option<Duration> {
        if self.phase == Phase::Ended {
            return None;
        }
        let stuck = self.active() >= self.slots() || self.sources.is_empty();
        let parked = self.runs.iter().filter_map(|run| run.parked).min().filter(|_| !stuck);
        let look = (self.told.is_some() && !self.wants.is_empty()).then_some(self.next_look);
        parked.into_iter().chain(look).min()
    }

    /// Whether nothing runs, waits or is wanted: it may be put away.
    pub fn is_idle(&self) -> bool {
        // Without a URL the parked runs wait for nothing that comes by itself.
        let at_rest = self.runs.is_empty() || self.phase == Phase::Starved && self.active() == 0;
        let quiet = at_rest && self.queued.is_empty() && !self.links.any_asked();
        quiet && (self.wants.is_empty() || self.phase == Phase::Ended)
    }

    /// Requests to the origin that it makes at once at present.
    pub fn requests(&self) -> usize {
        self.slots()
    }

    /// The lease that a piece is in.
    pub fn lease_of(&self, piece: u32) -> Option<u64> {
        self.leases.of(piece)
    }

    fn unwant(&mut self, reader: u64) {
        self.wants.remove(&reader);
        if !self.wants.is_empty() || self.policy.finish_alone {
            return;
        }
        let parked: Vec<RunId> = self.runs.iter().filter(|run| run.parked.is_some()).map(|run| run.id).collect();
        parked.into_iter().for_each(|run| self.end_run(run));
        self.queued.extend(self.runs.iter().map(|run| Action::Trim(run.id)));
    }

    fn progress(&mut self, run: RunId, piece: u32, valid: u32) {
        if let Some(run) = self.runs.iter_mut().find(|other| other.id == run) {
            let start = piece.min(run.pieces.end);
            self.busy.clear_run(run.pieces.start..start);
            run.pieces.start = start;
            run.from = valid;
            run.failures = 0;
        }
    }

    /// The run is through with a piece.
    fn took(&mut self, now: Duration, run: RunId) {
        let (active, most) = (self.active(), self.limit);
        let Some(run) = self.runs.iter_mut().find(|other| other.id == run) else { return };
        if let Some(since) = run.since.replace(now)
            && self.shares()
        {
            self.pace.piece_took(now.saturating_sub(since), active, most);
        }
    }

    /// Whether others wait for what comes from the origin.
    fn shares(&self) -> bool {
        self.leases.is_led() && !self.links.is_empty()
    }

    fn url_offered(&mut self, source: SourceId) {
        self.policy.from_links = false;
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
                self.return_if_expired();
            }
            Class::Busy => self.park(index, now + BUSY_PAUSE),
            Class::Transient { after, throttled } => self.retry(index, now, after, throttled),
            Class::IgnoredRange if self.reach == Reach::Ranges => self.go_whole(index),
            Class::Changed => self.give_up(index, Reason::Changed),
            Class::IgnoredRange | Class::Fatal => self.give_up(index, Reason::Refused),
        }
    }

    fn retry(&mut self, index: usize, now: Duration, after: Option<Duration>, throttled: bool) {
        if throttled {
            self.limit = (self.limit / 2).max(1);
        }
        self.runs[index].failures += 1;
        let lease = self.leases.of(self.runs[index].pieces.start).filter(|_| !self.links.is_empty());
        match (self.policy.backoff.delay(self.runs[index].failures, after, &mut self.jitter), lease) {
            // Others may have better luck.
            (_, Some(lease)) if throttled && self.runs[index].failures >= THROTTLED_OFTEN => {
                self.hand_back(index, lease, GiveBack::Throttled(after));
            }
            (Some(delay), _) => self.park(index, now + delay),
            (None, Some(lease)) => self.hand_back(index, lease, GiveBack::Failed),
            (None, None) => self.give_up(index, Reason::Exhausted),
        }
    }

    fn hand_back(&mut self, failed: usize, lease: u64, why: GiveBack) {
        let run = self.runs[failed].id;
        self.end_run(run);
        self.leases.remove(lease);
        self.queued.push_back(Action::Return { lease, why });
        self.trim_unleased();
    }

    /// Keeps a run for later, unless nobody waits for it or it has nothing left to fetch.
    fn park(&mut self, index: usize, until: Duration) {
        let unwanted = self.wants.is_empty() && !self.policy.finish_alone;
        match unwanted || self.runs[index].pieces.is_empty() {
            true => self.end_run(self.runs[index].id),
            false => self.runs[index].parked = Some(until),
        }
    }

    /// The run is over; what it did not bring is free again.
    fn end_run(&mut self, id: RunId) {
        if let Some(index) = self.runs.iter().position(|run| run.id == id) {
            let run = self.runs.swap_remove(index);
            self.busy.clear_run(run.pieces);
        }
    }

    /// From now on one request at a time for everything, and nothing to share in: a lease is a part.
    fn go_whole(&mut self, failed: usize) {
        self.reach = Reach::Whole;
        self.end_run(self.runs[failed].id);
        self.cancel_all();
        let back = self.leases.take().into_iter().map(|lease| Action::Return { lease, why: GiveBack::Failed });
        self.queued.extend(back);
    }

    fn give_up(&mut self, failed: usize, reason: Reason) {
        self.end_run(self.runs[failed].id);
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
        for run in std::mem::take(&mut self.runs) {
            self.busy.clear_run(run.pieces);
            if run.parked.is_none() {
                self.queued.push_back(Action::Cancel(run.id));
            }
        }
    }

    /// Without a URL: what runs may finish; then waiting readers must know.
    fn starve(&mut self) -> Option<Action> {
        let waiting = self.runs.iter().any(|run| run.parked.is_some()) || self.pick().is_some();
        if self.phase == Phase::Starved || self.active() > 0 || !waiting || self.policy.from_links {
            return None;
        }
        self.phase = Phase::Starved;
        Some(Action::Fail(Reason::Credentials))
    }

    fn is_ranged(&self) -> bool {
        self.reach == Reach::Ranges
    }

    fn active(&self) -> usize {
        self.runs.iter().filter(|run| run.parked.is_none()).count()
    }

    fn slots(&self) -> usize {
        match (self.is_ranged(), self.shares()) {
            (false, _) => 1,
            (true, true) => self.limit.min(self.pace.runs()),
            (true, false) => self.limit,
        }
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
        run.since = None;
        run.source = source;
        self.next_run += 1;
        let fetch = Fetch { run: run.id, pieces: run.pieces.clone(), from: run.from, source, whole: !self.is_ranged() };
        Some(Action::Fetch(fetch))
    }

    /// A new run, if there is a slot (parked runs keep theirs) and something to fetch.
    fn begin(&mut self, now: Duration, source: SourceId) -> Option<Action> {
        if self.runs.len() >= self.slots() || !self.is_ranged() && self.links.any_asked() {
            return None;
        }
        let pieces = self.pick()?;
        let id = RunId(self.next_run);
        self.next_run += 1;
        self.busy.set_run(pieces.clone());
        let since = Some(now);
        self.runs.push(Run { id, pieces: pieces.clone(), from: 0, source, failures: 0, since, parked: None });
        Some(Action::Fetch(Fetch { run: id, pieces, from: 0, source, whole: !self.is_ranged() }))
    }
}

/// Moves a reader's start to the piece that it stands before; held pieces stay held, so it never moves back.
fn skip_held(held: &Bits, want: &mut Want) {
    let word = |index: usize| !held.word(index);
    want.pieces.start = bits::first(want.pieces.clone(), word).unwrap_or(want.pieces.end);
}

#[cfg(test)]
#[path = "download_tests.rs"]
mod tests;
