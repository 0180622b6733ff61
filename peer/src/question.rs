//! What makes two requests one question to an origin, so that they may share its answer [pure].
//!
//! A caller must never get an answer that another caller's headers brought about. So a question is sent with two kinds of
//! headers only: those that are part of its key, which are everything that may be a credential or may lead elsewhere, and those
//! that are known to decide nothing, such as the ones that tracing adds and that differ in every request. Any other header stays
//! out of the question and of its key. An origin that turns out to need one of them (it refuses, or its Vary names it) is asked
//! once more with all headers, and then all of them are part of the key ([`Question::with_all`]).

use crate::{http::head::list, swarm::OriginRequest};

/// Names a question; equal for requests that may share an answer, as far as the answer's [`Variant`] allows.
pub type QuestionKey = [u8; 32];

/// Headers that decide nothing about an answer, or that the node's own questions replace.
const NEUTRAL: &[&str] = &[
    "accept",
    "accept-encoding",
    "accept-language",
    "b3",
    "baggage",
    "cache-control",
    "connection",
    "content-length",
    "content-type",
    "expect",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "keep-alive",
    "newrelic",
    "pragma",
    "priority",
    "range",
    "te",
    "traceparent",
    "tracestate",
    "user-agent",
];
/// Parts of names that tracing gives its headers: X-Amzn-Trace-Id, X-B3-SpanId, sentry-trace, uber-trace-id.
const TRACING: &[&str] =
    &["trace", "x-b3-", "x-amzn-", "x-datadog-", "amz-sdk-", "request-id", "correlation-id", "sentry"];
/// Parts of the names of headers that say who asks, or for whom, or that could lead the origin to another answer. One that
/// matches without need costs a question; one that is missing is left out of the question and can do no harm.
const DECISIVE: &[&str] = &[
    "account",
    "api",
    "assertion",
    "auth",
    "cert",
    "client",
    "cookie",
    "credential",
    "customer",
    "dpop",
    "forwarded",
    "grant",
    "group",
    "host",
    "identity",
    "jwt",
    "key",
    "login",
    "member",
    "method",
    "org",
    "original",
    "override",
    "pass",
    "permission",
    "principal",
    "project",
    "real-ip",
    "referer",
    "remote",
    "role",
    "scope",
    "secret",
    "session",
    "sign",
    "team",
    "tenant",
    "ticket",
    "token",
    "user",
];

/// One question of the node's own, in the name of a client's request.
#[derive(Clone, Debug)]
pub struct Question {
    /// As it is sent.
    pub request: OriginRequest,
    /// See [`QuestionKey`].
    pub key: QuestionKey,
    /// Lower-case names of the client's headers that the question does not carry.
    left_out: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Neutral,
    Decisive,
    Unknown,
}

impl Question {
    /// The question that most requests for the URL share.
    pub fn of(request: &OriginRequest) -> Self {
        let mut sent = request.clone();
        let mut left_out = Vec::new();
        sent.headers.retain(|(name, _)| {
            let unknown = part(name) == Part::Unknown;
            if unknown {
                left_out.push(name.to_ascii_lowercase());
            }
            !unknown
        });
        let key = key(&sent);
        Self { request: sent, key, left_out }
    }

    /// The question with all of the request's headers, of which all but the neutral ones are part of the key.
    pub fn with_all(request: &OriginRequest) -> Self {
        Self { request: request.clone(), key: key(request), left_out: Vec::new() }
    }

    /// Whether the client sent headers that the question does not carry.
    pub fn is_partial(&self) -> bool {
        !self.left_out.is_empty()
    }

    /// Whether an answer depends on a header that the question did not carry.
    pub fn lacks(&self, variant: &Variant) -> bool {
        self.is_partial() && variant.any || variant.names.iter().any(|name| self.left_out.contains(name))
    }
}

/// The request headers that an answer depends on beside its key, and what they were (RFC 9111 section 4.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variant {
    /// In lower case, sorted.
    names: Vec<String>,
    values: QuestionKey,
    /// `Vary: *`: the answer is for nothing but its own request.
    any: bool,
}

impl Variant {
    /// By the Vary of an answer (names in lower case) to a question with these headers.
    pub fn of(answer: &[(String, Vec<u8>)], sent: &[(String, Vec<u8>)]) -> Self {
        let lines = answer.iter().filter(|(name, _)| name == "vary");
        let named =
            lines.flat_map(|(_, value)| list(value)).map(|name| String::from_utf8_lossy(name).to_ascii_lowercase());
        // The node's own questions always ask for identity.
        let mut names: Vec<String> = named.filter(|name| name != "accept-encoding").collect();
        names.sort_unstable();
        names.dedup();
        let values = values_of(&names, sent);
        Self { any: names.iter().any(|name| name == "*"), names, values }
    }

    /// Whether the answer may be given to a request with these headers.
    pub fn allows(&self, headers: &[(String, Vec<u8>)]) -> bool {
        !self.any && values_of(&self.names, headers) == self.values
    }
}

/// The value of Accept that any type satisfies is as good as none.
pub fn accepts_anything(headers: &[(String, Vec<u8>)]) -> bool {
    let lines = headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("accept"));
    let mut types = lines.flat_map(|(_, value)| list(value)).peekable();
    types.peek().is_none() || types.any(|kind| kind.split(|byte| *byte == b';').next() == Some(b"*/*"))
}

fn part(name: &str) -> Part {
    let name = name.to_ascii_lowercase();
    let holds = |parts: &[&str]| parts.iter().any(|part| name.contains(part));
    if NEUTRAL.contains(&&*name) {
        Part::Neutral
    } else if holds(DECISIVE) {
        Part::Decisive
    } else if holds(TRACING) {
        Part::Neutral
    } else {
        Part::Unknown
    }
}

fn key(request: &OriginRequest) -> QuestionKey {
    let mut deciding: Vec<(String, &[u8])> = request
        .headers
        .iter()
        .filter(|(name, _)| part(name) != Part::Neutral)
        .map(|(name, value)| (name.to_ascii_lowercase(), value.as_slice()))
        .collect();
    if !accepts_anything(&request.headers) {
        let types = request.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("accept"));
        deciding.extend(types.map(|(_, value)| ("accept".to_owned(), value.as_slice())));
    }
    deciding.sort();
    let mut hasher = blake3::Hasher::new();
    feed(&mut hasher, request.url.as_str().as_bytes());
    feed(&mut hasher, format!("{:?}", request.window).as_bytes());
    for (name, value) in deciding {
        feed(&mut hasher, name.as_bytes());
        feed(&mut hasher, value);
    }
    hasher.finalize().into()
}

fn values_of(names: &[String], headers: &[(String, Vec<u8>)]) -> QuestionKey {
    let mut hasher = blake3::Hasher::new();
    for name in names {
        feed(&mut hasher, name.as_bytes());
        // A type that anything satisfies is no choice.
        let chosen = name != "accept" || !accepts_anything(headers);
        for (_, value) in headers.iter().filter(|(other, _)| chosen && other.eq_ignore_ascii_case(name)) {
            feed(&mut hasher, value);
        }
    }
    hasher.finalize().into()
}

/// Each part with its length, so that no two sequences of parts are the same bytes.
fn feed(hasher: &mut blake3::Hasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
}

#[cfg(test)]
mod tests {
    use url::Url;

    use super::*;

    fn request(url: &str, headers: &[(&str, &str)]) -> OriginRequest {
        OriginRequest::new(Url::parse(url).unwrap(), lines(headers))
    }

    fn lines(headers: &[(&str, &str)]) -> Vec<(String, Vec<u8>)> {
        headers.iter().map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec())).collect()
    }

    fn key(url: &str, headers: &[(&str, &str)]) -> QuestionKey {
        Question::of(&request(url, headers)).key
    }

    #[test]
    fn a_question_belongs_to_one_url_with_its_signature_and_to_one_clients_credentials() {
        let base =
            key("https://h/a?Signature=x", &[("Authorization", "1"), ("User-Agent", "a"), ("Range", "bytes=0-1")]);
        assert_eq!(base, key("https://h/a?Signature=x", &[("user-agent", "b"), ("authorization", "1")]));
        assert_ne!(base, key("https://h/a?Signature=y", &[("Authorization", "1")]));
        assert_ne!(base, key("https://h/a?Signature=x", &[("Authorization", "2")]));
        assert_ne!(base, key("https://h/a?Signature=x", &[("Authorization", "1"), ("X-Tenant", "2")]));
        assert_ne!(base, key("https://h/a?Signature=x", &[]));
    }

    #[test]
    fn whatever_may_be_a_credential_is_part_of_the_key() {
        let none = key("https://h/a", &[]);
        for name in [
            "Authorization",
            "Cookie",
            "X-Amz-Security-Token",
            "X-Api-Key",
            "Private-Token",
            "Job-Token",
            "X-JFrog-Art-Api",
            "CF-Access-Client-Id",
            "X-Goog-Iam-Authorization-Token",
            "X-Auth-User",
            "X-Forwarded-Host",
            "DPoP",
            "X-Amzn-Oidc-Identity",
            "X-Original-URL",
            "X-Http-Method-Override",
            "Ocp-Apim-Subscription-Key",
            "Referer",
        ] {
            assert_ne!(key("https://h/a", &[(name, "1")]), none, "{name}");
            assert_ne!(key("https://h/a", &[(name, "1")]), key("https://h/a", &[(name, "2")]), "{name}");
        }
    }

    #[test]
    fn what_tracing_adds_to_each_request_makes_no_other_question() {
        let none = key("https://h/a", &[]);
        for name in [
            "X-Amzn-Trace-Id",
            "traceparent",
            "tracestate",
            "b3",
            "X-B3-TraceId",
            "X-Request-Id",
            "sentry-trace",
            "newrelic",
            "baggage",
            "uber-trace-id",
            "X-Cloud-Trace-Context",
            "X-Datadog-Parent-Id",
            "X-Correlation-Id",
            "amz-sdk-invocation-id",
            "X-Amzn-RequestId",
        ] {
            assert_eq!(key("https://h/a", &[(name, "1")]), none, "{name}");
        }
    }

    #[test]
    fn what_is_not_known_stays_out_of_the_question_until_the_origin_needs_it() {
        let asked = request("https://h/a", &[("X-Flavour", "sweet"), ("Cookie", "a"), ("User-Agent", "u")]);
        let question = Question::of(&asked);
        let names: Vec<_> = question.request.headers.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!((names, question.is_partial()), (vec!["Cookie", "User-Agent"], true));
        let variant = Variant::of(&lines(&[("vary", "X-Flavour")]), &question.request.headers);
        assert!(question.lacks(&variant) && !variant.allows(&asked.headers));
        let all = Question::with_all(&asked);
        let sour = request("https://h/a", &[("X-Flavour", "sour"), ("Cookie", "a")]);
        assert!(!all.is_partial() && all.key != question.key && all.key != Question::with_all(&sour).key);
    }

    #[test]
    fn an_answer_is_for_requests_that_agree_in_what_its_vary_names() {
        let sent = lines(&[("Origin", "https://a"), ("Accept", "*/*")]);
        let variant = Variant::of(&lines(&[("vary", "Origin, accept"), ("vary", "Accept-Encoding")]), &sent);
        assert!(variant.allows(&sent) && variant.allows(&lines(&[("origin", "https://a"), ("x", "y")])));
        assert!(!variant.allows(&lines(&[("Origin", "https://b")])) && !variant.allows(&[]));
        assert!(!variant.allows(&lines(&[("Origin", "https://a"), ("Accept", "application/json")])));
        assert!(!Variant::of(&lines(&[("vary", "*")]), &sent).allows(&sent));
        assert!(Variant::of(&[], &sent).allows(&[]));
    }

    #[test]
    fn a_type_that_the_client_insists_on_is_part_of_the_key_and_any_type_is_none() {
        let none = key("https://h/a", &[]);
        for anything in ["*/*", "text/html, */*;q=0.8"] {
            assert_eq!(key("https://h/a", &[("accept", anything)]), none);
        }
        assert_ne!(key("https://h/a", &[("accept", "application/vnd.xet-fileinfo+json")]), none);
    }
}
