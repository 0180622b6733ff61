//! The Hub under this node's own address (`HF_ENDPOINT=http://node:65001`).
//!
//! Every question goes to the Hub with the caller's own token, and its answer comes back with the URLs in it turned to this
//! node. A file that the Hub redirects to a CDN is answered here, from the store, so that clients which follow redirects
//! within one host still see the Hub's headers; the Hub's answer about it is remembered for as long as any consent is.
//! Small files are kept under their commit's URL, never under a branch's.

pub mod rewrite;

use std::{sync::Arc, time::Duration};

use hyper::{Method, Response};
use tokio::time::Instant;
use url::Url;

use super::{
    connection::{Done, Exchange, ExchangeError},
    forward::{self, pairs},
    head::decimal,
    response::{self, RelayedBody, field},
    transport::{Transport, TransportError},
};
use crate::{
    authorize,
    expiring::Expiring,
    fetch::{Answered, Found},
    flight::FlightTable,
    metrics::Outcome,
    question::{Question, Variant, accepts_anything},
    reply,
    shard::Shard,
    swarm::{OpenBody, OriginBody, OriginError, OriginRequest, Probe},
    task::TaskId,
};
use rewrite::{HubFile, Resolved};

/// The Hub's answers about files that are remembered: some 2 KiB each.
const MAX_ANSWERS: usize = 2048;
/// URLs of files that the store was seen to hold: some 100 bytes each.
const MAX_KEPT_FILES: usize = 64 << 10;
/// What a branch means may change: remembered so that a file's many ranges are one question every now and then.
const BRANCH: Duration = Duration::from_secs(10);
/// How long the task of a file's URL is remembered. Only the method of a question depends on it.
const KEPT: Duration = Duration::from_secs(24 * 3600);

/// What the Hub said about a file to one caller.
#[derive(Debug)]
pub struct Answer {
    status: u16,
    /// Names in lower case.
    headers: Vec<(String, Vec<u8>)>,
    /// What follows from them.
    resolved: Resolved,
    /// The answer as a probe of the file, for [`Resolved::Here`].
    probe: Arc<Probe>,
    /// Which requests it is for, beside those with its question's key.
    variant: Variant,
}

/// What the Hub answered lately, by question: by URL and by everything that a caller's request may be judged by.
#[derive(Debug)]
pub struct Memory {
    answers: Expiring<Arc<Answer>>,
    /// By URL with a commit: the tasks of files that the store was seen to hold. A question about one is a HEAD, as a GET would
    /// bring the file again.
    kept: Expiring<TaskId>,
    flights: FlightTable<Result<Arc<Answer>, Arc<OriginError>>>,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            answers: Expiring::new(MAX_ANSWERS),
            kept: Expiring::new(MAX_KEPT_FILES),
            flights: FlightTable::default(),
        }
    }
}

impl Memory {
    /// Whether the store has all of the file at this URL, which names a commit.
    fn is_kept(&self, shard: &Shard, url: &Url) -> bool {
        let task = self.kept.get(&url_key(url), Instant::now());
        task.and_then(|task| shard.node.store.get(&task)).is_some_and(|held| held.bitmap().is_full())
    }

    fn recall(&self, question: &Question, request: &OriginRequest) -> Option<Arc<Answer>> {
        let known = self.answers.get(&question.key, Instant::now())?;
        known.variant.allows(&request.headers).then_some(known)
    }
}

/// What came of a question that this request asked itself.
#[derive(Default)]
struct Asked {
    own: bool,
    /// The answer with its body, as long as nothing else has taken it.
    response: Option<Response<OriginBody>>,
    /// The task of a small file, and the request for it.
    small: Option<(OriginRequest, Found)>,
}

/// Answers a request for the Hub at `url`.
pub async fn serve(exchange: Exchange, transport: &mut Transport, url: Url) -> Result<Done, ExchangeError> {
    let request = exchange.request(url);
    let looks = matches!(exchange.head.method.as_str(), "GET" | "HEAD") && !exchange.head.has_body();
    // A client that insists on a type may be given something else than the file: that is between it and the Hub.
    let Some(file) = HubFile::of(&request.url).filter(|_| looks && accepts_anything(&request.headers)) else {
        return forward::forward(exchange, transport, request).await;
    };
    let question = Question::of(&request);
    let is_head = exchange.head.method == "HEAD";
    let mut asked = Asked::default();
    let answer = match exchange.shard.node.mirrored.recall(&question, &request) {
        Some(answer) => answer,
        // Whatever the store has of it, one question by the client's own conditions is the least.
        None if !is_head && is_conditional(&exchange) => return forward::forward(exchange, transport, request).await,
        None => {
            let settled = tokio::select! {
                settled = settle(&exchange, &question, &file, &mut asked) => settled,
                () = transport.left() => return Err(TransportError::Left.into()),
            };
            match settled {
                Ok(answer) => answer,
                Err(error) => return forward::hand_on(exchange, transport, &error).await,
            }
        }
    };
    let refused = question.is_partial() && (400..500).contains(&answer.status);
    let fits = if asked.own { !question.lacks(&answer.variant) } else { answer.variant.allows(&request.headers) };
    match (refused || !fits, is_head) {
        // The Hub wants to see a header that the question did not carry.
        (true, _) => forward::forward(exchange, transport, request).await,
        (false, true) => head(&exchange, transport, &answer).await,
        (false, false) => get(exchange, transport, request, &file, &answer, asked).await,
    }
}

fn is_conditional(exchange: &Exchange) -> bool {
    let conditions = ["if-match", "if-none-match", "if-modified-since", "if-unmodified-since"];
    conditions.iter().any(|name| exchange.head.get(name).is_some())
}

/// One question for all who ask the same at the same time, so also for a file's many ranges.
async fn settle(
    exchange: &Exchange,
    question: &Question,
    file: &HubFile,
    asked: &mut Asked,
) -> Result<Arc<Answer>, Arc<OriginError>> {
    let flights = &exchange.shard.node.mirrored.flights;
    let ask = async {
        asked.own = true;
        ask(exchange, question, file, asked).await.map_err(Arc::new)
    };
    flights.once(question.key, ask).await
}

/// Asks the Hub. A GET brings a small file with the answer, so that no second request is needed for its bytes: its download
/// begins here, before those who share the answer look for it. What the Hub refuses is not remembered.
async fn ask(
    exchange: &Exchange,
    question: &Question,
    file: &HubFile,
    asked: &mut Asked,
) -> Result<Arc<Answer>, OriginError> {
    let node = &exchange.shard.node;
    let now = Instant::now();
    let wants_bytes = exchange.head.method == "GET" && !node.mirrored.is_kept(&exchange.shard, &question.request.url);
    let method = if wants_bytes { Method::GET } else { Method::HEAD };
    let response = node.origin.question(&method, &question.request).await?;
    let answer = Arc::new(Answer::of(&response, question));
    let most = node.config.authorize.cap.0;
    let most = if rewrite::is_commit(&file.revision) { most } else { most.min(BRANCH) };
    let life = match &answer.resolved {
        Resolved::Elsewhere(url) => authorize::life_of(url, most),
        Resolved::Here => most,
        Resolved::Other => Duration::ZERO,
    };
    node.mirrored.answers.insert(question.key, Arc::clone(&answer), now, life);
    if method == Method::GET && answer.resolved == Resolved::Here && !question.lacks(&answer.variant) {
        let (head, body) = response.into_parts();
        let open = OpenBody::new(body);
        let request = exchange.request(question.request.url.clone());
        asked.small = small(exchange, request, file, &answer, open.clone()).await;
        match &asked.small {
            // All of it is here: the answer is the consent, and its connection can be used again.
            Some((_, Found::Source(source))) if source.outcome == Outcome::Hit => {
                open.take().map(|body| tokio_uring::spawn(body.discard()));
            }
            // The download takes the body when it comes to it.
            Some((_, Found::Source(_))) => {}
            _ => asked.response = open.take().map(|body| Response::from_parts(head, body)),
        }
    } else if method == Method::GET {
        asked.response = Some(response);
    }
    Ok(answer)
}

impl Answer {
    fn of(response: &Response<OriginBody>, question: &Question) -> Self {
        let (status, headers) = (response.status().as_u16(), pairs(response.headers()));
        let resolved = rewrite::resolved(status, &headers, &question.request.url);
        let probe = Arc::new(Probe::of_whole(&question.request.url, response.status(), response.headers()));
        let variant = Variant::of(&headers, &question.request.headers);
        Self { status, headers, resolved, probe, variant }
    }
}

/// Which file of the Hub a URL means, for every caller.
fn url_key(url: &Url) -> [u8; 32] {
    blake3::hash(url.as_str().as_bytes()).into()
}

/// The answer to a HEAD.
async fn head(exchange: &Exchange, transport: &mut Transport, answer: &Answer) -> Result<Done, ExchangeError> {
    let (status, mut headers, len) = match &answer.resolved {
        Resolved::Elsewhere(url) if exchange.front().serves_url(url) => {
            let (headers, len) = rewrite::as_if_here(&answer.headers);
            (200, headers, len)
        }
        _ => {
            let len = field(&answer.headers, "content-length").and_then(decimal);
            (answer.status, answer.headers.clone(), len)
        }
    };
    let about = exchange.about(0);
    exchange.turn(&mut headers);
    let body = len.map_or(RelayedBody::None, RelayedBody::Length);
    exchange.span.status(status);
    transport.send(response::relayed_reply(status, &headers, body, &about)).await?;
    Ok(exchange.done(if status < 400 { Outcome::Passed } else { Outcome::Refused }, &about))
}

/// The answer to a GET.
async fn get(
    exchange: Exchange,
    transport: &mut Transport,
    request: OriginRequest,
    file: &HubFile,
    answer: &Answer,
    asked: Asked,
) -> Result<Done, ExchangeError> {
    match &answer.resolved {
        Resolved::Elsewhere(url) if exchange.front().serves_url(url) => {
            if let Some(response) = asked.response {
                response.into_body().discard().await;
            }
            elsewhere(exchange, transport, &request, url.clone(), answer).await
        }
        Resolved::Here => {
            let small = match asked.small {
                Some(small) => Some(small),
                None => small(&exchange, request.clone(), file, answer, OpenBody::default()).await,
            };
            match (small, asked.response) {
                (Some((by_commit, Found::Source(source))), _) => {
                    if rewrite::is_commit(&file.revision) {
                        let (kept, task) = (&exchange.shard.node.mirrored.kept, source.held.meta.id);
                        kept.insert(url_key(&request.url), task, Instant::now(), KEPT);
                    }
                    reply::found(exchange, transport, by_commit, Found::Source(source)).await
                }
                // The answer to the question is what this client asked for, unless it asked for a part.
                (_, Some(response)) if exchange.head.get("range").is_none() => {
                    forward::relay_answer(exchange, transport, response).await
                }
                // The Hub has the file by the client's own name: a refusal of the name by commit is about our reading of it.
                (Some((_, Found::Answer(_))), _) => forward::forward(exchange, transport, request).await,
                (Some((by_commit, found)), _) => reply::found(exchange, transport, by_commit, found).await,
                (None, _) => forward::forward(exchange, transport, request).await,
            }
        }
        _ => match asked.response {
            Some(response) => forward::relay_answer(exchange, transport, response).await,
            None => forward::forward(exchange, transport, request).await,
        },
    }
}

/// A file whose bytes a CDN has: the token stays with the Hub, as it does when clients follow the redirect.
async fn elsewhere(
    exchange: Exchange,
    transport: &mut Transport,
    request: &OriginRequest,
    url: Url,
    answer: &Answer,
) -> Result<Done, ExchangeError> {
    let mut exchange = exchange;
    let about_file = |name: &str| name.starts_with("x-repo-") || name.starts_with("x-linked-");
    exchange.extra.extend(answer.headers.iter().filter(|(name, _)| about_file(name)).cloned());
    let mut headers = request.headers.clone();
    headers.retain(|(name, _)| !matches!(name.as_str(), "authorization" | "cookie"));
    let treatment = exchange.front().treat(url);
    let at_cdn = OriginRequest::new(treatment.url.clone(), headers);
    let found = exchange.find(&at_cdn, &treatment).await;
    // A URL that the CDN no longer takes must not be remembered.
    if matches!(found, Found::Answer(_)) {
        exchange.shard.node.mirrored.answers.remove(&Question::of(request).key);
    }
    reply::found(exchange, transport, at_cdn, found).await
}

/// A file of the Hub's own: kept by its commit, which the answer names where the path names a branch. The Hub's answer to this
/// caller is its consent too. `None`: it has no commit.
async fn small(
    exchange: &Exchange,
    request: OriginRequest,
    file: &HubFile,
    answer: &Answer,
    open: OpenBody,
) -> Option<(OriginRequest, Found)> {
    let HubFile { before, revision, after } = file;
    let named = field(&answer.headers, "x-repo-commit").and_then(|value| String::from_utf8(value.to_vec()).ok());
    let commit = Some(revision.clone()).filter(|revision| rewrite::is_commit(revision)).or(named);
    let commit = commit.filter(|commit| rewrite::is_commit(commit))?;
    let mut by_commit = request;
    by_commit.url.set_path(&format!("{before}{commit}{after}"));
    let mut treatment = exchange.front().treat(by_commit.url.clone());
    treatment.store |= treatment.rule.is_none();
    let answered = Answered { probe: Arc::clone(&answer.probe), open };
    let found = exchange.find_answered(&by_commit, &treatment, answered).await;
    Some((by_commit, found))
}
