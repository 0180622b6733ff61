//! Whether the origin lets this client have what it asks for.
//!
//! An object that the node holds is no weaker protected than at the origin: the origin is asked with this client's own URL and
//! headers, and its consent is remembered for at most the URL's own lifetime and a short cap. Refusals are never remembered.

pub(crate) mod expiry;
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
    expiring::{BootTime, Expiry},
    flight::FlightTable,
    http::{destination::plain_path, forward::pairs},
    question::{Question, QuestionKey, Variant},
    replaceable::{Replaceable, TooOften},
    task::id::is_under,
};

/// The map of verdicts is cut into this many, each under its own lock.
const SHARDS: usize = 16;
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
        // Compared with decoded paths; a prefix that is itself ambiguous would cover nothing that its author meant.
        let path = plain_path(&format!("/{path}"));
        path.filter(|_| plausible).map(|path| Self { host, path }).ok_or(PublicRuleError)
    }
}

impl PublicRule {
    pub(crate) fn covers(&self, url: &Url) -> bool {
        let Some(host) = url.host_str() else { return false };
        // Only where the path means the same to every server: `/public/..%2fprivate` is private to some.
        let below = || plain_path(url.path()).is_some_and(|path| path.starts_with(&self.path));
        is_under(host, &self.host) && (self.path == "/" || below())
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
    flights: FlightTable<Outcome>,
    grants: Grants,
}

/// Why a question gave no consent, and whether the same with more of the client's headers may.
struct Unsettled {
    error: Arc<OriginError>,
    again: bool,
}

#[derive(Default)]
struct Shard {
    verdicts: HashMap<QuestionKey, Verdict>,
}

struct Verdict {
    until: Expiry,
    answer: Consent,
}

/// The origin's consent, and which requests it is for.
#[derive(Clone)]
struct Consent {
    probe: Arc<Probe>,
    variant: Arc<Variant>,
}

type Outcome = Result<Consent, Arc<OriginError>>;

impl Authorizer {
    /// An authorizer that remembers nothing yet.
    pub fn new(options: AuthorizeOptions) -> Self {
        Self {
            options: Replaceable::new(options),
            shards: std::array::from_fn(|_| Mutex::default()),
            flights: FlightTable::default(),
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
        let error = match self.settle(origin, request, Question::of(request)).await {
            Ok(allowed) => return Ok(allowed),
            Err(Unsettled { again: true, .. }) => {
                let all = self.settle(origin, request, Question::with_all(request)).await;
                match all {
                    Ok(allowed) => return Ok(allowed),
                    Err(Unsettled { error, .. }) => error,
                }
            }
            Err(Unsettled { error, again: false }) => error,
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

    /// What is remembered of this question, or what the origin says to it now.
    async fn settle(&self, origin: &Origin, request: &OriginRequest, question: Question) -> Result<Allowed, Unsettled> {
        if let Some(probe) = self.remembered(&question.key, request) {
            return Ok(Allowed { probe: Some(probe), ground: Ground::Remembered });
        }
        let (outcome, own) = self.ask_once(origin, &question).await;
        let consent = match outcome {
            Ok(consent) => consent,
            Err(error) => {
                let refused = error.answer().is_some_and(|answer| answer.status.is_client_error());
                return Err(Unsettled { error, again: refused && question.is_partial() });
            }
        };
        let fits = if own { !question.lacks(&consent.variant) } else { consent.variant.allows(&request.headers) };
        match (fits, question.is_partial()) {
            (true, _) => Ok(Allowed { probe: Some(consent.probe), ground: Ground::Asked }),
            (false, true) => {
                let error = Arc::new(OriginError::Busy { at: question.request.label() });
                Err(Unsettled { error, again: true })
            }
            // Another request's answer depends on a header in which this one differs.
            (false, false) => {
                let asked = self.in_time(&question, self.ask_and_remember(origin, &question)).await;
                let allowed = asked.map(|consent| Allowed { probe: Some(consent.probe), ground: Ground::Asked });
                allowed.map_err(|error| Unsettled { error, again: false })
            }
        }
    }

    /// One question for all who ask the same at the same time; whether it was this one that asked.
    async fn ask_once(&self, origin: &Origin, question: &Question) -> (Outcome, bool) {
        let mut own = false;
        let ask = async {
            own = true;
            self.ask_and_remember(origin, question).await
        };
        let outcome = self.in_time(question, self.flights.once(question.key, ask)).await;
        (outcome, own)
    }

    async fn in_time(&self, question: &Question, asked: impl Future<Output = Outcome>) -> Outcome {
        let late = || OriginError::Timeout { at: question.request.label(), waiting: "for consent" };
        timeout(self.options.deadline, asked).await.unwrap_or_else(|_| Err(Arc::new(late())))
    }

    async fn ask_and_remember(&self, origin: &Origin, question: &Question) -> Outcome {
        let probe = self.ask(origin, &question.request).await.map(Arc::new).map_err(Arc::new)?;
        let variant = Arc::new(Variant::of(&pairs(&probe.headers), &question.request.headers));
        let consent = Consent { probe, variant };
        self.remember(question, &consent);
        Ok(consent)
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

    fn remembered(&self, key: &QuestionKey, request: &OriginRequest) -> Option<Arc<Probe>> {
        let shard = self.shard(key);
        let known = shard.verdicts.get(key).filter(|verdict| verdict.until.is_ahead(moment()))?;
        known.answer.variant.allows(&request.headers).then(|| Arc::clone(&known.answer.probe))
    }

    fn remember(&self, question: &Question, consent: &Consent) {
        let life = self.life(&question.request.url);
        if life.is_zero() {
            return;
        }
        let mut shard = self.shard(&question.key);
        shard.make_room((self.options.max_verdicts / SHARDS).max(1));
        shard.verdicts.insert(question.key, Verdict { until: Expiry::after(moment(), life), answer: consent.clone() });
    }

    fn life(&self, url: &Url) -> Duration {
        life_of(url, self.options.remember)
    }

    fn shard(&self, key: &QuestionKey) -> MutexGuard<'_, Shard> {
        self.shards[usize::from(key[0]) % SHARDS].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shard {
    fn make_room(&mut self, most: usize) {
        if self.verdicts.len() < most {
            return;
        }
        let now = moment();
        self.verdicts.retain(|_, verdict| verdict.until.is_ahead(now));
        if self.verdicts.len() >= most
            && let Some(first) = self.verdicts.iter().min_by_key(|(_, verdict)| verdict.until).map(|(key, _)| *key)
        {
            self.verdicts.remove(&first);
        }
    }
}

/// How long what was said about a URL may be remembered: until it expires, and no longer than `most`.
pub(crate) fn life_of(url: &Url, most: Duration) -> Duration {
    expiry::of(url).map_or(Duration::MAX, left_until).min(most)
}

/// Now by both clocks that bound a consent.
fn moment() -> (Instant, BootTime) {
    (Instant::now(), BootTime::now())
}

fn left_until(unix_seconds: u64) -> Duration {
    let moment = UNIX_EPOCH.checked_add(Duration::from_secs(unix_seconds));
    moment.map_or(Duration::MAX, |moment| moment.duration_since(SystemTime::now()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_public_rule_covers_whole_labels_of_the_host_and_the_paths_start() {
        let rule: PublicRule = "*.hf.co/public/".parse().unwrap();
        let covered = |url: &str| rule.covers(&Url::parse(url).unwrap());
        assert!(covered("https://hf.co/public/x") && covered("https://a.b.hf.co/public/"));
        assert!(!covered("https://evilhf.co/public/x") && !covered("https://hf.co/private/x"));
        for doubtful in
            ["..%2fprivate", "%2e%2e/private", "/private", "..%5cprivate", "%252e%252e%252fprivate", "..;/private"]
        {
            assert!(!covered(&format!("https://hf.co/public/{doubtful}")), "{doubtful}");
        }
        let spaced: PublicRule = "hf.co/my%20files/".parse().unwrap();
        assert!(spaced.covers(&Url::parse("https://hf.co/my files/x").unwrap()));
        assert!("hf.co/a/../b".parse::<PublicRule>().is_err());
        assert!("".parse::<PublicRule>().is_err() && "/x".parse::<PublicRule>().is_err());
    }
}
