//! The links of one download: who has what, how fast they are, and which piece to ask whom for [pure].

use std::{collections::HashMap, ops::Range, time::Duration};

use super::{
    LinkId,
    bits::{self, Bits},
};

/// Pieces asked of all links at once: each holds a buffer of the shard.
const MAX_ASKED: usize = 32;
/// Of one link, whatever its rate: one on its way and one behind it, so that it never pauses.
const LEAST_DEPTH: usize = 2;
const MOST_DEPTH: usize = 16;
/// A link is asked for what it sends in this time: round trips hide behind it, and no link is asked for more than it can
/// give soon.
const AHEAD: Duration = Duration::from_millis(250);
/// A link's rate is measured over at least this long.
const RATE_WINDOW: Duration = Duration::from_millis(200);
/// The weight of a new measurement.
const RATE_WEIGHT: f64 = 0.4;
/// Before a link has sent anything it is taken for this fast, bytes a second.
const RATE_GUESS: f64 = 50e6;
/// A piece is late after three times what its link should take, and this.
const LATE: Duration = Duration::from_secs(1);
/// At the tail a piece moves to a link that gets it this much sooner.
const TAIL_GAIN: Duration = Duration::from_millis(300);
/// The tail begins when no more pieces than this are missing.
pub(super) const TAIL: usize = 32;
/// How long a link is not asked again for a piece that it did not give.
const AVOID: Duration = Duration::from_secs(20);
/// Candidates looked at for the rarest.
const LOOK_AT: usize = 256;

/// All links of a download.
pub(super) struct Links {
    links: Vec<Link>,
    /// How many links have each piece.
    have: Vec<u16>,
    /// Pieces that some link has.
    linked: Bits,
    /// Pieces whose digest is known: only those can be verified.
    known: Bits,
    piece_len: u32,
    random: u64,
}

struct Link {
    id: LinkId,
    has: Bits,
    asked: Vec<Asked>,
    rate: Rate,
    paused_until: Duration,
    /// No piece is asked of it any more; it goes when the last one has been answered for.
    closing: bool,
    avoid: HashMap<u32, Duration>,
    /// The last piece that did not come.
    failed: Option<u32>,
}

#[derive(Clone, Copy)]
struct Asked {
    piece: u32,
    since: Duration,
    stopping: bool,
}

/// Bytes a second of pieces that arrived, while any were asked for.
#[derive(Default)]
struct Rate {
    smoothed: Option<f64>,
    since: Duration,
    bytes: u64,
}

/// What a picker may choose from; words of 64 pieces.
pub(super) trait Free {
    /// Pieces that are neither held nor on their way.
    fn word(&self, index: usize) -> u64;
}

impl Links {
    pub(super) fn new(pieces: u32, piece_len: u32, seed: u64) -> Self {
        Self {
            links: Vec::new(),
            have: vec![0; pieces as usize],
            linked: Bits::new(pieces),
            known: Bits::new(pieces),
            piece_len,
            random: seed | 1,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.links.iter().all(|link| link.closing)
    }

    /// Whether a piece is asked of any link.
    pub(super) fn any_asked(&self) -> bool {
        self.links.iter().any(|link| !link.asked.is_empty())
    }

    pub(super) fn up(&mut self, id: LinkId) {
        let has = Bits::new(self.known.len());
        let (rate, asked, avoid) = (Rate::default(), Vec::new(), HashMap::new());
        self.links.push(Link {
            id,
            has,
            asked,
            rate,
            paused_until: Duration::ZERO,
            closing: false,
            avoid,
            failed: None,
        });
    }

    pub(super) fn has(&mut self, id: LinkId, pieces: Range<u32>) {
        let Some(link) = self.links.iter_mut().find(|link| link.id == id && !link.closing) else { return };
        for piece in pieces.start..pieces.end.min(link.has.len()) {
            if link.has.set(piece) {
                self.have[piece as usize] += 1;
                self.linked.set(piece);
            }
        }
    }

    /// The link has nothing any more.
    pub(super) fn forgot(&mut self, id: LinkId) {
        let Some(link) = self.links.iter_mut().find(|link| link.id == id) else { return };
        for piece in (0..link.has.len()).filter(|piece| link.has.get(*piece)) {
            self.have[piece as usize] -= 1;
            if self.have[piece as usize] == 0 {
                self.linked.clear(piece);
            }
        }
        link.has.clear_all();
    }

    /// The link is over: the pieces that are asked of it are to be stopped.
    pub(super) fn down(&mut self, id: LinkId) -> Vec<u32> {
        self.forgot(id);
        let Some(link) = self.links.iter_mut().find(|link| link.id == id) else { return Vec::new() };
        link.closing = true;
        let stopped = link.asked.iter_mut().filter(|asked| !asked.stopping);
        let stopped = stopped.map(|asked| {
            asked.stopping = true;
            asked.piece
        });
        let stopped = stopped.collect();
        self.sweep();
        stopped
    }

    pub(super) fn pause(&mut self, id: LinkId, until: Duration) {
        if let Some(link) = self.links.iter_mut().find(|link| link.id == id) {
            link.paused_until = until;
            // It has the piece, and will give it: the pause is all.
            link.failed.take().map(|piece| link.avoid.remove(&piece));
        }
    }

    pub(super) fn known(&mut self, pieces: Range<u32>) {
        self.known.set_run(pieces);
    }

    pub(super) fn disputed(&mut self, piece: u32) {
        self.known.clear(piece);
    }

    /// Pieces that some link can give, verified; a word of 64.
    pub(super) fn word(&self, index: usize) -> u64 {
        self.known.word(index) & self.linked.word(index)
    }

    /// The piece has come, or not; whether it was asked for at all.
    pub(super) fn answered(&mut self, now: Duration, id: LinkId, piece: u32, bytes: Option<u64>) -> bool {
        let Some(link) = self.links.iter_mut().find(|link| link.id == id) else { return false };
        let before = link.asked.len();
        link.asked.retain(|asked| asked.piece != piece);
        let asked = link.asked.len() < before;
        match bytes {
            Some(bytes) => link.rate.add(now, bytes),
            None if asked => {
                link.avoid.retain(|_, until| *until > now);
                link.avoid.insert(piece, now + AVOID);
                link.failed = Some(piece);
            }
            None => {}
        }
        self.sweep();
        asked
    }

    fn sweep(&mut self) {
        self.links.retain(|link| !link.closing || !link.asked.is_empty());
    }

    /// The next piece to ask for and of whom: the links with least to do first; for each one the first piece of a
    /// window that a reader is about to need, else the rarest of those that somebody wants. Where every link has everything
    /// nothing is rare, and nobody here waits for what this node brings: then in order, as readers and the SHA-256 of the whole go.
    pub(super) fn ask(
        &mut self,
        now: Duration,
        windows: &[Range<u32>],
        wanted: &[Range<u32>],
        free: &impl Free,
    ) -> Option<(LinkId, u32)> {
        if self.links.iter().map(|link| link.asked.len()).sum::<usize>() >= MAX_ASKED {
            return None;
        }
        let mut order: Vec<usize> =
            (0..self.links.len()).filter(|at| self.links[*at].has_room(now, self.piece_len)).collect();
        order.sort_by_key(|at| self.links[*at].asked.len());
        let nothing_rare = self.links.iter().all(|link| link.closing || link.has.is_full());
        for at in order {
            let picked = self.urgent(now, at, windows, free).or_else(|| match nothing_rare {
                true => self.urgent(now, at, wanted, free),
                false => self.rarest(now, at, wanted, free),
            });
            if let Some(piece) = picked {
                let link = &mut self.links[at];
                if link.asked.is_empty() {
                    link.rate.begin(now);
                }
                link.asked.push(Asked { piece, since: now, stopping: false });
                return Some((link.id, piece));
            }
        }
        None
    }

    fn urgent(&self, now: Duration, at: usize, windows: &[Range<u32>], free: &impl Free) -> Option<u32> {
        windows.iter().find_map(|window| self.candidates(now, at, window.clone(), free).next())
    }

    /// The search begins at a random place, so that peers in the same state choose differently.
    fn rarest(&mut self, now: Duration, at: usize, wanted: &[Range<u32>], free: &impl Free) -> Option<u32> {
        let total: u64 = wanted.iter().map(|run| u64::from(run.end - run.start)).sum();
        let skip = self.random(total.max(1));
        let (before, after) = split(wanted, skip);
        let runs = after.into_iter().chain(before);
        let candidates = runs.flat_map(|run| self.candidates(now, at, run, free).collect::<Vec<_>>()).take(LOOK_AT);
        candidates.min_by_key(|piece| self.have[*piece as usize])
    }

    fn candidates<'a>(
        &'a self,
        now: Duration,
        at: usize,
        within: Range<u32>,
        free: &'a impl Free,
    ) -> impl Iterator<Item = u32> + 'a {
        let link = &self.links[at];
        let mut from = within.start;
        let next = move || {
            let word = |index: usize| link.has.word(index) & self.known.word(index) & free.word(index);
            let found = bits::first(from..within.end, word)?;
            from = found + 1;
            Some(found)
        };
        std::iter::from_fn(next)
            .filter(move |piece| link.avoid.get(piece).is_none_or(|until| *until <= now))
            .take(LOOK_AT)
    }

    /// Pieces to be stopped so that another link can bring them: those that are late, and at the tail those that another
    /// link brings much sooner.
    pub(super) fn hedge(&mut self, now: Duration, tail: bool) -> Vec<(LinkId, u32)> {
        let mut moved = Vec::new();
        for slow in 0..self.links.len() {
            for index in 0..self.links[slow].asked.len() {
                let asked = self.links[slow].asked[index];
                if !asked.stopping && self.should_move(now, slow, asked, tail) {
                    self.links[slow].asked[index].stopping = true;
                    moved.push((self.links[slow].id, asked.piece));
                }
            }
        }
        moved
    }

    fn should_move(&self, now: Duration, slow: usize, asked: Asked, tail: bool) -> bool {
        let age = now.saturating_sub(asked.since);
        let expected = self.links[slow].expected(self.piece_len, 0);
        let late = age > expected * 3 + LATE;
        if !late && !tail {
            return false;
        }
        let left = if late { age } else { expected.saturating_sub(age) };
        let better = |link: &Link| link.expected(self.piece_len, 1) + TAIL_GAIN < left;
        let others = self.links.iter().enumerate().filter(|(at, _)| *at != slow);
        others.into_iter().any(|(_, link)| {
            link.has.get(asked.piece)
                && link.has_room(now, self.piece_len)
                && link.avoid.get(&asked.piece).is_none_or(|until| *until <= now)
                && better(link)
        })
    }

    /// Stops a piece wherever it is asked for, so that the origin can bring it.
    pub(super) fn stop(&mut self, piece: u32) -> Option<LinkId> {
        self.links.iter_mut().find_map(|link| {
            let asked = link.asked.iter_mut().find(|asked| asked.piece == piece && !asked.stopping)?;
            asked.stopping = true;
            Some(link.id)
        })
    }

    /// xorshift64: repeatable from the seed.
    fn random(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below
    }
}

impl Link {
    fn has_room(&self, now: Duration, piece_len: u32) -> bool {
        let ahead = self.rate.get() * AHEAD.as_secs_f64() / f64::from(piece_len);
        let depth = (ahead as usize + 1).clamp(LEAST_DEPTH, MOST_DEPTH);
        !self.closing && self.paused_until <= now && self.asked.len() < depth
    }

    /// How long the pieces asked of it, and `more`, should take.
    fn expected(&self, piece_len: u32, more: usize) -> Duration {
        let bytes = f64::from(piece_len) * (self.asked.len() + more) as f64;
        Duration::try_from_secs_f64(bytes / self.rate.get()).unwrap_or(Duration::MAX / 8).min(Duration::from_secs(60))
    }
}

impl Rate {
    fn get(&self) -> f64 {
        self.smoothed.unwrap_or(RATE_GUESS).max(1.0)
    }

    fn begin(&mut self, now: Duration) {
        self.since = now;
        self.bytes = 0;
    }

    fn add(&mut self, now: Duration, bytes: u64) {
        self.bytes += bytes;
        let elapsed = now.saturating_sub(self.since);
        if elapsed < RATE_WINDOW {
            return;
        }
        let rate = self.bytes as f64 / elapsed.as_secs_f64();
        self.smoothed = Some(self.smoothed.map_or(rate, |old| old + RATE_WEIGHT * (rate - old)));
        self.begin(now);
    }
}

/// Runs cut at the `skip`th piece: those before, those from there on.
fn split(runs: &[Range<u32>], skip: u64) -> (Vec<Range<u32>>, Vec<Range<u32>>) {
    let (mut before, mut after, mut left) = (Vec::new(), Vec::new(), skip);
    for run in runs {
        let len = u64::from(run.end - run.start);
        let cut = run.start + u32::try_from(left.min(len)).expect("within the run");
        left = left.saturating_sub(len);
        before.push(run.start..cut);
        after.push(cut..run.end);
    }
    before.retain(|run| !run.is_empty());
    after.retain(|run| !run.is_empty());
    (before, after)
}
