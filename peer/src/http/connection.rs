//! One client's connection: request after request, each read, routed, and answered from the store or the origin.

use std::{
    cell::Cell,
    rc::Rc,
    time::{Instant, SystemTime},
};

use tokio::time::timeout;
use url::Url;

use super::{
    forward,
    head::{self, HeadError, HeadLimits, Parsed, RequestHead, Version},
    mirror::{
        self,
        rewrite::{Base, is_directions},
    },
    response::{self, About, Party, Selection},
    route::{self, Arrival, Misrouted, ORIGIN_PREFIX, Route},
    rules::{Front, Treatment},
    transport::{Transport, TransportError},
    tunnel, users,
    wishes::{self, Wishes},
};
use crate::{
    fetch::{self, Answered, Found, Terms},
    limits,
    metrics::{Outcome, Way},
    reply,
    shard::Shard,
    swarm::OriginRequest,
    tls::Distrust,
    trace::{RequestSpan, asked_of_node},
};

/// Serves requests until the client or the node ends the connection. Tells whether the client left in a way that says
/// that it does not trust the node's certificate.
///
/// `trusts` is called when the first request is there.
pub async fn serve(
    shard: Rc<Shard>,
    mut transport: Transport,
    arrival: Arrival,
    trusts: impl FnOnce(),
) -> Option<Distrust> {
    let mut trusts = Some(trusts);
    loop {
        let head = match next_head(&shard, &mut transport).await {
            Ok(Some(head)) => head,
            Ok(None) => break,
            Err(NextError::Head(error)) => {
                refuse_head(&mut transport, &error).await;
                break;
            }
            Err(NextError::Transport(error)) => {
                tracing::debug!(%error, "a connection ended between requests");
                return transport.distrust();
            }
        };
        if let Some(trusts) = trusts.take() {
            trusts();
        }
        let mut exchange = Exchange::new(Rc::clone(&shard), head, &arrival);
        let route = exchange.route(&arrival);
        let way = exchange.way;
        let trace = exchange.trace(&route);
        let run = match route {
            Ok(Route::Tunnel { host, port }) => {
                tunnel::serve(exchange, transport, host, port).await;
                return None;
            }
            Ok(Route::Url(treatment)) => exchange.run(&mut transport, treatment).await,
            Ok(Route::Mirror(url)) => mirror::serve(exchange, &mut transport, url).await,
            Err(refusal) => exchange.refuse_with(&mut transport, refusal).await,
        };
        match run {
            Ok(Done { outcome, keep }) => {
                shard.node.metrics.request(way, outcome);
                trace.note(|span| {
                    span.set("pondhawk.outcome", outcome.name());
                    if outcome == Outcome::Error {
                        span.fail(|| "the node or the origin failed".to_owned());
                    }
                });
                if !keep {
                    break;
                }
            }
            Err(error) => {
                shard.node.metrics.request(way, Outcome::Error);
                trace.note(|span| {
                    span.set("pondhawk.outcome", Outcome::Error.name());
                    span.fail(|| error.to_string());
                });
                tracing::debug!(%error, "a reply was cut");
                transport.cut();
                return None;
            }
        }
    }
    let distrust = transport.distrust();
    transport.close().await;
    distrust
}

/// How an exchange ended well. Only [`Exchange::done`] makes one, so that no reply keeps a connection on which a request body
/// is still to come: the body would be read as the next request.
pub struct Done {
    /// For the metrics.
    outcome: Outcome,
    /// Whether another request may follow on the connection.
    keep: bool,
}

/// Whether bytes of a request's body may still follow on its connection.
#[derive(Clone)]
pub struct PendingBody(Rc<Cell<bool>>);

impl PendingBody {
    /// The whole body has been read.
    pub fn consumed(&self) {
        self.0.set(false);
    }
}

/// Why a reply could not be finished: the connection is of no further use.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The client's connection.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The origin broke off in the middle of a passed-through reply.
    #[error(transparent)]
    Origin(#[from] crate::swarm::OriginError),
    /// The reply's bytes did not come or were wrong.
    #[error(transparent)]
    Body(#[from] reply::BodyError),
}

/// One request and what is known about it.
pub struct Exchange {
    /// Where it runs.
    pub shard: Rc<Shard>,
    /// The request.
    pub head: RequestHead,
    /// How it came, for the metrics.
    pub way: Way,
    /// When its head was complete.
    pub started: Instant,
    /// Its span, where it is traced.
    pub span: RequestSpan,
    /// Further fields of a reply from the store.
    pub extra: Vec<(String, Vec<u8>)>,
    wishes: Wishes,
    body: PendingBody,
    /// Where the client's URLs begin, if this node takes the Hub's place.
    base: Option<Base>,
}

/// An error of the node's own, before the request has gone anywhere.
struct Refusal {
    status: u16,
    sentence: String,
    fields: &'static [(&'static str, &'static str)],
}

impl Refusal {
    fn new(status: u16, error: &impl std::error::Error) -> Self {
        Self { status, sentence: error.to_string(), fields: &[] }
    }
}

impl Exchange {
    fn new(shard: Rc<Shard>, head: RequestHead, arrival: &Arrival) -> Self {
        let way = match arrival {
            Arrival::Terminated { way, .. } => *way,
            Arrival::Proxy => Way::Proxy,
        };
        let wishes = Wishes::default();
        let (started, span) = (Instant::now(), RequestSpan::default());
        let body = PendingBody(Rc::new(Cell::new(head.has_body())));
        Self { shard, head, way, started, span, extra: Vec::new(), wishes, body, base: None }
    }

    /// Begins its span, as far as it is traced. What comes through a tunnel are requests of their own.
    fn trace(&mut self, route: &Result<Route, Refusal>) -> RequestSpan {
        let url = match route {
            Ok(Route::Tunnel { .. }) => return RequestSpan::default(),
            Ok(Route::Url(treatment)) => Some(&treatment.url),
            Ok(Route::Mirror(url)) => Some(url),
            Err(_) => None,
        };
        let mut span = self.shard.node.tracer.request("request", || self.head.get("traceparent"));
        if span.is_on() {
            asked_of_node(&mut span, &self.head.method, url);
            span.set("pondhawk.way", self.way.name());
        }
        self.span = RequestSpan::new(span);
        self.span.clone()
    }

    /// Where the request goes; notes what it asks of the node, and whether it came for the Hub.
    fn route(&mut self, arrival: &Arrival) -> Result<Route, Refusal> {
        if let (Arrival::Proxy, Some(users)) = (arrival, &self.shard.node.users)
            && !users.admit(self.head.get("proxy-authorization"))
        {
            let sentence = "this proxy serves those whom proxy.users names".to_owned();
            return Err(Refusal { status: 407, sentence, fields: &[("proxy-authenticate", users::CHALLENGE)] });
        }
        let origin = &self.shard.node.origin;
        if origin.is_led_back(self.head.get_all("via")) {
            let error = Misrouted::Loop;
            return Err(Refusal::new(error.status(), &error));
        }
        self.wishes = Wishes::of(&self.head).map_err(|error| Refusal::new(400, &error))?;
        let is_own = |host: &str, port| origin.own().covers_host(host.trim_matches(['[', ']']), port);
        let route = route::route(&self.head, arrival, &self.wishes, self.front(), &is_own);
        let route = route.map_err(|error| Refusal::new(error.status(), &error))?;
        let mirrored = |path: &str| path.starts_with(ORIGIN_PREFIX);
        match &route {
            Route::Tunnel { .. } => self.way = Way::Connect,
            Route::Mirror(_) => self.take_hubs_place(),
            Route::Url(_) if *arrival == Arrival::Proxy && self.head.target.path_and_query().is_some_and(mirrored) => {
                self.take_hubs_place();
            }
            Route::Url(_) => {}
        }
        Ok(route)
    }

    fn take_hubs_place(&mut self) {
        self.way = Way::Mirror;
        if let (Some(hub), Some(host)) = (self.front().hub(), self.head.host()) {
            let hub = hub.as_str().trim_end_matches('/').to_owned();
            let ours = self.front().mirror(host);
            self.base = Some(Base { ours, hub });
        }
    }

    async fn run(self, transport: &mut Transport, treatment: Treatment) -> Result<Done, ExchangeError> {
        let request = self.request(treatment.url.clone());
        let plain_get = self.head.method == "GET" && !self.head.has_body();
        // A range in a request for a xet reconstruction means something else.
        if !plain_get || is_directions(&request.url) || self.head.upgrade().is_some() {
            return forward::forward(self, transport, request).await;
        }
        let found = self.find(&request, &treatment).await;
        reply::found(self, transport, request, found).await
    }

    /// The task that a GET asks for, if the store may have it: the client's own wish outranks the rule.
    pub async fn find(&self, request: &OriginRequest, treatment: &Treatment) -> Found {
        if !self.wishes.store.unwrap_or(treatment.store) {
            return Found::Straight(
                "neither intercept.hosts nor a rule keeps it, or the client wants it so".to_owned(),
            );
        }
        fetch::find(&self.shard, request, &self.head, &self.terms(treatment)).await
    }

    /// As [`Self::find`], for a file about which the origin has answered this client already.
    pub async fn find_answered(&self, request: &OriginRequest, treatment: &Treatment, answered: Answered) -> Found {
        if !self.wishes.store.unwrap_or(treatment.store) {
            return Found::Straight("a rule or the client wants it passed through".to_owned());
        }
        fetch::find_answered(&self.shard, request, &self.head, &self.terms(treatment), answered).await
    }

    /// The rules of what is served, kept and reached.
    pub fn front(&self) -> &Front {
        &self.shard.node.front
    }

    /// What an origin is asked in this request's name.
    pub fn request(&self, url: Url) -> OriginRequest {
        let headers = response::end_to_end(&self.head.headers).filter(|(name, _)| !wishes::is_wish(name));
        OriginRequest::new(url, headers.map(|(name, value)| (name.to_owned(), value.to_vec())).collect())
    }

    /// How the file is named and given out.
    fn terms(&self, treatment: &Treatment) -> Terms {
        let mut terms = Terms::of(treatment);
        if !self.wishes.drop_params.is_empty() {
            let base = terms.filter.unwrap_or_else(|| self.shard.node.rules.filter.clone());
            // Names that are none drop nothing.
            terms.filter = Some(base.clone().and(&self.wishes.drop_params).unwrap_or(base));
        }
        let prefetch = self.wishes.prefetch || self.shard.node.config.store.prefetch;
        Terms { namespace: self.wishes.namespace.clone(), prefetch, trace: self.span.context(), ..terms }
    }

    /// Turns what an answer's headers lead to, where this node takes the Hub's place.
    pub fn turn(&self, headers: &mut [(String, Vec<u8>)]) {
        if let Some(base) = &self.base {
            base.turn_headers(headers, self.front());
        }
    }

    /// Whether the body of the answer to this request is JSON whose URLs must lead here.
    pub fn turns_body(&self, request: &OriginRequest) -> bool {
        self.base.is_some() && self.head.method != "HEAD" && is_directions(&request.url)
    }

    /// Such a body; `None`: it is no JSON.
    pub fn turned_json(&self, body: &[u8]) -> Option<Vec<u8>> {
        self.base.as_ref()?.turned_json(body, self.front())
    }

    /// The head of a reply from the store.
    pub fn stored_head(&self, selection: &Selection<'_>, stored: &[(String, Vec<u8>)], about: &About) -> Vec<u8> {
        self.span.status(selection.status());
        response::with_fields(response::stored_reply(selection, stored, about), &self.extra)
    }

    async fn refuse_with(self, transport: &mut Transport, refusal: Refusal) -> Result<Done, ExchangeError> {
        let Refusal { status, sentence, fields } = refusal;
        self.error(transport, status, Party::Client, &sentence, fields).await
    }

    /// Answers with an error of our own.
    pub async fn refuse(
        &self,
        transport: &mut Transport,
        status: u16,
        party: Party,
        sentence: &str,
    ) -> Result<Done, ExchangeError> {
        self.error(transport, status, party, sentence, &[]).await
    }

    async fn error(
        &self,
        transport: &mut Transport,
        status: u16,
        party: Party,
        sentence: &str,
        fields: &[(&str, &str)],
    ) -> Result<Done, ExchangeError> {
        let about = self.about(0);
        let head_only = self.head.method == "HEAD";
        self.span.status(status);
        let answer = response::error_reply(status, party, sentence, fields, head_only, &about);
        transport.send(answer).await?;
        let outcome = if status < 500 { Outcome::Refused } else { Outcome::Error };
        Ok(self.done(outcome, &about))
    }

    /// So many bytes of a body went to the client.
    pub fn sent(&self, bytes: u64) {
        self.shard.node.metrics.sent(bytes);
        self.span.note(|span| span.add(0, bytes));
    }

    /// The request body that is still on the connection, for the one who reads it.
    pub fn body(&self) -> PendingBody {
        self.body.clone()
    }

    /// Whether another request may follow on the connection: both sides want one, and what comes next is a request, not the
    /// rest of this one's body or what a CONNECT has for its tunnel.
    fn keeps(&self) -> bool {
        let next_is_request = !self.body.0.get() && self.head.method != "CONNECT";
        next_is_request && self.head.keep_alive() && !self.shard.node.is_draining()
    }

    /// The circumstances of a reply whose head is sent now; `age` in seconds.
    pub fn about(&self, age: u64) -> About {
        About { now: unix_now(), age, version: self.head.version, keep_alive: self.keeps() }
    }

    /// The end of a reply whose head said `about`.
    pub fn done(&self, outcome: Outcome, about: &About) -> Done {
        Done { outcome, keep: about.keep_alive && self.keeps() }
    }
}

/// Unix seconds.
pub fn unix_now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

enum NextError {
    Head(HeadError),
    Transport(TransportError),
}

/// The next request's head; none when the client has ended, was idle too long, or the node drains.
async fn next_head(shard: &Shard, transport: &mut Transport) -> Result<Option<RequestHead>, NextError> {
    if transport.pending.is_empty() && !first_byte(shard, transport).await {
        return Ok(None);
    }
    let reading = async {
        let settings = &shard.node.config.limits;
        let limits = HeadLimits {
            bytes: settings.head_bytes.as_usize(),
            headers: usize::from(settings.headers),
            ..HeadLimits::default()
        };
        let mut seen = 0;
        loop {
            match head::parse_more(&transport.pending, seen, &limits).map_err(NextError::Head)? {
                Parsed::Complete { head, consumed } => {
                    transport.pending.drain(..consumed);
                    return Ok(Some(head));
                }
                Parsed::Incomplete => {
                    seen = transport.pending.len();
                    if transport.recv().await.map_err(NextError::Transport)? == 0 {
                        return Ok(None);
                    }
                }
            }
        }
    };
    // A receive dropped at the deadline may lose bytes: the connection ends with it.
    timeout(limits::HEAD_WAIT, reading).await.unwrap_or(Ok(None))
}

/// Waits for a request to begin, without a buffer. A draining node waits no longer.
async fn first_byte(shard: &Shard, transport: &Transport) -> bool {
    let idle = shard.node.config.limits.idle_timeout.0;
    tokio::select! {
        biased;
        readable = timeout(idle, transport.readable()) => matches!(readable, Ok(Ok(()))),
        () = shard.node.draining() => false,
    }
}

async fn refuse_head(transport: &mut Transport, error: &HeadError) {
    let about = About { now: unix_now(), age: 0, version: Version::Http11, keep_alive: false };
    let answer = response::error_reply(error.status(), Party::Client, &error.to_string(), &[], false, &about);
    // The connection ends either way.
    let _ = transport.send(answer).await;
}
