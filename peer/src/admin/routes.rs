//! One request on the admin port.

use std::{fmt::Display, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::Incoming,
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, ORIGIN},
};
use serde::Serialize;

use super::{Context, Control, Removal, profile};
use crate::{metrics, task::TaskId};

type Answer = Response<Full<Bytes>>;

const TASKS: &str = "/v1/tasks/";

/// Answers a request from `peer`; its body, if any, is ignored.
pub(super) async fn answer(request: Request<Incoming>, peer: SocketAddr, context: &Context) -> Answer {
    let (method, path) = (request.method(), request.uri().path());
    if let Some(id) = path.strip_prefix(TASKS) {
        return match *method {
            Method::DELETE => remove(&request, id, peer, context).await,
            _ => wrong_method("DELETE"),
        };
    }
    let found = ["/metrics", "/healthz", "/readyz", "/debug/pprof/profile", "/v1/status", "/v1/tasks"].contains(&path);
    match (found, method) {
        (false, _) => text(StatusCode::NOT_FOUND, "no such page\n"),
        (true, &Method::GET | &Method::HEAD) => read(path, request.uri().query(), context).await,
        (true, _) => wrong_method("GET, HEAD"),
    }
}

async fn read(path: &str, query: Option<&str>, context: &Context) -> Answer {
    match path {
        "/healthz" => text(StatusCode::OK, "ok\n"),
        "/readyz" => ready(&context.control.unready()),
        "/metrics" => {
            let metrics = Arc::clone(&context.metrics);
            blocking(move || typed(StatusCode::OK, metrics::CONTENT_TYPE, metrics.encode())).await
        }
        "/v1/tasks" => ask(context, |control| json(&control.tasks())).await,
        "/v1/status" => ask(context, |control| json(&control.status())).await,
        _ => profiled(query).await,
    }
}

async fn profiled(query: Option<&str>) -> Answer {
    match profile::take(query).await {
        Ok(profile) => typed(StatusCode::OK, "application/octet-stream", profile),
        Err(error) => text(error.status(), format!("{error}\n")),
    }
}

fn ready(reasons: &[String]) -> Answer {
    match reasons {
        [] => text(StatusCode::OK, "ready\n"),
        reasons => text(StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", reasons.join("\n"))),
    }
}

async fn remove(request: &Request<Incoming>, id: &str, peer: SocketAddr, context: &Context) -> Answer {
    if let Err(reason) = may_change(request.headers(), peer) {
        return text(StatusCode::FORBIDDEN, reason);
    }
    let id: TaskId = match id.parse() {
        Ok(id) => id,
        Err(error) => return text(StatusCode::BAD_REQUEST, format!("{error}\n")),
    };
    ask(context, move |control| match control.remove(&id) {
        Removal::Removed => text(StatusCode::NO_CONTENT, ""),
        Removal::Unknown => text(StatusCode::NOT_FOUND, "no such task\n"),
        Removal::InUse => text(StatusCode::CONFLICT, "the task is in use\n"),
    })
    .await
}

/// Whether this request may change something; why not, otherwise.
pub(super) fn may_change(headers: &HeaderMap, peer: SocketAddr) -> Result<(), &'static str> {
    match () {
        () if !peer.ip().to_canonical().is_loopback() => Err("changes are taken from this machine only\n"),
        () if headers.contains_key(ORIGIN) => Err("changes are not taken from web pages (the request has an Origin)\n"),
        () => Ok(()),
    }
}

async fn ask(context: &Context, question: impl FnOnce(&dyn Control) -> Answer + Send + 'static) -> Answer {
    let control = Arc::clone(&context.control);
    blocking(move || question(&*control)).await
}

async fn blocking(answer: impl FnOnce() -> Answer + Send + 'static) -> Answer {
    tokio::task::spawn_blocking(answer).await.unwrap_or_else(|error| {
        tracing::error!(%error, "admin answer failed");
        text(StatusCode::INTERNAL_SERVER_ERROR, "the answer failed; the log says more\n")
    })
}

fn wrong_method(allowed: &'static str) -> Answer {
    let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, format!("only {allowed}\n"));
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    answer
}

fn json<T: Serialize>(value: &T) -> Answer {
    match serde_json::to_vec(value) {
        Ok(body) => typed(StatusCode::OK, "application/json", body),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error),
    }
}

fn text(status: StatusCode, body: impl Display) -> Answer {
    typed(status, "text/plain; charset=utf-8", body.to_string())
}

fn typed(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}
