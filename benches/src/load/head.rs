//! The heads of requests and responses (RFC 9112).

use std::{io::Write as _, ops::Range};

use super::body::Body;

/// More fields than this, and the answer is refused.
const MOST_FIELDS: usize = 100;

/// The first lines of a request for a path, without what differs from one request to the next.
pub(super) fn request<'a>(path: &str, authority: &str, fields: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<u8> {
    let mut head = format!("GET {path} HTTP/1.1\r\nhost: {authority}\r\nuser-agent: pondhawk-bench\r\naccept: */*\r\n");
    for (name, value) in fields {
        head.extend([name, ": ", value, "\r\n"]);
    }
    head.into_bytes()
}

/// Puts the whole request into `out`.
pub(super) fn complete(out: &mut Vec<u8>, request: &[u8], range: Option<&Range<u64>>) {
    out.clear();
    out.extend_from_slice(request);
    if let Some(range) = range {
        // Writing into memory does not fail.
        let _ = write!(out, "range: bytes={}-{}\r\n", range.start, range.end - 1);
    }
    out.extend_from_slice(b"\r\n");
}

/// What a response says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) status: u16,
    pub(super) body: Body,
    /// Whether the connection may be used again.
    pub(super) keep_alive: bool,
    pub(super) location: Option<String>,
    pub(super) content_range: Option<ContentRange>,
    /// Bytes of the head itself.
    pub(super) len: usize,
}

/// A Content-Range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ContentRange {
    pub(super) range: Range<u64>,
    /// Size of the whole object, if the server says it.
    pub(super) size: Option<u64>,
}

/// The answer is no HTTP/1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadHead {
    #[error("the answer is no HTTP/1: {0}")]
    Syntax(#[from] httparse::Error),
    #[error("the answer's {0} makes no sense: {1:?}")]
    Field(&'static str, String),
}

/// Reads a head; none: it is not complete.
pub(super) fn parse(bytes: &[u8]) -> Result<Option<Head>, BadHead> {
    let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS];
    let mut response = httparse::Response::new(&mut fields);
    let httparse::Status::Complete(len) = response.parse(bytes)? else { return Ok(None) };
    let status = response.code.unwrap_or_default();
    let mut head = Head {
        status,
        body: Body::UntilEnd,
        keep_alive: response.version == Some(1),
        location: None,
        content_range: None,
        len,
    };
    let mut chunked = false;
    for field in &*response.headers {
        let value = || String::from_utf8_lossy(field.value).trim().to_owned();
        if field.name.eq_ignore_ascii_case("content-length") {
            head.body = Body::Length(value().parse().map_err(|_| BadHead::Field("content-length", value()))?);
        } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
            chunked |= value().to_ascii_lowercase().ends_with("chunked");
        } else if field.name.eq_ignore_ascii_case("connection") {
            head.keep_alive &= !value().eq_ignore_ascii_case("close");
        } else if field.name.eq_ignore_ascii_case("location") {
            head.location = Some(value());
        } else if field.name.eq_ignore_ascii_case("content-range") && status == 206 {
            let parsed = content_range(&value()).ok_or_else(|| BadHead::Field("content-range", value()))?;
            head.content_range = Some(parsed);
        }
    }
    if chunked {
        head.body = Body::chunked();
    }
    if status < 200 || status == 204 || status == 304 {
        head.body = Body::Length(0);
    }
    head.keep_alive &= head.body != Body::UntilEnd;
    Ok(Some(head))
}

fn content_range(text: &str) -> Option<ContentRange> {
    let (range, size) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    let size = if size == "*" { None } else { Some(size.parse().ok()?) };
    (first <= last).then(|| ContentRange { range: first..last.saturating_add(1), size })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(text: &str) -> Head {
        parse(text.as_bytes()).unwrap().unwrap()
    }

    #[test]
    fn a_request_names_its_range_by_the_last_byte() {
        let request = request("/a?b", "host:1", [("x", "y")].into_iter());
        let mut out = b"old".to_vec();
        complete(&mut out, &request, Some(&(5..10)));
        let text = String::from_utf8(out).unwrap();
        assert!(text.starts_with("GET /a?b HTTP/1.1\r\nhost: host:1\r\n"), "{text}");
        assert!(text.ends_with("\r\nx: y\r\nrange: bytes=5-9\r\n\r\n"), "{text}");
    }

    #[test]
    fn a_part_of_an_object_is_understood() {
        let text = "HTTP/1.1 206 Partial Content\r\nContent-Length: 5\r\nContent-Range: bytes 5-9/100\r\n\r\nabcde";
        let head = head(text);
        assert_eq!((head.status, head.body, head.keep_alive), (206, Body::Length(5), true));
        assert_eq!(head.content_range, Some(ContentRange { range: 5..10, size: Some(100) }));
        assert_eq!(head.len, text.len() - 5);
        assert_eq!(parse(&text.as_bytes()[..20]), Ok(None));
    }

    #[test]
    fn a_connection_is_used_again_only_if_the_body_ends_before_it() {
        assert!(!head("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\n").keep_alive);
        assert!(!head("HTTP/1.1 200 OK\r\n\r\n").keep_alive);
        assert!(!head("HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n").keep_alive);
        assert!(head("HTTP/1.1 304 Not Modified\r\n\r\n").keep_alive);
        let both = head("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n");
        assert!(both.keep_alive && both.body == Body::chunked());
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(parse(b"SSH-2.0-OpenSSH\r\n\r\n").is_err());
        assert!(parse(b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n").is_err());
        assert!(parse(b"HTTP/1.1 206 OK\r\nContent-Range: bytes 9-5/10\r\n\r\n").is_err());
    }
}
