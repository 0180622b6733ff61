//! One request on the page's port.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;

use super::Context;
use super::access;
use super::feed::unix_millis;
use super::html::{Document, LOGIN_DOCUMENT, PAGE_DOCUMENT, WRONG_DOCUMENT};
use super::metrics::{self, Scrape};
use super::spread::{Told, Wanted};
use crate::authority::{AuthorityError, hex, is_peer_name, unhex};
use crate::http_port;

type Answer = Response<BoxBody<Bytes, Infallible>>;

const NODES: &str = "/v1/nodes/";
const TASKS: &str = "/v1/tasks/";
/// The longest form that is taken, and for it to come.
const MAX_FORM: usize = 4 << 10;
const FORM_TIMEOUT: Duration = Duration::from_secs(10);
/// A wrong token is answered this much later.
const WRONG_TOKEN: Duration = Duration::from_millis(300);
const SECURITY: [(header::HeaderName, &str); 5] = [
    (header::CACHE_CONTROL, "no-store"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// Answers a request from `remote`.
pub(super) async fn answer(request: Request<Incoming>, remote: SocketAddr, context: &Context) -> Answer {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let mut answer = match path.as_str() {
        "/login" | "/logout" if method != Method::POST => only("POST"),
        "/login" => login(request, remote, context).await,
        "/logout" => redirected(&access::no_cookie()),
        _ if spread_of(&path).is_some() && method != Method::POST => only("POST"),
        _ if spread_of(&path).is_some() => spread(request, remote, context).await,
        _ if method != Method::GET && method != Method::HEAD => only("GET, HEAD"),
        _ => read(&path, request.headers(), context).await,
    };
    for (name, value) in SECURITY {
        answer.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    answer
}

async fn read(path: &str, headers: &HeaderMap, context: &Context) -> Answer {
    match path {
        "/healthz" => return text(StatusCode::OK, "ok\n"),
        "/readyz" => {
            return match context.viewer.unready() {
                None => text(StatusCode::OK, "ready\n"),
                Some(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
            };
        }
        "/metrics" if !context.metrics_need_token => return scrape(context).await,
        _ => {}
    }
    let known = ["/", "/metrics", "/v1/cluster", "/v1/events"].contains(&path) || path.starts_with(NODES);
    match (known, may_look(headers, context)) {
        (false, _) => text(StatusCode::NOT_FOUND, "no such page\n"),
        (true, Err(error)) => unreadable(&error),
        (true, Ok(None)) if path == "/" => document(StatusCode::OK, &LOGIN_DOCUMENT),
        (true, Ok(None)) => unauthorized(),
        (true, Ok(Some(_))) => shown(path, context).await,
    }
}

async fn shown(path: &str, context: &Context) -> Answer {
    match path {
        "/" => document(StatusCode::OK, &PAGE_DOCUMENT),
        "/metrics" => scrape(context).await,
        "/v1/cluster" => cluster(context).await,
        "/v1/events" => events(context),
        _ => node(path.strip_prefix(NODES).unwrap_or_default(), context).await,
    }
}

/// The task in the path of a spread.
fn spread_of(path: &str) -> Option<&str> {
    path.strip_prefix(TASKS)?.strip_suffix("/spread")
}

async fn spread(request: Request<Incoming>, remote: SocketAddr, context: &Context) -> Answer {
    match may_look(request.headers(), context) {
        Err(error) => return unreadable(&error),
        Ok(None) => return unauthorized(),
        Ok(Some(Shown::Cookie)) if !access::same_site(request.headers()) => {
            return text(StatusCode::FORBIDDEN, "changes are taken from this page only\n");
        }
        Ok(Some(_)) => {}
    }
    let task = spread_of(request.uri().path()).and_then(unhex);
    let read = timeout(FORM_TIMEOUT, Limited::new(request.into_body(), MAX_FORM).collect()).await;
    let Ok(Ok(body)) = read else { return text(StatusCode::BAD_REQUEST, "no document of at most 4 KiB\n") };
    let wanted = match Wanted::parse(&body.to_bytes()) {
        Ok(wanted) => wanted,
        Err(why) => return text(StatusCode::BAD_REQUEST, format!("{why}\n")),
    };
    let Some(task) = task else { return text(StatusCode::NOT_FOUND, "no such task\n") };
    let told = context.viewer.change(move |cluster, now| wanted.tell(cluster, now, &task)).await;
    match told {
        Some(Told::Spreading) => {
            tracing::info!(address = %remote, task = hex(&task), "nodes are told to hold a task, by the page");
            text(StatusCode::ACCEPTED, "told\n")
        }
        Some(Told::Unknown) => text(StatusCode::NOT_FOUND, "no such task\n"),
        Some(Told::Nameless) => text(StatusCode::CONFLICT, "nobody has said yet what the task's name is made of\n"),
        None => busy(),
    }
}

/// By what a request shows that it may look.
enum Shown {
    Token,
    Cookie,
}

/// Whether the request shows the token, or a cookie that stands for it.
fn may_look(headers: &HeaderMap, context: &Context) -> Result<Option<Shown>, AuthorityError> {
    let token = context.access.token()?;
    let all = |name| headers.get_all(name).iter().filter_map(|value: &HeaderValue| value.to_str().ok());
    if all(header::AUTHORIZATION).filter_map(access::bearer).any(|shown| access::same(&token, shown)) {
        return Ok(Some(Shown::Token));
    }
    let stands = all(header::COOKIE).any(|cookies| access::holds(cookies, &token, unix_millis() / 1000));
    Ok(stands.then_some(Shown::Cookie))
}

/// The form is sent as `text/plain`: `token=TOKEN`, without any encoding.
async fn login(request: Request<Incoming>, remote: SocketAddr, context: &Context) -> Answer {
    let read = timeout(FORM_TIMEOUT, Limited::new(request.into_body(), MAX_FORM).collect()).await;
    let Ok(Ok(body)) = read else { return text(StatusCode::BAD_REQUEST, "no form of at most 4 KiB\n") };
    let body = body.to_bytes();
    let given = std::str::from_utf8(&body).ok().and_then(|form| form.strip_prefix("token=")).map(str::trim);
    let token = match context.access.token() {
        Ok(token) => token,
        Err(error) => return unreadable(&error),
    };
    if given.is_some_and(|given| access::same(&token, given)) {
        return redirected(&access::cookie(&token, unix_millis() / 1000));
    }
    tracing::warn!(address = %remote, "a wrong token for the page");
    sleep(WRONG_TOKEN).await;
    document(StatusCode::UNAUTHORIZED, &WRONG_DOCUMENT)
}

async fn scrape(context: &Context) -> Answer {
    let cluster =
        context.viewer.ask(|cluster, now| (cluster.gauges(now), cluster.counts(), cluster.transferred())).await;
    let text = metrics::text(Scrape::of(cluster, context.viewer.sessions(), context.viewer.traces()));
    typed(StatusCode::OK, metrics::CONTENT_TYPE, text)
}

async fn cluster(context: &Context) -> Answer {
    let Some(look) = context.feed.look() else { return crowded() };
    match look.first().await {
        Some(json) => typed(StatusCode::OK, "application/json", json),
        None => busy(),
    }
}

fn events(context: &Context) -> Answer {
    let Some(look) = context.feed.look() else { return crowded() };
    let (to, queue) = mpsc::channel(1);
    tokio::spawn(look.tell(context.feed.history(), to));
    let frames = ReceiverStream::new(queue).map(|event| Ok::<_, Infallible>(Frame::data(event)));
    let mut answer = Response::new(StreamBody::new(frames).boxed());
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    answer
}

async fn node(name: &str, context: &Context) -> Answer {
    if !is_peer_name(name) {
        return text(StatusCode::NOT_FOUND, "no such node\n");
    }
    let name = name.to_owned();
    match context.viewer.ask(move |cluster, now| cluster.node_detail(now, &name)).await {
        Some(Some(detail)) => json(&detail),
        Some(None) => text(StatusCode::NOT_FOUND, "no such node\n"),
        None => busy(),
    }
}

fn json<T: Serialize>(value: &T) -> Answer {
    match serde_json::to_vec(value) {
        Ok(body) => typed(StatusCode::OK, "application/json", body),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

fn document(status: StatusCode, document: &Document) -> Answer {
    let mut answer = typed(status, "text/html; charset=utf-8", document.html.clone());
    let policy = HeaderValue::from_str(&document.policy).expect("base64 and words");
    answer.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    answer
}

fn redirected(cookie: &str) -> Answer {
    let mut answer = text(StatusCode::SEE_OTHER, "");
    answer.headers_mut().insert(header::LOCATION, HeaderValue::from_static("/"));
    answer.headers_mut().insert(header::SET_COOKIE, HeaderValue::from_str(cookie).expect("hexadecimal and words"));
    answer
}

fn unauthorized() -> Answer {
    let what = "the page's token is needed, as Authorization: Bearer TOKEN; pondhawk-scheduler page-token prints it\n";
    let mut answer = text(StatusCode::UNAUTHORIZED, what);
    answer.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    answer
}

fn unreadable(error: &AuthorityError) -> Answer {
    tracing::error!(%error, "nobody can look at the page");
    text(StatusCode::INTERNAL_SERVER_ERROR, "the token cannot be read: see the scheduler's log\n")
}

fn crowded() -> Answer {
    let mut answer = text(StatusCode::SERVICE_UNAVAILABLE, "too many look at the page already\n");
    answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("10"));
    answer
}

fn busy() -> Answer {
    text(StatusCode::SERVICE_UNAVAILABLE, "the scheduler does not serve nodes, or is too busy to say\n")
}

fn only(methods: &'static str) -> Answer {
    let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, format!("only {methods}\n"));
    answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static(methods));
    answer
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    http_port::text(status, body).map(BodyExt::boxed)
}

fn typed(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    http_port::typed(status, kind, body).map(BodyExt::boxed)
}
