//! What can go wrong with an origin, and whom it blames. Nothing here holds a query string or a credential.

use std::{fmt, io, net::IpAddr, time::Duration};

use bytes::Bytes;
use hyper::{HeaderMap, StatusCode};

use super::retry::{self, Class};

/// The origin's own answer when it is not the bytes that were asked for: fit to be handed to the client unchanged.
pub struct Answer {
    /// The status line's code.
    pub status: StatusCode,
    /// Without hop-by-hop headers and without Content-Length, which [`Answer::body`] decides.
    pub headers: HeaderMap,
    /// At most [`super::origin::MAX_ANSWER_BODY`] bytes.
    pub body: Bytes,
    /// Retry-After, whether it was given in seconds or as a date (RFC 9110 section 10.2.3).
    pub retry_after: Option<Duration>,
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer").field("status", &self.status).field("body", &self.body.len()).finish_non_exhaustive()
    }
}

/// Why the origin gave no bytes. `at` is the label of the URL: scheme, host and path, never the query.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message of each variant says what its fields are")]
pub enum OriginError {
    /// The request's URL has no host, or a scheme that is neither https nor http: blames the client.
    #[error("{at}: not a URL of an origin")]
    Url { at: String },
    /// The client's request body broke off: blames the client.
    #[error("{at}: the client's request body broke off")]
    Client { at: String },
    /// No address for the origin's name.
    #[error("{at}: name not resolved: {source}")]
    Resolve { at: String, source: io::Error },
    /// An address that the node must not be sent to, with `allow_private` off.
    #[error("{at}: {address} is not a public address (see the setting that allows private origins)")]
    Refused { at: String, address: IpAddr },
    /// The way to the origin leads back to this node: blames its configuration, or a client that names the node as an origin.
    #[error(
        "{at}: {place} is this node itself; check rules, origin.proxy, origin.overrides and mirror.hub for its own address"
    )]
    Loop { at: String, place: String },
    /// No TCP connection.
    #[error("{at}: no connection: {source}")]
    Connect { at: String, source: io::Error },
    /// The proxy between the node and its origins gave no tunnel: blames the proxy.
    #[error("{at}: by way of the proxy {proxy}: {why}")]
    Proxy { at: String, proxy: String, why: String },
    /// The proxy between the node and its origins wants other credentials.
    #[error("{at}: the proxy {proxy} wants a name and password, or other ones")]
    Login { at: String, proxy: String },
    /// The socket could not be marked while interception needs the mark.
    #[error("{at}: the socket mark that keeps interception off needs CAP_NET_ADMIN: {source}")]
    Mark { at: String, source: io::Error },
    /// The certificate or the handshake is bad.
    #[error("{at}: TLS: {source}")]
    Tls { at: String, source: rustls::Error },
    /// Silence past a deadline.
    #[error("{at}: timed out {waiting}")]
    Timeout { at: String, waiting: &'static str },
    /// All connections that the node allows itself to this host are busy: blames nobody.
    #[error("{at}: every connection to this host is busy")]
    Busy { at: String },
    /// An answer that is neither 200 nor 206.
    #[error("{at}: origin answered {}", answer.status)]
    Status { at: String, answer: Box<Answer> },
    /// An answer that breaks HTTP or contradicts the request.
    #[error("{at}: malformed answer: {what}")]
    Malformed { at: String, what: &'static str },
    /// The connection ended before the body did.
    #[error("{at}: cut after {received} bytes of the body")]
    Cut { at: String, received: u64 },
    /// The object is another one than the download began with.
    #[error("{at}: the object changed under way")]
    Changed { at: String },
    /// The whole object came for a range.
    #[error("{at}: the origin ignores ranges")]
    IgnoredRange { at: String },
    /// A redirect that is not followed.
    #[error("{at}: redirect not followed: {why}")]
    Redirect { at: String, why: &'static str },
}

impl OriginError {
    /// What a download should do about it.
    pub fn class(&self) -> Class {
        match self {
            Self::Status { answer, .. } => retry::classify_status(answer.status.as_u16(), answer.retry_after),
            Self::Resolve { .. } | Self::Connect { .. } | Self::Timeout { .. } | Self::Cut { .. } => Class::transient(),
            Self::Proxy { .. } => Class::transient(),
            Self::Busy { .. } => Class::Busy,
            Self::Changed { .. } => Class::Changed,
            Self::IgnoredRange { .. } => Class::IgnoredRange,
            Self::Malformed { .. } => Class::transient(),
            Self::Url { .. } | Self::Client { .. } | Self::Refused { .. } | Self::Mark { .. } => Class::Fatal,
            Self::Login { .. } | Self::Loop { .. } => Class::Fatal,
            Self::Tls { .. } | Self::Redirect { .. } => Class::Fatal,
        }
    }

    /// The origin's own answer, where there is one.
    pub fn answer(&self) -> Option<&Answer> {
        match self {
            Self::Status { answer, .. } => Some(answer),
            _ => None,
        }
    }

    /// The status that a client should see: the origin's own, or the gateway's (RFC 9110 sections 15.6.3 and 15.6.5).
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Status { answer, .. } => answer.status,
            Self::Url { .. } | Self::Client { .. } => StatusCode::BAD_REQUEST,
            Self::Refused { .. } => StatusCode::FORBIDDEN,
            Self::Loop { .. } => StatusCode::LOOP_DETECTED,
            Self::Timeout { .. } => StatusCode::GATEWAY_TIMEOUT,
            Self::Busy { .. } => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::BAD_GATEWAY,
        }
    }
}
