//! One request on the admin port.

use std::{fmt::Display, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::Incoming,
    header::{ALLOW, CACHE_CONTROL, HeaderValue, ORIGIN},
};
use pondhawk_scheduler::http_port;
use serde::Serialize;
use tokio::time::timeout;

use super::{Caller, Context, Control, PreheatRefusal, PreheatTaken, PreheatWanted, Removal, Task, profile};
use crate::{metrics, task::TaskId};

type Answer = Response<Full<Bytes>>;

const TASKS: &str = "/v1/tasks/";
/// For a document to come.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
const PREHEATS: &str = "/v1/preheats";
const PROFILE: &str = "/debug/pprof/profile";
/// The longest document that is taken: a signed URL and a few headers.
const MAX_DOCUMENT: usize = 64 << 10;

/// Answers a request of `caller`.
pub(super) async fn answer(request: Request<Incoming>, caller: &Caller, context: &Context) -> Answer {
    let (method, path) = (request.method(), request.uri().path());
    if let Some(id) = path.strip_prefix(TASKS).and_then(|rest| rest.strip_suffix("/pin")) {
        return match *method {
            Method::PUT | Method::DELETE => pin(&request, id, caller, context).await,
            _ => wrong_method("PUT, DELETE"),
        };
    }
    if path == PREHEATS && method == Method::POST {
        return preheat(request, caller, context).await;
    }
    if let Some(id) = path.strip_prefix(TASKS) {
        return match *method {
            Method::DELETE => remove(&request, id, caller, context).await,
            _ => wrong_method("DELETE"),
        };
    }
    let found = ["/metrics", "/healthz", "/readyz", PROFILE, "/v1/status", "/v1/tasks", PREHEATS].contains(&path);
    match (found, method) {
        (false, _) => text(StatusCode::NOT_FOUND, "no such page\n"),
        (true, &Method::GET) if path == PROFILE => profiled(&request, caller, context).await,
        (true, &Method::GET | &Method::HEAD) => read(path, request.uri().query(), context).await,
        (true, _) => wrong_method("GET, HEAD"),
    }
}

async fn read(path: &str, query: Option<&str>, context: &Context) -> Answer {
    match path {
        "/healthz" => text(StatusCode::OK, "ok\n"),
        "/readyz" => ready(&context.control.unready(), &context.control.degraded()),
        "/metrics" => {
            let metrics = Arc::clone(&context.metrics);
            blocking(move || typed(StatusCode::OK, metrics::CONTENT_TYPE, metrics.encode())).await
        }
        "/v1/tasks" => {
            let label = query.and_then(label);
            ask(context, move |control| json(&tasks(control, label.as_deref()))).await
        }
        PREHEATS => ask(context, |control| json(&control.preheats())).await,
        "/v1/status" => ask(context, |control| json(&control.status())).await,
        // HEAD of a profile, which is not worth taking one.
        _ => text(StatusCode::OK, ""),
    }
}

/// The value of `label=`, decoded.
fn label(query: &str) -> Option<String> {
    let mut pairs = url::form_urlencoded::parse(query.as_bytes());
    pairs.find(|(name, _)| name == "label").map(|(_, value)| value.into_owned())
}

fn tasks(control: &dyn Control, label: Option<&str>) -> Vec<Task> {
    let mut tasks = control.tasks();
    tasks.retain(|task| label.is_none_or(|label| task.label == label));
    tasks
}

/// A profile costs CPU time, and memory that stays: it is for those who may change the node.
async fn profiled(request: &Request<Incoming>, caller: &Caller, context: &Context) -> Answer {
    if let Err(reason) = may_change(request.headers(), caller, context) {
        return text(StatusCode::FORBIDDEN, reason);
    }
    match profile::take(request.uri().query()).await {
        Ok(profile) => typed(StatusCode::OK, "application/octet-stream", profile),
        Err(error) => text(error.status(), format!("{error}\n")),
    }
}

fn ready(reasons: &[String], degraded: &[String]) -> Answer {
    match reasons {
        [] => {
            let lines = degraded.iter().map(|why| format!("degraded: {why}\n"));
            text(StatusCode::OK, format!("ready\n{}", lines.collect::<String>()))
        }
        reasons => text(StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", reasons.join("\n"))),
    }
}

async fn remove(request: &Request<Incoming>, id: &str, caller: &Caller, context: &Context) -> Answer {
    if let Err(reason) = may_change(request.headers(), caller, context) {
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
        Removal::Pinned => text(StatusCode::CONFLICT, "the task is pinned\n"),
    })
    .await
}

async fn pin(request: &Request<Incoming>, id: &str, caller: &Caller, context: &Context) -> Answer {
    if let Err(reason) = may_change(request.headers(), caller, context) {
        return text(StatusCode::FORBIDDEN, reason);
    }
    let id: TaskId = match id.parse() {
        Ok(id) => id,
        Err(error) => return text(StatusCode::BAD_REQUEST, format!("{error}\n")),
    };
    let pinned = request.method() == Method::PUT;
    ask(context, move |control| match control.pin(&id, pinned) {
        Ok(true) => text(StatusCode::NO_CONTENT, ""),
        Ok(false) => text(StatusCode::NOT_FOUND, "no such task\n"),
        Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    })
    .await
}

async fn preheat(request: Request<Incoming>, caller: &Caller, context: &Context) -> Answer {
    if let Err(reason) = may_change(request.headers(), caller, context) {
        return text(StatusCode::FORBIDDEN, reason);
    }
    let read = timeout(BODY_TIMEOUT, Limited::new(request.into_body(), MAX_DOCUMENT).collect()).await;
    let Ok(Ok(body)) = read else { return text(StatusCode::BAD_REQUEST, "no document of at most 64 KiB\n") };
    let wanted: PreheatWanted = match serde_json::from_slice(&body.to_bytes()) {
        Ok(wanted) => wanted,
        Err(error) => return text(StatusCode::BAD_REQUEST, format!("{error}\n")),
    };
    ask(context, move |control| match control.preheat(wanted) {
        Ok(id) => {
            let mut answer = json(&PreheatTaken { id });
            *answer.status_mut() = StatusCode::ACCEPTED;
            answer
        }
        Err(PreheatRefusal::Wrong(why)) => text(StatusCode::BAD_REQUEST, format!("{why}\n")),
        Err(PreheatRefusal::NotServed(why)) => text(StatusCode::MISDIRECTED_REQUEST, format!("{why}\n")),
        Err(PreheatRefusal::Full(why)) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    })
    .await
}

/// Whether this request may change something; why not, otherwise.
fn may_change(headers: &HeaderMap, caller: &Caller, context: &Context) -> Result<(), String> {
    match caller {
        _ if headers.contains_key(ORIGIN) => {
            Err("changes are not accepted from web pages (the request has an Origin)\n".to_owned())
        }
        Caller::Socket { may_change: true, .. } => Ok(()),
        Caller::Socket { uid, .. } => Err(format!(
            "user {uid} may not change this node: that is for root, the node's own user, and the ids in admin.users and \
             admin.groups\n"
        )),
        Caller::Port => Err(match context.control.socket() {
            Some(path) => format!(
                "this port is for reading: changes and profiles are accepted on the Unix socket {path}, as by `pondhawk` or \
                 `curl --unix-socket {path}`\n"
            ),
            None => "this port is for reading: changes and profiles are accepted on a Unix socket, which this node does not have \
                     (admin.socket)\n"
                .to_owned(),
        }),
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
    let mut answer = http_port::typed(status, kind, body);
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}
