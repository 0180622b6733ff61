//! Requests of `pondhawk get`: bytes by way of the node, everything else straight to where it belongs.

use std::{
    collections::HashSet,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::{
    HeaderMap, Method, Request,
    body::Incoming,
    client::conn::http1,
    header::{self, HeaderName, HeaderValue},
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, task::block_in_place, time::timeout};
use url::{Position, Url};

use super::{
    error::{GetError, label},
    hub::{REDIRECTS, redirect},
    names,
    progress::Progress,
    settings::{configured, is_this_machine, upstream, variable},
};
use crate::{
    admin::Task,
    cli::{
        client::{self, AdminPlace},
        human::printable,
    },
    http::head::decimal,
    swarm::{
        Origin, OriginBody, OriginOptions, OriginRequest, Patience,
        retry::{Backoff, Class, Jitter, classify_status},
        retry_after,
    },
    task::id,
};

/// For name and connection to the node.
const CONNECT: Duration = Duration::from_secs(5);
/// From a request to the head of its answer: longer than a node waits for its origin.
const HEAD: Duration = Duration::from_secs(60);
/// The longest silence within a body; a node that verifies lets a byte go every few seconds.
const SILENCE: Duration = Duration::from_secs(60);
/// 1 MiB: hyper's read buffer.
const READ_BUFFER: usize = 1 << 20;
/// What is read of an answer that is an error.
const MAX_ERROR: usize = 16 << 10;
/// What is read of an answer of the Hub's API: some 100,000 files.
const MAX_DOCUMENT: usize = 64 << 20;

/// The longest wait that an overloaded Hub may ask for: its rate limits are counted in windows of five minutes.
const LONGEST_WAIT: Duration = Duration::from_secs(300);
/// A wait of at least this length is reported to the user.
const NOTED_WAIT: Duration = Duration::from_secs(2);

/// Header lines of one request.
pub(crate) type Lines = Vec<(String, Vec<u8>)>;

/// Which way bytes came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Via {
    Node,
    /// By the node, and from the folder of its store.
    Store,
    Direct,
}

/// An answer's head, and its body still to come.
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) via: Via,
    body: Body,
}

enum Body {
    Origin(Box<OriginBody>),
    Node(Incoming, String),
}

/// The node that is to be asked for bytes; none at all by default.
#[derive(Clone, Debug, Default)]
pub(crate) struct Way {
    /// `host:port` of its proxy port.
    pub(crate) node: Option<String>,
    /// Where it tells what it holds and accepts files to fetch.
    pub(crate) admin: AdminPlace,
}

/// Where requests go.
pub(crate) struct Web {
    origin: Origin,
    way: Way,
    /// The admin port does not answer.
    silent: AtomicBool,
    /// The Hub's host and port, which are never asked by way of the node.
    hub: (Option<String>, Option<u16>),
    down: AtomicBool,
    /// Hosts that the node does not serve.
    unserved: Mutex<HashSet<String>>,
    progress: Progress,
}

impl Web {
    /// Reads the trusted certificates (the system's, and those that SSL_CERT_FILE names) and the proxy that HTTPS_PROXY names.
    pub(crate) fn new(way: Way, endpoint: &Url, progress: Progress) -> Result<Self, GetError> {
        let extra = std::env::var_os("SSL_CERT_FILE").filter(|path| !path.is_empty());
        let configured = configured().proxy;
        let nodes: Vec<&str> = way.node.as_deref().into_iter().chain([configured.as_str()]).collect();
        let proxy = upstream(variable, &nodes).map_err(|error| GetError::Usage(format!("HTTPS_PROXY: {error}")))?;
        let origin = Origin::new(OriginOptions {
            proxy,
            // Not caught by the interception of this machine, where the right to set it is there.
            mark: Some(crate::config::Config::default().intercept.mark.0),
            extra_cas: extra.into_iter().map(Into::into).collect(),
            allow_private: true,
            head_timeout: HEAD,
            idle_timeout: SILENCE,
            forward: Patience { head: HEAD, body: SILENCE },
            ..OriginOptions::default()
        })?;
        let hub = (endpoint.host_str().map(str::to_owned), endpoint.port_or_known_default());
        let (silent, down) = (AtomicBool::new(false), AtomicBool::new(false));
        Ok(Self { origin, way, silent, hub, down, unserved: Mutex::default(), progress })
    }

    /// Whether the URL is the Hub's own.
    pub(crate) fn is_hub(&self, url: &Url) -> bool {
        (url.host_str(), url.port_or_known_default()) == (self.hub.0.as_deref(), self.hub.1)
    }

    /// A request that the node has nothing to do with. Redirects come back as they are.
    pub(crate) async fn direct(&self, method: Method, url: &Url, lines: Lines) -> Result<Reply, GetError> {
        let request = OriginRequest::new(url.clone(), with_defaults(lines));
        let response = self.origin.forward(method, &request, Empty::<Bytes>::new()).await?;
        let (head, body) = response.into_parts();
        let body = Body::Origin(Box::new(body));
        Ok(Reply { status: head.status.as_u16(), headers: head.headers, via: Via::Direct, body })
    }

    /// A GET for a file's bytes: by way of the node, where it is there and serves this host. `secret`: the lines are for
    /// nobody to hear on the way.
    pub(crate) async fn bytes(&self, url: &Url, lines: Lines, secret: bool) -> Result<Reply, GetError> {
        if let Some(node) = self.node_for(url, secret) {
            match self.by_node(node, url, &lines).await? {
                Some(reply) if is_unserved(&reply) => self.note_unserved(url, node),
                Some(reply) => return Ok(reply),
                None => {}
            }
        }
        self.direct(Method::GET, url, lines).await
    }

    /// A question to the Hub, asked again while it is overloaded or limits requests. Redirects come back as they are.
    pub(crate) async fn ask(&self, method: Method, url: &Url, lines: Lines) -> Result<Reply, GetError> {
        let backoff = Backoff { cap: LONGEST_WAIT, ..Backoff::default() };
        let mut jitter = Jitter::new(std::process::id().into());
        let mut failures = 0;
        loop {
            let answer = self.direct(method.clone(), url, lines.clone()).await;
            let advice = match &answer {
                Ok(reply) => {
                    let advice = limited_for(&reply.headers);
                    match classify_status(reply.status, advice) {
                        Class::Transient { after, .. } => after,
                        _ => return answer,
                    }
                }
                Err(GetError::Origin(error)) if error.class().is_transient() => None,
                Err(_) => return answer,
            };
            failures += 1;
            match backoff.delay(failures, advice, &mut jitter) {
                Some(wait) if advice.is_none_or(|advice| advice <= LONGEST_WAIT) => {
                    if wait >= NOTED_WAIT {
                        let (host, seconds) = (url.host_str().unwrap_or_default(), wait.as_secs());
                        self.progress.note(&format!("{host} limits requests: waiting for {seconds} s"));
                    }
                    tokio::time::sleep(wait).await;
                }
                _ => return answer,
            }
        }
    }

    /// A JSON document of the Hub, the head of its answer, and its URL after redirects. `lines` go to the Hub's host alone.
    pub(crate) async fn document(&self, url: &Url, lines: &Lines) -> Result<(Vec<u8>, HeaderMap, Url), GetError> {
        let mut at = url.clone();
        let wrong = |why: &str| GetError::Answer { what: label(url), why: why.to_owned() };
        for _ in 0..=REDIRECTS {
            let sent = if self.is_hub(&at) { lines.clone() } else { Lines::new() };
            let reply = self.ask(Method::GET, &at, sent).await?;
            match redirect(&at, reply.status, &reply.headers) {
                Some(next) if at.scheme() == "https" && next.scheme() != "https" => {
                    return Err(wrong("redirected from https to another scheme"));
                }
                Some(next) => {
                    at = next;
                    continue;
                }
                None if reply.status != 200 => return Err(reply.refusal(&label(url)).await),
                None => {}
            }
            let headers = reply.headers.clone();
            let (body, whole) = reply.read(MAX_DOCUMENT).await?;
            return if whole { Ok((body, headers, at)) } else { Err(wrong("more than 64 MiB")) };
        }
        Err(wrong("too many redirects"))
    }

    /// Bytes of this URL's file that the node has from origins and from other nodes, since its start; none if it does not
    /// tell.
    pub(crate) fn brought(&self, url: &Url) -> Option<(u64, u64)> {
        let admin = Some(&self.way.admin).filter(|_| !self.silent.load(Ordering::Relaxed))?;
        self.node_for(url, false)?;
        let path = format!("/v1/tasks?label={}", names::encode_all(&id::label(url)));
        let told: Result<Vec<Task>, _> = block_in_place(|| client::get(admin, &path));
        match told {
            Ok(tasks) => Some(
                tasks
                    .iter()
                    .fold((0, 0), |(origin, peers), task| (origin + task.origin_bytes, peers + task.peer_bytes)),
            ),
            // It is only for the report.
            Err(_) => {
                self.silent.store(true, Ordering::Relaxed);
                None
            }
        }
    }

    /// The admin interface of a node on this machine that serves this URL.
    pub(crate) fn own_admin(&self, url: &Url, secret: bool) -> Option<&AdminPlace> {
        let admin = Some(&self.way.admin).filter(|_| !self.silent.load(Ordering::Relaxed))?;
        let node = self.node_for(url, secret)?;
        (is_this_machine(node) && admin.is_local()).then_some(admin)
    }

    fn node_for(&self, url: &Url, secret: bool) -> Option<&str> {
        let node = self.way.node.as_deref().filter(|_| url.scheme() == "https" && !self.is_hub(url))?;
        let unserved = self.unserved.lock().unwrap_or_else(PoisonError::into_inner);
        let down = self.down.load(Ordering::Relaxed);
        let served = !down && !unserved.contains(url.host_str().unwrap_or_default());
        (served && (!secret || is_this_machine(node))).then_some(node)
    }

    /// `None`: no node answers, which is said once.
    async fn by_node(&self, node: &str, url: &Url, lines: &Lines) -> Result<Option<Reply>, GetError> {
        let failed = |why: String| GetError::Node { what: label(url), node: node.to_owned(), why };
        let stream = match timeout(CONNECT, TcpStream::connect(node)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Ok(self.note_down(node, &error.to_string())),
            Err(_) => return Ok(self.note_down(node, "no answer within 5 s")),
        };
        let handshake = http1::Builder::new().max_buf_size(READ_BUFFER).handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| failed(error.to_string()))?;
        // Ends with the body; its error is the body's too.
        tokio::spawn(async move { drop(connection.await) });
        let request = absolute(url, with_defaults(lines.clone())).ok_or_else(|| failed("no URL".to_owned()))?;
        let response = match timeout(HEAD, sender.send_request(request)).await {
            Ok(response) => response.map_err(|error| failed(error.to_string()))?,
            Err(_) => return Err(failed("no answer within 60 s".to_owned())),
        };
        let (head, body) = response.into_parts();
        let body = Body::Node(body, node.to_owned());
        Ok(Some(Reply { status: head.status.as_u16(), headers: head.headers, via: Via::Node, body }))
    }

    fn note_down(&self, node: &str, why: &str) -> Option<Reply> {
        if !self.down.swap(true, Ordering::Relaxed) {
            self.progress.note(&format!("no node answers at {node} ({why}): straight from the origin"));
        }
        None
    }

    fn note_unserved(&self, url: &Url, node: &str) {
        let host = url.host_str().unwrap_or_default().to_owned();
        if self.unserved.lock().unwrap_or_else(PoisonError::into_inner).insert(host.clone()) {
            self.progress
                .note(&format!("the node at {node} does not serve {host} (proxy.allow): straight from the origin"));
        }
    }
}

impl Reply {
    /// A header's text.
    pub(crate) fn header(&self, name: impl header::AsHeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The body's next bytes, `None` at its end.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, GetError> {
        match &mut self.body {
            Body::Origin(body) => Ok(body.chunk().await?),
            Body::Node(body, node) => loop {
                let failed = |why: String| GetError::Node { what: "a file".to_owned(), node: node.clone(), why };
                let frame = timeout(SILENCE, body.frame()).await.map_err(|_| failed("silent for 60 s".to_owned()))?;
                match frame {
                    None => return Ok(None),
                    Some(Err(_)) => return Err(failed("broken off".to_owned())),
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(data) if !data.is_empty() => return Ok(Some(data)),
                        _ => {}
                    },
                }
            },
        }
    }

    /// The error that this answer stands for.
    pub(crate) async fn refusal(self, what: &str) -> GetError {
        let status = self.status;
        let code = self.header("x-error-code").map(str::to_owned);
        // Said by a node that verifies: see `reply::BodyError` and `fetch::Found`.
        let said = self.header("x-pondhawk-error").unwrap_or_default();
        if status == 502 && (said.contains("not those of the hash") || said.contains("were wrong")) {
            return GetError::Wrong { what: what.to_owned(), why: printable(said) };
        }
        let named = ["x-error-message", "x-pondhawk-error"].iter().find_map(|name| self.header(*name));
        let named = named.map(str::to_owned);
        let said = match named {
            Some(said) => Some(said),
            None => self.read(MAX_ERROR).await.ok().and_then(|(body, _)| first_line(&body)),
        };
        GetError::refused(what, status, code.as_deref(), said.as_deref())
    }

    /// At most `most` bytes of the body, and whether that was all.
    async fn read(mut self, most: usize) -> Result<(Vec<u8>, bool), GetError> {
        let mut kept = Vec::new();
        while let Some(data) = self.chunk().await? {
            if kept.len() + data.len() > most {
                return Ok((kept, false));
            }
            kept.extend_from_slice(&data);
        }
        Ok((kept, true))
    }
}

/// When the Hub takes requests again: Retry-After, or the `t` of its RateLimit header (`"api";r=0;t=55`, seconds).
fn limited_for(headers: &HeaderMap) -> Option<Duration> {
    let limit = || {
        let text = headers.get("ratelimit")?.to_str().ok()?;
        let seconds = text.split(';').find_map(|part| part.trim().strip_prefix("t="))?;
        decimal(seconds.as_bytes()).map(Duration::from_secs)
    };
    retry_after(headers).or_else(limit)
}

/// Text, and not a page of HTML or a document of XML.
fn first_line(body: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(&body[..body.len().min(300)]).into_owned();
    let line = text.lines().next()?.trim().to_owned();
    (!line.is_empty() && !line.starts_with('<')).then_some(line)
}

fn is_unserved(reply: &Reply) -> bool {
    let said = reply.header("x-pondhawk-error").unwrap_or_default();
    matches!(reply.status, 403 | 421) && ["intercept.hosts", "proxy.allow"].iter().any(|key| said.contains(key))
}

/// In absolute form, with the URL's own scheme: the node goes to the origin by it.
fn absolute(url: &Url, lines: Lines) -> Option<Request<Empty<Bytes>>> {
    let rest = &url[Position::BeforeHost..Position::AfterQuery];
    let mut request = Request::get(format!("{}://{rest}", url.scheme())).body(Empty::new()).ok()?;
    let host = HeaderValue::from_str(&url[Position::BeforeHost..Position::AfterPort]).ok()?;
    request.headers_mut().insert(header::HOST, host);
    for (name, value) in lines {
        let (name, value) = (name.parse::<HeaderName>().ok()?, HeaderValue::from_bytes(&value).ok()?);
        request.headers_mut().append(name, value);
    }
    Some(request)
}

/// Bodies as they are, and who asks.
fn with_defaults(mut lines: Lines) -> Lines {
    let mut default = |name: &str, value: &str| {
        if !lines.iter().any(|(held, _)| held.eq_ignore_ascii_case(name)) {
            lines.push((name.to_owned(), value.as_bytes().to_vec()));
        }
    };
    default("accept-encoding", "identity");
    default("user-agent", concat!("pondhawk/", env!("CARGO_PKG_VERSION")));
    lines
}
