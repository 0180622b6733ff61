//! What makes two URLs the same task.
//!
//! A URL names its content by hash only on the hosts whose operator stands behind those paths, and only over TLS
//! ([`Rules::content_hosts`]): there the same hash on two hosts is one task. Elsewhere a path of the same shape proves
//! nothing. Although a SHA-256 is verified before a download ends, the task's headers and its first bytes go out
//! earlier, and a xet hash is not checked at all: a stranger's server must not get to choose them for the real one's
//! clients. Such a URL is an ordinary name.
//!
//! Nothing is normalised beyond what the `url` crate does (host in lower case, default port, dot segments): two
//! spellings of one name, by percent-encoding, a trailing slash, or the order of parameters, are two tasks. That costs
//! a download; joining two names that differ would cost a wrong file. Hashes alone are read in either case.

use std::{borrow::Cow, fmt, str::FromStr};

pub use pondhawk_scheduler::hosts::is_under;
use url::Url;

use super::filter::Filter;
use crate::http::Etag;

/// Ranges that one URL may be signed for: about as many fit into a URL of 8 KiB.
const MAX_SIGNED: usize = 1024;

/// Names one immutable byte string in the cluster: BLAKE3 over the task's identity.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId(pub [u8; 32]);

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TaskId({self})")
    }
}

/// A task id is 64 hexadecimal digits.
#[derive(Debug, thiserror::Error)]
#[error("a task id is 64 hexadecimal digits")]
pub struct TaskIdError;

impl FromStr for TaskId {
    type Err = TaskIdError;

    fn from_str(text: &str) -> Result<Self, TaskIdError> {
        parse_hex32(text).map(Self).ok_or(TaskIdError)
    }
}

/// How URLs are told apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Host suffixes whose paths' hashes are believed: see [`is_under`].
    pub content_hosts: Vec<String>,
    /// Whether those paths are also believed on plain HTTP, where anybody on the way can choose the answer. For tests
    /// and labs.
    pub trust_plain_http: bool,
    /// Query parameters that are no part of a name.
    pub filter: Filter,
}

impl Default for Rules {
    fn default() -> Self {
        let content_hosts = ["hf.co", "huggingface.co"].map(str::to_owned).to_vec();
        Self { content_hosts, trust_plain_http: false, filter: Filter::default() }
    }
}

impl Rules {
    /// Whether the URL's host is one whose word counts, and nobody on the way can have changed it.
    pub fn believes(&self, url: &Url) -> bool {
        let secure = url.scheme() == "https" || self.trust_plain_http;
        let host = url.host_str().unwrap_or_default();
        secure && self.content_hosts.iter().any(|suffix| is_under(host, suffix))
    }
}

/// What a URL says about its content. Holds no credentials: filtered parameters and user information are gone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Identity {
    /// `/repos/xx/yy/{64 hex}/{64 hex}`, an LFS object: the SHA-256 of its bytes.
    ContentSha256([u8; 32]),
    /// `/xorbs/{prefix}/{64 hex}`: a xorb, and the bytes of it that the URL is signed for.
    Xorb {
        /// The xorb's own hash, no SHA-256.
        hash: [u8; 32],
        /// First and last byte, inclusive, of X-Xet-Signed-Range. Such a task holds these bytes only, each at its
        /// offset in the xorb less the first; nothing else may be asked of the origin. Clients and the origin speak of
        /// offsets in the xorb. `None`: the whole xorb.
        signed: Option<(u64, u64)>,
    },
    /// `/xet-bridge-*/{repository}/{64 hex}`: a whole file by its xet hash, no SHA-256.
    XetFile([u8; 32]),
    /// Any other URL: scheme, host, port, path, and what the filter leaves of the query, in order. The name may come to
    /// mean other bytes, so a strong validator completes it.
    Named(String),
}

impl Identity {
    /// The identity of an `http` or `https` URL, as it is fetched (after an upgrade to https).
    pub fn of(url: &Url, rules: &Rules) -> Self {
        let by_hash = if rules.believes(url) { Self::by_hash(url) } else { None };
        by_hash.unwrap_or_else(|| Self::Named(name(url, &rules.filter)))
    }

    fn by_hash(url: &Url) -> Option<Self> {
        let segments: Vec<&str> = url.path_segments()?.take(6).collect();
        match segments[..] {
            ["repos", first, second, repo, sha256] if is_hex2(first) && is_hex2(second) => {
                parse_hex32(repo)?;
                parse_hex32(sha256).map(Self::ContentSha256)
            }
            ["xorbs", prefix, hash] if !prefix.is_empty() => {
                let signed = signed_range(url.query().unwrap_or_default())?;
                Some(Self::Xorb { hash: parse_hex32(hash)?, signed })
            }
            [bridge, repo, hash] if bridge.starts_with("xet-bridge-") && !repo.is_empty() => {
                parse_hex32(hash).map(Self::XetFile)
            }
            _ => None,
        }
    }

    /// The identity among those of one namespace: names are told apart by it, hashes mean the same bytes everywhere.
    pub fn within(self, namespace: Option<&str>) -> Self {
        match (self, namespace) {
            // No URL holds a line break.
            (Self::Named(name), Some(namespace)) => Self::Named(format!("{name}\n{namespace}")),
            (identity, _) => identity,
        }
    }

    /// The xorb at a URL, where it is one on a host that is believed.
    pub fn xorb(url: &Url, rules: &Rules) -> Option<XorbUrl> {
        let mut segments = url.path_segments().filter(|_| rules.believes(url))?;
        let (first, prefix, hash, end) = (segments.next()?, segments.next()?, segments.next()?, segments.next());
        let is_xorb = first == "xorbs" && !prefix.is_empty() && end.is_none();
        let hash = parse_hex32(hash).filter(|_| is_xorb)?;
        let mut values = signed_values(url.query().unwrap_or_default());
        let signed = values.next().filter(|_| values.next().is_none());
        Some(XorbUrl { hash, signed: signed.and_then(|value| ranges(&value)).unwrap_or_default() })
    }

    /// Whether the identity holds a hash of the content, so that it needs no validator.
    pub fn is_content_addressed(&self) -> bool {
        !matches!(self, Self::Named(_))
    }

    /// What the name is made of, where that is hashes alone and not a URL, for nodes that are to hold the task without one: see
    /// Want.name in scheduler.proto.
    pub fn to_content_name(&self) -> Option<Vec<u8>> {
        match self {
            Self::ContentSha256(sha256) => Some([&[1], &sha256[..]].concat()),
            Self::XetFile(hash) => Some([&[2], &hash[..]].concat()),
            Self::Xorb { hash, signed: Some((first, last)) } => {
                Some([&[3], &hash[..], &first.to_be_bytes(), &last.to_be_bytes()].concat())
            }
            Self::Xorb { signed: None, .. } | Self::Named(_) => None,
        }
    }

    /// The reverse. What it names is to be compared with the task's id: whoever sends it may be wrong, or of a later version.
    pub fn from_content_name(name: &[u8]) -> Option<Self> {
        let (kind, rest) = name.split_first()?;
        let (hash, rest) = rest.split_first_chunk::<32>()?;
        let range = || Some((rest.first_chunk::<8>()?, rest.last_chunk::<8>().filter(|_| rest.len() == 16)?));
        match (kind, rest.len()) {
            (1, 0) => Some(Self::ContentSha256(*hash)),
            (2, 0) => Some(Self::XetFile(*hash)),
            (3, _) => {
                let (first, last) = range()?;
                let signed = (u64::from_be_bytes(*first), u64::from_be_bytes(*last));
                (signed.0 <= signed.1).then_some(Self::Xorb { hash: *hash, signed: Some(signed) })
            }
            _ => None,
        }
    }

    /// The SHA-256 to verify a download against, where the name is one.
    pub fn sha256(&self) -> Option<[u8; 32]> {
        match self {
            Self::ContentSha256(sha256) => Some(*sha256),
            _ => None,
        }
    }

    /// The task's id. A hash needs no validator and ignores one; a name needs a strong one, else it has no id: `None`.
    pub fn task_id(&self, validator: Option<&Etag>) -> Option<TaskId> {
        let mut key = Key::new();
        match self {
            Self::ContentSha256(sha256) => key.field(b"sha256").field(sha256),
            Self::Xorb { hash, signed: None } => key.field(b"xorb").field(hash),
            Self::Xorb { hash, signed: Some((first, last)) } => {
                key.field(b"xorb-range").field(hash).field(&first.to_be_bytes()).field(&last.to_be_bytes())
            }
            Self::XetFile(hash) => key.field(b"xet-file").field(hash),
            Self::Named(name) => {
                let etag = validator.filter(|etag| etag.is_strong())?;
                key.field(b"named").field(name.as_bytes()).field(etag.opaque())
            }
        };
        Some(TaskId(*key.0.finalize().as_bytes()))
    }
}

/// A xorb's URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XorbUrl {
    /// The xorb's own hash, as in the path.
    pub hash: [u8; 32],
    /// First and last byte, inclusive, of each range in X-Xet-Signed-Range. None where it does not say, or not readably.
    pub signed: Vec<(u64, u64)>,
}

impl XorbUrl {
    /// The task of a request with this Range header: it must ask for exactly one of the signed ranges. A client that fetches
    /// each range by itself uses a URL that is signed for several once for each.
    pub fn asked(&self, range: &[u8]) -> Option<(u64, u64)> {
        let asked = ranges(std::str::from_utf8(range).ok()?.trim())?;
        let one = asked.first().copied().filter(|_| asked.len() == 1)?;
        self.signed.contains(&one).then_some(one)
    }
}

/// Host and path for people and logs: no query, no user information, so no credentials.
pub fn label(url: &Url) -> String {
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}{port}{}", url.host_str().unwrap_or_default(), url.path())
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from(b"0123456789abcdef"[usize::from(nibble)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// 64 hexadecimal digits of either case as 32 bytes.
pub fn parse_hex32(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let mut out = [0; 32];
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        *byte = u8::try_from(high << 4 | low).ok()?;
    }
    Some(out)
}

fn is_hex2(text: &str) -> bool {
    text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn name(url: &Url, filter: &Filter) -> String {
    let query = url.query().and_then(|query| filter.apply(query)).map(|query| format!("?{query}")).unwrap_or_default();
    format!("{}://{}{query}", url.scheme(), label(url))
}

/// The bytes that a xorb's URL is signed for: `Some(None)` when it does not say, `None` when it says what one task
/// cannot hold (several ranges, or no range at all), which leaves the URL an ordinary name.
fn signed_range(query: &str) -> Option<Option<(u64, u64)>> {
    let mut values = signed_values(query);
    let Some(value) = values.next() else { return Some(None) };
    match ranges(&value)?[..] {
        [one] if values.next().is_none() => Some(Some(one)),
        _ => None,
    }
}

fn signed_values(query: &str) -> impl Iterator<Item = Cow<'_, str>> {
    let pairs = url::form_urlencoded::parse(query.as_bytes());
    pairs.filter(|(name, _)| name == "X-Xet-Signed-Range").map(|(_, value)| value)
}

/// `bytes=a-b,c-d`: each with both ends, none empty, at most [`MAX_SIGNED`].
fn ranges(value: &str) -> Option<Vec<(u64, u64)>> {
    let number = |digits: &str| crate::http::head::decimal(digits.as_bytes());
    let one = |text: &str| {
        let (first, last) = text.trim().split_once('-')?;
        let (first, last) = (number(first)?, number(last)?);
        (first <= last && last < u64::MAX).then_some((first, last))
    };
    let all: Option<Vec<_>> = value.strip_prefix("bytes=")?.split(',').take(MAX_SIGNED + 1).map(one).collect();
    all.filter(|all| all.len() <= MAX_SIGNED)
}

/// Fields with their lengths, so that no two lists of fields hash the same bytes.
struct Key(blake3::Hasher);

impl Key {
    fn new() -> Self {
        Self(blake3::Hasher::new_derive_key("pondhawk 2026-11 task identity v1"))
    }

    fn field(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.update(&(bytes.len() as u64).to_be_bytes()).update(bytes);
        self
    }
}

#[cfg(test)]
#[path = "id_tests.rs"]
mod tests;
