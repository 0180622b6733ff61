//! Digests of pieces: the first report counts until somebody disagrees [pure].

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Deref, DerefMut, Range};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use super::budget::{DIGEST_SHARES, LEAST_DIGESTS};
use super::disputes::Dispute;
use super::doubts::Doubts;
use super::piece_set::PieceSet;
use super::pieces::{subtract, tidied};
use super::{Cluster, Directive};

/// A holder that was asked for digests has this long; then others are asked for the same.
const ASK_AGAIN: Duration = Duration::from_secs(3);
/// Holders of what is missing are looked for this often.
const LOOK_AGAIN: Duration = Duration::from_millis(300);
/// Holders asked at once, each for other pieces.
const ASK_AT_ONCE: usize = 8;
/// Holders looked at in one search.
const LOOK_AT: usize = 256;
/// Pieces, and runs of them, asked for at once: the answer fits one message.
const MAX_ASKED: u32 = 8_192;
const MAX_ASKED_RUNS: usize = 512;
/// Digests kept, and told, together: 32 KiB in one directive.
pub const CHUNK: u32 = 1_024;
/// Bytes that a digest takes: itself and who reported it, and a copy that is shared between those told.
const BYTES: usize = size_of::<Report>() + 32;
/// Tasks with digests among which a peer's own are sought when it has used up its share.
const OWN_LOOKS: usize = 4_096;
/// Searches for digests in one tick; more wait for the next one.
const SEEKS_AT_ONCE: usize = 256;
/// Places of tasks that are gone before the order of tasks with digests is tidied.
const STALE_PLACES: usize = 1_024;
/// A new digest is told this much later for each peer that wants it, so that a big crowd is told of many at once.
const PATIENCE: Duration = Duration::from_micros(10);
/// The first one after this long is told at once.
const QUIET: Duration = Duration::from_millis(50);
/// But not later than this.
const MAX_PATIENCE: Duration = Duration::from_secs(1);

/// BLAKE3 of consecutive pieces.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct DigestRun {
    /// Piece of the first one.
    pub first: u32,
    /// In order.
    pub digests: Vec<[u8; 32]>,
}

#[derive(Debug, Default)]
pub(super) struct Digests {
    pub(super) known: PieceSet,
    /// By piece / [`CHUNK`].
    chunks: BTreeMap<u32, Chunk>,
    /// What the chunks take, by [`BYTES`].
    bytes: usize,
    /// In `Cluster::digest_order`.
    pub(super) ordered: bool,
    /// Pieces to push.
    fresh: Vec<u32>,
    pushed: Duration,
    /// Who was asked last, pieces that were asked for, and since when.
    asked: Option<u32>,
    asked_for: PieceSet,
    asked_since: Duration,
    /// The next search is planned.
    seeking: bool,
    pub(super) disputes: Vec<Dispute>,
    pub(super) doubts: Doubts,
}

/// The digests of a task, allocated when something of them is first changed: most tasks are only held, and a peer can name
/// many of them.
#[derive(Debug, Default)]
pub(super) struct DigestTable(Option<Box<Digests>>);

static NO_DIGESTS: LazyLock<Digests> = LazyLock::new(Digests::default);

impl Deref for DigestTable {
    type Target = Digests;

    fn deref(&self) -> &Digests {
        self.0.as_deref().unwrap_or(&NO_DIGESTS)
    }
}

impl DerefMut for DigestTable {
    fn deref_mut(&mut self) -> &mut Digests {
        self.0.get_or_insert_default()
    }
}

/// Room for what was reported, and not for all that could be: a digest alone in its chunk is one report.
#[derive(Debug, Default)]
struct Chunk {
    /// By their place in the chunk, rising.
    reports: Vec<Report>,
    /// All that is known of the chunk, as told.
    told: Option<Arc<[DigestRun]>>,
}

/// The first report of a piece's digest.
#[derive(Clone, Copy, Debug)]
struct Report {
    place: u16,
    reporter: u32,
    digest: [u8; 32],
}

impl Chunk {
    fn find(&self, piece: u32) -> Result<usize, usize> {
        self.reports.binary_search_by_key(&place(piece), |report| report.place)
    }
}

/// A piece's place in its chunk.
fn place(piece: u32) -> u16 {
    (piece % CHUNK) as u16
}

impl Digests {
    pub(super) fn of(&self, piece: u32) -> Option<(u32, [u8; 32])> {
        self.said(piece).filter(|_| self.known.has(piece))
    }

    /// The same of a piece whose digest is doubted, too.
    pub(super) fn said(&self, piece: u32) -> Option<(u32, [u8; 32])> {
        let chunk = self.chunks.get(&(piece / CHUNK))?;
        let report = &chunk.reports[chunk.find(piece).ok()?];
        Some((report.reporter, report.digest))
    }

    /// Pieces whose digest this peer reported first.
    pub(super) fn reported_by(&self, peer: u32, pieces: u32) -> Vec<u32> {
        let known = self.known.runs(0..pieces, true).into_iter().flatten();
        known.filter(|&piece| self.of(piece).is_some_and(|(reporter, _)| reporter == peer)).collect()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whose reports they are, one by one.
    pub(super) fn reporters(&self) -> impl Iterator<Item = u32> {
        self.chunks.values().flat_map(|chunk| chunk.reports.iter().map(|report| report.reporter))
    }

    /// The peer that reported the first digest: whose share of the memory is looked at for all of them.
    fn first_reporter(&self) -> Option<u32> {
        self.chunks.values().next()?.reports.first().map(|report| report.reporter)
    }

    /// Takes a digest in; returns the bytes that it takes anew, and whose report it replaces.
    fn put(&mut self, piece: u32, pieces: u32, peer: u32, digest: [u8; 32]) -> (usize, Option<u32>) {
        let chunk = self.chunks.entry(piece / CHUNK).or_default();
        let report = Report { place: place(piece), reporter: peer, digest };
        let before = chunk.reports.capacity();
        let replaced = match chunk.find(piece) {
            Ok(at) => Some(std::mem::replace(&mut chunk.reports[at], report).reporter),
            Err(at) => {
                if chunk.reports.len() == before {
                    chunk.reports.reserve_exact(before / 4 + 4);
                }
                chunk.reports.insert(at, report);
                None
            }
        };
        chunk.told = None;
        let more = (chunk.reports.capacity() - before) * BYTES;
        self.bytes += more;
        self.known.set(piece..piece + 1, pieces);
        self.fresh.push(piece);
        (more, replaced)
    }

    pub(super) fn void(&mut self, piece: u32, pieces: u32) {
        self.known.clear(piece..piece + 1, pieces);
        if let Some(chunk) = self.chunks.get_mut(&(piece / CHUNK)) {
            chunk.told = None;
        }
    }

    /// Nothing is known any more, though what was said is kept; the pieces that it was said of.
    pub(super) fn void_all(&mut self) -> PieceSet {
        self.chunks.values_mut().for_each(|chunk| chunk.told = None);
        std::mem::take(&mut self.known)
    }

    fn forget(&mut self) {
        self.known = PieceSet::default();
        self.chunks.clear();
        self.bytes = 0;
        self.fresh = Vec::new();
    }

    /// What is known within pieces of one chunk.
    fn runs(&self, within: &Range<u32>) -> Vec<DigestRun> {
        let Some(chunk) = self.chunks.get(&(within.start / CHUNK)) else { return Vec::new() };
        let values = |run: &Range<u32>| {
            let first = chunk.find(run.start).unwrap_or_else(|at| at);
            let reports = chunk.reports[first..].iter().take((run.end - run.start) as usize);
            reports.map(|report| report.digest).collect()
        };
        let known = self.known.runs(within.clone(), true);
        known.into_iter().map(|run| DigestRun { first: run.start, digests: values(&run) }).collect()
    }

    /// All that is known, a chunk each; made once and shared until the chunk changes.
    fn all(&mut self) -> Vec<Arc<[DigestRun]>> {
        let indices: Vec<u32> = self.chunks.keys().copied().collect();
        let mut all = Vec::with_capacity(indices.len());
        for index in indices {
            let told = self.chunks.get(&index).and_then(|chunk| chunk.told.clone());
            let told = told.unwrap_or_else(|| self.runs(&(index * CHUNK..(index + 1) * CHUNK)).into());
            if let Some(chunk) = self.chunks.get_mut(&index) {
                chunk.told = Some(Arc::clone(&told));
            }
            all.push(told);
        }
        all.retain(|runs| !runs.is_empty());
        all
    }

    /// What came since the last call, at most a chunk's worth each.
    fn take_fresh(&mut self, pieces: u32) -> Vec<Arc<[DigestRun]>> {
        let mut news = PieceSet::default();
        for piece in std::mem::take(&mut self.fresh) {
            news.set(piece..piece + 1, pieces);
        }
        let mut by_chunk: BTreeMap<u32, Vec<DigestRun>> = BTreeMap::new();
        for run in news.runs(0..pieces, true) {
            for index in run.start / CHUNK..=(run.end - 1) / CHUNK {
                let part = run.start.max(index * CHUNK)..run.end.min((index + 1) * CHUNK);
                by_chunk.entry(index).or_default().extend(self.runs(&part));
            }
        }
        by_chunk.into_values().filter(|runs| !runs.is_empty()).map(Into::into).collect()
    }
}

impl Cluster {
    pub(super) fn report_digests(&mut self, now: Duration, at: u32, peer: u32, run: &DigestRun) {
        for (piece, digest) in (run.first..).zip(&run.digests) {
            let Some(task) = self.seen(at).filter(|task| piece < task.pieces) else { return };
            if !self.could_read(at, peer, piece) {
                continue;
            }
            if task.digests.doubts.pieces.has(piece) {
                self.read_again(now, at, peer, piece, *digest);
                continue;
            }
            if task.digests.is_disputed(piece) {
                self.claim(now, at, peer, piece, *digest);
                continue;
            }
            match task.digests.of(piece) {
                None => self.put_digest(at, peer, piece, *digest),
                Some((_, known)) if known != *digest => self.dispute(at, peer, piece, *digest),
                Some(_) => {}
            }
        }
    }

    /// Whether the peer can know the bytes of a piece: it holds it, was leased it, or is there with a URL of its own. What others
    /// say of a piece is not heard.
    fn could_read(&self, at: u32, peer: u32, piece: u32) -> bool {
        let Some(entry) = self.seen_entry(at, peer) else { return false };
        let leased = || {
            let leases = self.seen(at).map(|task| task.leases_in(&(piece..piece + 1))).unwrap_or_default();
            leases.iter().any(|id| self.leases.get(id).is_some_and(|lease| lease.peer == peer))
        };
        entry.complete || entry.have.has(piece) || entry.wants && entry.can_fetch || leased()
    }

    pub(super) fn put_digest(&mut self, at: u32, peer: u32, piece: u32, digest: [u8; 32]) {
        if !self.has_digest_room(at, peer) {
            return;
        }
        let Some(task) = self.task(at) else { return };
        let pieces = task.pieces;
        let (more, replaced) = task.digests.put(piece, pieces, peer, digest);
        let is_new = more > 0 && !std::mem::replace(&mut task.digests.ordered, true);
        if let Some(member) = self.members.get_mut(peer) {
            member.digests += 1;
        }
        self.forget_reports(replaced.into_iter());
        self.fresh.insert(at);
        if more > 0 {
            if is_new {
                self.digest_order.push_back(at);
                self.tidy_digest_order();
            }
            self.digest_bytes += more;
            self.bound_digests(at);
        }
    }

    /// Keeps the digests of all tasks within their memory: those of tasks that nobody wants go first, then the oldest.
    /// They can be asked for again.
    fn bound_digests(&mut self, newest: u32) {
        for wanted_too in [false, true] {
            let mut looks = self.digest_order.len();
            while self.digest_bytes > self.options.digest_memory && looks > 0 {
                looks -= 1;
                let Some(at) = self.digest_order.pop_front() else { return };
                let Some(task) = self.task(at).filter(|task| task.digests.bytes() > 0) else { continue };
                if at == newest || task.digests.doubts.any() || task.wanters > 0 && !wanted_too {
                    self.digest_order.push_back(at);
                    continue;
                }
                self.drop_digests(at);
            }
        }
    }

    /// Whether one more digest of this peer's may be kept: past its share its own oldest ones go, and those of others stay.
    fn has_digest_room(&mut self, newest: u32, peer: u32) -> bool {
        let most = (self.options.digest_memory / DIGEST_SHARES).max(LEAST_DIGESTS) / BYTES;
        if self.members.get(peer).is_none_or(|member| member.digests < most) {
            return true;
        }
        let own = |at: &u32| {
            let task = self.seen(*at).filter(|task| *at != newest && !task.digests.doubts.any());
            task.filter(|task| task.digests.first_reporter() == Some(peer)).map(|task| (task.wanters > 0, *at))
        };
        // Those of tasks that are wanted go last; among equals `min_by_key` gives the first one.
        let owned = self.digest_order.iter().take(OWN_LOOKS).filter_map(own);
        let Some((_, oldest)) = owned.min_by_key(|&(wanted, _)| wanted) else { return false };
        self.digest_order.retain(|&at| at != oldest);
        self.drop_digests(oldest);
        true
    }

    fn drop_digests(&mut self, at: u32) {
        let Some(task) = self.task(at) else { return };
        let (freed, reporters) = (task.digests.bytes(), task.digests.reporters().collect::<Vec<_>>());
        task.digests.ordered = false;
        task.digests.forget();
        self.digest_bytes -= freed;
        self.forget_reports(reporters.into_iter());
    }

    /// Takes reports off the shares of those that made them. A place in the table may be another member's by now.
    pub(super) fn forget_reports(&mut self, reporters: impl Iterator<Item = u32>) {
        for peer in reporters {
            if let Some(member) = self.members.get_mut(peer) {
                member.digests = member.digests.saturating_sub(1);
            }
        }
    }

    /// Drops the places of tasks that are gone, once they outnumber the tasks.
    fn tidy_digest_order(&mut self) {
        if self.digest_order.len() <= 2 * self.by_name.len() + STALE_PLACES {
            return;
        }
        let mut order = std::mem::take(&mut self.digest_order);
        let mut kept = BTreeSet::new();
        order.retain(|&at| self.seen(at).is_some_and(|task| task.digests.ordered) && kept.insert(at));
        self.digest_order = order;
    }

    /// All that is known, to a peer that begins to want.
    pub(super) fn tell_digests(&mut self, at: u32, peer: u32) {
        let Some(task) = self.task(at) else { return };
        let (name, all) = (task.id, task.digests.all());
        for runs in all {
            self.tell(peer, Directive::Digests { task: name, runs });
        }
    }

    /// What came since the last push, to all that want the task.
    pub(super) fn push_digests(&mut self, now: Duration) {
        for at in std::mem::take(&mut self.fresh) {
            if !self.push_task(now, at, Duration::ZERO) {
                self.fresh.insert(at);
            }
        }
    }

    /// Between two ticks, of a task of which nothing was pushed lately.
    pub(super) fn push_quiet(&mut self, now: Duration, at: u32) {
        if self.fresh.contains(&at) && self.push_task(now, at, QUIET) {
            self.fresh.remove(&at);
        }
    }

    /// Not within `apart` of the last push, nor before a crowd's patience ends: false then.
    fn push_task(&mut self, now: Duration, at: u32, apart: Duration) -> bool {
        let Some(task) = self.task(at) else { return true };
        let patience = PATIENCE.saturating_mul(task.wanters).min(MAX_PATIENCE);
        if task.digests.pushed + patience.max(apart) > now {
            return false;
        }
        task.digests.pushed = now;
        let fresh = task.digests.take_fresh(task.pieces);
        let name = task.id;
        let told: Vec<u32> = task.entries.iter().filter(|entry| entry.wants).map(|entry| entry.peer).collect();
        for runs in fresh {
            for &peer in &told {
                self.tell(peer, Directive::Digests { task: name, runs: Arc::clone(&runs) });
            }
        }
        true
    }

    /// Asks a holder for the digests that are missing (after a restart nobody reports them by himself), and another one
    /// later if that does not help, while somebody wants them.
    pub(super) fn ask_digests(&mut self, now: Duration, at: u32) {
        if self.seen(at).is_some_and(|task| !task.digests.seeking) {
            self.seek(now, at);
        }
    }

    pub(super) fn seek_again(&mut self, now: Duration) {
        for _ in 0..SEEKS_AT_ONCE {
            let Some((_, at)) = self.seeks.first().copied().filter(|&(due, _)| due <= now) else { return };
            self.seeks.pop_first();
            self.seek(now, at);
        }
    }

    fn seek(&mut self, now: Duration, at: u32) {
        let Some(task) = self.task(at) else { return };
        let known = task.digests.known.count();
        task.digests.seeking = task.wanters > 0 && known < task.pieces;
        if !task.digests.seeking {
            return;
        }
        if task.digests.asked_since + ASK_AGAIN <= now {
            task.digests.asked_for = PieceSet::default();
            task.digests.asked_since = now;
        }
        for _ in 0..ASK_AT_ONCE {
            let Some(holder) = self.knower(at) else { break };
            self.ask(at, holder);
        }
        self.seeks.insert((now + LOOK_AGAIN, at));
    }

    /// The holder of most pieces whose digest is missing and not asked for, among some looked at; not the one asked last if there is another.
    fn knower(&mut self, at: u32) -> Option<u32> {
        let count = self.seen(at).map_or(0, |task| task.entries.len());
        let first = self.random(count);
        let task = self.seen(at)?;
        let mut known = task.digests.known.clone();
        known.join(&task.digests.asked_for, task.pieces);
        known.join(&task.digests.doubts.pieces, task.pieces);
        let lacking = task.pieces - known.count();
        let entries = task.entries.iter().cycle().skip(first).take(count.min(LOOK_AT)).filter(|entry| entry.held > 0);
        let new = |entry: &super::tasks::Entry| match entry.complete {
            true => lacking,
            false => entry.have.beyond(&known),
        };
        let rated = entries.map(|entry| (new(entry), task.digests.asked != Some(entry.peer), entry.peer));
        let connected = |peer| self.members.get(peer).is_some_and(|member| member.connected);
        let able = rated.filter(|&(new, _, peer)| new > 0 && connected(peer));
        able.max_by_key(|&(new, other, _)| (other, new)).map(|(.., peer)| peer)
    }

    fn ask(&mut self, at: u32, holder: u32) {
        let (Some(task), Some(entry)) = (self.seen(at), self.seen_entry(at, holder)) else { return };
        let held = match entry.complete {
            true => std::iter::once(0..task.pieces).collect(),
            false => entry.have.runs(0..task.pieces, true),
        };
        let whole = 0..task.pieces;
        let disputed = task.digests.disputed().map(|(piece, _)| piece..piece + 1);
        let disputed = tidied(disputed.collect(), task.pieces, usize::MAX);
        let mut missing = subtract(&held, &disputed);
        for not in [&task.digests.known, &task.digests.asked_for, &task.digests.doubts.pieces] {
            missing = subtract(&missing, &not.runs(whole.clone(), true));
        }
        let mut asked = 0;
        missing.truncate(MAX_ASKED_RUNS);
        for run in &mut missing {
            run.end = run.end.min(run.start + (MAX_ASKED - asked));
            asked += run.end - run.start;
        }
        missing.retain(|run| !run.is_empty());
        let name = task.id;
        if let Some(task) = self.task(at) {
            task.digests.asked = Some(holder);
            for run in &missing {
                task.digests.asked_for.set(run.clone(), task.pieces);
            }
        }
        if !missing.is_empty() {
            self.tell(holder, Directive::DigestsWanted { task: name, pieces: missing });
        }
    }
}
