//! Requests that are not for the store: streamed to the origin and back.

use std::{pin::Pin, task::Poll};

use bytes::Bytes;
use hyper::{HeaderMap, Method, body::Frame};
use tokio::sync::mpsc;

use super::{
    chunked::{Chunked, ChunkedError},
    connection::{Done, Exchange, ExchangeError, PendingBody},
    head::{Framing, Version},
    overheard::Overheard,
    response::{self, Party, RelayedBody},
    transport::{Transport, TransportError},
};
use crate::{
    limits,
    metrics::Outcome,
    swarm::{OriginBody, OriginError, OriginRequest},
    trace::{Kind, asked_of_origin, method_name},
};

/// Streams the request to the origin and the answer to the client, both as they are and at the same time.
pub async fn forward(
    exchange: Exchange,
    transport: &mut Transport,
    request: OriginRequest,
) -> Result<Done, ExchangeError> {
    let Ok(method) = exchange.head.method.parse::<Method>() else {
        return exchange.refuse(transport, 501, Party::Client, "the method is malformed").await;
    };
    if exchange.head.expect_continue() {
        transport.send(response::CONTINUE.to_vec()).await?;
    }
    let (mut upload, body) = Upload::new(exchange.head.framing(), exchange.body());
    let origin = &exchange.shard.node.origin;
    let mut request = request;
    let hears = Overheard::concerns(&exchange.shard.node, &exchange.head.method, &request);
    let reading = Reading { hears, turns: exchange.turns_body(&request) };
    request.headers.retain(|(name, _)| name != "expect" && !(reading.is_plain() && name == "accept-encoding"));
    if reading.is_plain() {
        request.headers.push(("accept-encoding".to_owned(), b"identity".to_vec()));
    }
    let mut span = exchange.shard.node.tracer.span("forward", Kind::Client, exchange.span.context());
    asked_of_origin(&mut span, method_name(&exchange.head.method), &request);
    let asking = origin.forward(method, &request, body);
    tokio::pin!(asking);
    let answer = loop {
        tokio::select! {
            answer = &mut asking => break answer,
            ready = upload.ready(transport), if upload.goes_on() => upload.step(ready, transport).await,
            () = transport.left(), if !upload.goes_on() => return Err(TransportError::Left.into()),
        }
    };
    match answer {
        Ok(answer) => {
            span.set("http.response.status_code", u64::from(answer.status().as_u16()));
            let relayed = relay(&exchange, transport, answer, upload, reading).await;
            if let Err(error) = &relayed {
                span.fail(|| error.to_string());
            }
            relayed
        }
        Err(error) => {
            span.fail(|| error.to_string());
            tracing::warn!(%error, "passing a request through failed");
            let party = party_of(&error);
            exchange.refuse(transport, error.status().as_u16(), party, &error.to_string()).await
        }
    }
}

/// Hands an origin's answer on that was given to a question in the request's name.
pub async fn relay_answer(
    exchange: Exchange,
    transport: &mut Transport,
    answer: hyper::Response<OriginBody>,
) -> Result<Done, ExchangeError> {
    let (upload, _) = Upload::new(Framing::None, exchange.body());
    relay(&exchange, transport, answer, upload, Reading { hears: false, turns: false }).await
}

/// Hands an origin's refusal on, as it was given; other failures become the gateway's own error.
pub async fn hand_on(
    exchange: Exchange,
    transport: &mut Transport,
    error: &OriginError,
) -> Result<Done, ExchangeError> {
    let Some(answer) = error.answer() else {
        tracing::warn!(%error, "the origin could not be asked");
        return exchange.refuse(transport, error.status().as_u16(), party_of(error), &error.to_string()).await;
    };
    let about = exchange.about(0);
    let mut headers = pairs(&answer.headers);
    exchange.turn(&mut headers);
    exchange.span.status(answer.status.as_u16());
    let length = RelayedBody::Length(answer.body.len() as u64);
    let mut reply = response::relayed_reply(answer.status.as_u16(), &headers, length, &about);
    // A head alone answers a HEAD; a body would be read as the next answer.
    if exchange.head.method != "HEAD" {
        reply.extend_from_slice(&answer.body);
    }
    transport.send(reply).await?;
    Ok(exchange.done(outcome_of(answer.status.as_u16()), &about))
}

/// Who is at fault for a request that was not answered.
pub fn party_of(error: &OriginError) -> Party {
    match error {
        OriginError::Loop { .. } => Party::Node,
        _ if error.status().is_client_error() => Party::Client,
        _ => Party::Origin,
    }
}

/// What the node itself reads in an answer that it passes on.
#[derive(Clone, Copy)]
struct Reading {
    /// The URLs that it gives the client: see [`Overheard`].
    hears: bool,
    /// All of it, to turn its URLs to the mirror.
    turns: bool,
}

impl Reading {
    /// Whether the answer must not come compressed.
    fn is_plain(self) -> bool {
        self.hears || self.turns
    }
}

async fn relay(
    exchange: &Exchange,
    transport: &mut Transport,
    answer: hyper::Response<OriginBody>,
    mut upload: Upload,
    reading: Reading,
) -> Result<Done, ExchangeError> {
    let (parts, mut body) = answer.into_parts();
    let mut headers = pairs(&parts.headers);
    headers.retain(|(name, _)| name != "content-length");
    exchange.turn(&mut headers);
    let heard = reading.hears && parts.status == 200 && !parts.headers.contains_key("content-encoding");
    let mut overheard = heard.then(|| Overheard::begin(&exchange.shard.node)).flatten();
    if parts.status.is_success() && reading.turns {
        return turned(exchange, transport, parts.status.as_u16(), &headers, body, upload, overheard).await;
    }
    let framing = relayed_framing(exchange, parts.status.as_u16(), &parts.headers, &body);
    let mut about = exchange.about(0);
    about.keep_alive &= framing != RelayedBody::UntilClose;
    exchange.span.status(parts.status.as_u16());
    let head = response::relayed_reply(parts.status.as_u16(), &headers, framing, &about);
    transport.send(head).await?;
    exchange.shard.node.metrics.first_byte(exchange.started.elapsed());
    if exchange.head.method != "HEAD" && framing != RelayedBody::None {
        while let Some(chunk) = upload.while_waiting_for(&mut body, transport).await? {
            overheard.iter_mut().for_each(|overheard| overheard.take(&chunk));
            exchange.sent(chunk.len() as u64);
            transport.send(if framing == RelayedBody::Chunked { framed_chunk(&chunk) } else { chunk.to_vec() }).await?;
            body.was_paused();
        }
        // Before the client has all of it, and asks.
        overheard.into_iter().for_each(Overheard::end);
        if framing == RelayedBody::Chunked {
            transport.send(b"0\r\n\r\n".to_vec()).await?;
        }
    }
    Ok(exchange.done(outcome_of(parts.status.as_u16()), &about))
}

/// A JSON body whose URLs lead to the mirror. The whole of it is needed; what is longer than
/// [`limits::TURNED_BODY`] is an error, since passed on as it is it would lead past the node without a word.
async fn turned(
    exchange: &Exchange,
    transport: &mut Transport,
    status: u16,
    headers: &[(String, Vec<u8>)],
    mut body: OriginBody,
    mut upload: Upload,
    mut overheard: Option<Overheard>,
) -> Result<Done, ExchangeError> {
    let mut whole = Vec::new();
    while let Some(chunk) = upload.while_waiting_for(&mut body, transport).await? {
        overheard.iter_mut().for_each(|overheard| overheard.take(&chunk));
        whole.extend_from_slice(&chunk);
        if whole.len() > limits::TURNED_BODY {
            let sentence = "the answer is longer than the mirror can turn to itself";
            return exchange.refuse(transport, 502, Party::Node, sentence).await;
        }
    }
    overheard.into_iter().for_each(Overheard::end);
    let whole = exchange.turned_json(&whole).unwrap_or(whole);
    let about = exchange.about(0);
    let length = RelayedBody::Length(whole.len() as u64);
    exchange.span.status(status);
    let mut reply = response::relayed_reply(status, headers, length, &about);
    exchange.shard.node.metrics.first_byte(exchange.started.elapsed());
    exchange.sent(whole.len() as u64);
    reply.extend_from_slice(&whole);
    transport.send(reply).await?;
    Ok(exchange.done(outcome_of(status), &about))
}

fn outcome_of(status: u16) -> Outcome {
    match status {
        400..=499 => Outcome::Refused,
        500.. => Outcome::Error,
        _ => Outcome::Passed,
    }
}

fn relayed_framing(exchange: &Exchange, status: u16, headers: &HeaderMap, body: &OriginBody) -> RelayedBody {
    if exchange.head.method == "HEAD" {
        let length = headers.get("content-length").and_then(|value| value.to_str().ok()?.parse().ok());
        return length.map_or(RelayedBody::None, RelayedBody::Length);
    }
    match (status, body.len(), exchange.head.version) {
        (100..=199 | 204 | 304, ..) => RelayedBody::None,
        (_, Some(len), _) => RelayedBody::Length(len),
        (_, None, Version::Http11) => RelayedBody::Chunked,
        (_, None, Version::Http10) => RelayedBody::UntilClose,
    }
}

fn framed_chunk(chunk: &[u8]) -> Vec<u8> {
    let mut framed = format!("{:x}\r\n", chunk.len()).into_bytes();
    framed.extend_from_slice(chunk);
    framed.extend_from_slice(b"\r\n");
    framed
}

/// An origin's headers in our own form: lower-case names, raw values.
pub fn pairs(headers: &HeaderMap) -> Vec<(String, Vec<u8>)> {
    headers.iter().map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec())).collect()
}

/// A request body on its way to hyper: frames through a bounded channel. Ends with an error where the client broke off,
/// so that the origin never takes half a body for the whole.
struct RequestBody {
    frames: Option<mpsc::Receiver<Result<Bytes, Broken>>>,
    length: Option<u64>,
}

/// The client's request body broke off.
#[derive(Debug, thiserror::Error)]
#[error("the client's request body broke off")]
struct Broken;

impl hyper::body::Body for RequestBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match &mut self.frames {
            None => Poll::Ready(None),
            Some(frames) => frames.poll_recv(cx).map(|frame| frame.map(|frame| frame.map(Frame::data))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.frames.is_none()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.length.map_or_else(hyper::body::SizeHint::new, hyper::body::SizeHint::with_exact)
    }
}

/// The client's body on its way from the connection into the channel; what follows it stays in `pending`.
struct Upload {
    frames: Option<mpsc::Sender<Result<Bytes, Broken>>>,
    reader: BodyReader,
    body: PendingBody,
}

/// What [`Upload::ready`] waited for.
enum Ready {
    /// There is room in the channel, and something to read.
    Go,
    /// The origin has answered without reading on: the rest is for nobody.
    Unwanted,
    /// The client sends nothing.
    Silent,
}

impl Upload {
    fn new(framing: Framing, body: PendingBody) -> (Self, RequestBody) {
        let length = match framing {
            Framing::None | Framing::Length(0) => {
                let upload = Self { frames: None, reader: BodyReader::Over, body };
                return (upload, RequestBody { frames: None, length: Some(0) });
            }
            Framing::Length(length) => Some(length),
            Framing::Chunked => None,
        };
        let (sender, frames) = mpsc::channel(limits::BODY_FRAMES);
        let upload = Self { frames: Some(sender), reader: BodyReader::new(framing), body };
        (upload, RequestBody { frames: Some(frames), length })
    }

    fn goes_on(&self) -> bool {
        self.frames.is_some()
    }

    /// The next bytes of the answer; the request's body goes on meanwhile.
    async fn while_waiting_for(
        &mut self,
        body: &mut OriginBody,
        transport: &mut Transport,
    ) -> Result<Option<Bytes>, ExchangeError> {
        loop {
            tokio::select! {
                biased;
                chunk = body.chunk() => return Ok(chunk?),
                ready = self.ready(transport), if self.goes_on() => self.step(ready, transport).await,
                () = transport.left(), if !self.goes_on() => return Err(TransportError::Left.into()),
            }
        }
    }

    /// May be dropped: it takes nothing.
    async fn ready(&self, transport: &Transport) -> Ready {
        let Some(frames) = &self.frames else { return Ready::Unwanted };
        // Nobody else sends, so the room is still there in the step that follows.
        if frames.reserve().await.is_err() {
            return Ready::Unwanted;
        }
        if !transport.pending.is_empty() {
            return Ready::Go;
        }
        let readable = tokio::time::timeout(limits::PASS_WAIT, transport.readable()).await;
        if readable.is_ok() { Ready::Go } else { Ready::Silent }
    }

    /// Moves what is there; the end of the body, or of the client, closes the channel.
    async fn step(&mut self, ready: Ready, transport: &mut Transport) {
        let moved = match ready {
            Ready::Unwanted => Ok(None),
            Ready::Silent => Err(Broken),
            Ready::Go if transport.pending.is_empty() && !matches!(transport.recv().await, Ok(1..)) => Err(Broken),
            Ready::Go => self.reader.take(&mut transport.pending).map_err(|_| Broken),
        };
        match moved {
            Ok(Some(data)) => {
                if !self.push(Ok(data)) {
                    self.frames = None;
                }
            }
            Ok(None) => self.frames = None,
            Err(Broken) => {
                self.push(Err(Broken));
                self.frames = None;
            }
        }
        if self.reader.is_over() {
            self.body.consumed();
            self.frames = None;
        }
    }

    /// Whether the other end still listens.
    fn push(&self, frame: Result<Bytes, Broken>) -> bool {
        match &frame {
            Ok(data) if data.is_empty() => true,
            _ => self.frames.as_ref().is_some_and(|frames| frames.try_send(frame).is_ok()),
        }
    }
}

enum BodyReader {
    Length(u64),
    Chunked(Chunked),
    Over,
}

impl BodyReader {
    fn new(framing: Framing) -> Self {
        match framing {
            Framing::None | Framing::Length(0) => Self::Over,
            Framing::Length(length) => Self::Length(length),
            Framing::Chunked => Self::Chunked(Chunked::new()),
        }
    }

    fn is_over(&self) -> bool {
        matches!(self, Self::Over)
    }

    /// Data out of what has arrived, which may be empty; none when the body is over.
    fn take(&mut self, pending: &mut Vec<u8>) -> Result<Option<Bytes>, ChunkedError> {
        match self {
            Self::Over => Ok(None),
            Self::Length(left) => {
                let n = usize::try_from(*left).unwrap_or(usize::MAX).min(pending.len());
                *left -= n as u64;
                if *left == 0 {
                    *self = Self::Over;
                }
                Ok(Some(pending.drain(..n).collect()))
            }
            Self::Chunked(chunked) => {
                let decoded = chunked.decode(pending)?;
                let data = Bytes::copy_from_slice(&pending[decoded.data]);
                pending.drain(..decoded.consumed);
                if decoded.done {
                    *self = Self::Over;
                }
                Ok(Some(data))
            }
        }
    }
}
