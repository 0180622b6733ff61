//! The Hub under this node's own address (`HF_ENDPOINT=http://node:65001`).
//!
//! Every question goes to the Hub with the caller's own token, and its answer comes back with the URLs in it turned to this
//! node. A file that the Hub redirects to a CDN is answered here, from the store, so that clients which follow redirects
//! within one host still see the Hub's headers; the Hub's answer about it is remembered for as long as any consent is.
//! Small files are kept under their commit's URL, never under a branch's.

pub mod rewrite;

use std::{sync::Arc, time::Duration};

use hyper::Method;
use tokio::time::Instant;
use url::Url;

use super::{
    connection::{Done, Exchange, ExchangeError},
    forward::{self, pairs},
    head::decimal,
    response::{self, RelayedBody, field},
    transport::Transport,
};
use crate::{
    authorize,
    expiring::Expiring,
    fetch::Found,
    metrics::Outcome,
    reply,
    swarm::{OriginError, OriginRequest},
};
use rewrite::{HubFile, Resolved};

/// The Hub's answers about files that are remembered: some 2 KiB each.
const MAX_ANSWERS: usize = 2048;
/// What a branch means may change: remembered so that a file's many ranges are one question every now and then.
const BRANCH: Duration = Duration::from_secs(10);

/// What the Hub said about a file to one caller.
#[derive(Debug)]
pub struct Answer {
    status: u16,
    /// Names in lower case.
    headers: Vec<(String, Vec<u8>)>,
    /// What follows from them.
    resolved: Resolved,
}

/// What the Hub said of late, by URL and by whoever asked.
#[derive(Debug)]
pub struct Memory(Expiring<Arc<Answer>>);

impl Default for Memory {
    fn default() -> Self {
        Self(Expiring::new(MAX_ANSWERS))
    }
}

/// Answers a request for the Hub at `url`.
pub async fn serve(exchange: Exchange, transport: &mut Transport, url: Url) -> Result<Done, ExchangeError> {
    let request = exchange.request(url);
    let looks = matches!(exchange.head.method.as_str(), "GET" | "HEAD");
    let Some(file) = HubFile::of(&request.url).filter(|_| looks) else {
        return forward::forward(exchange, transport, request).await;
    };
    let key = authorize::key_of(&request);
    let life = exchange.shard.node.config.authorize.cap.0;
    let life = if rewrite::is_commit(&file.revision) { life } else { life.min(BRANCH) };
    let answer = match ask(&exchange, key, &request, life).await {
        Ok(answer) => answer,
        Err(error) => return forward::hand_on(exchange, transport, &error).await,
    };
    let is_head = exchange.head.method == "HEAD";
    match &answer.resolved {
        Resolved::Elsewhere(url) if is_head && exchange.front().serves(host(url)) => {
            let (headers, len) = rewrite::as_if_here(&answer.headers);
            head(&exchange, transport, 200, headers, len).await
        }
        _ if is_head => {
            let len = field(&answer.headers, "content-length").and_then(decimal);
            head(&exchange, transport, answer.status, answer.headers.clone(), len).await
        }
        Resolved::Elsewhere(url) if exchange.front().serves(host(url)) => {
            elsewhere(exchange, transport, &request, url.clone(), &answer, key).await
        }
        Resolved::Here => small(exchange, transport, request, file, &answer).await,
        _ => forward::forward(exchange, transport, request).await,
    }
}

fn host(url: &Url) -> &str {
    url.host_str().unwrap_or_default()
}

/// One question for a file's many ranges; what the Hub refuses is not remembered.
async fn ask(
    exchange: &Exchange,
    key: [u8; 32],
    request: &OriginRequest,
    most: Duration,
) -> Result<Arc<Answer>, OriginError> {
    let node = &exchange.shard.node;
    if let Some(known) = node.mirrored.0.get(&key, Instant::now()) {
        return Ok(known);
    }
    let mut question = request.clone();
    question.headers.retain(|(name, _)| name != "range" && !name.starts_with("if-"));
    let response = node.origin.forward(Method::HEAD, &question, http_body_util::Empty::<bytes::Bytes>::new()).await?;
    let (status, headers) = (response.status().as_u16(), pairs(response.headers()));
    let resolved = rewrite::resolved(status, &headers, &request.url);
    let life = match &resolved {
        Resolved::Elsewhere(url) => authorize::life_of(url, most),
        Resolved::Here => most,
        Resolved::Other => Duration::ZERO,
    };
    let answer = Arc::new(Answer { status, headers, resolved });
    node.mirrored.0.insert(key, Arc::clone(&answer), Instant::now(), life);
    Ok(answer)
}

/// The answer to a HEAD, which has been asked already.
async fn head(
    exchange: &Exchange,
    transport: &mut Transport,
    status: u16,
    mut headers: Vec<(String, Vec<u8>)>,
    len: Option<u64>,
) -> Result<Done, ExchangeError> {
    let keep = exchange.keeps();
    exchange.turn(&mut headers);
    let body = len.map_or(RelayedBody::None, RelayedBody::Length);
    exchange.span.status(status);
    transport.send(response::relayed_reply(status, &headers, body, &exchange.about(keep, 0))).await?;
    Ok(Done { outcome: if status < 400 { Outcome::Passed } else { Outcome::Refused }, keep })
}

/// A file whose bytes a CDN has: the token stays with the Hub, as it does when clients follow the redirect.
async fn elsewhere(
    exchange: Exchange,
    transport: &mut Transport,
    request: &OriginRequest,
    url: Url,
    answer: &Answer,
    key: [u8; 32],
) -> Result<Done, ExchangeError> {
    let mut exchange = exchange;
    let told = |name: &str| name.starts_with("x-repo-") || name.starts_with("x-linked-");
    exchange.extra.extend(answer.headers.iter().filter(|(name, _)| told(name)).cloned());
    let mut headers = request.headers.clone();
    headers.retain(|(name, _)| !matches!(name.as_str(), "authorization" | "cookie"));
    let treatment = exchange.front().treat(url);
    let at_cdn = OriginRequest::new(treatment.url.clone(), headers);
    let found = exchange.find(&at_cdn, &treatment).await;
    // A URL that the CDN no longer takes must not be remembered.
    if matches!(found, Found::Answer(_)) {
        exchange.shard.node.mirrored.0.remove(&key);
    }
    reply::found(exchange, transport, at_cdn, found).await
}

/// A file of the Hub's own: kept by its commit, which the answer tells where the path names a branch.
async fn small(
    exchange: Exchange,
    transport: &mut Transport,
    request: OriginRequest,
    file: HubFile,
    answer: &Answer,
) -> Result<Done, ExchangeError> {
    let HubFile { before, revision, after } = file;
    let told = field(&answer.headers, "x-repo-commit").and_then(|value| String::from_utf8(value.to_vec()).ok());
    let commit = Some(revision).filter(|revision| rewrite::is_commit(revision)).or(told);
    let Some(commit) = commit.filter(|commit| rewrite::is_commit(commit)) else {
        return forward::forward(exchange, transport, request).await;
    };
    let mut by_commit = request;
    by_commit.url.set_path(&format!("{before}{commit}{after}"));
    let mut treatment = exchange.front().treat(by_commit.url.clone());
    treatment.store |= treatment.rule.is_none();
    let found = exchange.find(&by_commit, &treatment).await;
    reply::found(exchange, transport, by_commit, found).await
}
