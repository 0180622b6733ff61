//! Xorbs, in which hf_xet fetches files: bytes that a URL is signed for, one range at a time.
//!
//! A task is exactly such a range. The origin gives nothing else under the URL, so the range comes in one request, whoever
//! makes it; and consent is either known, because the URL came through this node in a reconstruction, or asked for by a HEAD
//! with the same range.

use std::{ops::Range, rc::Rc, sync::Arc};

use hyper::{HeaderMap, StatusCode, header};

use super::{Found, Source, Terms, begin, complete, is_whole, traced};
use crate::{
    authorize::{Allowed, Ground},
    http::head::RequestHead,
    shard::Shard,
    store::Held,
    swarm::{OriginRequest, Probe},
    task::{Identity, Proof, id::XorbUrl, xorb::Claim},
};

/// After bytes were wrong so often, within the time for which that is remembered, clients get what the origin sends.
const OFTEN_WRONG: u32 = 2;
/// Any of these makes the question another one.
const CONDITIONS: [&str; 5] = ["if-match", "if-none-match", "if-modified-since", "if-unmodified-since", "if-range"];

/// The part of a task that a request is for, and where it lies in its xorb.
#[derive(Clone, Debug)]
pub struct Window {
    /// In the task.
    pub bytes: Range<u64>,
    /// In the xorb.
    pub place: Range<u64>,
    /// Bytes in the xorb's object, where that is known.
    pub total: Option<u64>,
}

/// As [`super::find`], for a xorb's URL.
pub(super) async fn find(
    shard: &Rc<Shard>,
    request: &OriginRequest,
    head: &RequestHead,
    url: &XorbUrl,
    terms: &Terms,
) -> Found {
    let node = &shard.node;
    let Some(asked) = asked(head, url) else {
        return Found::Straight("not exactly one range that the URL is signed for".to_owned());
    };
    let window = asked.0..asked.1 + 1;
    let request = OriginRequest { window: Some(window.clone()), ..request.clone() };
    let identity = Identity::Xorb { hash: url.hash, signed: Some(asked) };
    let id = identity.task_id(None).expect("a hash needs no validator");
    if node.tasks.was_wrong(&id) >= OFTEN_WRONG {
        return Found::Straight("its bytes were wrong again and again".to_owned());
    }
    let here = node.store.get(&id);
    let whole = here.clone().filter(is_whole);
    let whole = whole.or_else(|| node.store.covering(&url.hash, &window).filter(is_whole));
    let granted = node.authorizer.is_granted(&request.url, asked);
    if let Some(whole) = whole.clone().filter(|_| granted) {
        return served(complete(whole, Ground::Remembered, &request.url, &identity), window);
    }
    let probe = match (granted, &here) {
        (true, Some(here)) => Arc::new(told(&request, &window, claim(here).and_then(|claim| claim.total))),
        // What is known of the object, and no more than that is needed: the URL was given out a moment ago.
        (true, None) => match traced::probe(node, &request, terms).await {
            Ok(probe) => probe,
            Err(error) => {
                tracing::debug!(%error, at = request.label(), "only what the reconstruction said is known of a xorb");
                Arc::new(told(&request, &window, None))
            }
        },
        (false, _) => match traced::authorize(node, &request, whole.is_some(), terms).await {
            Ok(Allowed { probe: Some(probe), .. }) => probe,
            Ok(Allowed { probe: None, ground }) => match whole {
                Some(whole) => return served(complete(whole, ground, &request.url, &identity), window),
                None => return Found::Straight("nobody was asked, and it is not here".to_owned()),
            },
            Err(refusal) => return Found::Answer(Arc::clone(refusal.error())),
        },
    };
    match whole {
        Some(whole) => served(complete(whole, Ground::Asked, &request.url, &identity), window),
        None => match begin(shard, &request, &identity, probe.into(), here, head, terms).await {
            Found::Source(source) => served(*source, window),
            other => other,
        },
    }
}

/// First and last byte, if the request is for exactly one range that the URL is signed for, and for nothing else.
fn asked(head: &RequestHead, url: &XorbUrl) -> Option<(u64, u64)> {
    let mut lines = head.get_all("range");
    let (range, None) = (lines.next()?, lines.next()) else { return None };
    let plain = CONDITIONS.iter().all(|name| head.get(name).is_none());
    url.asked(range).filter(|_| plain)
}

fn claim(held: &Held) -> Option<Claim> {
    match held.meta.proof {
        Some(Proof::Xorb(claim)) => Some(claim),
        _ => None,
    }
}

fn served(mut source: Source, place: Range<u64>) -> Found {
    let claim = claim(&source.held);
    let first = claim.map_or(place.start, |claim| claim.first);
    let bytes = place.start - first..place.end - first;
    source.window = Some(Window { bytes, place, total: claim.and_then(|claim| claim.total) });
    Found::Source(Box::new(source))
}

/// What a HEAD would have said, as far as anybody needs it.
fn told(request: &OriginRequest, window: &Range<u64>, total: Option<u64>) -> Probe {
    let kind = header::HeaderValue::from_static("application/octet-stream");
    Probe {
        status: StatusCode::PARTIAL_CONTENT,
        headers: HeaderMap::from_iter([(header::CONTENT_TYPE, kind)]),
        total_len: Some(window.end - window.start),
        object_len: total,
        ranges: true,
        plain: false,
        etag: None,
        final_url: request.url.clone(),
        encoded: false,
    }
}
