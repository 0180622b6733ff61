//! Bytes to the client, in order, as they become valid.
//!
//! A task whose name carries a SHA-256 is served while it downloads, but its last bytes are withheld until the whole has
//! been verified: no client checks what it got, so none may ever hold a complete file that is wrong.

use std::ops::Range;

use tokio::time::{Instant, timeout};

use crate::{
    fetch::{Failure, Found, Reading, Source, drop_unreadable},
    http::{
        connection::{Done, Exchange, ExchangeError, unix_now},
        forward,
        multipart::{Multipart, Segment},
        plan::{Plan, plan},
        response::{Party, Selection, field},
        transport::{Transport, TransportError},
    },
    limits,
    metrics::{Outcome, Source as Origin},
    store::Verdict,
    swarm::{Expected, OriginBody, OriginError, OriginRequest},
    trace::{Kind, Span},
};

/// Why a reply's bytes stopped.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The download failed.
    #[error("{0}")]
    Download(Failure),
    /// The whole is not what its name promises: blames the origin.
    #[error("the bytes are not those of the hash in the name")]
    Mismatch,
    /// The disk does not give the bytes back.
    #[error("the store's disk does not give the bytes back")]
    Unreadable,
    /// Nothing came for [`limits::FETCH_STALL`].
    #[error("nothing came from the origin for {:?}", limits::FETCH_STALL)]
    Stalled,
    /// The rest of the reply, straight from the origin, ended too early.
    #[error("the origin's answer is shorter than the rest of the file")]
    Short,
}

impl BodyError {
    /// Whether the origin must not be asked for the same bytes straight away. Under a name that is a hash (`hashed`) a
    /// changed object is a wrong one.
    fn is_final(&self, hashed: bool) -> bool {
        match self {
            Self::Mismatch => true,
            Self::Download(failure) => hashed && failure.is_change(),
            Self::Unreadable | Self::Stalled | Self::Short => false,
        }
    }

    /// Whether a reply that has begun can go on with bytes straight from the origin: what the client has so far is right, and only the
    /// node's own disk or download has failed.
    fn spares_what_was_sent(&self) -> bool {
        match self {
            Self::Mismatch | Self::Short => false,
            Self::Download(failure) => !failure.is_change() && !failure.is_refuted(),
            Self::Unreadable | Self::Stalled => true,
        }
    }
}

/// Answers a GET as it was found.
pub async fn found(
    exchange: Exchange,
    transport: &mut Transport,
    request: OriginRequest,
    found: Found,
) -> Result<Done, ExchangeError> {
    match found {
        Found::Source(source) => from_store(exchange, transport, request, *source).await,
        Found::Refused(sentence) => exchange.refuse(transport, 502, Party::Origin, sentence).await,
        Found::Answer(error) => forward::hand_on(exchange, transport, &error).await,
        Found::Straight(why) => {
            tracing::debug!(at = request.label(), why, "passed through");
            forward::forward(exchange, transport, request).await
        }
    }
}

/// Answers a GET from a task, complete or on its way.
async fn from_store(
    exchange: Exchange,
    transport: &mut Transport,
    request: OriginRequest,
    source: Source,
) -> Result<Done, ExchangeError> {
    let mut exchange = exchange;
    exchange.extra.extend(about_task(&source));
    let (len, headers) = (source.held.meta.layout.len(), &source.headers);
    let now = unix_now();
    let plan = match &source.window {
        Some(window) => Plan::Part(window.bytes.clone()),
        None => plan(&exchange.head, &source.validators(now), len, now),
    };
    let no_body = match &plan {
        Plan::NotModified => Selection::NotModified,
        Plan::PreconditionFailed => Selection::PreconditionFailed,
        Plan::Unsatisfiable => Selection::Unsatisfiable { total: len },
        Plan::Whole | Plan::Part(_) | Plan::Parts(_) => {
            let mut body = Body::new(&exchange, &source, &request, &plan);
            return match body.first().await {
                Ok(()) => body.reply(transport, plan).await,
                // The origin's bytes are not those of the name, or right ones could complete a wrong file.
                Err(NotReady::Body(error)) if error.is_final(source.held.meta.proof.is_some()) => {
                    drop(body);
                    exchange.refuse(transport, 502, Party::Origin, &error.to_string()).await
                }
                // Nothing was sent yet: this client gets what it would have got without us.
                Err(error) => {
                    drop(body);
                    straight(exchange, transport, request, &error).await
                }
            };
        }
    };
    let about = exchange.about(source.age);
    transport.send(exchange.stored_head(&no_body, headers, &about)).await?;
    Ok(exchange.done(source.outcome, &about))
}

/// Which task it is, and whether all of it was here: by our names, and those that Dragonfly's clients know.
fn about_task(source: &Source) -> [(String, Vec<u8>); 4] {
    let task = source.held.meta.id.to_string();
    let finished = source.outcome == Outcome::Hit;
    let field = |name: &str, value: &str| (name.to_owned(), value.as_bytes().to_vec());
    [
        field("x-pondhawk-task", &task),
        field("x-pondhawk-cache", source.outcome.name()),
        field("x-dragonfly-task-id", &task),
        field("x-dragonfly-task-download-finished", if finished { "true" } else { "false" }),
    ]
}

/// The ranges of a plan that has a body.
fn ranges(plan: &Plan, len: u64) -> Vec<Range<u64>> {
    match plan {
        Plan::Part(range) => vec![range.clone()],
        Plan::Parts(ranges) => ranges.clone(),
        _ => std::iter::once(0..len).collect(),
    }
}

async fn straight(
    exchange: Exchange,
    transport: &mut Transport,
    request: OriginRequest,
    error: &NotReady,
) -> Result<Done, ExchangeError> {
    tracing::info!(at = request.label(), %error, "fetched straight from the origin for this client");
    forward::forward(exchange, transport, request).await
}

/// Why the first byte did not come.
#[derive(Debug, thiserror::Error)]
enum NotReady {
    #[error(transparent)]
    Body(#[from] BodyError),
    #[error("the end of a file that nobody downloads whole cannot be verified")]
    Unverifiable,
}

/// A reply's body on its way.
struct Body<'a> {
    exchange: &'a Exchange,
    source: &'a Source,
    /// With which the origin is asked for an end that cannot be verified.
    request: &'a OriginRequest,
    /// Withheld bytes start here while the verdict is pending.
    limit: u64,
    len: u64,
    /// What of the file goes out.
    ranges: Vec<Range<u64>>,
    /// From when it is known what to send to the last byte.
    span: Span,
    _reading: Vec<Reading>,
}

impl<'a> Body<'a> {
    fn new(exchange: &'a Exchange, source: &'a Source, request: &'a OriginRequest, plan: &Plan) -> Self {
        let len = source.held.meta.layout.len();
        let ranges = ranges(plan, len);
        let last_start = ranges.iter().map(|range| range.start).max().unwrap_or(0);
        let limit = len.saturating_sub(limits::WITHHELD_TAIL).max(last_start);
        let reading = ranges.iter().filter_map(|range| source.read(range.clone())).collect();
        let mut span = exchange.shard.node.tracer.span("reply", Kind::Internal, exchange.span.context());
        span.set("pondhawk.cache", source.outcome.name());
        span.link(source.joined_trace());
        Self { exchange, source, request, limit, len, ranges, span, _reading: reading }
    }

    /// Waits until the first byte can go, but not past the time at which the client should see a head.
    async fn first(&mut self) -> Result<(), NotReady> {
        let in_tail = |range: &Range<u64>| range.start >= self.len.saturating_sub(limits::WITHHELD_TAIL);
        if self.ranges.iter().any(in_tail) && self.source.held.verdict() == Verdict::Pending {
            self.whole_wanted().await?;
        }
        let start = self.ranges.first().map_or(0, |range| range.start);
        if self.len == 0 {
            return Ok(());
        }
        let waited = self.exchange.started.elapsed();
        let left = limits::FIRST_BYTE_WAIT.saturating_sub(waited).max(limits::FIRST_BYTE_LEAST);
        match timeout(left, self.more(start)).await {
            Ok(result) => Ok(result.map(drop)?),
            Err(_) => Ok(()),
        }
    }

    /// The end of a file is let go when the whole is verified, which never happens if nobody wants the whole. Clients that
    /// download in parallel ranges show within a moment that they do.
    async fn whole_wanted(&self) -> Result<(), NotReady> {
        let deadline = Instant::now() + limits::WHOLE_WANTED_WAIT;
        while !self.source.whole_wanted() {
            if Instant::now() >= deadline {
                return Err(NotReady::Unverifiable);
            }
            tokio::time::sleep(limits::WHOLE_WANTED_WAIT / 20).await;
        }
        Ok(())
    }

    async fn reply(mut self, transport: &mut Transport, plan: Plan) -> Result<Done, ExchangeError> {
        let replied = self.send_reply(transport, plan).await;
        if let Err(error) = &replied {
            self.span.fail(|| error.to_string());
        }
        replied
    }

    async fn send_reply(&mut self, transport: &mut Transport, plan: Plan) -> Result<Done, ExchangeError> {
        let (stored, about) = (&self.source.headers, self.exchange.about(self.source.age));
        let total = self.len;
        let one = match plan {
            Plan::Parts(ranges) => {
                let parts = Multipart::new(random_boundary(), field(stored, "content-type"), ranges, total);
                let (content_type, content_length) = (parts.content_type(), parts.content_length());
                let selection = Selection::Parts { content_type: &content_type, content_length };
                transport.send(self.exchange.stored_head(&selection, stored, &about)).await?;
                self.first_byte();
                self.send_parts(transport, &parts).await?;
                return Ok(self.exchange.done(self.source.outcome, &about));
            }
            Plan::Part(range) => (self.part(&range), range),
            _ => (Selection::Whole { len: total }, 0..total),
        };
        transport.send(self.exchange.stored_head(&one.0, stored, &about)).await?;
        self.first_byte();
        self.send(transport, one.1).await?;
        Ok(self.exchange.done(self.source.outcome, &about))
    }

    fn first_byte(&mut self) {
        let took = self.exchange.started.elapsed();
        self.exchange.shard.node.metrics.first_byte(took);
        self.span.set("pondhawk.first_byte_us", u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    }

    /// What a range of the task is to the client.
    fn part(&self, range: &Range<u64>) -> Selection<'static> {
        match &self.source.window {
            Some(window) => Selection::Part { range: window.place.clone(), total: window.total },
            None => Selection::Part { range: range.clone(), total: Some(self.len) },
        }
    }

    async fn send_parts(&mut self, transport: &mut Transport, parts: &Multipart) -> Result<(), ExchangeError> {
        for segment in parts.segments() {
            match segment {
                Segment::Text(text) => transport.send(text).await?,
                Segment::Body(range) => self.send(transport, range).await?,
            }
        }
        Ok(())
    }

    async fn send(&mut self, transport: &mut Transport, span: Range<u64>) -> Result<(), ExchangeError> {
        let metrics = &self.exchange.shard.node.metrics;
        let mut offset = span.start;
        while offset < span.end {
            if offset == self.limit && self.unverifiable().await {
                return self.send_end(transport, offset..span.end).await;
            }
            let end = match self.more(offset).await {
                Ok(end) => end.min(span.end),
                Err(error) if error.spares_what_was_sent() => {
                    return self.send_rest(transport, offset..span.end, &error).await;
                }
                Err(error) => return Err(error.into()),
            };
            match transport.send_file(self.source.held.file(), offset..end).await {
                Ok(()) => {}
                Err(TransportError::Disk { at, source }) => {
                    self.exchange.sent(at.saturating_sub(offset));
                    drop_unreadable(&self.exchange.shard.node, &self.source.held, &source);
                    return self.send_rest(transport, at..span.end, &BodyError::Unreadable).await;
                }
                Err(error) => return Err(error.into()),
            }
            self.exchange.sent(end - offset);
            self.span.add(0, end - offset);
            if self.source.outcome == Outcome::Hit {
                metrics.received(Origin::Store, end - offset);
            }
            offset = end;
        }
        Ok(())
    }

    /// Whether what is withheld is for nobody to verify: a reader of parts has come to the end of a file that is not wanted whole.
    async fn unverifiable(&self) -> bool {
        self.source.held.verdict() == Verdict::Pending && self.whole_wanted().await.is_err()
    }

    /// The rest straight from the origin, as unverified as without the node: some kilobytes at the end of a file of which only
    /// parts are wanted, or what the store has no room for.
    async fn send_end(&self, transport: &mut Transport, span: Range<u64>) -> Result<(), ExchangeError> {
        let expected = self.expected();
        let body = self.exchange.shard.node.origin.get_range(self.request, span.clone(), &expected).await?;
        self.relay(transport, body, 0, span.end - span.start).await
    }

    /// The rest of a reply straight from the origin, with the client's own request: without the node, no failure of its disk or of its
    /// download would have cut the reply. The rest is as unverified as without the node.
    async fn send_rest(
        &self,
        transport: &mut Transport,
        rest: Range<u64>,
        why: &BodyError,
    ) -> Result<(), ExchangeError> {
        tracing::warn!(at = self.request.label(), from = rest.start, %why, "the rest of a reply comes from the origin");
        let (origin, expected) = (&self.exchange.shard.node.origin, self.expected());
        let len = rest.end - rest.start;
        if let Some(window) = &self.source.window {
            // The URL is signed for exactly these bytes, so that what the client has comes once more.
            let body = origin.get_whole(self.request, &expected).await?;
            return self.relay(transport, body, rest.start - window.bytes.start, len).await;
        }
        match origin.get_range(self.request, rest.clone(), &expected).await {
            Ok(body) => self.relay(transport, body, 0, len).await,
            Err(OriginError::IgnoredRange { .. }) => {
                let body = origin.get_whole(self.request, &expected).await?;
                self.relay(transport, body, rest.start, len).await
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The object that the origin must still have for its bytes to continue this reply.
    fn expected(&self) -> Expected {
        match &self.source.window {
            Some(window) => Expected { total: Some(window.bytes.end - window.bytes.start), etag: None },
            None => self.source.expected(),
        }
    }

    /// Sends `len` bytes of the origin's body to the client, after the first `skip`, which the client does not need.
    async fn relay(
        &self,
        transport: &mut Transport,
        mut body: OriginBody,
        skip: u64,
        len: u64,
    ) -> Result<(), ExchangeError> {
        let (mut skip, mut left) = (skip, len);
        while left > 0 {
            let Some(chunk) = body.chunk().await? else { return Err(BodyError::Short.into()) };
            let from = usize::try_from(skip).unwrap_or(usize::MAX).min(chunk.len());
            skip -= from as u64;
            let to = usize::try_from(left).unwrap_or(usize::MAX).saturating_add(from).min(chunk.len());
            let wanted = chunk[from..to].to_vec();
            left -= wanted.len() as u64;
            self.exchange.sent(wanted.len() as u64);
            transport.send(wanted).await?;
            body.was_paused();
        }
        Ok(())
    }

    /// Waits until bytes from `offset` may go out, and gives their end.
    async fn more(&mut self, offset: u64) -> Result<u64, BodyError> {
        let mut deadline = Instant::now() + limits::FETCH_STALL;
        let mut dribble_at = Instant::now() + limits::DRIBBLE_EVERY;
        let mut progress = self.source.progress();
        loop {
            let changed = self.source.held.changed();
            let end = self.servable_end(offset)?;
            if end > offset {
                return Ok(end);
            }
            if let Some(error) = self.source.failure() {
                return Err(BodyError::Download(error));
            }
            // Anything that moves in the task counts: a reader far ahead of the download waits with reason.
            let now = self.source.progress();
            if now != progress {
                (progress, deadline) = (now, Instant::now() + limits::FETCH_STALL);
            }
            tokio::select! {
                () = changed => {}
                () = self.source.ended() => {}
                () = tokio::time::sleep_until(dribble_at) => {
                    dribble_at += limits::DRIBBLE_EVERY;
                    self.dribble(offset);
                }
                () = tokio::time::sleep_until(deadline) => return Err(BodyError::Stalled),
            }
        }
    }

    fn servable_end(&self, offset: u64) -> Result<u64, BodyError> {
        let valid = self.source.held.valid_end(offset);
        match self.source.held.verdict() {
            Verdict::Mismatch => Err(BodyError::Mismatch),
            Verdict::Unreadable => Err(BodyError::Unreadable),
            Verdict::Pending => Ok(valid.min(self.limit)),
            Verdict::Verified | Verdict::NotNeeded => Ok(valid),
        }
    }

    /// Lets one more withheld byte go, never the last, when withholding is all that the client waits for.
    fn dribble(&mut self, offset: u64) {
        if offset == self.limit && self.source.held.valid_end(offset) > offset {
            self.limit = (self.limit + 1).min(self.len - 1);
        }
    }
}

fn random_boundary() -> [u8; 16] {
    let mut random = [0; 16];
    // A boundary that is not random is still one, as no file can be made to contain it in time.
    let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
    random
}

const _: () = assert!(limits::FIRST_BYTE_WAIT.as_secs() < 10);
