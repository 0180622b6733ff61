//! Whether an origin's response may be stored and served again [pure] (RFC 9111 §3, narrowed to immutable files).
//!
//! Freshness lifetimes (max-age, Expires, no-cache) do not matter: a task's name holds a content hash or a strong
//! validator that the origin has just given, and the origin is asked again for every client. What the origin says about
//! *who* may see the response (private, no-store) does. That a request carried Authorization does not forbid storing
//! (RFC 9111 §3.5): nobody is served from the store without the origin's consent to that very client.

use super::{
    etag::Etag,
    head::{decimal, list},
    range::ContentRange,
    response::{end_to_end, field, is_recomputed},
};
use crate::task::piece::MAX_TASK_LEN;

/// Header lines kept of one response.
pub const MAX_KEPT_HEADERS: usize = 64;
/// Bytes of names and values kept of one response.
pub const MAX_KEPT_BYTES: usize = 16 << 10;

/// How the origin was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// With a Range field.
    pub range: bool,
    /// For a name that holds a hash of the content, so that no validator is needed.
    pub content_addressed: bool,
}

/// The verdict on a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cacheability {
    /// It may become a task.
    Cache(Cacheable),
    /// It goes to the client that asked and to nobody else.
    PassThrough(Reason),
}

/// What a task takes from the response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cacheable {
    /// Bytes in the whole representation, at most [`MAX_TASK_LEN`].
    pub len: u64,
    /// Whether the origin is known to serve ranges: it sent a 206, or Accept-Ranges names bytes.
    pub ranges: bool,
    /// The strong entity tag; always there unless the name is content-addressed.
    pub etag: Option<Etag>,
    /// To replay to clients, Content-Type, Last-Modified and Date among them; names in lower case.
    pub headers: Vec<(String, Vec<u8>)>,
}

/// Why a response is not stored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// Neither 200 nor 206.
    #[error("status {0}")]
    Status(u16),
    /// Cache-Control: no-store.
    #[error("Cache-Control: no-store")]
    NoStore,
    /// Cache-Control: private, with or without field names.
    #[error("Cache-Control: private")]
    Private,
    /// It depends on a request header that is no part of the key.
    #[error("Vary: {0}")]
    Vary(String),
    /// Made for one client.
    #[error("Set-Cookie")]
    SetCookie,
    /// Encoded although identity was asked for.
    #[error("Content-Encoding: {0}")]
    ContentEncoding(String),
    /// The length of the whole is unknown.
    #[error("no length")]
    NoLength,
    /// Longer than a task can be.
    #[error("{0} bytes, longer than a task can be")]
    TooLong(u64),
    /// A mutable name without a strong entity tag.
    #[error("no strong ETag")]
    NoValidator,
    /// The origin ignores ranges: it could neither be resumed nor fetched in parallel.
    #[error("no range support")]
    NoRanges,
    /// More than [`MAX_KEPT_HEADERS`] or [`MAX_KEPT_BYTES`].
    #[error("too many response headers")]
    TooManyHeaders,
}

/// Judges a response by its status and headers (names in lower case).
pub fn judge(status: u16, headers: &[(String, Vec<u8>)], asked: Asked) -> Cacheability {
    match cacheable(status, headers, asked) {
        Ok(it) => Cacheability::Cache(it),
        Err(reason) => Cacheability::PassThrough(reason),
    }
}

fn cacheable(status: u16, headers: &[(String, Vec<u8>)], asked: Asked) -> Result<Cacheable, Reason> {
    if !matches!(status, 200 | 206) {
        return Err(Reason::Status(status));
    }
    refuse_by_cache_control(headers)?;
    if field(headers, "set-cookie").is_some() {
        return Err(Reason::SetCookie);
    }
    if let Some(vary) = elements(headers, "vary").find(|field| !is_harmless_to_vary_on(field)) {
        return Err(Reason::Vary(String::from_utf8_lossy(vary).into_owned()));
    }
    if let Some(coding) = elements(headers, "content-encoding").find(|it| !it.eq_ignore_ascii_case(b"identity")) {
        return Err(Reason::ContentEncoding(String::from_utf8_lossy(coding).into_owned()));
    }
    let ranges = ranges(status, headers, asked)?;
    let len = whole_len(status, headers).ok_or(Reason::NoLength)?;
    if len > MAX_TASK_LEN {
        return Err(Reason::TooLong(len));
    }
    let etag = field(headers, "etag").and_then(Etag::parse).filter(Etag::is_strong);
    if etag.is_none() && !asked.content_addressed {
        return Err(Reason::NoValidator);
    }
    Ok(Cacheable { len, ranges, etag, headers: kept(headers)? })
}

/// A directive with an argument (`private="x"`) counts as the bare one: sharing less is always right.
fn refuse_by_cache_control(headers: &[(String, Vec<u8>)]) -> Result<(), Reason> {
    for directive in elements(headers, "cache-control") {
        let name = directive.split(|byte| *byte == b'=').next().unwrap_or_default().trim_ascii();
        if name.eq_ignore_ascii_case(b"no-store") {
            return Err(Reason::NoStore);
        }
        if name.eq_ignore_ascii_case(b"private") {
            return Err(Reason::Private);
        }
    }
    Ok(())
}

/// Accept-Encoding: identity is always asked for. Origin and the preflight fields (object stores list all three) vary
/// only the `Access-Control-*` lines, which are then not kept.
fn is_harmless_to_vary_on(field: &[u8]) -> bool {
    [b"accept-encoding".as_slice(), b"origin", b"access-control-request-headers", b"access-control-request-method"]
        .iter()
        .any(|harmless| field.eq_ignore_ascii_case(harmless))
}

fn ranges(status: u16, headers: &[(String, Vec<u8>)], asked: Asked) -> Result<bool, Reason> {
    let refused = elements(headers, "accept-ranges").any(|unit| unit.eq_ignore_ascii_case(b"none"));
    let empty = whole_len(status, headers) == Some(0);
    // An empty file has no range to send, so a 200 to a ranged request is right.
    if status == 200 && !empty && (asked.range || refused) {
        return Err(Reason::NoRanges);
    }
    Ok(status == 206 || elements(headers, "accept-ranges").any(|unit| unit.eq_ignore_ascii_case(b"bytes")))
}

fn whole_len(status: u16, headers: &[(String, Vec<u8>)]) -> Option<u64> {
    if status == 206 {
        return ContentRange::parse(field(headers, "content-range")?).filter(|it| it.range.is_some())?.total;
    }
    let mut lengths = elements(headers, "content-length").map(decimal);
    let first = lengths.next()??;
    lengths.all(|other| other == Some(first)).then_some(first)
}

fn kept(headers: &[(String, Vec<u8>)]) -> Result<Vec<(String, Vec<u8>)>, Reason> {
    let varies_on_origin = elements(headers, "vary").any(|field| field.eq_ignore_ascii_case(b"origin"));
    let dropped = |name: &str| {
        is_recomputed(name) || describes_message(name) || varies_on_origin && name.starts_with("access-control-")
    };
    let kept: Vec<_> = end_to_end(headers)
        .filter(|(name, _)| !dropped(name))
        .map(|(name, value)| (name.to_owned(), value.to_vec()))
        .collect();
    let bytes: usize = kept.iter().map(|(name, value)| name.len() + value.len()).sum();
    if kept.len() > MAX_KEPT_HEADERS || bytes > MAX_KEPT_BYTES { Err(Reason::TooManyHeaders) } else { Ok(kept) }
}

/// Digests of the message's own bytes (RFC 9530 §2, RFC 1864): those of a one-byte probe are wrong for every other
/// reply.
fn describes_message(name: &str) -> bool {
    matches!(name, "content-digest" | "content-md5")
}

fn elements<'a>(headers: &'a [(String, Vec<u8>)], name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    headers.iter().filter(move |(held, _)| held == name).flat_map(|(_, value)| list(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NAMED: Asked = Asked { range: true, content_addressed: false };

    fn answer(status: u16, more: &[(&str, &str)], asked: Asked) -> Cacheability {
        let base = match status {
            206 => vec![("content-range", "bytes 0-0/1000"), ("content-length", "1")],
            _ => vec![("content-length", "1000")],
        };
        let lines = base.iter().chain(more);
        let headers: Vec<_> = lines.map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec())).collect();
        judge(status, &headers, asked)
    }

    fn refused(more: &[(&str, &str)]) -> Option<Reason> {
        match answer(206, &[&[("etag", "\"a\"")], more].concat(), NAMED) {
            Cacheability::PassThrough(reason) => Some(reason),
            Cacheability::Cache(_) => None,
        }
    }

    #[test]
    fn a_cdn_answer_is_kept_with_its_own_headers_only() {
        let more = [
            ("etag", "\"a\""),
            ("content-type", "x/y"),
            ("cache-control", "public, max-age=604800, no-cache"),
            ("age", "55"),
            ("vary", "Origin, Access-Control-Request-Headers, accept-encoding"),
            ("access-control-allow-origin", "https://a"),
            ("connection", "x-hop"),
            ("x-hop", "1"),
            ("alt-svc", "h3"),
            ("content-md5", "of one byte"),
            ("date", "d"),
        ];
        let Cacheability::Cache(it) = answer(206, &more, NAMED) else { panic!("refused") };
        assert_eq!((it.len, it.ranges, it.etag), (1000, true, Etag::parse(b"\"a\"")));
        let names: Vec<_> = it.headers.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["etag", "content-type", "cache-control", "vary", "date"]);
    }

    #[test]
    fn what_is_for_one_client_only_is_passed_through() {
        assert_eq!(refused(&[]), None);
        assert_eq!(refused(&[("cache-control", "max-age=1, No-Store")]), Some(Reason::NoStore));
        assert_eq!(refused(&[("cache-control", "private")]), Some(Reason::Private));
        assert_eq!(refused(&[("cache-control", "private=\"x-a\"")]), Some(Reason::Private));
        assert_eq!(refused(&[("vary", "accept-encoding"), ("vary", "Cookie")]), Some(Reason::Vary("Cookie".into())));
        assert_eq!(refused(&[("vary", "*")]), Some(Reason::Vary("*".into())));
        assert_eq!(refused(&[("set-cookie", "a=b")]), Some(Reason::SetCookie));
        assert_eq!(refused(&[("content-encoding", "gzip")]), Some(Reason::ContentEncoding("gzip".into())));
        assert_eq!(refused(&[("content-encoding", "identity")]), None);
    }

    #[test]
    fn a_mutable_name_needs_a_strong_validator_and_a_hash_does_not() {
        let hashed = Asked { content_addressed: true, ..NAMED };
        for etag in ["W/\"a\"", "a"] {
            assert_eq!(answer(206, &[("etag", etag)], NAMED), Cacheability::PassThrough(Reason::NoValidator));
            assert!(matches!(
                answer(206, &[("etag", etag)], hashed),
                Cacheability::Cache(Cacheable { etag: None, .. })
            ));
        }
    }

    #[test]
    fn without_a_length_or_ranges_there_is_no_task() {
        let etag = ("etag", "\"a\"");
        let unranged = Asked { range: false, ..NAMED };
        let bytes =
            |total: &str| vec![("etag".to_owned(), b"\"a\"".to_vec()), ("content-range".to_owned(), total.into())];
        let reason = |verdict| match verdict {
            Cacheability::PassThrough(reason) => Some(reason),
            Cacheability::Cache(_) => None,
        };
        assert_eq!(reason(answer(200, &[etag], NAMED)), Some(Reason::NoRanges));
        assert_eq!(reason(answer(200, &[etag], unranged)), None);
        assert_eq!(reason(answer(200, &[etag, ("accept-ranges", "none")], unranged)), Some(Reason::NoRanges));
        assert_eq!(reason(judge(206, &bytes("bytes 0-0/*"), NAMED)), Some(Reason::NoLength));
        assert_eq!(reason(judge(200, &bytes("bytes 0-0/1"), unranged)), Some(Reason::NoLength));
        assert_eq!(reason(answer(200, &[etag, ("content-length", "7")], unranged)), Some(Reason::NoLength));
        let huge = format!("bytes 0-0/{}", MAX_TASK_LEN + 1);
        assert_eq!(reason(judge(206, &bytes(&huge), NAMED)), Some(Reason::TooLong(MAX_TASK_LEN + 1)));
        assert_eq!(reason(answer(403, &[etag], NAMED)), Some(Reason::Status(403)));
        let empty = vec![("content-length".to_owned(), b"0".to_vec()), ("etag".to_owned(), b"\"a\"".to_vec())];
        assert_eq!(reason(judge(200, &empty, NAMED)), None);
    }

    proptest! {
        #[test]
        fn no_headers_panic_and_what_is_kept_is_bounded(
            status in prop_oneof![Just(200u16), Just(206)],
            range: bool,
            headers in proptest::collection::vec((
                "(etag|vary|content-length|content-range|cache-control|x-a)",
                proptest::collection::vec(any::<u8>(), 0..20),
            ), 0..100),
        ) {
            if let Cacheability::Cache(it) = judge(status, &headers, Asked { range, content_addressed: true }) {
                prop_assert!(it.headers.len() <= MAX_KEPT_HEADERS);
            }
        }
    }
}
