//! What is asked of an origin, and what a probe tells about an object.

use std::{fmt, ops::Range, time::Duration};

use hyper::{
    HeaderMap, StatusCode,
    header::{self, HeaderName, HeaderValue},
};
use url::Url;

use super::{connect::Place, error::OriginError};
use crate::{
    http::{
        date,
        destination::Destination,
        head::{decimal, list},
        range::ContentRange,
        response::{is_about_request_body, is_framing, is_hop_by_hop},
    },
    task::id,
};

/// A client's request for an object: its URL and headers, with which the origin is asked in its name.
#[derive(Clone)]
pub struct OriginRequest {
    /// https (or http) with a host.
    pub url: Url,
    /// The client's own, names in any case; credentials included. Hop-by-hop headers and Host are ignored.
    pub headers: Vec<(String, Vec<u8>)>,
    /// The bytes of the object that the task is about, where the URL may only be used for these (a signed range of a xorb): no
    /// request asks for other ones. Offsets and lengths of a download count from its start.
    pub window: Option<Range<u64>>,
}

impl OriginRequest {
    /// The whole object at `url`.
    pub fn new(url: Url, headers: Vec<(String, Vec<u8>)>) -> Self {
        Self { url, headers, window: None }
    }

    /// Scheme, host and path, for people: no user, query or fragment.
    pub(crate) fn label(&self) -> String {
        label(&self.url)
    }
}

impl fmt::Debug for OriginRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OriginRequest").field("at", &self.label()).field("window", &self.window).finish_non_exhaustive()
    }
}

/// What the origin says about an object to this client.
#[derive(Clone)]
pub struct Probe {
    /// 206, or 200 where ranges are ignored; 416 for an empty object.
    pub status: StatusCode,
    /// Without hop-by-hop headers, Content-Length and Content-Range.
    pub headers: HeaderMap,
    /// Bytes in the object (in the request's window, where it has one).
    pub total_len: Option<u64>,
    /// Bytes in the object, whatever the window.
    pub object_len: Option<u64>,
    /// Whether ranges are served.
    pub ranges: bool,
    /// Whether all of the object was asked for, rather than its first byte.
    pub plain: bool,
    /// As sent, weak mark and quotes included.
    pub etag: Option<String>,
    /// Where redirects led.
    pub final_url: Url,
    /// Whether a content coding is applied although identity was asked for: such bytes are not the object.
    pub encoded: bool,
}

impl Probe {
    /// What every later answer must agree with.
    pub fn expected(&self) -> Expected {
        Expected { total: self.total_len, etag: self.etag.clone() }
    }
}

impl fmt::Debug for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Probe")
            .field("at", &label(&self.final_url))
            .field("total_len", &self.total_len)
            .field("ranges", &self.ranges)
            .field("etag", &self.etag)
            .finish_non_exhaustive()
    }
}

/// The object that a download began with.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    /// Bytes in the object, in the window where the request has one.
    pub total: Option<u64>,
    /// Its entity tag, as sent.
    pub etag: Option<String>,
}

impl Expected {
    /// Whether an answer with this ETag is of the same object. An answer without one says nothing.
    pub(super) fn same_etag(&self, headers: &HeaderMap) -> bool {
        let opaque = |tag: &str| tag.trim_start_matches("W/").to_owned();
        match (&self.etag, etag_of(headers)) {
            (Some(known), Some(now)) => opaque(known) == opaque(&now),
            _ => true,
        }
    }

    /// A tag that may stand in If-Range: strong ones only (RFC 9110 section 13.1.5).
    pub(super) fn if_range(&self) -> Option<HeaderValue> {
        let tag = self.etag.as_deref().filter(|tag| !tag.starts_with("W/"))?;
        HeaderValue::from_str(tag).ok()
    }
}

/// Scheme, host and path.
pub(crate) fn label(url: &Url) -> String {
    format!("{}://{}", url.scheme(), id::label(url))
}

pub(super) fn place_of(url: &Url) -> Result<Place, OriginError> {
    let Destination { host, port, .. } = Destination::of(url).map_err(|_| OriginError::Url { at: label(url) })?;
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    Ok(Place { tls: url.scheme() == "https", host, port })
}

pub(super) fn etag_of(headers: &HeaderMap) -> Option<String> {
    headers.get(header::ETAG)?.to_str().ok().map(str::to_owned)
}

/// The same in memory of its own. hyper's values are parts of the buffer that it read the whole head into, some 40 KiB, which each of
/// them keeps alive.
pub(super) fn detached(headers: &HeaderMap) -> HeaderMap {
    let copy = |value: &HeaderValue| HeaderValue::from_bytes(value.as_bytes()).expect("it was one");
    headers.iter().map(|(name, value)| (name.clone(), copy(value))).collect()
}

/// Removes what belongs to one connection (RFC 9110 section 7.6.1), the headers that Connection names included.
pub(super) fn drop_hop_by_hop(headers: &mut HeaderMap) {
    let lines = headers.get_all(header::CONNECTION).iter();
    let named = lines.flat_map(|line| list(line.as_bytes())).filter_map(|name| HeaderName::from_bytes(name).ok());
    let ours = headers.keys().filter(|name| is_hop_by_hop(name.as_str())).cloned();
    for name in named.chain(ours).collect::<Vec<_>>() {
        headers.remove(name);
    }
}

/// The client's headers as they go to the origin, without hop-by-hop ones, without those that frame a body, which follow
/// from the body that is really sent, and without Host, which hyper's caller sets.
pub(crate) fn forwarded(headers: &[(String, Vec<u8>)]) -> HeaderMap {
    let mut out = HeaderMap::new();
    for (name, value) in headers {
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::from_bytes(value)) {
            out.append(name, value);
        }
    }
    drop_hop_by_hop(&mut out);
    drop_named(&mut out, |name| name == "host" || is_framing(name));
    out
}

fn drop_named(headers: &mut HeaderMap, dropped: impl Fn(&str) -> bool) {
    for name in headers.keys().filter(|name| dropped(name.as_str())).cloned().collect::<Vec<_>>() {
        headers.remove(name);
    }
}

/// The client's headers for a question of the node's own: what concerns ranges, conditions, codings and bodies is ours to say.
pub(super) fn for_bytes(headers: &[(String, Vec<u8>)], range: Option<&Range<u64>>) -> HeaderMap {
    let mut out = forwarded(headers);
    let conditional = |name: &str| matches!(name, "range" | "if-range") || name.starts_with("if-");
    drop_named(&mut out, |name| conditional(name) || is_about_request_body(name));
    out.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    if let Some(range) = range
        && let Ok(value) = HeaderValue::from_str(&format!("bytes={}-{}", range.start, range.end.saturating_sub(1)))
    {
        out.insert(header::RANGE, value);
    }
    out
}

/// `bytes 0-99/1234` as (0..100, Some(1234)); `bytes */1234` as (0..0, Some(1234)).
pub(super) fn content_range(headers: &HeaderMap) -> Option<(Range<u64>, Option<u64>)> {
    let told = ContentRange::parse(headers.get(header::CONTENT_RANGE)?.as_bytes())?;
    Some((told.range.unwrap_or(0..0), told.total))
}

/// Retry-After in seconds, or as an HTTP date counted from the answer's own Date.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?.as_bytes();
    if let Some(seconds) = decimal(value.trim_ascii()) {
        return Some(Duration::from_secs(seconds));
    }
    // Both dates are the origin's: no clock of ours decides, not even the century of an obsolete two-digit year.
    let now = date::parse(headers.get(header::DATE)?.as_bytes(), 0)?;
    let until = date::parse(value, now)?;
    u64::try_from(until - now).ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: &'static str, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(HeaderName::from_static(name), HeaderValue::from_static(value))])
    }

    #[test]
    fn a_content_range_is_taken_only_if_it_makes_sense() {
        let parsed = |value| content_range(&with("content-range", value));
        assert_eq!(parsed("bytes 0-99/1234"), Some((0..100, Some(1234))));
        assert_eq!(parsed("bytes */0"), Some((0..0, Some(0))));
        assert_eq!(parsed("bytes 5-5/*"), Some((5..6, None)));
        for bad in [
            "bytes 5-4/10",
            "bytes 0-10/10",
            "items 0-1/2",
            "bytes 0-1",
            "bytes -1/2",
            "bytes 0-18446744073709551615/*",
        ] {
            assert_eq!(parsed(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_retry_after_date_counts_from_the_origins_own_clock() {
        let mut headers = with("retry-after", "Wed, 21 Oct 2026 07:28:30 GMT");
        assert_eq!(retry_after(&headers), None);
        headers.extend(with("date", "Wed, 21 Oct 2026 07:28:00 GMT"));
        assert_eq!(retry_after(&headers), Some(Duration::from_secs(30)));
        assert_eq!(retry_after(&with("retry-after", "7")), Some(Duration::from_secs(7)));
    }

    #[test]
    fn neither_labels_nor_debug_output_hold_a_secret() {
        let url = Url::parse("https://user:hunter2@cdn.example/a/b?Signature=hunter2#hunter2").unwrap();
        let request = OriginRequest::new(url, vec![("Authorization".into(), b"Bearer hunter2".to_vec())]);
        assert!(!format!("{request:?} {}", request.label()).contains("hunter2"));
    }

    #[test]
    fn what_belongs_to_one_connection_or_to_the_clients_range_is_not_passed_on() {
        let pairs = [
            ("Connection", "keep-alive, X-Mine"),
            ("X-Mine", "1"),
            ("Range", "bytes=5-"),
            ("Cookie", "a=b"),
            ("host", "x"),
        ];
        let headers: Vec<_> =
            pairs.iter().map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec())).collect();
        let sent = for_bytes(&headers, Some(&(0..1)));
        let names: Vec<_> = sent.keys().map(HeaderName::as_str).collect();
        assert_eq!((sent.len(), sent["range"].to_str().unwrap()), (3, "bytes=0-0"), "{names:?}");
        assert_eq!(sent["cookie"], "a=b");
    }

    /// A HEAD with `Content-Length: 40` once went to the Hub without its body, and took 40 bytes of the next client's request.
    #[test]
    fn what_frames_a_clients_body_is_never_passed_on_as_it_is() {
        let framing = ["Content-Length", "Transfer-Encoding", "Expect", "TE", "Trailer"];
        let about = ["Content-Type", "Content-Encoding", "Content-Language"];
        let headers: Vec<_> = framing.iter().chain(&about).map(|name| ((*name).to_owned(), b"40".to_vec())).collect();
        let mut passed: Vec<_> = forwarded(&headers).keys().map(|name| name.as_str().to_owned()).collect();
        passed.sort();
        assert_eq!(passed, ["content-encoding", "content-language", "content-type"]);
        assert_eq!(for_bytes(&headers, None).keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["accept-encoding"]);
    }

    #[test]
    fn what_is_kept_of_a_head_does_not_keep_the_buffer_it_came_in() {
        let buffer = bytes::Bytes::from(b"\"abc\" and the rest of the head".to_vec());
        let mut headers = HeaderMap::new();
        headers.append(header::ETAG, HeaderValue::from_maybe_shared(buffer.slice(..5)).unwrap());
        headers.append(header::VARY, HeaderValue::from_static("a"));
        headers.append(header::VARY, HeaderValue::from_static("b"));
        let kept = detached(&headers);
        assert_eq!(kept, headers);
        drop(headers);
        assert!(buffer.is_unique());
    }
}
