//! Request heads [pure] (RFC 9112): strict where two readers could disagree on where a request ends.

use url::Url;

use super::{
    response::field,
    target::{Authority, Target},
};

/// Bounds of a request head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadLimits {
    /// Bytes from the request line to the empty line.
    pub bytes: usize,
    /// Header lines.
    pub headers: usize,
    /// Bytes of the request target. Signed URLs are long.
    pub target: usize,
}

impl Default for HeadLimits {
    fn default() -> Self {
        Self { bytes: 64 << 10, headers: 128, target: 16 << 10 }
    }
}

/// What the bytes received so far hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// Read more and ask again with all of it.
    Incomplete,
    /// A whole head.
    Complete {
        /// The head, checked.
        head: RequestHead,
        /// Its bytes, with empty lines before it; the body or the next head starts there.
        consumed: usize,
    },
}

/// HTTP/1's minor version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    Http11,
}

/// How the end of the request's body is known (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// No body.
    None,
    /// Exactly that many bytes.
    Length(u64),
    /// Chunked: see [`super::Chunked`].
    Chunked,
}

/// One request head whose host and body framing are unambiguous.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestHead {
    /// As sent: methods are case-sensitive.
    pub method: String,
    /// What is asked for.
    pub target: Target,
    /// The client's version.
    pub version: Version,
    /// Names in lower case, values without surrounding white space; in order.
    pub headers: Vec<(String, Vec<u8>)>,
    authority: Option<Authority>,
    framing: Framing,
}

/// The client sent what is no acceptable head. The text is meant for the client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// Not HTTP/1 at all, or a byte that may not be there.
    #[error("the request head is malformed: {0}")]
    Malformed(&'static str),
    /// The request target is no URL path, absolute URL, or host:port.
    #[error("the request target is malformed")]
    Target,
    /// Host is missing, repeated, or names no host.
    #[error("the Host field is {0}")]
    Host(&'static str),
    /// The body's end is ambiguous.
    #[error("the length of the request body is ambiguous: {0}")]
    Framing(&'static str),
    /// A transfer coding other than chunked.
    #[error("only the transfer coding `chunked` is understood")]
    TransferCoding,
    /// The target is longer than [`HeadLimits::target`].
    #[error("the request target is too long")]
    TargetTooLong,
    /// More bytes than [`HeadLimits::bytes`] or more lines than [`HeadLimits::headers`].
    #[error("the request head is too large")]
    TooLarge,
    /// HTTP/2 or a version unknown.
    #[error("only HTTP/1.0 and HTTP/1.1 are understood")]
    Version,
}

impl HeadError {
    /// The status to answer with; the connection is closed after it.
    pub fn status(&self) -> u16 {
        match self {
            Self::Malformed(_) | Self::Target | Self::Host(_) | Self::Framing(_) => 400,
            Self::TargetTooLong => 414,
            Self::TooLarge => 431,
            Self::TransferCoding => 501,
            Self::Version => 505,
        }
    }
}

/// Reads the head at the start of `bytes`: everything received since the last request's end.
pub fn parse(bytes: &[u8], limits: &HeadLimits) -> Result<Parsed, HeadError> {
    parse_more(bytes, 0, limits)
}

/// The same, when the first `seen` bytes were [`Parsed::Incomplete`] before: they are not searched again, so that a
/// client that sends its head byte by byte costs no more than another.
pub fn parse_more(bytes: &[u8], seen: usize, limits: &HeadLimits) -> Result<Parsed, HeadError> {
    let skipped = leading_empty_lines(bytes);
    let bytes = &bytes[skipped..];
    let Some(len) = head_len(&bytes[..bytes.len().min(limits.bytes)], seen.saturating_sub(skipped))? else {
        return unfinished(bytes, limits);
    };
    let mut lines = vec![httparse::EMPTY_HEADER; limits.headers];
    let mut request = httparse::Request::new(&mut lines);
    match request.parse(&bytes[..len]).map_err(explain)? {
        httparse::Status::Complete(parsed) if parsed == len => {}
        _ => return Err(HeadError::Malformed("an empty line inside it")),
    }
    let (Some(method), Some(path), Some(minor)) = (request.method, request.path, request.version) else {
        return Err(HeadError::Malformed("no request line"));
    };
    if path.len() > limits.target {
        return Err(HeadError::TargetTooLong);
    }
    let version = if minor == 0 { Version::Http10 } else { Version::Http11 };
    let headers = request.headers.iter().map(|it| (it.name.to_ascii_lowercase(), it.value.to_vec())).collect();
    let head = RequestHead::checked(method.to_owned(), Target::parse(method, path)?, version, headers)?;
    Ok(Parsed::Complete { head, consumed: skipped + len })
}

impl RequestHead {
    /// A head of these parts, if its host and its framing are unambiguous. Names must be in lower case.
    pub fn checked(
        method: String,
        target: Target,
        version: Version,
        headers: Vec<(String, Vec<u8>)>,
    ) -> Result<Self, HeadError> {
        let mut head = Self { method, target, version, headers, authority: None, framing: Framing::None };
        head.authority = head.find_authority()?;
        head.framing = head.find_framing()?;
        if head.method == "CONNECT" && !matches!(head.framing, Framing::None | Framing::Length(0)) {
            return Err(HeadError::Framing("CONNECT has no body"));
        }
        Ok(head)
    }

    /// The value of the first line with this lower-case name.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        field(&self.headers, name)
    }

    /// The values of all lines with this lower-case name, in order.
    pub fn get_all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.headers.iter().filter(move |(held, _)| held == name).map(|(_, value)| value.as_slice())
    }

    /// Whom the request is for: the target's authority, else the Host field. `None` only on HTTP/1.0 without Host, or
    /// with an empty Host.
    pub fn host(&self) -> Option<&Authority> {
        self.authority.as_ref()
    }

    /// The URL asked for (RFC 9110 §7.1); `scheme` is that of the connection, for targets that do not say. `None` for
    /// CONNECT, `*`, and without a host. It names the content: to pass a request on byte for byte, take the target
    /// itself, because a [`Url`] resolves dot segments and encodes quotes.
    pub fn url(&self, scheme: &str) -> Option<Url> {
        let scheme = if let Target::Absolute { scheme, .. } = &self.target { scheme } else { scheme };
        Url::parse(&format!("{scheme}://{}{}", self.authority.as_ref()?, self.target.path_and_query()?)).ok()
    }

    /// How the body's end is known.
    pub fn framing(&self) -> Framing {
        self.framing
    }

    /// Whether bytes of a body follow the head.
    pub fn has_body(&self) -> bool {
        !matches!(self.framing, Framing::None | Framing::Length(0))
    }

    /// Whether the client takes another reply on this connection (RFC 9112 §9.3).
    pub fn keep_alive(&self) -> bool {
        match self.version {
            _ if self.has_option("close") => false,
            Version::Http10 => self.has_option("keep-alive"),
            Version::Http11 => true,
        }
    }

    /// Whether the client waits for `100 Continue` before its body (RFC 9110 §10.1.1).
    pub fn expect_continue(&self) -> bool {
        let expects = |value: &[u8]| value.eq_ignore_ascii_case(b"100-continue");
        self.version == Version::Http11 && self.framing != Framing::None && self.get_all("expect").any(expects)
    }

    /// The protocol to upgrade to, when the client asks for one properly (RFC 9110 §7.8).
    pub fn upgrade(&self) -> Option<&[u8]> {
        self.get("upgrade").filter(|_| self.version == Version::Http11 && self.has_option("upgrade"))
    }

    fn has_option(&self, option: &str) -> bool {
        self.get_all("connection").flat_map(list).any(|it| it.eq_ignore_ascii_case(option.as_bytes()))
    }

    fn find_authority(&self) -> Result<Option<Authority>, HeadError> {
        let mut values = self.get_all("host");
        let named = match values.next() {
            None if self.version == Version::Http11 => return Err(HeadError::Host("missing")),
            None | Some(b"") => None,
            Some(value) => Some(Authority::parse(value).ok_or(HeadError::Host("malformed"))?),
        };
        if values.next().is_some() {
            return Err(HeadError::Host("repeated"));
        }
        Ok(match &self.target {
            Target::Absolute { authority, .. } => Some(authority.clone()),
            Target::Authority { host, port } => Some(Authority { host: host.clone(), port: Some(*port) }),
            Target::Origin { .. } | Target::Asterisk => named,
        })
    }

    fn find_framing(&self) -> Result<Framing, HeadError> {
        let lengths: Vec<_> = self.get_all("content-length").collect();
        if self.get("transfer-encoding").is_none() {
            return match lengths[..] {
                [] => Ok(Framing::None),
                [one] => decimal(one).map(Framing::Length).ok_or(HeadError::Framing("Content-Length is no number")),
                _ => Err(HeadError::Framing("several Content-Length fields")),
            };
        }
        if !lengths.is_empty() {
            return Err(HeadError::Framing("both Content-Length and Transfer-Encoding"));
        }
        if self.version == Version::Http10 {
            return Err(HeadError::Framing("Transfer-Encoding in HTTP/1.0"));
        }
        let codings: Vec<_> = self.get_all("transfer-encoding").flat_map(list).collect();
        match codings[..] {
            [one] if one.eq_ignore_ascii_case(b"chunked") => Ok(Framing::Chunked),
            [] => Err(HeadError::Framing("Transfer-Encoding is empty")),
            _ if codings.iter().all(|it| it.eq_ignore_ascii_case(b"chunked")) => {
                Err(HeadError::Framing("chunked twice"))
            }
            _ => Err(HeadError::TransferCoding),
        }
    }
}

/// The elements of a comma-separated field value, trimmed, empty ones left out (RFC 9110 §5.6.1).
pub fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|element| !element.is_empty())
}

/// One or more ASCII digits that fit a `u64`; no sign, no space.
pub fn decimal(digits: &[u8]) -> Option<u64> {
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Bytes of the empty lines that old clients send after a body (RFC 9112 §2.2); at most two, so that nobody sends them
/// for ever.
fn leading_empty_lines(bytes: &[u8]) -> usize {
    [4, 2].into_iter().find(|n| bytes.starts_with(&b"\r\n\r\n"[..*n])).unwrap_or(0)
}

/// The head's length up to and with its empty line, once it is there. A lone CR or LF and NUL are refused here, before
/// anything is read out of the head: they are what two parsers read differently.
fn head_len(bytes: &[u8], seen: usize) -> Result<Option<usize>, HeadError> {
    // One byte back: what follows a CR at the end of the bytes seen was not known.
    for (at, byte) in bytes.iter().enumerate().skip(seen.saturating_sub(1)) {
        match byte {
            0 => return Err(HeadError::Malformed("a NUL byte")),
            b'\r' if bytes.get(at + 1).is_some_and(|next| *next != b'\n') => {
                return Err(HeadError::Malformed("a CR without LF"));
            }
            b'\n' if at == 0 || bytes[at - 1] != b'\r' => return Err(HeadError::Malformed("an LF without CR")),
            b'\n' if at == 1 || bytes[at - 2] == b'\n' => return Ok(Some(at + 1)),
            _ => {}
        }
    }
    Ok(None)
}

fn unfinished(bytes: &[u8], limits: &HeadLimits) -> Result<Parsed, HeadError> {
    // A method and a version fit well into the allowance beside the target.
    const BESIDE_TARGET: usize = 64;
    let line = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    if line > limits.target + BESIDE_TARGET {
        return Err(HeadError::TargetTooLong);
    }
    if bytes.len() >= limits.bytes {
        return Err(HeadError::TooLarge);
    }
    Ok(Parsed::Incomplete)
}

fn explain(error: httparse::Error) -> HeadError {
    match error {
        httparse::Error::TooManyHeaders => HeadError::TooLarge,
        httparse::Error::Version => HeadError::Version,
        httparse::Error::HeaderName => HeadError::Malformed("a header name"),
        httparse::Error::HeaderValue => HeadError::Malformed("a header value"),
        _ => HeadError::Malformed("the request line"),
    }
}

#[cfg(test)]
#[path = "head_tests.rs"]
mod tests;
