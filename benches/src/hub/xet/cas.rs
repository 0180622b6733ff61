//! The read token and reconstructions.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use hyper::{
    StatusCode,
    header::{HeaderValue, RANGE},
};
use serde_json::{Value, json};

use super::{
    CAS_HOST, TRANSFER_HOST,
    file::{Term, XetFile},
};
use crate::hub::{
    Shared, query,
    range::{self, Wanted},
    routes::{Answer, Context, full, json as answer_json, text},
};

/// How long a token is good.
const TOKEN_LIFETIME: Duration = Duration::from_secs(3600);

/// `/api/{kind}/{repo}/xet-read-token/{revision}` for somebody who may read the repository.
pub(in crate::hub) fn token(context: &Context, repo: &str) -> Answer {
    let shared = &context.shared;
    shared.stats.answered(&format!("xet-read-token/{repo}"), context.head, 200);
    let until = unix(SystemTime::now() + TOKEN_LIFETIME);
    let token = sealed(shared, repo, until);
    let cas = shared.base(CAS_HOST);
    let mut answer = answer_json(StatusCode::OK, &json!({ "accessToken": token, "exp": until, "casUrl": cas }));
    let headers =
        [("x-xet-access-token", token), ("x-xet-token-expiration", until.to_string()), ("x-xet-cas-url", cas)];
    for (name, value) in headers {
        answer.headers_mut().insert(name, HeaderValue::from_str(&value).expect("letters and digits"));
    }
    answer
}

/// `/v1/reconstructions/{hash}` and `/v2/...`, of the whole file or of a range of it.
pub(super) fn reconstruction(context: &Context, version: &str, hash: &str) -> Answer {
    let answer = reconstruct(context, version, hash);
    context.shared.stats.answered(&format!("reconstruction/{hash}"), context.head, answer.status().as_u16());
    answer
}

fn reconstruct(context: &Context, version: &str, hash: &str) -> Answer {
    let Some(repo) = context.bearer().and_then(|token| unsealed(&context.shared, token)) else {
        return text(StatusCode::UNAUTHORIZED, "a token of the Hub is needed");
    };
    let Some(file) = find(&context.shared, &repo, hash) else {
        return text(StatusCode::NOT_FOUND, "no such file");
    };
    let wanted = match range::parse(context.header(RANGE), file.len()) {
        Wanted::Part(range) => range,
        Wanted::Whole => 0..file.len(),
        Wanted::Unsatisfiable => return text(StatusCode::RANGE_NOT_SATISFIABLE, "past the end of the file"),
    };
    let (before, terms) = file.terms(&wanted);
    let body = match version {
        "v1" => described(&context.shared, before, &terms, "fetch_info", fetch_v1),
        "v2" => described(&context.shared, before, &terms, "xorbs", fetch_v2),
        _ => return text(StatusCode::NOT_FOUND, "no such version"),
    };
    let mut answer = answer_json(StatusCode::OK, &body);
    if context.head {
        *answer.body_mut() = full("");
    }
    answer
}

type Fetch = fn(&Term<'_>, &str) -> Value;

fn described(shared: &Shared, before: u64, terms: &[Term<'_>], key: &str, fetch: Fetch) -> Value {
    let mut by_xorb = BTreeMap::<&str, Vec<Value>>::new();
    for term in terms {
        let url = xorb_url(shared, &term.xorb.name, &term.bytes, SystemTime::now());
        by_xorb.entry(&term.xorb.name).or_default().push(fetch(term, &url));
    }
    let terms = terms.iter().map(|term| {
        json!({
            "hash": term.xorb.name, "unpacked_length": term.unpacked,
            "range": { "start": term.chunks.start, "end": term.chunks.end },
        })
    });
    json!({ "offset_into_first_range": before, "terms": terms.collect::<Vec<_>>(), key: by_xorb })
}

fn fetch_v1(term: &Term<'_>, url: &str) -> Value {
    json!({
        "range": { "start": term.chunks.start, "end": term.chunks.end }, "url": url,
        "url_range": { "start": term.bytes.start, "end": term.bytes.end - 1 },
    })
}

fn fetch_v2(term: &Term<'_>, url: &str) -> Value {
    let chunks = json!({ "start": term.chunks.start, "end": term.chunks.end });
    let bytes = json!({ "start": term.bytes.start, "end": term.bytes.end - 1 });
    json!({ "url": url, "ranges": [{ "chunks": chunks, "bytes": bytes }] })
}

/// A URL that gives these bytes of the xorb and no others.
pub(in crate::hub) fn xorb_url(shared: &Shared, xorb: &str, bytes: &Range<u64>, at: SystemTime) -> String {
    let path = format!("/xorbs/default/{xorb}");
    let range = format!("bytes={}-{}", bytes.start, bytes.end.saturating_sub(1));
    let signed = shared.signer.signed_range(&path, unix(at + shared.url_lifetime), &range);
    format!("{}{path}?{signed}", shared.base(TRANSFER_HOST))
}

fn find(shared: &Shared, repo: &str, hash: &str) -> Option<Arc<XetFile>> {
    let catalogue = shared.catalogue();
    catalogue.repo(repo)?.xet_files().find(|file| file.name == hash).cloned()
}

fn sealed(shared: &Shared, repo: &str, until: u64) -> String {
    format!("xet.{}.{until}.{}", query::hex(repo.as_bytes()), shared.signer.seal(&["xet", repo, &until.to_string()]))
}

/// The repository that a token is for, if it is genuine and still good.
fn unsealed(shared: &Shared, token: &str) -> Option<String> {
    let mut parts = token.strip_prefix("xet.")?.split('.');
    let (repo, until) = (parts.next()?, parts.next()?.parse().ok()?);
    let digits: Option<Vec<u8>> =
        repo.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect();
    let repo = String::from_utf8(digits?).ok()?;
    (sealed(shared, &repo, until) == token && unix(SystemTime::now()) < until).then_some(repo)
}

fn unix(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
