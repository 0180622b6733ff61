//! Spans, from their beginning to the queue.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::mpsc;

use super::context::{Context, Names, Share, Traceparent};

/// Bytes of one value of text: a path of a file fits, and the queue's memory is bounded.
const MAX_TEXT: usize = 512;
/// Values of one span, what is counted not among them.
const MAX_ATTRIBUTES: usize = 24;
/// How far the system's clock may be from ours before ours is set again: 10 ms in nanoseconds.
const MAX_DRIFT: u64 = 10_000_000;

/// Begins spans. Cheap to copy; [`Tracer::default`] is off.
#[derive(Clone, Debug, Default)]
pub struct Tracer(Option<Arc<Shared>>);

/// What a tracer and the exporter share.
#[derive(Debug)]
pub(super) struct Shared {
    queue: mpsc::Sender<Record>,
    names: Names,
    next: AtomicU64,
    clock: Clock,
    share: Share,
    follow: bool,
    pub(super) exported: AtomicU64,
    pub(super) dropped: AtomicU64,
}

/// What became of spans since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Taken by the collector.
    pub exported: u64,
    /// Lost: the queue was full, or the collector did not take them.
    pub dropped: u64,
}

/// Something with a beginning and an end. It ends when it is dropped, so that what is given up is recorded, too. One that is
/// not recorded is nothing, and everything done with it one branch.
#[derive(Debug, Default)]
#[must_use = "a span ends when it is dropped"]
pub struct Span(Option<Box<Open>>);

#[derive(Debug)]
struct Open {
    shared: Arc<Shared>,
    record: Record,
    lasts: Lasts,
}

/// When a span ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lasts {
    /// When it is dropped.
    ToTheEnd,
    /// With the last [`Span::busy`]; there was none yet.
    NotYet,
    /// With the last of those that there were.
    WhileBusy,
}

/// The same clock for all spans, so that no part begins before the whole or ends after it: the system's, and between two
/// corrections the one that does not jump.
#[derive(Debug)]
struct Clock {
    began: Instant,
    /// Nanoseconds since 1970 when it began.
    offset: AtomicU64,
}

impl Clock {
    fn new() -> Self {
        Self { began: Instant::now(), offset: AtomicU64::new(nanos(SystemTime::now())) }
    }

    /// In nanoseconds since 1970.
    fn now(&self) -> u64 {
        let since = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.offset.load(Ordering::Relaxed).saturating_add(since)
    }

    /// Follows the system's clock where that was set.
    fn correct(&self) {
        let offset = self.offset.load(Ordering::Relaxed);
        // Between two readings this thread may have waited for a processor.
        let (before, system, after) = (self.now(), nanos(SystemTime::now()), self.now());
        if system.saturating_add(MAX_DRIFT) < before || system > after.saturating_add(MAX_DRIFT) {
            let set = offset.wrapping_add(system.wrapping_sub(after));
            // Another thread may have done it.
            let _ = self.offset.compare_exchange(offset, set, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}

/// A span that is over.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) context: Context,
    pub(super) parent: Option<[u8; 8]>,
    pub(super) link: Option<Context>,
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    /// Nanoseconds since 1970.
    pub(super) start: u64,
    /// As well.
    pub(super) end: u64,
    pub(super) attributes: Vec<(&'static str, Value)>,
    pub(super) error: Option<String>,
    pub(super) pieces: u64,
    pub(super) bytes: u64,
}

/// What a span is, seen from whoever recorded it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Work of its own.
    Internal,
    /// Another's request is answered.
    Server,
    /// Another is asked.
    Client,
}

/// What an attribute says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Text of at most 512 bytes; what is longer is cut.
    Text(String),
    /// One of few words.
    Word(&'static str),
    /// A number.
    Number(u64),
    /// Yes or no.
    Flag(bool),
}

impl From<String> for Value {
    fn from(mut text: String) -> Self {
        text.truncate(text.floor_char_boundary(MAX_TEXT));
        Self::Text(text)
    }
}

impl From<&'static str> for Value {
    fn from(word: &'static str) -> Self {
        Self::Word(word)
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Self::Flag(flag)
    }
}

impl Tracer {
    pub(super) fn new(queue: mpsc::Sender<Record>, seed: [u64; 3], share: f64, follow: bool) -> (Self, Arc<Shared>) {
        let shared = Arc::new(Shared {
            queue,
            names: Names::new(seed),
            next: AtomicU64::new(0),
            clock: Clock::new(),
            share: Share::new(share),
            follow,
            exported: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        });
        (Self(Some(Arc::clone(&shared))), shared)
    }

    /// Whether anything is recorded at all.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// What became of spans; none where it is off.
    pub fn counts(&self) -> Option<Counts> {
        let shared = self.0.as_ref()?;
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Some(Counts { exported: of(&shared.exported), dropped: of(&shared.dropped) })
    }

    /// A request of a client, who perhaps says that it is part of a trace; `traceparent` is asked only where that matters.
    ///
    /// Unless settings say to follow clients, the trace is this node's own and only refers to the client's: else anybody could
    /// have everything recorded, or all requests put into one endless trace.
    pub fn request<'a>(&self, name: &'static str, traceparent: impl FnOnce() -> Option<&'a [u8]>) -> Span {
        let Some(shared) = &self.0 else { return Span(None) };
        shared.clock.correct();
        let client = traceparent().and_then(Traceparent::parse);
        if let Some(client) = client.filter(|_| shared.follow) {
            return if client.sampled { self.span(name, Kind::Server, Some(client.context)) } else { Span(None) };
        }
        let n = shared.next.fetch_add(1, Ordering::Relaxed);
        let context = Context { trace: shared.names.trace(n), span: shared.names.span(n) };
        if !shared.share.takes(&context.trace) {
            return Span(None);
        }
        let mut span = Span::open(shared, name, Kind::Server, context, None);
        span.link(client.map(|client| client.context));
        span
    }

    /// A part of what another node or the scheduler's peer records under `parent`: its decision holds here, too, within this
    /// one's own share, which is of the same traces where it is the same share.
    pub fn remote(&self, name: &'static str, kind: Kind, parent: Option<Context>) -> Span {
        let (Some(shared), Some(parent)) = (&self.0, parent) else { return Span(None) };
        let ours = shared.follow || shared.share.takes(&parent.trace);
        if ours { Span::child_of(shared, name, kind, parent) } else { Span(None) }
    }

    /// A part of what is recorded here under `parent`; nothing where that is not recorded.
    pub fn span(&self, name: &'static str, kind: Kind, parent: Option<Context>) -> Span {
        let (Some(shared), Some(parent)) = (&self.0, parent) else { return Span(None) };
        Span::child_of(shared, name, kind, parent)
    }
}

impl Span {
    fn child_of(shared: &Arc<Shared>, name: &'static str, kind: Kind, parent: Context) -> Self {
        let n = shared.next.fetch_add(1, Ordering::Relaxed);
        let context = Context { trace: parent.trace, span: shared.names.span(n) };
        Self::open(shared, name, kind, context, Some(parent.span))
    }

    fn open(shared: &Arc<Shared>, name: &'static str, kind: Kind, context: Context, parent: Option<[u8; 8]>) -> Self {
        let start = shared.clock.now();
        let (attributes, link, error) = (Vec::new(), None, None);
        let record =
            Record { context, parent, link, name, kind, start, end: start, attributes, error, pieces: 0, bytes: 0 };
        let shared = Arc::clone(shared);
        Self(Some(Box::new(Open { shared, record, lasts: Lasts::ToTheEnd })))
    }

    /// A part of it.
    pub fn child(&self, name: &'static str, kind: Kind) -> Self {
        match &self.0 {
            Some(open) => Self::child_of(&open.shared, name, kind, open.record.context),
            None => Self(None),
        }
    }

    /// Lasts from now on only from the first to the last [`Self::busy`], and is nothing if there is none.
    pub fn when_busy(mut self) -> Self {
        self.0.iter_mut().for_each(|open| open.lasts = Lasts::NotYet);
        self
    }

    /// Under what others may record what they do for it.
    pub fn context(&self) -> Option<Context> {
        self.0.as_ref().map(|open| open.record.context)
    }

    /// Whether it is recorded.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Says something of it, in place of what was said of `key` before.
    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        self.set_with(key, || value);
    }

    /// The same, of what costs something to say.
    pub fn set_with<V: Into<Value>>(&mut self, key: &'static str, value: impl FnOnce() -> V) {
        let Some(open) = &mut self.0 else { return };
        let said = &mut open.record.attributes;
        match said.iter().position(|(known, _)| *known == key) {
            Some(at) => said[at].1 = value().into(),
            None if said.len() < MAX_ATTRIBUTES => said.push((key, value().into())),
            None => {}
        }
    }

    /// Refers to a span of another trace, or of this one, that it is no part of. One at most.
    pub fn link(&mut self, to: Option<Context>) {
        if let Some(open) = &mut self.0 {
            open.record.link = to.or(open.record.link);
        }
    }

    /// It failed, and this is why.
    pub fn fail(&mut self, why: impl FnOnce() -> String) {
        if let Some(open) = &mut self.0 {
            let mut why = why();
            why.truncate(why.floor_char_boundary(MAX_TEXT));
            open.record.error = Some(why);
        }
    }

    /// So many pieces and bytes more went with it.
    pub fn add(&mut self, pieces: u64, bytes: u64) {
        if let Some(open) = &mut self.0 {
            open.record.pieces += pieces;
            open.record.bytes += bytes;
        }
    }

    /// Something happens in it: see [`Self::when_busy`].
    pub fn busy(&mut self) {
        let Some(open) = &mut self.0 else { return };
        open.record.end = open.shared.clock.now();
        if open.lasts == Lasts::NotYet {
            (open.record.start, open.lasts) = (open.record.end, Lasts::WhileBusy);
        }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        let Some(mut open) = self.0.take() else { return };
        match open.lasts {
            Lasts::ToTheEnd => open.record.end = open.shared.clock.now(),
            Lasts::NotYet => return,
            Lasts::WhileBusy => {}
        }
        let Open { shared, record, .. } = *open;
        if shared.queue.try_send(record).is_err() {
            shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn nanos(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_set_is_followed_and_small_differences_are_not() {
        let clock = Clock::new();
        let began = clock.offset.load(Ordering::Relaxed);
        clock.correct();
        assert_eq!(clock.offset.load(Ordering::Relaxed), began, "nobody set it");
        for wrong in [began - 3_600_000_000_000, began + 3_600_000_000_000] {
            clock.offset.store(wrong, Ordering::Relaxed);
            clock.correct();
            let now = clock.offset.load(Ordering::Relaxed);
            assert!(now.abs_diff(began) < 60_000_000_000, "an hour away is not left: {now} {began}");
        }
    }
}
