//! One client's connection: request after request, each read, routed, and answered from the store or the origin.

use std::{
    rc::Rc,
    time::{Instant, SystemTime},
};

use tokio::time::timeout;

use super::{
    forward,
    head::{self, Framing, HeadError, HeadLimits, Parsed, RequestHead, Version},
    response::{self, About, Party},
    route::{self, Arrival},
    transport::{Transport, TransportError},
};
use crate::{
    fetch::{self, Found},
    limits,
    metrics::{Outcome, Way},
    reply,
    shard::Shard,
    swarm::OriginRequest,
    tls::Distrust,
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
        let exchange = Exchange::new(Rc::clone(&shard), head, &arrival);
        let way = exchange.way;
        match exchange.run(&mut transport).await {
            Ok(Done { outcome, keep }) => {
                shard.node.metrics.request(way, outcome);
                if !keep {
                    break;
                }
            }
            Err(error) => {
                shard.node.metrics.request(way, Outcome::Error);
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

/// How an exchange ended well.
pub struct Done {
    /// For the metrics.
    pub outcome: Outcome,
    /// Whether another request may follow on the connection.
    pub keep: bool,
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
    arrival: Arrival,
}

impl Exchange {
    fn new(shard: Rc<Shard>, head: RequestHead, arrival: &Arrival) -> Self {
        let way = match arrival {
            Arrival::Intercepted { .. } => Way::Intercept,
            Arrival::Proxy => Way::Proxy,
        };
        Self { shard, head, way, started: Instant::now(), arrival: arrival.clone() }
    }

    async fn run(self, transport: &mut Transport) -> Result<Done, ExchangeError> {
        let url = match route::url_of(&self.head, &self.arrival, self.shard.node.tls.suffixes()) {
            Ok(url) => url,
            Err(error) => return self.refuse(transport, error.status(), Party::Client, &error.to_string()).await,
        };
        let headers = response::end_to_end(&self.head.headers).map(|(name, value)| (name.to_owned(), value.to_vec()));
        let request = OriginRequest::new(url, headers.collect());
        let plain_get = self.head.method == "GET" && self.head.framing() == Framing::None;
        if !plain_get || self.head.upgrade().is_some() {
            return forward::forward(self, transport, request).await;
        }
        match fetch::find(&self.shard, &request, &self.head).await {
            Found::Source(source) => reply::from_store(self, transport, request, *source).await,
            Found::Refused(sentence) => self.refuse(transport, 502, Party::Origin, sentence).await,
            Found::Answer(error) => forward::hand_on(self, transport, &error).await,
            Found::Straight(why) => {
                tracing::debug!(at = request.label(), why, "passed through");
                forward::forward(self, transport, request).await
            }
        }
    }

    /// Answers with an error of our own. The connection is kept if the request had no body that is still to come.
    pub async fn refuse(
        &self,
        transport: &mut Transport,
        status: u16,
        party: Party,
        sentence: &str,
    ) -> Result<Done, ExchangeError> {
        let keep = self.keeps() && self.head.framing() == Framing::None;
        let head_only = self.head.method == "HEAD";
        let answer = response::error_reply(status, party, sentence, &[], head_only, &self.about(keep, 0));
        transport.send(answer).await?;
        let outcome = if status < 500 { Outcome::Refused } else { Outcome::Error };
        Ok(Done { outcome, keep })
    }

    /// Whether both sides would keep the connection.
    pub fn keeps(&self) -> bool {
        self.head.keep_alive() && !self.shard.node.is_draining()
    }

    /// The circumstances of this reply; `age` in seconds.
    pub fn about(&self, keep_alive: bool, age: u64) -> About {
        About { now: unix_now(), age, version: self.head.version, keep_alive }
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
