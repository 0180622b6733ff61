//! Response heads as bytes [pure]: what the origin said, less what holds only for its connection, plus what we know.

use super::{date, head::Version, head::list, range::ContentRange};

/// Sent when a client waits for it before its body (RFC 9110 §15.2.1).
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
/// Our entry in Via.
pub const VIA: &str = "1.1 pondhawk";

/// The circumstances of one reply.
#[derive(Clone, Copy, Debug)]
pub struct About {
    /// Unix seconds.
    pub now: i64,
    /// Seconds since the origin vouched for the stored response (RFC 9111 §5.1).
    pub age: u64,
    /// The client's version.
    pub version: Version,
    /// Whether we keep the connection open after the reply.
    pub keep_alive: bool,
}

/// What of a stored task goes out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection<'a> {
    /// 200 and all `len` bytes.
    Whole {
        /// Bytes in the task.
        len: u64,
    },
    /// 206 and one range, not empty.
    Part {
        /// What [`super::range::parse_range`] gave.
        range: std::ops::Range<u64>,
        /// Bytes in the whole of which it is a range, where known.
        total: Option<u64>,
    },
    /// 206 and several ranges: see [`super::Multipart`].
    Parts {
        /// [`super::Multipart::content_type`].
        content_type: &'a str,
        /// [`super::Multipart::content_length`].
        content_length: u64,
    },
    /// 304, without a body.
    NotModified,
    /// 412, with an empty body.
    PreconditionFailed,
    /// 416, with an empty body.
    Unsatisfiable {
        /// Bytes in the task.
        total: u64,
    },
}

impl Selection<'_> {
    /// The status of its reply.
    pub fn status(&self) -> u16 {
        match self {
            Self::Whole { .. } => 200,
            Self::Part { .. } | Self::Parts { .. } => 206,
            Self::NotModified => 304,
            Self::PreconditionFailed => 412,
            Self::Unsatisfiable { .. } => 416,
        }
    }
}

/// How the body of a relayed response ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelayedBody {
    /// After as many bytes. Also for a HEAD whose answer told a length.
    Length(u64),
    /// Chunked; the client must speak HTTP/1.1.
    Chunked,
    /// With the connection; [`About::keep_alive`] is then taken as false.
    UntilClose,
    /// There is none, nor a length to tell: 204, 304, the answer to a HEAD.
    None,
}

/// Who is at fault for an error of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Party {
    /// The request.
    Client,
    /// The server that holds the original.
    Origin,
    /// This node: its disk, its limits.
    Node,
    /// Another peer.
    Peer,
}

impl Party {
    /// As `X-Pondhawk-Error` spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Origin => "origin",
            Self::Node => "node",
            Self::Peer => "peer",
        }
    }
}

/// The head of a reply from a stored task; `stored` are the origin's headers, names in lower case.
pub fn stored_reply(selection: &Selection<'_>, stored: &[(String, Vec<u8>)], about: &About) -> Vec<u8> {
    let mut head = Head::new(selection.status());
    let sent = |name: &str| match selection {
        Selection::Whole { .. } | Selection::Part { .. } => true,
        Selection::Parts { .. } => name != "content-type",
        _ => !describes_body(name),
    };
    let kept = end_to_end(stored).filter(|(name, _)| !is_recomputed(name) && *name != "date" && sent(name));
    kept.for_each(|(name, value)| head.add(name, value));
    head.add("accept-ranges", b"bytes");
    match selection {
        Selection::Whole { len } => head.add_text("content-length", len),
        Selection::Part { range, total } => {
            head.add_text("content-length", range.end - range.start);
            head.add_text("content-range", ContentRange { range: Some(range.clone()), total: *total });
        }
        Selection::Parts { content_type, content_length } => {
            head.add("content-type", content_type.as_bytes());
            head.add_text("content-length", content_length);
        }
        Selection::NotModified => {}
        Selection::PreconditionFailed => head.add_text("content-length", 0),
        Selection::Unsatisfiable { total } => {
            head.add_text("content-length", 0);
            head.add_text("content-range", ContentRange { range: None, total: Some(*total) });
        }
    }
    head.add_text("age", about.age);
    head.add_text("date", date::format(about.now));
    head.finish(true, about)
}

/// The head of an origin's response that is passed through as it comes. Its Date and Age stay, its framing is ours.
pub fn relayed_reply(status: u16, headers: &[(String, Vec<u8>)], body: RelayedBody, about: &About) -> Vec<u8> {
    let mut head = Head::new(status);
    for (name, value) in end_to_end(headers) {
        if !matches!(name, "content-length" | "via") {
            head.add(name, value);
        }
    }
    for (_, value) in headers.iter().filter(|(name, _)| name == "via") {
        head.add("via", value);
    }
    match body {
        RelayedBody::Length(len) => head.add_text("content-length", len),
        RelayedBody::Chunked => head.add("transfer-encoding", b"chunked"),
        RelayedBody::UntilClose | RelayedBody::None => {}
    }
    if !headers.iter().any(|(name, _)| name == "date") {
        head.add_text("date", date::format(about.now));
    }
    let keep_alive = about.keep_alive && body != RelayedBody::UntilClose;
    head.finish(true, &About { keep_alive, ..*about })
}

/// A whole error reply of our own, with a body of one line unless `head_only` (the answer to a HEAD). `sentence` is
/// meant for the person at the client and must name no secret; `extra` holds headers such as Retry-After.
pub fn error_reply(
    status: u16,
    party: Party,
    sentence: &str,
    extra: &[(&str, &str)],
    head_only: bool,
    about: &About,
) -> Vec<u8> {
    let one_line: String = sentence.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let body = format!("pondhawk: {one_line} (at fault: {})\n", party.name());
    let mut head = Head::new(status);
    extra.iter().for_each(|(name, value)| head.add(name, value.as_bytes()));
    head.add("x-pondhawk-error", format!("{}; {one_line}", party.name()).as_bytes());
    head.add("cache-control", b"no-store");
    head.add("content-type", b"text/plain; charset=utf-8");
    head.add_text("content-length", body.len());
    head.add_text("date", date::format(about.now));
    let mut reply = head.finish(false, about);
    if !head_only {
        reply.extend_from_slice(body.as_bytes());
    }
    reply
}

/// A head with further fields, put before its end.
///
/// # Panics
/// If `head` does not end with an empty line.
pub fn with_fields(head: Vec<u8>, fields: &[(String, Vec<u8>)]) -> Vec<u8> {
    assert!(head.ends_with(b"\r\n\r\n"), "a head ends with an empty line");
    let mut head = Head(head);
    head.0.truncate(head.0.len() - 2);
    fields.iter().for_each(|(name, value)| head.add(name, value));
    head.0.extend_from_slice(b"\r\n");
    head.0
}

/// The headers that are meant for the next hop: without the connection's own (RFC 9110 §7.6.1) and those that
/// Connection names. Alt-Svc goes too: it would lead the client to another port of the origin, around us. For requests
/// and responses; names in lower case.
pub fn end_to_end(headers: &[(String, Vec<u8>)]) -> impl Iterator<Item = (&str, &[u8])> {
    let named: Vec<&[u8]> =
        headers.iter().filter(|(name, _)| name == "connection").flat_map(|(_, value)| list(value)).collect();
    let passes = move |name: &str| {
        !is_hop_by_hop(name) && !named.iter().any(|option| option.eq_ignore_ascii_case(name.as_bytes()))
    };
    headers.iter().map(|(name, value)| (name.as_str(), value.as_slice())).filter(move |(name, _)| passes(name))
}

/// The value of the first line with this lower-case name.
pub fn field<'a>(headers: &'a [(String, Vec<u8>)], name: &str) -> Option<&'a [u8]> {
    headers.iter().find(|(held, _)| held == name).map(|(_, value)| value.as_slice())
}

/// Whether a lower-case name belongs to one connection only.
pub fn is_hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "alt-svc"
            | "connection"
            | "keep-alive"
            | "proxy-authenticate"
            | "proxy-authentication-info"
            | "proxy-authorization"
            | "proxy-connection"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
    )
}

/// Whether a lower-case name of a request's header is about its body, which a question of the node's own does not have.
pub fn is_about_request_body(name: &str) -> bool {
    is_framing(name) || matches!(name, "content-encoding" | "content-language" | "content-location" | "content-type")
}

/// Whether a lower-case name of a request's header says how its body is framed or awaited. Each hop says that itself: a
/// length without its bytes makes the next request of the connection a body.
pub fn is_framing(name: &str) -> bool {
    matches!(name, "content-length" | "expect" | "te" | "trailer" | "transfer-encoding")
}

/// Whether a stored reply computes the field anew; such fields are not worth storing. (Date is stored: If-Range needs
/// it.)
pub fn is_recomputed(name: &str) -> bool {
    matches!(name, "accept-ranges" | "age" | "content-length" | "content-range" | "via")
}

/// Whether the bytes can stand in a header line: no control character but tab (RFC 9110 §5.5).
pub fn is_field_value(value: &[u8]) -> bool {
    value.iter().all(|byte| matches!(byte, b'\t' | b' '..=b'~' | 0x80..))
}

/// Whether the text can be a header's name (RFC 9110 §5.6.2).
pub fn is_field_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !name.is_empty() && name.bytes().all(allowed)
}

/// Fields about a body that the reply does not carry (RFC 9110 §15.4.5).
fn describes_body(name: &str) -> bool {
    name.starts_with("content-") && !matches!(name, "content-location" | "content-security-policy")
}

struct Head(Vec<u8>);

impl Head {
    fn new(status: u16) -> Self {
        Self(format!("HTTP/1.1 {status} {}\r\n", reason(status)).into_bytes())
    }

    /// What cannot stand in a head is left out: stored or relayed bytes never start a line of their own.
    fn add(&mut self, name: &str, value: &[u8]) {
        if !is_field_name(name) || !is_field_value(value) {
            return;
        }
        // Upper case at each word's start, for the eyes of people and of clients that should not care but do.
        let mut starts_word = true;
        for byte in name.bytes() {
            self.0.push(if starts_word { byte.to_ascii_uppercase() } else { byte });
            starts_word = byte == b'-';
        }
        self.0.extend_from_slice(b": ");
        self.0.extend_from_slice(value);
        self.0.extend_from_slice(b"\r\n");
    }

    fn add_text(&mut self, name: &str, value: impl std::fmt::Display) {
        self.add(name, format!("{value}").as_bytes());
    }

    fn finish(mut self, via: bool, about: &About) -> Vec<u8> {
        if via {
            self.add("via", VIA.as_bytes());
        }
        match (about.keep_alive, about.version) {
            (false, _) => self.add("connection", b"close"),
            (true, Version::Http10) => self.add("connection", b"keep-alive"),
            (true, Version::Http11) => {}
        }
        self.0.extend_from_slice(b"\r\n");
        self.0
    }
}

/// The usual phrase; clients must not read it, so an unknown status has none.
fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        206 => "Partial Content",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        407 => "Proxy Authentication Required",
        408 => "Request Timeout",
        410 => "Gone",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        416 => "Range Not Satisfiable",
        421 => "Misdirected Request",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        508 => "Loop Detected",
        _ => "",
    }
}

#[cfg(test)]
#[path = "response_tests.rs"]
mod tests;
