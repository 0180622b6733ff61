//! Whether the origin lets this client have what it asks for.
//!
//! An object that the node holds is no weaker protected than at the origin: the origin is asked with this client's own URL and
//! headers, and its consent is remembered for at most the URL's own lifetime and a short cap. Refusals are never remembered.

mod expiry;
mod grants;

use std::{
    collections::HashMap,
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use grants::Grants;
use hyper::StatusCode;
use tokio::time::{Instant, sleep, timeout};
use url::Url;

use crate::swarm::{
    Answer, Origin, OriginError, OriginRequest, Probe,
    retry::{Backoff, Class, Jitter},
};
use crate::{
    replaceable::{Replaceable, TooOften},
    task::id::is_under,
};

/// The map of verdicts is cut into this many, each under its own lock.
const SHARDS: usize = 16;
/// Headers that do not decide what a client may have; any other one makes another question.
const NEUTRAL: [&str; 19] = [
    "accept",
    "accept-encoding",
    "accept-language",
    "cache-control",
    "connection",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "keep-alive",
    "pragma",
    "priority",
    "range",
    "te",
    "traceparent",
    "user-agent",
    "x-request-id",
];

/// Settings of authorisation.
#[derive(Clone, Debug)]
pub struct AuthorizeOptions {
    /// The longest that a consent is remembered: how late a revocation is noticed at most.
    pub remember: Duration,
    /// Consents remembered at once; the one that ends first makes room.
    pub max_verdicts: usize,
    /// For asking, retries included: below the 10 s after which Hugging Face clients give up.
    pub deadline: Duration,
    /// How failures of the origin are borne within the deadline.
    pub backoff: Backoff,
    /// What anybody may have: held objects are served without asking.
    pub public: Vec<PublicRule>,
    /// Whether held objects are served unasked while the origin is down. Off: an error, as without the node.
    pub serve_when_origin_down: bool,
}

impl Default for AuthorizeOptions {
    fn default() -> Self {
        let backoff = Backoff { base: Duration::from_millis(100), cap: Duration::from_secs(2), attempts: 5 };
        Self {
            remember: Duration::from_secs(60),
            max_verdicts: 8192,
            deadline: Duration::from_secs(9),
            backoff,
            public: Vec::new(),
            serve_when_origin_down: false,
        }
    }
}

/// `host-suffix` or `host-suffix/path-prefix`: objects that need no consent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicRule {
    host: String,
    path: String,
}

/// The rule names no host.
#[derive(Debug, thiserror::Error)]
#[error("a public rule is a host suffix, with or without a path prefix: example.org or example.org/public/")]
pub struct PublicRuleError;

impl FromStr for PublicRule {
    type Err = PublicRuleError;

    fn from_str(text: &str) -> Result<Self, PublicRuleError> {
        let (host, path) = text.split_once('/').unwrap_or((text, ""));
        let host = host.trim_start_matches("*.").to_ascii_lowercase();
        let plausible = !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || ".-:[]".contains(c));
        if plausible { Ok(Self { host, path: format!("/{path}") }) } else { Err(PublicRuleError) }
    }
}

impl PublicRule {
    pub(crate) fn covers(&self, url: &Url) -> bool {
        let Some(host) = url.host_str() else { return false };
        is_under(host, &self.host) && url.path().starts_with(&self.path)
    }
}

/// The client may have the object.
#[derive(Clone, Debug)]
pub struct Allowed {
    /// What the origin said; `None` where it was not asked ([`Ground::Public`], [`Ground::OriginDown`]).
    pub probe: Option<Arc<Probe>>,
    /// Why.
    pub ground: Ground,
}

/// Why a client may have an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ground {
    /// The origin was asked just now.
    Asked,
    /// The origin's consent is remembered.
    Remembered,
    /// A rule says that anybody may.
    Public,
    /// The origin is down and the setting says to serve.
    OriginDown,
}

/// The client may not have the object, or nobody can tell.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Refusal {
    /// The origin, or the node's rules about origins, refuse this request: blames the client.
    #[error("refused: {0}")]
    Denied(Arc<OriginError>),
    /// The origin could not be asked: blames the origin.
    #[error("the origin cannot be asked: {0}")]
    Unreachable(Arc<OriginError>),
}

impl Refusal {
    /// What happened.
    pub fn error(&self) -> &Arc<OriginError> {
        match self {
            Self::Denied(error) | Self::Unreachable(error) => error,
        }
    }

    /// The status for the client: the origin's own where it answered, else 502 or 504 (400, 403 for what the node refuses).
    pub fn status(&self) -> StatusCode {
        self.error().status()
    }

    /// The origin's own answer, to be handed on unchanged.
    pub fn answer(&self) -> Option<&Answer> {
        self.error().answer()
    }
}

/// Remembers consents and asks the origin for new ones; shared by all shards.
pub struct Authorizer {
    options: Replaceable<AuthorizeOptions>,
    shards: [Mutex<Shard>; SHARDS],
    grants: Grants,
}

#[derive(Default)]
struct Shard {
    verdicts: HashMap<Key, Verdict>,
    flights: HashMap<Key, Arc<Flight>>,
}

struct Verdict {
    until: Instant,
    probe: Arc<Probe>,
}

type Key = [u8; 32];
type Outcome = Result<Arc<Probe>, Arc<OriginError>>;

/// One question under way: who holds the lock asks, who gets it later finds the outcome. If the asking client leaves, the
/// next one asks.
#[derive(Default)]
struct Flight {
    outcome: tokio::sync::Mutex<Option<Outcome>>,
}

impl Authorizer {
    /// An authorizer that remembers nothing yet.
    pub fn new(options: AuthorizeOptions) -> Self {
        Self {
            options: Replaceable::new(options),
            shards: std::array::from_fn(|_| Mutex::default()),
            grants: Grants::default(),
        }
    }

    /// Other settings from now on; what is remembered keeps the time that it was given.
    ///
    /// # Errors
    /// [`TooOften`], and nothing changed.
    pub fn set_options(&self, options: AuthorizeOptions) -> Result<(), TooOften> {
        self.options.replace(options)
    }

    /// The origin has given out this URL, for these bytes (the last one included), in an answer that came from it just now.
    pub fn grant(&self, url: &Url, bytes: (u64, u64)) {
        self.grants.add(url, bytes, Instant::now(), self.life(url));
    }

    /// Whether it has, no longer ago than a consent is remembered.
    pub fn is_granted(&self, url: &Url, bytes: (u64, u64)) -> bool {
        self.grants.has(url, bytes, Instant::now())
    }

    /// Whether one more answer may be kept to look for URLs in it; [`Self::heard`] when it is over.
    pub fn may_hear(&self) -> bool {
        self.grants.enter()
    }

    /// See [`Self::may_hear`].
    pub fn heard(&self) {
        self.grants.leave();
    }

    /// Whether the client that sent `request` may have the object; `held`: whether the node could serve it without the origin.
    pub async fn authorize(&self, origin: &Origin, request: &OriginRequest, held: bool) -> Result<Allowed, Refusal> {
        if held && self.options.public.iter().any(|rule| rule.covers(&request.url)) {
            return Ok(Allowed { probe: None, ground: Ground::Public });
        }
        let key = key_of(request);
        if let Some(probe) = self.remembered(&key) {
            return Ok(Allowed { probe: Some(probe), ground: Ground::Remembered });
        }
        let error = match self.ask_once(key, origin, request).await {
            Ok(probe) => return Ok(Allowed { probe: Some(probe), ground: Ground::Asked }),
            Err(error) => error,
        };
        let down = error.class().is_transient();
        match down {
            true if held && self.options.serve_when_origin_down => {
                Ok(Allowed { probe: None, ground: Ground::OriginDown })
            }
            true => Err(Refusal::Unreachable(error)),
            false if matches!(*error, OriginError::Tls { .. }) => Err(Refusal::Unreachable(error)),
            false => Err(Refusal::Denied(error)),
        }
    }

    /// One question for all who ask the same at the same time.
    async fn ask_once(&self, key: Key, origin: &Origin, request: &OriginRequest) -> Outcome {
        let flight = Boarded { authorizer: self, key, flight: self.board(key) };
        let asked = async {
            let mut outcome = flight.flight.outcome.lock().await;
            if let Some(known) = outcome.as_ref() {
                return known.clone();
            }
            let answer = self.ask(origin, request).await.map(Arc::new).map_err(Arc::new);
            if let Ok(probe) = &answer {
                self.remember(key, request, probe);
            }
            outcome.insert(answer).clone()
        };
        let late = || OriginError::Timeout { at: request.label(), waiting: "for consent" };
        timeout(self.options.deadline, asked).await.unwrap_or_else(|_| Err(Arc::new(late())))
    }

    /// Asks with retries; a Retry-After that the client's patience would not outlast goes to the client.
    async fn ask(&self, origin: &Origin, request: &OriginRequest) -> Result<Probe, OriginError> {
        let end = Instant::now() + self.options.deadline;
        let mut jitter =
            Jitter::new(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.subsec_nanos().into()));
        let mut failures = 0;
        loop {
            let error = match origin.probe(request).await {
                Ok(probe) => return Ok(probe),
                Err(error) => error,
            };
            failures += 1;
            let advice = match error.class() {
                Class::Transient { after, .. } => after,
                Class::Busy => None,
                _ => return Err(error),
            };
            let hopeless = advice.is_some_and(|after| after > self.options.backoff.cap);
            match self.options.backoff.delay(failures, advice, &mut jitter) {
                Some(delay) if !hopeless && Instant::now() + delay < end => sleep(delay).await,
                _ => return Err(error),
            }
        }
    }

    fn board(&self, key: Key) -> Arc<Flight> {
        Arc::clone(self.shard(&key).flights.entry(key).or_default())
    }

    fn remembered(&self, key: &Key) -> Option<Arc<Probe>> {
        let shard = self.shard(key);
        shard
            .verdicts
            .get(key)
            .filter(|verdict| verdict.until > Instant::now())
            .map(|verdict| Arc::clone(&verdict.probe))
    }

    fn remember(&self, key: Key, request: &OriginRequest, probe: &Arc<Probe>) {
        let life = self.life(&request.url);
        if life.is_zero() {
            return;
        }
        let mut shard = self.shard(&key);
        shard.make_room((self.options.max_verdicts / SHARDS).max(1));
        shard.verdicts.insert(key, Verdict { until: Instant::now() + life, probe: Arc::clone(probe) });
    }

    fn life(&self, url: &Url) -> Duration {
        life_of(url, self.options.remember)
    }

    fn shard(&self, key: &Key) -> MutexGuard<'_, Shard> {
        self.shards[usize::from(key[0]) % SHARDS].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shard {
    fn make_room(&mut self, most: usize) {
        if self.verdicts.len() < most {
            return;
        }
        let now = Instant::now();
        self.verdicts.retain(|_, verdict| verdict.until > now);
        if self.verdicts.len() >= most
            && let Some(first) = self.verdicts.iter().min_by_key(|(_, verdict)| verdict.until).map(|(key, _)| *key)
        {
            self.verdicts.remove(&first);
        }
    }
}

/// A place in a flight: the last one to leave removes it, however it left.
struct Boarded<'a> {
    authorizer: &'a Authorizer,
    key: Key,
    flight: Arc<Flight>,
}

impl Drop for Boarded<'_> {
    fn drop(&mut self) {
        let mut shard = self.authorizer.shard(&self.key);
        let landed = self.flight.outcome.try_lock().is_ok_and(|outcome| outcome.is_some());
        let alone = Arc::strong_count(&self.flight) <= 2;
        let ours = shard.flights.get(&self.key).is_some_and(|other| Arc::ptr_eq(other, &self.flight));
        if ours && (landed || alone) {
            shard.flights.remove(&self.key);
        }
    }
}

/// The question: URL with its query, window, and every header that may decide.
pub(crate) fn key_of(request: &OriginRequest) -> [u8; 32] {
    let mut deciding: Vec<(String, &[u8])> =
        request.headers.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.as_slice())).collect();
    deciding.retain(|(name, _)| !NEUTRAL.contains(&name.as_str()));
    deciding.sort();
    let mut hasher = blake3::Hasher::new();
    let mut field = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    field(request.url.as_str().as_bytes());
    field(format!("{:?}", request.window).as_bytes());
    for (name, value) in deciding {
        field(name.as_bytes());
        field(value);
    }
    hasher.finalize().into()
}

/// How long what was said about a URL may be remembered: until it expires, and no longer than `most`.
pub(crate) fn life_of(url: &Url, most: Duration) -> Duration {
    expiry::of(url).map_or(Duration::MAX, left_until).min(most)
}

fn left_until(unix_seconds: u64) -> Duration {
    let moment = UNIX_EPOCH.checked_add(Duration::from_secs(unix_seconds));
    moment.map_or(Duration::MAX, |moment| moment.duration_since(SystemTime::now()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(url: &str, headers: &[(&str, &str)]) -> OriginRequest {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec())).collect();
        OriginRequest::new(Url::parse(url).unwrap(), headers)
    }

    #[test]
    fn a_consent_belongs_to_one_url_with_its_signature_and_to_one_clients_credentials() {
        let key = |url, headers: &[_]| key_of(&request(url, headers));
        let base =
            key("https://h/a?Signature=x", &[("Authorization", "1"), ("User-Agent", "a"), ("Range", "bytes=0-1")]);
        assert_eq!(base, key("https://h/a?Signature=x", &[("user-agent", "b"), ("authorization", "1")]));
        assert_ne!(base, key("https://h/a?Signature=y", &[("Authorization", "1")]));
        assert_ne!(base, key("https://h/a?Signature=x", &[("Authorization", "2")]));
        assert_ne!(base, key("https://h/a?Signature=x", &[("Authorization", "1"), ("X-Tenant", "2")]));
        assert_ne!(base, key("https://h/a?Signature=x", &[]));
    }

    #[test]
    fn a_public_rule_covers_whole_labels_of_the_host_and_the_paths_start() {
        let rule: PublicRule = "*.hf.co/public/".parse().unwrap();
        let covered = |url| rule.covers(&Url::parse(url).unwrap());
        assert!(covered("https://hf.co/public/x") && covered("https://a.b.hf.co/public/"));
        assert!(!covered("https://evilhf.co/public/x") && !covered("https://hf.co/private/x"));
        assert!("".parse::<PublicRule>().is_err() && "/x".parse::<PublicRule>().is_err());
    }
}
