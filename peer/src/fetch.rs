//! From a request to a task: store hit, running download, or a new one.

mod others;
mod traced;
mod xorb;

use std::{
    collections::HashMap,
    ops::Range,
    rc::Rc,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::time::timeout;
use url::Url;

use crate::{
    authorize::{Allowed, Ground},
    http::{
        Etag,
        cacheable::{self, Asked, Cacheability, Cacheable},
        condition::Stored,
        connection::unix_now,
        forward::pairs,
        head::RequestHead,
        overrides,
        rules::Treatment,
    },
    limits,
    metrics::{Outcome, Party},
    node::Node,
    shard::Shard,
    store::{About, Held, Keeping, Priority, StoreError, TaskMeta, User, Verdict},
    swarm::{
        DownloadError, Expected, OpenBody, OriginError, OriginRequest, Probe, Sharing,
        download::Policy,
        driver::{self, DriverOptions, Handle, Offer, ReaderGuard, Status},
    },
    task::{Bitmap, Filter, Identity, Layout, Proof, Rules, TaskId, id, xorb::Claim},
    trace::{Context, Kind, Span},
};

pub use others::from_others;
pub use xorb::Window;

/// What a request came to.
pub enum Found {
    /// Serve it from this task.
    Source(Box<Source>),
    /// The origin or a rule of the node refuses, or nobody can tell: hand that on.
    Answer(Arc<OriginError>),
    /// Not for the store: pass the request through. Says why, for the log.
    Straight(String),
    /// An error of the node's own making, for the client to read.
    Refused(&'static str),
}

/// What the origin has answered a client, or a question in its name.
pub struct Answered {
    /// The head.
    pub probe: Arc<Probe>,
    /// The body, if it holds all of the object and has not been read.
    pub open: OpenBody,
}

impl From<Arc<Probe>> for Answered {
    fn from(probe: Arc<Probe>) -> Self {
        Self { probe, open: OpenBody::default() }
    }
}

/// A task to be read by one request.
pub struct Source {
    /// The task.
    pub held: Arc<Held>,
    /// Whether it was there, on its way, or had to be begun.
    pub outcome: Outcome,
    /// Seconds since the origin vouched for it.
    pub age: u64,
    /// Of a xorb's task, what is asked for.
    pub window: Option<Window>,
    /// The origin's headers for this request: what its own probe said, or without one the task's as this URL asks for them.
    pub headers: Vec<(String, Vec<u8>)>,
    /// Whether the task's name is a hash of its content, so that no validator decides what its bytes are.
    pub by_hash: bool,
    running: Option<Arc<Running>>,
    _user: User,
}

/// A reader's interest in bytes of a download.
pub type Reading = ReaderGuard;

/// Downloads under way, by task.
pub struct Tasks {
    running: Mutex<HashMap<TaskId, Arc<Running>>>,
    /// Tasks whose bytes were wrong, until when only the whole of them is served, and how often.
    wrong: Mutex<HashMap<TaskId, (Instant, u32)>>,
    /// What downloads that are over brought of their tasks, for reports.
    brought: Mutex<HashMap<TaskId, Brought>>,
    max: usize,
}

/// Where bytes of a task came from, since the node's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Brought {
    /// Bytes from origins.
    pub origin: u64,
    /// Bytes from other nodes.
    pub peers: u64,
}

struct Running {
    handle: Handle,
    /// Pieces that some reader wanted at some time.
    wanted: Bitmap,
    /// Whether the whole is wanted by the node itself, on some client's wish.
    prefetched: AtomicBool,
    started: Instant,
}

/// How a request's file is named and given out, where that is not as everybody's.
#[derive(Clone, Debug, Default)]
pub struct Terms {
    /// What is no part of the name; none: what holds for all.
    pub filter: Option<Filter>,
    /// Tells names without a hash apart.
    pub namespace: Option<String>,
    /// Whether what is held needs no consent.
    pub public: bool,
    /// For how long it is kept at most.
    pub keep: Option<Duration>,
    /// What goes first when room is needed.
    pub priority: Priority,
    /// Whether the rest of the file is wanted with a part of it.
    pub prefetch: bool,
    /// Of what trace it is a part.
    pub trace: Option<Context>,
}

impl Terms {
    /// What the rules say.
    pub fn of(treatment: &Treatment) -> Self {
        Self {
            filter: treatment.filter.clone(),
            public: treatment.public,
            keep: treatment.keep,
            priority: treatment.priority,
            ..Self::default()
        }
    }

    fn keeping(&self) -> Keeping {
        let until_unix = self.keep.map(|keep| now_unix().saturating_add(keep.as_secs()));
        Keeping { until_unix, priority: self.priority }
    }

    /// What makes the file of this URL the same as another's.
    pub fn identity(&self, url: &Url, rules: &Rules) -> Identity {
        let identity = match &self.filter {
            Some(filter) => Identity::of(url, &Rules { filter: filter.clone(), ..rules.clone() }),
            None => Identity::of(url, rules),
        };
        identity.within(self.namespace.as_deref())
    }
}

/// Finds or begins the task that a GET asks for, with the origin's consent for this client.
pub async fn find(shard: &Rc<Shard>, request: &OriginRequest, head: &RequestHead, terms: &Terms) -> Found {
    let found = find_one(shard, request, head, terms).await;
    if let Found::Source(source) = &found
        && terms.prefetch
    {
        source.prefetch();
    }
    found
}

async fn find_one(shard: &Rc<Shard>, request: &OriginRequest, head: &RequestHead, terms: &Terms) -> Found {
    let node = &shard.node;
    if let Some(url) = Identity::xorb(&request.url, &node.rules) {
        return xorb::find(shard, request, head, &url, terms).await;
    }
    let identity = terms.identity(&request.url, &node.rules);
    // A name without a hash has no id before the origin's answer tells its validator.
    let id = identity.task_id(None);
    if head.get("range").is_some() && id.is_some_and(|id| node.tasks.was_wrong(&id) > 0) {
        return Found::Refused("parts of this file that were sent before were wrong: download it anew, and whole");
    }
    let held = id.and_then(|id| node.store.get(&id));
    if let Some(held) = held.as_ref().filter(|held| terms.public && is_whole(held) && held.about().is_told()) {
        return Found::Source(Box::new(complete(Arc::clone(held), Ground::Public, &request.url, &identity)));
    }
    let allowed = match traced::authorize(node, request, held.is_some(), terms).await {
        Ok(allowed) => allowed,
        Err(refusal) => return Found::Answer(Arc::clone(refusal.error())),
    };
    match allowed {
        Allowed { probe: Some(probe), .. } => begin(shard, request, &identity, probe.into(), held, head, terms).await,
        Allowed { probe: None, ground } => match held {
            Some(held) if is_whole(&held) && (held.about().is_told() || ground == Ground::OriginDown) => {
                Found::Source(Box::new(complete(held, ground, &request.url, &identity)))
            }
            _ => probed(shard, request, &identity, head, terms).await,
        },
    }
}

/// Finds or begins the task that a GET asks for, where the origin has answered a question about it in this client's name.
pub async fn find_answered(
    shard: &Rc<Shard>,
    request: &OriginRequest,
    head: &RequestHead,
    terms: &Terms,
    answered: Answered,
) -> Found {
    let identity = terms.identity(&request.url, &shard.node.rules);
    begin(shard, request, &identity, answered, None, head, terms).await
}

/// An exempt task that is not complete is downloaded like any other.
async fn probed(
    shard: &Rc<Shard>,
    request: &OriginRequest,
    identity: &Identity,
    head: &RequestHead,
    terms: &Terms,
) -> Found {
    match traced::probe(&shard.node, request, terms).await {
        Ok(probe) => begin(shard, request, identity, probe.into(), None, head, terms).await,
        Err(error) => Found::Answer(Arc::new(error)),
    }
}

async fn begin(
    shard: &Rc<Shard>,
    request: &OriginRequest,
    identity: &Identity,
    answered: Answered,
    held: Option<Arc<Held>>,
    head: &RequestHead,
    terms: &Terms,
) -> Found {
    let Answered { probe, open } = answered;
    let described = match judge(identity, &probe) {
        Ok(described) => described,
        Err(why) => return Found::Straight(why),
    };
    let told = described.len;
    let about = described.about(request);
    let held = match held.filter(|held| !dropped_as_wrong(&shard.node, held)) {
        Some(held) => held,
        None => {
            let meta = match meta(identity, &described, about.clone(), probe.object_len, terms) {
                Ok(meta) => meta,
                Err(why) => return Found::Straight(why),
            };
            match shard.node.store.create(meta).await {
                Ok(held) => held,
                Err(error) => {
                    tracing::warn!(%error, at = request.label(), "not stored");
                    return Found::Straight(error.to_string());
                }
            }
        }
    };
    let kept = held.meta.layout.len();
    if kept != told {
        tracing::warn!(
            at = request.label(),
            kept,
            told,
            "the origin tells another length than for the same name before"
        );
        return Found::Straight("the length changed under the same name".to_owned());
    }
    held.describe(about);
    if timeout(limits::CHECK_WAIT, held.checked()).await.is_err() {
        return Found::Straight("what an unclean stop left of it is still being checked".to_owned());
    }
    // What a window's probe says is about a part; the task keeps what was said first.
    let headers = request.window.is_none().then_some(described.headers);
    if held.bitmap().is_full() {
        let source = complete(held, Ground::Asked, &request.url, identity);
        return Found::Source(Box::new(source.with_headers(headers)));
    }
    // A client that only asks whether its copy is current starts no download.
    if head.get("if-none-match").is_some() || head.get("if-modified-since").is_some() {
        return Found::Straight("a condition on a file that is not here".to_owned());
    }
    let name = Name { host: origin_host(request), content: identity.to_content_name() };
    let trace = terms.trace;
    let offer = Offer { request: request.clone(), probe, by_hash: identity.is_content_addressed(), open };
    match download(shard, held, name, Some(offer), trace) {
        Ok(source) => Found::Source(Box::new(source.of_url(&request.url, identity).with_headers(headers))),
        Err(why) => Found::Straight(why),
    }
}

/// All that other nodes hear of a task beside its id and length.
struct Name {
    host: String,
    content: Option<Vec<u8>>,
}

/// All of a task, for a request of this URL.
fn complete(held: Arc<Held>, ground: Ground, url: &Url, identity: &Identity) -> Source {
    whole(held, ground).of_url(url, identity)
}

fn whole(held: Arc<Held>, ground: Ground) -> Source {
    let age = match ground {
        Ground::Asked | Ground::Remembered => 0,
        Ground::Public | Ground::OriginDown => now_unix().saturating_sub(held.meta.created_unix),
    };
    Source::new(held, Outcome::Hit, age, None)
}

/// Whether the answer can become a task.
fn judge(identity: &Identity, probe: &Probe) -> Result<Cacheable, String> {
    let mut headers = pairs(&probe.headers);
    // The probe has read these two; the judgement is on the whole answer.
    if let Some(len) = probe.total_len {
        match probe.status.as_u16() {
            206 => headers.push(("content-range".to_owned(), format!("bytes 0-0/{len}").into_bytes())),
            _ => headers.push(("content-length".to_owned(), len.to_string().into_bytes())),
        }
    }
    let asked = Asked { range: !probe.plain, content_addressed: identity.is_content_addressed() };
    match cacheable::judge(probe.status.as_u16(), &headers, asked) {
        Cacheability::Cache(described) => Ok(described),
        Cacheability::PassThrough(reason) => Err(reason.to_string()),
    }
}

/// What the task is to be, by its name, the origin's answer, and the rule for its URL.
fn meta(
    identity: &Identity,
    described: &Cacheable,
    about: About,
    object_len: Option<u64>,
    terms: &Terms,
) -> Result<TaskMeta, String> {
    Ok(TaskMeta {
        id: identity.task_id(described.etag.as_ref()).ok_or("no strong ETag")?,
        layout: Layout::for_len(described.len).ok_or("too long")?,
        proof: proof_of(identity, object_len),
        about,
        keeping: terms.keeping(),
        created_unix: now_unix(),
    })
}

impl Cacheable {
    fn about(&self, request: &OriginRequest) -> About {
        let etag = self.etag.as_ref().map(|etag| String::from_utf8_lossy(&etag.to_bytes()).into_owned());
        // The task is served under other URLs too: what this one asked for beside the bytes is not theirs.
        let headers = overrides::independent(&self.headers, &request.url);
        About { label: id::label(&request.url), headers, etag }
    }
}

fn proof_of(identity: &Identity, object_len: Option<u64>) -> Option<Proof> {
    match *identity {
        Identity::ContentSha256(sha256) => Some(Proof::Sha256(sha256)),
        Identity::Xorb { hash, signed: Some((first, _)) } => {
            Some(Proof::Xorb(Claim { hash, first, total: object_len }))
        }
        _ => None,
    }
}

/// Joins the task's download, or begins one on this shard; without an offer it has only what other nodes have. A download is a
/// part of the trace of the request that begins it.
fn download(
    shard: &Rc<Shard>,
    held: Arc<Held>,
    name: Name,
    offer: Option<Offer>,
    trace: Option<Context>,
) -> Result<Source, String> {
    let node = &shard.node;
    let mut running = node.tasks.lock();
    let joined = running.get(&held.meta.id).filter(|running| running.goes_on()).cloned();
    let (outcome, running) = match joined {
        Some(joined) => {
            if let Some(offer) = offer {
                // Its bytes come already, and perhaps on another shard.
                drop(offer.open.take());
                joined.handle.offer(offer);
            }
            (Outcome::Joined, joined)
        }
        None if running.len() >= node.tasks.max => return Err("limits.downloads are under way".to_owned()),
        None => {
            let mut span = node.tracer.span("fetch", Kind::Internal, trace);
            span.set_with("pondhawk.task", || held.meta.id.to_string());
            let handle = start(shard, Arc::clone(&held), name, offer, span);
            let wanted = Bitmap::new(held.meta.layout.pieces());
            let begun =
                Arc::new(Running { handle, wanted, prefetched: AtomicBool::default(), started: Instant::now() });
            running.insert(held.meta.id, Arc::clone(&begun));
            tokio_uring::spawn(follow(Arc::clone(node), Arc::clone(&held), Arc::clone(&begun)));
            (Outcome::Miss, begun)
        }
    };
    Ok(Source::new(held, outcome, 0, Some(running)))
}

fn start(shard: &Shard, held: Arc<Held>, name: Name, first: Option<Offer>, span: Span) -> Handle {
    let node = &shard.node;
    let policy = Policy {
        max_runs: usize::from(node.config.origin.connections_per_host),
        backoff: crate::node::backoff(&node.config),
        finish_alone: node.config.store.finish_alone,
        from_links: first.is_none(),
        seed: u64::from_le_bytes(held.meta.id.0[..8].try_into().expect("eight of 32 bytes")),
        ..Policy::default()
    };
    let options = DriverOptions { policy, ..DriverOptions::default() };
    let sharing = node.cluster.as_ref().map(|cluster| Sharing {
        exchange: Arc::clone(&cluster.exchange),
        links: shard.links.borrow().clone(),
        metrics: Arc::clone(&node.metrics),
        pace: Arc::clone(&cluster.pace),
        host: name.host,
        name: name.content,
        // Once the cluster reads it again together; what is wrong after that, this node reads for itself.
        alone: node.tasks.was_wrong(&held.meta.id) > 1,
    });
    driver::start(held, Arc::clone(&node.origin), shard.pool.clone(), first, sharing, options, span)
}

/// All that others hear of a URL.
pub fn origin_host(request: &OriginRequest) -> String {
    let host = request.url.host_str().unwrap_or_default();
    request.url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// Sees a download to its end: forgets it then, says what became of it, and drops a task that turned out wrong.
async fn follow(node: Arc<Node>, held: Arc<Held>, running: Arc<Running>) {
    let mut status = running.handle.watch();
    let over = |status: &Status| !matches!(status, Status::Running) && !is_forbidden(status);
    let last = match status.wait_for(over).await {
        Ok(last) => last.clone(),
        Err(_) => Status::Stopped,
    };
    let verdict = match last {
        Status::Done => held.settled().await,
        _ => held.verdict(),
    };
    node.tasks.forget(&held.meta.id, &running);
    let (label, from_origin) = (&held.about().label, running.handle.origin_bytes());
    match last {
        Status::Done if is_wrong(verdict) => drop_wrong(&node, &held, verdict, running.handle.peer_bytes() > 0),
        Status::Done => {
            node.metrics.task_done(running.started.elapsed());
            let cost_ms = u64::try_from(running.started.elapsed().as_millis()).unwrap_or(u64::MAX);
            let (task, bytes, from_peers) = (held.meta.id, held.meta.layout.len(), running.handle.peer_bytes());
            tracing::info!(%task, label, bytes, cost_ms, from_origin, from_peers, ?verdict, "peer task done");
        }
        Status::Failed(error) => {
            node.metrics.task_failed();
            tracing::warn!(task = %held.meta.id, label, from_origin, %error, "peer task failed");
            match *error {
                DownloadError::Changed(_) => drop(node.store.remove_held(&held)),
                // A task is recorded once, when it is made: without its record it could never be completed.
                DownloadError::Store(ref error) if matches!(**error, StoreError::Unrecorded) => {
                    node.store.remove_held(&held);
                }
                DownloadError::Refuted => {
                    held.set_verdict(Verdict::Mismatch);
                    discard(&node, &held, Party::Peer);
                }
                _ => {}
            }
        }
        Status::Stopped | Status::Running => {
            tracing::info!(task = %held.meta.id, label, from_origin, "peer task put away: nobody reads it");
        }
    }
}

/// Readers have cut their replies on the verdict; the next request begins anew. Nothing is done where another has done it.
fn drop_wrong(node: &Node, held: &Held, verdict: Verdict, from_peers: bool) {
    let party = match verdict {
        Verdict::Mismatch if from_peers => Party::Peer,
        Verdict::Mismatch => Party::Origin,
        _ => Party::Disk,
    };
    if !discard(node, held, party) {
        return;
    }
    if verdict == Verdict::Mismatch
        && let Some(cluster) = &node.cluster
    {
        cluster.exchange.wrong(held.meta.id);
    }
    node.metrics.task_failed();
    let (task, label) = (held.meta.id, &held.about().label);
    match party {
        Party::Disk => tracing::error!(%task, label, "the disk does not give a stored task back: dropped"),
        _ => tracing::error!(%task, label, blamed = ?party, "the bytes are not those of the hash in the name: dropped"),
    }
}

/// Drops a task of wrong bytes, of which this party is to blame. Whether it was still there.
fn discard(node: &Node, held: &Held, party: Party) -> bool {
    let dropped = node.store.remove_held(held);
    if dropped {
        // A disk that gives nothing back has sent no wrong byte to anyone: ranges of the file are as good as before.
        if party != Party::Disk {
            node.tasks.note_wrong(held.meta.id);
        }
        node.metrics.verification_failure(party);
    }
    dropped
}

/// Drops a task that the disk does not give back, so that the next request fetches it anew.
pub fn drop_unreadable(node: &Node, held: &Held, source: &std::io::Error) {
    held.set_verdict(Verdict::Unreadable);
    if discard(node, held, Party::Disk) {
        let (task, label) = (held.meta.id, &held.about().label);
        tracing::error!(%task, label, %source, "the disk does not give a stored task back: dropped");
    }
}

/// Whether all of it is here, and nothing speaks against it.
fn is_whole(held: &Arc<Held>) -> bool {
    held.bitmap().is_full() && !is_wrong(held.verdict())
}

fn is_wrong(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Mismatch | Verdict::Unreadable)
}

/// Drops a task whose verdict fell while no download of it was followed, as it does after a restart.
fn dropped_as_wrong(node: &Node, held: &Held) -> bool {
    let wrong = is_wrong(held.verdict());
    if wrong && !held.is_removed() {
        drop_wrong(node, held, held.verdict(), node.tasks.brought(&held.meta.id).peers > 0);
    }
    wrong
}

fn is_forbidden(status: &Status) -> bool {
    matches!(status, Status::Failed(error) if matches!(**error, DownloadError::Forbidden(_)))
}

impl Brought {
    fn and(self, running: &Running) -> Self {
        let handle = &running.handle;
        Self { origin: self.origin + handle.origin_bytes(), peers: self.peers + handle.peer_bytes() }
    }
}

impl Running {
    /// Whether a new reader may join; one that failed for want of a URL is revived by the reader's own.
    fn goes_on(&self) -> bool {
        let status = self.handle.status();
        matches!(status, Status::Running) || is_forbidden(&status)
    }
}

impl Tasks {
    /// None under way, and never more than `max`.
    pub fn new(max: usize) -> Self {
        Self { running: Mutex::default(), wrong: Mutex::default(), brought: Mutex::default(), max }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TaskId, Arc<Running>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A client that put the file together from ranges may hold a wrong one, and ask only for the rest of the others.
    fn note_wrong(&self, id: TaskId) {
        let (mut wrong, now) = (self.wrong.lock().unwrap_or_else(PoisonError::into_inner), Instant::now());
        wrong.retain(|_, (until, _)| *until > now);
        if wrong.len() < limits::WRONG_TASKS {
            let (until, times) = wrong.entry(id).or_insert((now, 0));
            (*until, *times) = (now + limits::WHOLE_ONLY, *times + 1);
        }
    }

    /// How often of late.
    fn was_wrong(&self, id: &TaskId) -> u32 {
        let wrong = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        wrong.get(id).filter(|(until, _)| *until > Instant::now()).map_or(0, |(_, times)| *times)
    }

    /// What was brought of a task, by a download under way too.
    pub fn brought(&self, id: &TaskId) -> Brought {
        // In this order everywhere, so that a download is counted once while it ends.
        let running = self.lock();
        let before = self.brought.lock().unwrap_or_else(PoisonError::into_inner).get(id).copied().unwrap_or_default();
        match running.get(id) {
            Some(running) => before.and(running),
            None => before,
        }
    }

    /// Once too many are remembered, all are forgotten: they only serve reports on what is new.
    fn note_brought(&self, id: TaskId, running: &Running) {
        let mut brought = self.brought.lock().unwrap_or_else(PoisonError::into_inner);
        if brought.len() >= limits::ORIGINS_KEPT && !brought.contains_key(&id) {
            brought.clear();
        }
        let sum = brought.entry(id).or_default();
        *sum = sum.and(running);
    }

    fn forget(&self, id: &TaskId, running: &Arc<Running>) {
        let mut all = self.lock();
        self.note_brought(*id, running);
        if all.get(id).is_some_and(|other| Arc::ptr_eq(other, running)) {
            all.remove(id);
        }
    }
}

impl Source {
    fn new(held: Arc<Held>, outcome: Outcome, age: u64, running: Option<Arc<Running>>) -> Self {
        let (headers, user) = (held.about().headers.clone(), held.user());
        Self { held, outcome, age, window: None, headers, by_hash: false, running, _user: user }
    }

    /// For a request of this URL, as long as nothing else is known of its headers.
    fn of_url(mut self, url: &Url, identity: &Identity) -> Self {
        self.headers = overrides::applied(&self.headers, url);
        self.by_hash = identity.is_content_addressed();
        self
    }

    /// With the headers that the origin gave for this very request, if it was asked.
    fn with_headers(self, headers: Option<Vec<(String, Vec<u8>)>>) -> Self {
        Self { headers: headers.unwrap_or(self.headers), ..self }
    }

    /// The validators that a client of this request may hold.
    pub fn validators(&self, now: i64) -> Stored {
        let kept = self.held.about().etag.as_ref().filter(|_| self.by_hash);
        let alternate = kept.and_then(|etag| Etag::parse(etag.as_bytes()));
        Stored { alternate, ..Stored::of(&self.headers, now) }
    }

    /// What an answer from the origin must agree with to be of this task.
    pub fn expected(&self) -> Expected {
        let etag = self.held.about().etag.clone().filter(|_| !self.by_hash);
        Expected { total: Some(self.held.meta.layout.len()), etag }
    }

    /// The span of the download that this request joined: in the trace of the one that began it, if that is recorded.
    pub fn joined_trace(&self) -> Option<Context> {
        self.running.as_ref().filter(|_| self.outcome == Outcome::Joined)?.handle.trace()
    }

    /// Wants all of it, until the download has ended. One such reader is enough, whoever asks for more.
    fn prefetch(&self) {
        let Some(running) = self.running.clone() else { return };
        if running.prefetched.swap(true, Ordering::Relaxed) {
            return;
        }
        let (whole, held) = (self.read(0..self.held.meta.layout.len()), Arc::clone(&self.held));
        tokio_uring::spawn(async move {
            let mut status = running.handle.watch();
            // The sender lives as long as the download.
            let _ = status.wait_for(|status| !matches!(status, Status::Running)).await;
            drop((whole, held));
        });
    }

    /// Says that this request reads these bytes, so that a download brings them. `None` where there is none to tell.
    pub fn read(&self, bytes: Range<u64>) -> Option<Reading> {
        let running = self.running.as_ref()?;
        self.held.meta.layout.covering(bytes.clone()).for_each(|piece| {
            running.wanted.set(piece);
        });
        running.handle.want(bytes)
    }

    /// Grows as long as bytes of the task arrive, whichever they are.
    pub fn progress(&self) -> u64 {
        let bytes = |running: &Arc<Running>| running.handle.origin_bytes() + running.handle.peer_bytes();
        let received = self.running.as_ref().map_or(0, bytes);
        received + u64::from(self.held.bitmap().count())
    }

    /// Whether every piece is held or was wanted by somebody.
    pub fn whole_wanted(&self) -> bool {
        let Some(running) = &self.running else { return true };
        let pieces = 0..self.held.meta.layout.pieces();
        pieces.into_iter().all(|piece| running.wanted.get(piece) || self.held.bitmap().get(piece))
    }

    /// Why no more bytes will come, if that is so.
    pub fn failure(&self) -> Option<Failure> {
        match self.running.as_ref()?.handle.status() {
            Status::Failed(error) => Some(Failure::Download(error)),
            Status::Stopped => Some(Failure::Stopped),
            Status::Running | Status::Done => None,
        }
    }

    /// Resolves when the download's standing changes from running; never where there is none.
    pub async fn ended(&self) {
        if let Some(running) = &self.running {
            let mut status = running.handle.watch();
            if status.wait_for(|status| !matches!(status, Status::Running)).await.is_ok()
                && !matches!(running.handle.status(), Status::Done)
            {
                return;
            }
        }
        std::future::pending::<()>().await;
    }
}

/// Why a download brings no more bytes.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Failure {
    /// It failed.
    #[error("{0}")]
    Download(Arc<DownloadError>),
    /// It was put away with its shard.
    #[error("the download was put away")]
    Stopped,
}

impl Failure {
    /// Whether the origin has another object there now.
    pub fn is_change(&self) -> bool {
        matches!(self, Self::Download(error) if matches!(**error, DownloadError::Changed(_)))
    }

    /// Whether bytes that were sent may be wrong.
    pub fn is_refuted(&self) -> bool {
        matches!(self, Self::Download(error) if matches!(**error, DownloadError::Refuted))
    }
}

fn now_unix() -> u64 {
    u64::try_from(unix_now()).unwrap_or(0)
}
