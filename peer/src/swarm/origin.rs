//! The origin client: probes, ranges and pass-through over HTTP/1.1 on verified TLS.

use std::{
    net::SocketAddr,
    ops::Range,
    path::PathBuf,
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::{Body, Incoming},
    client::conn::http1,
    header::{self, HeaderName, HeaderValue},
};
use tokio::sync::OwnedSemaphorePermit;
use url::{Position, Url};

use crate::{
    limits,
    metrics::{Metrics, OriginAnswer},
    wire::rate::Bucket,
};

use super::{
    body::Lent,
    connect::{ConnectOptions, Connector, Place},
    own::{OwnSockets, via_names},
    pool::{Lane, Pool, RequestBody, Sender},
    request::{content_range, detached, drop_hop_by_hop, etag_of, for_bytes, forwarded, label, place_of, retry_after},
    retry::Class,
    upstream::Upstream,
};
pub use super::{
    body::{OpenBody, OriginBody},
    connect::TrustError,
    error::{Answer, OriginError},
    request::{Expected, OriginRequest, Probe},
};
use crate::http::{
    destination::Destination,
    head::{decimal, list},
};

/// 64 KiB: what is kept of the body of an error answer.
pub const MAX_ANSWER_BODY: usize = 64 << 10;
/// 1 MiB: hyper's read buffer, and with it the longest head.
const READ_BUFFER: usize = 1 << 20;

/// How long an origin may be silent on one request.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// From the request to the head of its answer.
    pub head: Duration,
    /// Between two parts of the body.
    pub body: Duration,
}

impl Default for Patience {
    /// For what is passed through: the client decides, who knows what it asked for.
    fn default() -> Self {
        Self { head: limits::PASS_WAIT, body: limits::PASS_WAIT }
    }
}

/// How the origin is spoken to.
#[derive(Clone, Debug)]
pub struct OriginOptions {
    /// SO_MARK that keeps these sockets out of interception.
    pub mark: Option<u32>,
    /// Whether failing to mark (no CAP_NET_ADMIN) is an error: true while interception is on.
    pub mark_required: bool,
    /// PEM files of CAs trusted beside the system's.
    pub extra_cas: Vec<PathBuf>,
    /// Whether private, loopback and link-local addresses may be origins.
    pub allow_private: bool,
    /// `host` or `host:port` to the address that serves it; exempt from the address rule.
    pub overrides: Vec<(String, SocketAddr)>,
    /// The node's own sockets, which are never an origin.
    pub own: Arc<OwnSockets>,
    /// What the node calls itself in Via; `None` for a client, which is no intermediary.
    pub via: Option<String>,
    /// The proxy by which origins are reached.
    pub proxy: Option<Upstream>,
    /// Ranges in flight to one host at once; probes have as many of their own.
    pub connections_per_host: usize,
    /// For name, TCP and TLS of one connection.
    pub connect_timeout: Duration,
    /// From the request to the head of its answer, for probes and downloads; Hugging Face clients give up after 10 s.
    pub head_timeout: Duration,
    /// The longest silence within the body of a probe or a download.
    pub idle_timeout: Duration,
    /// How long a request that is passed through waits: see [`Origin::forward`].
    pub forward: Patience,
    /// Bytes a second of all downloads together; 0: no limit.
    pub rate: u64,
    /// How long a range waits for one of the host's connections.
    pub slot_timeout: Duration,
    /// Redirects followed by probes and ranges; 0 hands them to the client.
    pub max_redirects: usize,
    /// Where answers and bytes are counted.
    pub metrics: Arc<Metrics>,
}

impl Default for OriginOptions {
    fn default() -> Self {
        Self {
            mark: None,
            mark_required: false,
            extra_cas: Vec::new(),
            allow_private: false,
            overrides: Vec::new(),
            own: Arc::default(),
            via: None,
            proxy: None,
            connections_per_host: 16,
            connect_timeout: Duration::from_secs(10),
            head_timeout: Duration::from_secs(9),
            idle_timeout: Duration::from_secs(6),
            forward: Patience::default(),
            rate: 0,
            slot_timeout: Duration::from_secs(30),
            max_redirects: 5,
            metrics: Metrics::new(),
        }
    }
}

/// Shared by all shards; connections stay on the runtime that made them. All methods need a tokio runtime, which may be
/// the current-thread one inside tokio-uring.
pub struct Origin {
    options: OriginOptions,
    connector: Connector,
    pool: Arc<Pool>,
    bucket: Mutex<Bucket>,
}

impl Origin {
    /// Reads the trust anchors: blocks on files, done once at start.
    pub fn new(options: OriginOptions) -> Result<Self, TrustError> {
        let connector = Connector::new(ConnectOptions {
            mark: options.mark,
            mark_required: options.mark_required,
            extra_cas: options.extra_cas.clone(),
            allow_private: options.allow_private,
            overrides: options.overrides.clone(),
            own: Arc::clone(&options.own),
            proxy: options.proxy.clone(),
            timeout: options.connect_timeout,
        })?;
        let pool = Arc::new(Pool::new(options.connections_per_host));
        let bucket = Mutex::new(Bucket::new(options.rate));
        Ok(Self { options, connector, pool, bucket })
    }

    /// Another [`OriginOptions::rate`] from now on.
    pub fn set_rate(&self, rate: u64) {
        self.bucket.lock().unwrap_or_else(PoisonError::into_inner).set_rate(rate);
    }

    /// The node's own sockets.
    pub fn own(&self) -> &OwnSockets {
        &self.options.own
    }

    /// Whether a request with these values of Via has come from this node: it has been led back.
    pub fn is_led_back<'a>(&self, mut via: impl Iterator<Item = &'a [u8]>) -> bool {
        self.options.via.as_ref().is_some_and(|own| via.any(|value| via_names(value, own)))
    }

    /// Via as this node sends it on (RFC 9110 section 7.6.3): its own entry last.
    fn sent_via<'a>(&self, received: impl Iterator<Item = &'a [u8]>) -> Option<String> {
        let own = format!("1.1 {}", self.options.via.as_ref()?);
        let received = received.map(|value| String::from_utf8_lossy(value).into_owned());
        Some(received.chain([own]).collect::<Vec<_>>().join(", "))
    }

    /// Ranges in flight to one host at once.
    pub fn connections_per_host(&self) -> usize {
        self.options.connections_per_host
    }

    /// Waits until so many more bytes of a download may come; whether there was anything to wait for.
    pub(super) async fn pace(&self, bytes: u64) -> bool {
        let wait = self.bucket.lock().unwrap_or_else(PoisonError::into_inner).take(std::time::Instant::now(), bytes);
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        !wait.is_zero()
    }

    /// Counts a failure that will be followed by another request.
    pub(super) fn note_retry(&self, class: Class) {
        if class.is_transient() {
            self.options.metrics.origin_retry();
        }
    }

    /// Asks for the first byte; where the request has a window, for the headers of exactly that. A refusal is
    /// [`OriginError::Status`] with the origin's full answer.
    pub async fn probe(&self, request: &OriginRequest) -> Result<Probe, OriginError> {
        if let Some(window) = &request.window {
            return self.probe_window(request, window).await;
        }
        let (url, response) = self.follow(Lane::Probe, &Method::GET, request, Some(0..1), None).await?;
        let (head, body) = response.into_parts();
        let at = label(&url);
        let object = match (head.status, content_range(&head.headers)) {
            (StatusCode::PARTIAL_CONTENT, Some((range, total))) if range.start == 0 => (total, true),
            (StatusCode::PARTIAL_CONTENT, _) => {
                return Err(OriginError::Malformed { at, what: "206 without the range" });
            }
            (StatusCode::OK, _) => (body.len(), false),
            (StatusCode::RANGE_NOT_SATISFIABLE, Some((_, Some(0)))) => (Some(0), true),
            _ => return Err(self.refusal(at, head.status, head.headers, body).await),
        };
        body.discard().await;
        let mut headers = end_to_end(head.headers);
        headers.remove(header::CONTENT_RANGE);
        Ok(Probe {
            status: head.status,
            total_len: object.0,
            object_len: object.0,
            ranges: object.1,
            plain: false,
            etag: etag_of(&headers),
            encoded: is_encoded(&headers),
            final_url: url,
            headers,
        })
    }

    /// A URL that is signed for a window gives no other range, not even one byte. HEAD says all that is needed; an origin that
    /// has no HEAD, or grants only GET, is asked for the window, and no more of it is read than has already come.
    async fn probe_window(&self, request: &OriginRequest, window: &Range<u64>) -> Result<Probe, OriginError> {
        let mut method = Method::HEAD;
        let (url, head, body) = loop {
            let (url, answer) = self.follow(Lane::Probe, &method, request, Some(window.clone()), None).await?;
            let (head, body) = answer.into_parts();
            let only_get = matches!(head.status.as_u16(), 403 | 405 | 501);
            if method == Method::HEAD && only_get {
                body.discard().await;
                method = Method::GET;
                continue;
            }
            break (url, head, body);
        };
        let at = label(&url);
        let length = head.headers.get(header::CONTENT_LENGTH).and_then(|value| decimal(value.as_bytes()));
        let object_len = match (head.status, content_range(&head.headers)) {
            (StatusCode::PARTIAL_CONTENT, Some((range, total))) if range == *window => total,
            (StatusCode::PARTIAL_CONTENT, _) => {
                return Err(OriginError::Malformed { at, what: "206 without the range" });
            }
            // Range is defined for GET alone (RFC 9110 section 14.2): this is the length of the whole.
            (StatusCode::OK, _) if method == Method::HEAD => length.filter(|length| *length >= window.end),
            (StatusCode::OK, _) => return Err(OriginError::IgnoredRange { at }),
            _ => return Err(self.refusal(at, head.status, head.headers, body).await),
        };
        if method == Method::HEAD {
            body.discard().await;
        }
        let mut headers = end_to_end(head.headers);
        headers.remove(header::CONTENT_RANGE);
        Ok(Probe {
            status: StatusCode::PARTIAL_CONTENT,
            total_len: Some(window.end - window.start),
            object_len,
            ranges: true,
            plain: false,
            etag: etag_of(&headers),
            encoded: is_encoded(&headers),
            final_url: url,
            headers,
        })
    }

    /// The bytes `range` of the object (counted from the window's start). The body yields exactly these or an error; an answer
    /// that is of another object than `expected` is [`OriginError::Changed`].
    pub async fn get_range(
        &self,
        request: &OriginRequest,
        range: Range<u64>,
        expected: &Expected,
    ) -> Result<OriginBody, OriginError> {
        let base = window_start(request);
        let asked = base + range.start..base + range.end;
        let (url, response) =
            self.follow(Lane::Bulk, &Method::GET, request, Some(asked.clone()), expected.if_range()).await?;
        let at = label(&url);
        let (head, body) = response.into_parts();
        match head.status {
            StatusCode::PARTIAL_CONTENT => {}
            StatusCode::OK if same_object(request, &head.headers, body.len(), expected) => {
                return Err(OriginError::IgnoredRange { at });
            }
            StatusCode::OK => return Err(OriginError::Changed { at }),
            _ => return Err(self.refusal(at, head.status, head.headers, body).await),
        }
        let malformed = |what| OriginError::Malformed { at: at.clone(), what };
        let (got, total) = content_range(&head.headers).ok_or_else(|| malformed("206 without Content-Range"))?;
        if !same_object(request, &head.headers, total, expected) {
            return Err(OriginError::Changed { at });
        }
        if got.start != asked.start || got.end > asked.end {
            return Err(malformed("another range than asked for"));
        }
        if is_encoded(&head.headers) {
            return Err(malformed("a content coding although identity was asked for"));
        }
        Ok(body.expect_len(range.end - range.start))
    }

    /// The whole object, or window, in one body: for origins that ignore ranges, and URLs that are signed for one.
    pub async fn get_whole(&self, request: &OriginRequest, expected: &Expected) -> Result<OriginBody, OriginError> {
        if let Some(window) = &request.window {
            return self.get_range(request, 0..window.end - window.start, expected).await;
        }
        let (url, response) = self.follow(Lane::Bulk, &Method::GET, request, None, None).await?;
        let at = label(&url);
        let (head, body) = response.into_parts();
        if head.status != StatusCode::OK {
            return Err(self.refusal(at, head.status, head.headers, body).await);
        }
        if !same_object(request, &head.headers, body.len(), expected) {
            return Err(OriginError::Changed { at });
        }
        if is_encoded(&head.headers) {
            return Err(OriginError::Malformed { at, what: "a content coding although identity was asked for" });
        }
        Ok(match expected.total {
            Some(total) => body.expect_len(total),
            None => body,
        })
    }

    /// Passes a request through: the client's method, headers (ranges and conditions too) and body, streaming both ways.
    /// Redirects and refusals come back as they are. Sent again only if nothing could have been done with it: an idempotent
    /// method without a body on a kept-alive connection that turned out to be closed (RFC 9110 section 9.2.2).
    pub async fn forward<B>(
        &self,
        method: Method,
        request: &OriginRequest,
        body: B,
    ) -> Result<Response<OriginBody>, OriginError>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let place = place_of(&request.url)?;
        let mut headers = forwarded(&request.headers);
        let length = framed_length(&method, &body);
        headers.extend(length.map(|length| (header::CONTENT_LENGTH, HeaderValue::from(length))));
        let call = Call { place: &place, method: &method, url: &request.url, headers, patience: self.options.forward };
        if method.is_idempotent() && body.is_end_stream() {
            return self.ask(None, call).await;
        }
        let sender = self.open(&place, &request.url, &call.headers).await?;
        self.send(sender, call, body.map_err(Into::into).boxed_unsync(), None).await.map_err(|failed| failed.error)
    }

    /// A question of the node's own about a file, in a client's name: without the client's conditions, ranges and codings, and
    /// with the client's patience. Redirects and refusals come back as they are.
    pub async fn question(
        &self,
        method: &Method,
        request: &OriginRequest,
    ) -> Result<Response<OriginBody>, OriginError> {
        let place = place_of(&request.url)?;
        let headers = for_bytes(&request.headers, None);
        self.ask(None, Call { place: &place, method, url: &request.url, headers, patience: self.options.forward }).await
    }

    /// The longest silence within the body of a download.
    pub(super) fn idle_timeout(&self) -> Duration {
        self.options.idle_timeout
    }

    /// A TCP connection to `host` (a name, or an address; IPv6 in brackets or not) for a client's tunnel: same rules for
    /// addresses, same mark.
    ///
    /// `via` holds the values of that field of the client's CONNECT.
    pub async fn tunnel<'a>(
        &self,
        host: &str,
        port: u16,
        via: impl Iterator<Item = &'a [u8]>,
    ) -> Result<std::net::TcpStream, OriginError> {
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let at = format!("{host}:{port}");
        self.connector.dial(&Place { tls: false, host, port }, &at, self.sent_via(via).as_deref()).await
    }

    /// Whether the server at `address` serves `host`, by its certificate. The caller has checked the address.
    pub async fn verify_host(&self, address: SocketAddr, host: &str) -> Result<(), OriginError> {
        self.connector.verify(address, host).await
    }

    /// A GET or HEAD with redirects followed: private addresses are refused and TLS is verified at each hop, credentials stay with the
    /// host that the client gave them to, https never becomes http.
    async fn follow(
        &self,
        lane: Lane,
        method: &Method,
        request: &OriginRequest,
        range: Option<Range<u64>>,
        if_range: Option<HeaderValue>,
    ) -> Result<(Url, Response<OriginBody>), OriginError> {
        let mut url = request.url.clone();
        let mut headers = for_bytes(&request.headers, range.as_ref());
        headers.extend(if_range.map(|tag| (header::IF_RANGE, tag)));
        for _ in 0..=self.options.max_redirects {
            let place = place_of(&url)?;
            let permit = self.slot(lane, &place, &url).await?;
            let patience = Patience { head: self.options.head_timeout, body: self.options.idle_timeout };
            let call = Call { place: &place, method, url: &url, headers: headers.clone(), patience };
            let response = self.ask(Some(permit), call).await?;
            let moved = self.options.max_redirects > 0;
            let Some(next) = location(&url, response.status(), response.headers()).filter(|_| moved) else {
                return Ok((url, response));
            };
            let next = next.map_err(|why| OriginError::Redirect { at: label(&url), why })?;
            response.into_body().discard().await;
            if place_of(&next)? != place {
                headers.remove(header::AUTHORIZATION);
                headers.remove(header::COOKIE);
            }
            url = next;
        }
        Err(OriginError::Redirect { at: request.label(), why: "too many" })
    }

    async fn slot(&self, lane: Lane, place: &Place, url: &Url) -> Result<OwnedSemaphorePermit, OriginError> {
        let patience = match lane {
            Lane::Bulk => self.options.slot_timeout,
            Lane::Probe => self.options.head_timeout,
        };
        self.pool.slot(lane, place, patience).await.ok_or_else(|| OriginError::Busy { at: label(url) })
    }

    /// A request without a body, on an idle connection if there is one; a second try if that one was already closed.
    async fn ask(
        &self,
        mut permit: Option<OwnedSemaphorePermit>,
        call: Call<'_>,
    ) -> Result<Response<OriginBody>, OriginError> {
        if let Some(sender) = self.pool.take(call.place).await {
            match self.send(sender, call.clone(), empty(), permit).await {
                Err(failed) if failed.stale => permit = failed.permit,
                done => return done.map_err(|failed| failed.error),
            }
        }
        let sender = self.open(call.place, call.url, &call.headers).await?;
        self.send(sender, call, empty(), permit).await.map_err(|failed| failed.error)
    }

    async fn open(&self, place: &Place, url: &Url, headers: &HeaderMap) -> Result<Sender, OriginError> {
        let at = label(url);
        let via = self.sent_via(headers.get_all(header::VIA).iter().map(HeaderValue::as_bytes));
        let stream = self.connector.connect(place, &at, via.as_deref()).await?;
        let handshake = http1::Builder::new().max_buf_size(READ_BUFFER).handshake(stream).await;
        let (sender, connection) = handshake.map_err(|_| OriginError::Cut { at, received: 0 })?;
        // Ends by itself: when the sender and the body are dropped, or with the origin's end. Its error is the request's too.
        tokio::spawn(async move { drop(connection.await) });
        Ok(sender)
    }

    /// One request on one connection, up to the head of the answer.
    async fn send(
        &self,
        mut sender: Sender,
        call: Call<'_>,
        body: RequestBody,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Result<Response<OriginBody>, SendFailed> {
        let (at, patience) = (label(call.url), call.patience);
        let sent = Arc::new(AtomicU64::new(0));
        let reusable = body.is_end_stream();
        let request = match call.request(count_frames(body, Arc::clone(&sent))) {
            Ok(mut request) => {
                let received = request.headers().get_all(header::VIA).iter().map(HeaderValue::as_bytes);
                // Bytes that make no field value came from nowhere: each value was one.
                if let Some(Ok(via)) = self.sent_via(received).map(HeaderValue::try_from) {
                    request.headers_mut().insert(header::VIA, via);
                }
                request
            }
            Err(error) => return Err(SendFailed { error, stale: false, permit }),
        };
        let answer = head_of(sender.send_request(request), &sent, &at, patience.head).await;
        match answer {
            Ok(response) => {
                let lent = Lent { pool: Arc::clone(&self.pool), place: call.place.clone(), sender, permit, reusable };
                let (mut head, incoming) = response.into_parts();
                self.options.metrics.origin_request(OriginAnswer::of_status(head.status.as_u16()));
                drop_hop_by_hop(&mut head.headers);
                let counter = Arc::clone(&self.options.metrics);
                let body = OriginBody::new(incoming, lent, at, patience.body, counter);
                Ok(Response::from_parts(head, body))
            }
            Err(error) => {
                self.options.metrics.origin_request(OriginAnswer::Failed);
                Err(SendFailed { stale: matches!(error, OriginError::Cut { .. }), error, permit })
            }
        }
    }

    /// Reads the answer that is not what was asked for, as far as a client should see it.
    async fn refusal(&self, at: String, status: StatusCode, headers: HeaderMap, mut body: OriginBody) -> OriginError {
        let mut kept = Vec::new();
        let read = async {
            while let Ok(Some(data)) = body.chunk().await {
                let room = MAX_ANSWER_BODY - kept.len();
                kept.extend_from_slice(&data[..data.len().min(room)]);
                if kept.len() == MAX_ANSWER_BODY {
                    break;
                }
            }
        };
        // What came within the deadline is good enough for an error page.
        drop(tokio::time::timeout(self.options.idle_timeout, read).await);
        let retry_after = retry_after(&headers);
        let answer = Answer { status, headers: end_to_end(headers), body: kept.into(), retry_after };
        OriginError::Status { at, answer: Box::new(answer) }
    }
}

/// The Content-Length of a body that is sent (RFC 9110 section 8.6); `None`: it has none, or is chunked.
fn framed_length<B: Body>(method: &Method, body: &B) -> Option<u64> {
    let expected = matches!(*method, Method::POST | Method::PUT | Method::PATCH);
    body.size_hint().exact().filter(|length| *length > 0 || expected)
}

/// Where a redirect leads (RFC 9110 section 15.4), or why it is not followed; `None`: not a redirect.
fn location(from: &Url, status: StatusCode, headers: &HeaderMap) -> Option<Result<Url, &'static str>> {
    let location = headers.get(header::LOCATION).filter(|_| matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308))?;
    let next = location.to_str().ok().and_then(|text| from.join(text).ok());
    Some(match (from.scheme(), next) {
        (_, None) => Err("Location is not a URL"),
        ("https", Some(next)) if next.scheme() != "https" => Err("from https to another scheme"),
        (_, Some(next)) if Destination::of(&next).is_err() => Err("Location is no web address, or carries a user name"),
        (_, Some(next)) => Ok(next),
    })
}

/// What goes into a request's head.
#[derive(Clone)]
struct Call<'a> {
    place: &'a Place,
    method: &'a Method,
    url: &'a Url,
    headers: HeaderMap,
    patience: Patience,
}

impl Call<'_> {
    /// In origin form (RFC 9112 section 3.2.1), Host first.
    fn request(&self, body: RequestBody) -> Result<Request<RequestBody>, OriginError> {
        let bad = || OriginError::Url { at: label(self.url) };
        let host = HeaderValue::from_str(&self.url[Position::BeforeHost..Position::AfterPort]).map_err(|_| bad())?;
        let target = &self.url[Position::BeforePath..Position::AfterQuery];
        let mut request = Request::builder().method(self.method).uri(target).body(body).map_err(|_| bad())?;
        request.headers_mut().insert(header::HOST, host);
        request.headers_mut().extend(self.headers.clone());
        Ok(request)
    }
}

/// Waits for the head of an answer. The deadline starts anew as long as the request's body moves.
async fn head_of(
    answer: impl Future<Output = hyper::Result<Response<Incoming>>>,
    sent: &AtomicU64,
    at: &str,
    patience: Duration,
) -> Result<Response<Incoming>, OriginError> {
    let mut answer = pin!(answer);
    loop {
        let before = sent.load(Ordering::Relaxed);
        match tokio::time::timeout(patience, &mut answer).await {
            Ok(done) => return done.map_err(|error| send_error(&error, at)),
            Err(_) if sent.load(Ordering::Relaxed) != before => {}
            Err(_) => return Err(OriginError::Timeout { at: at.to_owned(), waiting: "for the answer" }),
        }
    }
}

struct SendFailed {
    error: OriginError,
    /// Not one byte of an answer came.
    stale: bool,
    permit: Option<OwnedSemaphorePermit>,
}

fn send_error(error: &hyper::Error, at: &str) -> OriginError {
    let at = at.to_owned();
    if error.is_parse() {
        OriginError::Malformed { at, what: "not an HTTP/1.1 answer" }
    } else if error.is_user() {
        OriginError::Client { at }
    } else {
        OriginError::Cut { at, received: 0 }
    }
}

fn empty() -> RequestBody {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

fn count_frames(body: RequestBody, sent: Arc<AtomicU64>) -> RequestBody {
    let counted = body.map_frame(move |frame| {
        sent.fetch_add(1, Ordering::Relaxed);
        frame
    });
    counted.boxed_unsync()
}

/// To be kept. Content-Length goes too: who sends the body on says how long it is.
fn end_to_end(mut headers: HeaderMap) -> HeaderMap {
    drop_hop_by_hop(&mut headers);
    headers.remove(header::CONTENT_LENGTH);
    detached(&headers)
}

impl Probe {
    /// What an answer to a question without a range says about the object at `url`.
    pub fn of_whole(url: &Url, status: StatusCode, headers: &HeaderMap) -> Self {
        let len = headers.get(header::CONTENT_LENGTH).and_then(|value| decimal(value.as_bytes()));
        let units = headers.get_all(header::ACCEPT_RANGES).iter().flat_map(|value| list(value.as_bytes()));
        let ranges = units.into_iter().any(|unit| unit.eq_ignore_ascii_case(b"bytes"));
        Self {
            status,
            total_len: len,
            object_len: len,
            ranges,
            plain: true,
            etag: etag_of(headers),
            encoded: is_encoded(headers),
            final_url: url.clone(),
            headers: end_to_end(headers.clone()),
        }
    }
}

fn is_encoded(headers: &HeaderMap) -> bool {
    const CODING: HeaderName = header::CONTENT_ENCODING;
    headers.get(CODING).is_some_and(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity"))
}

/// Whether length (where told) and ETag are those that the download began with.
fn same_object(request: &OriginRequest, headers: &HeaderMap, total: Option<u64>, expected: &Expected) -> bool {
    let same_total = match (total.map(|total| in_window(request, total)), expected.total) {
        (Some(now), Some(known)) => now == known,
        _ => true,
    };
    same_total && expected.same_etag(headers)
}

fn window_start(request: &OriginRequest) -> u64 {
    request.window.as_ref().map_or(0, |window| window.start)
}

fn in_window(request: &OriginRequest, total: u64) -> u64 {
    request.window.as_ref().map_or(total, |window| total.min(window.end).saturating_sub(window.start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_never_leads_from_https_to_another_scheme() {
        let from = Url::parse("https://h/a/b").unwrap();
        let to = |status, target: &'static str| {
            let headers = HeaderMap::from_iter([(header::LOCATION, HeaderValue::from_static(target))]);
            location(&from, StatusCode::from_u16(status).unwrap(), &headers)
        };
        assert_eq!(to(302, "../c?d=e").unwrap().unwrap().as_str(), "https://h/c?d=e");
        assert!(to(307, "http://h/a").unwrap().is_err() && to(308, "file:///etc/passwd").unwrap().is_err());
        assert!(to(302, "https://user:secret@evil.example/").unwrap().is_err());
        assert!(to(200, "/c").is_none() && to(304, "/c").is_none());
    }
}
