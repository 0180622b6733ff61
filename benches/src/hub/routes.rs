//! Which request is answered by what. Hosts the hub knows serve only what the real ones do; others (addresses, localhost) serve all.

use std::{convert::Infallible, io, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::Incoming,
    header::{AUTHORIZATION, HOST},
    http::response::Builder,
};

use super::{
    Shared, api, cdn, control,
    faults::{Ask, FaultKind, Place},
    lfs, query, resolve,
    wire::Connection,
    xet,
};

pub(super) type HubBody = UnsyncBoxBody<Bytes, io::Error>;
pub(super) type Answer = Response<HubBody>;

/// What every handler is given.
#[derive(Clone)]
pub(super) struct Context {
    pub(super) shared: Arc<Shared>,
    pub(super) connection: Arc<Connection>,
    /// Decoded, with its leading slash.
    pub(super) path: String,
    pub(super) raw_path: String,
    pub(super) query: String,
    pub(super) headers: HeaderMap,
    pub(super) head: bool,
}

impl Context {
    pub(super) fn header(&self, name: impl hyper::header::AsHeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The token of `Authorization: Bearer`.
    pub(super) fn bearer(&self) -> Option<&str> {
        self.header(AUTHORIZATION)?.strip_prefix("Bearer ")
    }
}

/// Which of the Hub's hosts is meant.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Hub,
    Cdn,
    Either,
}

pub(super) async fn answer(request: Request<Incoming>, shared: Arc<Shared>, connection: Arc<Connection>) -> Answer {
    let (parts, body) = request.into_parts();
    let raw_path = parts.uri.path().to_owned();
    let context = Context {
        path: query::decode(&raw_path),
        raw_path,
        query: parts.uri.query().unwrap_or("").to_owned(),
        head: parts.method == Method::HEAD,
        headers: parts.headers,
        shared,
        connection,
    };
    let path = context.path.as_str();
    if path == "/_echo" {
        return echo(&context, &parts.method, body);
    }
    if let Some(command) = path.strip_prefix("/_hub/") {
        return control::answer(&context, &parts.method, command, body).await;
    }
    let side = side(&context);
    if side != Side::Cdn
        && let Some(answer) = context.shared.api_rules.instead(&context)
    {
        return answer;
    }
    if side != Side::Cdn {
        context.shared.stats.hub_asked();
        if let Some(moved) = context.shared.manners.moved(&context) {
            return moved;
        }
    }
    if path.starts_with("/api/") {
        delayed(&context).await;
    }
    if path.ends_with("/info/lfs/objects/batch") && parts.method == Method::POST && side != Side::Cdn {
        return lfs::batch(&context, body).await;
    }
    if parts.method == Method::POST && side != Side::Cdn && path.contains("/paths-info/") {
        return paths_info(&context, body).await;
    }
    if parts.method != Method::GET && !context.head {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD here");
    }
    if side != Side::Hub
        && let Some(answer) = cdn::answer(&context).or_else(|| xet::answer(&context))
    {
        return answer;
    }
    if side != Side::Cdn
        && let Some(answer) = api::answer(&context).or_else(|| resolve::answer(&context))
    {
        return answer;
    }
    text(StatusCode::NOT_FOUND, "nothing here")
}

/// Waits as long as the faults say.
async fn delayed(context: &Context) {
    let ask = Ask { place: Place::Api, label: &context.path, start: 0, end: 0, redirected: false };
    for fault in context.shared.faults.take(&ask) {
        if let FaultKind::Delay { millis } = fault {
            tokio::time::sleep(Duration::from_millis(millis)).await;
        }
    }
}

async fn paths_info(context: &Context, body: Incoming) -> Answer {
    match control::read_body(body).await {
        Ok(form) => api::paths_info(context, &String::from_utf8_lossy(&form))
            .unwrap_or_else(|| text(StatusCode::NOT_FOUND, "nothing here")),
        Err(message) => text(StatusCode::PAYLOAD_TOO_LARGE, &message),
    }
}

fn side(context: &Context) -> Side {
    let host = context.header(HOST).unwrap_or("");
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let names = &context.shared.names;
    if name.eq_ignore_ascii_case(&names.hub) {
        Side::Hub
    } else if names.cdn.iter().any(|cdn| cdn.eq_ignore_ascii_case(name)) {
        Side::Cdn
    } else {
        Side::Either
    }
}

/// The request's body streamed back, method and length in headers.
fn echo(context: &Context, method: &Method, body: Incoming) -> Answer {
    let length = context.header("content-length").unwrap_or("none").to_owned();
    let response = Response::builder()
        .header("x-echo-method", method.as_str())
        .header("x-echo-length", length)
        .header("cache-control", "no-store");
    finish(response, body.map_err(io::Error::other).boxed_unsync())
}

pub(super) fn text(status: StatusCode, message: &str) -> Answer {
    let response = Response::builder().status(status).header("content-type", "text/plain; charset=utf-8");
    finish(response, full(message.to_owned()))
}

pub(super) fn json(status: StatusCode, value: &serde_json::Value) -> Answer {
    let response = Response::builder().status(status).header("content-type", "application/json; charset=utf-8");
    finish(response, full(value.to_string()))
}

pub(super) fn full(bytes: impl Into<Bytes>) -> HubBody {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}

/// Headers that a builder does not take (a file name with control characters) make a 500.
pub(super) fn finish(response: Builder, body: HubBody) -> Answer {
    response.body(body).unwrap_or_else(|error| {
        let mut answer = Response::new(full(error.to_string()));
        *answer.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        answer
    })
}
