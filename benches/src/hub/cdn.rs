//! The CDN: signed objects and plain ones, with everything that faults do to them.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use http_body_util::BodyExt;
use hyper::{
    Response, StatusCode,
    header::{IF_NONE_MATCH, IF_RANGE, LOCATION, RANGE},
    http::response::Builder,
};

use super::{
    body::{End, ObjectBody, Plan},
    catalogue::{Home, Object, PlainRules},
    faults::{Ask, FaultKind, Place},
    query,
    range::{self, Wanted},
    routes::{Answer, Context, finish, full, text},
    signing::Refusal,
};

/// None: no object of the CDN has this path.
pub(super) fn answer(context: &Context) -> Option<Answer> {
    let on_cdn = ["/repos/", "/xet-bridge-us/", "/plain/"].iter().any(|prefix| context.path.starts_with(prefix));
    if !on_cdn {
        return None;
    }
    let object = context.shared.catalogue().on_cdn(&context.path).cloned();
    let Some(object) = object else { return Some(access_denied("Access Denied")) };
    let refusal = match &object.home {
        Home::Cdn { .. } => {
            context.shared.signer.check(&context.raw_path, &context.query, SystemTime::now()).err().map(refuse)
        }
        Home::Plain(rules) => (rules.token.is_some() && rules.token.as_deref() != context.bearer())
            .then(|| text(StatusCode::UNAUTHORIZED, "a bearer token is needed")),
        Home::Hub | Home::Xorb => None,
    };
    Some(refusal.unwrap_or_else(|| object_answer(context, &object, Response::builder())).counted(context, &object))
}

/// Which form of an object one answer gives.
struct Version {
    generation: u8,
    /// The CDN's edge that answers, where each has an ETag of its own.
    edge: Option<u32>,
    /// In gzip for this client.
    weak: bool,
}

impl Version {
    fn etag(&self, object: &Object) -> Option<String> {
        let mut etag = object.etag(self.generation)?;
        if let Some(edge) = self.edge {
            etag.insert_str(etag.len() - 1, &format!("-edge{edge}"));
        }
        Some(if self.weak { format!("W/{etag}") } else { etag })
    }
}

/// The bytes of an object, or of a part, on top of the headers already in `response`. Counted by the caller.
pub(super) fn object_answer(context: &Context, object: &Arc<Object>, response: Builder) -> Answer {
    let manners = &context.shared.manners;
    let version =
        Version { generation: object.generation(), edge: manners.edge(object), weak: manners.zips(context, object) };
    let wanted = match not_changed_since(context, object, &version) {
        true => range::parse(context.header(RANGE), object.len()),
        false => Wanted::Whole,
    };
    let span = match &wanted {
        Wanted::Part(range) => range.clone(),
        _ => 0..object.len(),
    };
    let redirected = query::get(&context.query, "hop").is_some();
    let ask = Ask { place: Place::Bytes, label: &object.label, start: span.start, end: span.end, redirected };
    let faults = if context.head { Vec::new() } else { context.shared.faults.take(&ask) };
    if let Some(answer) = faults.iter().find_map(|fault| instead(context, fault)) {
        return answer;
    }
    if faults.contains(&FaultKind::ChangeEtag) {
        object.change();
    }
    let response = object_headers(response, context, object, &version);
    if not_modified(context, object, &version) {
        return finish(response.status(StatusCode::NOT_MODIFIED), full(""));
    }
    let misframed = [FaultKind::NoLength, FaultKind::IgnoreRange, FaultKind::Gzip];
    let whole = version.weak || misframed.iter().any(|fault| faults.contains(fault));
    match wanted {
        Wanted::Unsatisfiable if !whole => finish(
            response
                .status(StatusCode::RANGE_NOT_SATISFIABLE)
                .header("content-range", format!("bytes */{}", object.len())),
            full(""),
        ),
        Wanted::Part(range) if !whole => {
            let content_range = format!("bytes {}-{}/{}", range.start, range.end - 1, object.len());
            let response = response.status(StatusCode::PARTIAL_CONTENT).header("content-range", content_range);
            body(context, response, plan(object, &version, range, &faults), &faults)
        }
        _ => body(context, response, plan(object, &version, 0..object.len(), &faults), &faults),
    }
}

trait Counted {
    fn counted(self, context: &Context, object: &Object) -> Self;
}

impl Counted for Answer {
    fn counted(self, context: &Context, object: &Object) -> Self {
        count(context, object, &self);
        self
    }
}

/// Puts an answer about the object's bytes into the statistics.
pub(super) fn count(context: &Context, object: &Object, answer: &Answer) {
    let stats = &context.shared.stats;
    stats.answered(&object.label, context.head, answer.status().as_u16());
    let mut labels = context.connection.labels.lock().expect("no holder panics");
    if labels.insert(object.label.clone()) {
        stats.new_connection_for(&object.label);
    }
}

/// Answers of faults that replace the object.
fn instead(context: &Context, fault: &FaultKind) -> Option<Answer> {
    match fault {
        FaultKind::Status503 { retry_after } => Some(unavailable(*retry_after)),
        FaultKind::Forbidden => Some(access_denied("Access denied")),
        FaultKind::Redirect => {
            let separator = if context.query.is_empty() { "" } else { "&" };
            let location = format!("{}?{}{separator}hop=1", context.raw_path, context.query);
            let response = Response::builder().status(StatusCode::TEMPORARY_REDIRECT).header(LOCATION, location);
            Some(finish(response, full("")))
        }
        _ => None,
    }
}

pub(super) fn unavailable(retry_after: Option<u64>) -> Answer {
    let response =
        Response::builder().status(StatusCode::SERVICE_UNAVAILABLE).header("x-cache", "Error from cloudfront");
    let response = match retry_after {
        Some(seconds) => response.header("retry-after", seconds),
        None => response,
    };
    finish(response, full("Slow Down"))
}

fn plan(object: &Arc<Object>, version: &Version, range: std::ops::Range<u64>, faults: &[FaultKind]) -> Plan {
    let mut plan = Plan {
        object: Arc::clone(object),
        generation: version.generation,
        range,
        end: End::Whole,
        stall: None,
        corrupt: Vec::new(),
        gzip: version.weak || faults.contains(&FaultKind::Gzip),
    };
    for fault in faults {
        match *fault {
            FaultKind::Cut { after } => plan.end = End::Cut(after),
            FaultKind::Reset { after } => plan.end = End::Reset(after),
            FaultKind::Stall { after, millis } => plan.stall = Some((after, Duration::from_millis(millis))),
            FaultKind::CorruptByte { offset } => plan.corrupt.push(offset),
            _ => {}
        }
    }
    plan
}

fn body(context: &Context, response: Builder, plan: Plan, faults: &[FaultKind]) -> Answer {
    let response = match (plan.gzip, faults.contains(&FaultKind::NoLength)) {
        (true, _) => response.header("content-encoding", "gzip"),
        (false, true) => response,
        (false, false) => response.header("content-length", plan.range.end - plan.range.start),
    };
    if context.head {
        return finish(response, full(""));
    }
    let body = ObjectBody::new(plan, Arc::clone(&context.shared), Arc::clone(&context.connection));
    finish(response, body.boxed_unsync())
}

fn object_headers(response: Builder, context: &Context, object: &Object, version: &Version) -> Builder {
    let content_type = query::get(&context.query, "response-content-type");
    let mut response = response
        .header("content-type", content_type.unwrap_or_else(|| object.content_type().to_owned()))
        .header("accept-ranges", "bytes");
    if let Some(etag) = version.etag(object) {
        response = response.header("etag", etag);
    }
    match &object.home {
        Home::Plain(rules) => plain_headers(response, rules),
        Home::Hub if version.weak => response.header("vary", "Accept-Encoding"),
        Home::Hub => response,
        Home::Cdn { .. } | Home::Xorb => {
            if let Some(disposition) = query::get(&context.query, "response-content-disposition") {
                response = response.header("content-disposition", disposition);
            }
            response
                .header("last-modified", LAST_MODIFIED)
                .header("cache-control", "public, max-age=604800, immutable, s-maxage=604800")
                .header("server", "AmazonS3")
                .header("via", "1.1 0f4ad5d6ca8cd0da1a9d7f0e57b2b5a8.cloudfront.net (CloudFront)")
                .header("x-cache", "Hit from cloudfront")
                .header("x-amz-cf-pop", "LAB50-P1")
                .header("x-amz-storage-class", "INTELLIGENT_TIERING")
        }
    }
}

const LAST_MODIFIED: &str = "Tue, 14 May 2024 09:00:00 GMT";

fn plain_headers(mut response: Builder, rules: &PlainRules) -> Builder {
    let headers =
        [("last-modified", &rules.last_modified), ("cache-control", &rules.cache_control), ("vary", &rules.vary)];
    for (name, value) in headers {
        if let Some(value) = value {
            response = response.header(name, value);
        }
    }
    response
}

/// If-Range: absent, or naming this state of the object by its strong ETag or its date (RFC 9110, 13.1.5).
fn not_changed_since(context: &Context, object: &Object, version: &Version) -> bool {
    let Some(condition) = context.header(IF_RANGE) else { return true };
    let etag = version.etag(object).filter(|etag| !etag.starts_with("W/"));
    let date = match &object.home {
        Home::Plain(rules) => rules.last_modified.as_deref(),
        _ => Some(LAST_MODIFIED).filter(|_| version.generation == 0),
    };
    etag.as_deref() == Some(condition) || date == Some(condition)
}

fn not_modified(context: &Context, object: &Object, version: &Version) -> bool {
    let Some(condition) = context.header(IF_NONE_MATCH) else { return false };
    let Some(etag) = version.etag(object) else { return false };
    let bare = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    condition.trim() == "*" || condition.split(',').any(|tag| bare(tag) == bare(&etag))
}

fn refuse(refusal: Refusal) -> Answer {
    match refusal {
        Refusal::Missing => xml("MissingKey", "Missing Key-Pair-Id query parameter or cookie value"),
        Refusal::Forged | Refusal::Expired => access_denied("Access denied"),
    }
}

/// CloudFront's 403: the same words for a forged and for an expired signature.
pub(super) fn access_denied(message: &str) -> Answer {
    xml("AccessDenied", message)
}

fn xml(code: &str, message: &str) -> Answer {
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
    );
    let response = Response::builder()
        .status(StatusCode::FORBIDDEN)
        .header("content-type", "text/xml")
        .header("server", "CloudFront")
        .header("x-cache", "Error from cloudfront");
    finish(response, full(body))
}
