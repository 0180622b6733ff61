//! Carries out a download on one shard: the machine of `download`, its runs (`run`), and readers on any shard.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    future::pending,
    ops::Range,
    rc::Rc,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, mpsc, watch},
    task::AbortHandle,
    time::{Instant, sleep_until, timeout},
};

use super::{
    download::{Action, Download, Event, Fetch, LinkId, MAX_SOURCES, Policy, Reach, Reason, RunId, SourceId},
    exchange::Told,
    origin::{Expected, OpenBody, Origin, OriginError, OriginRequest, Probe},
    run::{Report, Run, RunError, Tools},
    share::{Fetched, Share, Sharing},
};
use crate::{
    store::{Held, StoreError},
    task::Proof,
    trace::{Context, Kind, Span, Trunk, asked_of_origin},
    uring::Pool,
    wire::{FetchError, PeerId},
};

/// Readers of one download at once; more are turned away to be served without it.
pub const MAX_READERS: usize = 4096;
/// Reports of runs that wait to be handled; runs wait when there are more.
const MAX_REPORTS: usize = 256;
/// For the store to look through what an unclean stop left behind.
const CHECK_DEADLINE: Duration = Duration::from_secs(120);

/// Settings of a download.
#[derive(Clone, Copy, Debug)]
pub struct DriverOptions {
    /// What is fetched when.
    pub policy: Policy,
    /// How long a download without readers stays, so that a client that comes back finds it.
    pub linger: Duration,
}

impl Default for DriverOptions {
    fn default() -> Self {
        Self { policy: Policy::default(), linger: Duration::from_secs(10) }
    }
}

/// A client's way to the object: its request, and what the origin answered to a probe with it.
#[derive(Clone, Debug)]
pub struct Offer {
    /// URL and headers.
    pub request: OriginRequest,
    /// From [`Origin::probe`], by way of the authorizer.
    pub probe: Arc<Probe>,
    /// Whether the task's name is a hash of its content. The bytes prove themselves then, and the ETags of a CDN's edges,
    /// which may differ for one object, decide nothing.
    pub by_hash: bool,
    /// The body that came with the probe, if it was an answer with all of the object.
    pub open: OpenBody,
}

/// How a download stands.
#[derive(Clone, Debug)]
pub enum Status {
    /// Bytes are coming, or will when somebody wants them.
    Running,
    /// Every piece is held.
    Done,
    /// Put away for want of readers, or with its shard: start another one.
    Stopped,
    /// Readers get no more. After [`DownloadError::Forbidden`] an offer revives it, else start another one.
    Failed(Arc<DownloadError>),
}

/// Why a download failed, and who is to blame.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// The origin accepts no client's URL any more; its answer is for the client, who can renew the URL.
    #[error("no client's URL is accepted any more: {0}")]
    Forbidden(#[source] Arc<OriginError>),
    /// The origin does not answer, or not with the object.
    #[error("{0}")]
    Origin(#[source] Arc<OriginError>),
    /// The origin has another object there now: drop the task and begin anew.
    #[error("the object changed at the origin: {0}")]
    Changed(#[source] Arc<OriginError>),
    /// The store does not take the bytes.
    #[error("{0}")]
    Store(#[source] Arc<StoreError>),
    /// A piece came from a peer with a digest that turned out wrong: drop the task and begin anew.
    #[error("a piece that a peer sent is not what the origin has")]
    Refuted,
}

impl DownloadError {
    /// The origin's error, where the origin is to blame.
    pub fn origin_error(&self) -> Option<&Arc<OriginError>> {
        match self {
            Self::Forbidden(error) | Self::Origin(error) | Self::Changed(error) => Some(error),
            Self::Store(_) | Self::Refuted => None,
        }
    }
}

/// A running download, for all shards.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

/// A reader's interest in a download; dropped, it is gone.
pub struct ReaderGuard {
    shared: Arc<Shared>,
    reader: u64,
}

pub(super) struct Shared {
    inbox: Mutex<Inbox>,
    wake: Notify,
    status: watch::Sender<Status>,
    pub(super) from_origin: AtomicU64,
    pub(super) from_peers: AtomicU64,
    trace: Option<Context>,
}

#[derive(Default)]
struct Inbox {
    commands: Vec<Command>,
    readers: usize,
    last_reader: u64,
    closed: bool,
}

enum Command {
    Want { reader: u64, bytes: Range<u64> },
    Unwant { reader: u64 },
    Offer(Box<Offer>),
}

/// Starts a download into `held` on the calling shard (a tokio-uring runtime). Nothing is fetched until a reader wants it
/// ([`Handle::want`]), unless the policy lets downloads finish alone. With `sharing`, pieces also come from other nodes;
/// without a `first` offer from them alone, until a client comes with its own. `span` lasts as long as the download.
pub fn start(
    held: Arc<Held>,
    origin: Arc<Origin>,
    pool: Pool,
    first: Option<Offer>,
    sharing: Option<Sharing>,
    options: DriverOptions,
    span: Span,
) -> Handle {
    let shared = Arc::new(Shared {
        inbox: Mutex::default(),
        wake: Notify::new(),
        status: watch::Sender::new(Status::Running),
        from_origin: AtomicU64::new(0),
        from_peers: AtomicU64::new(0),
        trace: span.context(),
    });
    let handle = Handle { shared: Arc::clone(&shared) };
    let reach = match &first {
        Some(Offer { request, .. }) if request.window.is_some() => Reach::Window,
        Some(Offer { probe, .. }) if !probe.ranges => Reach::Whole,
        // A client that comes later has a URL for exactly these bytes.
        None if matches!(held.meta.proof, Some(Proof::Xorb(_))) => Reach::Window,
        Some(_) | None => Reach::Ranges,
    };
    first.into_iter().for_each(|first| handle.offer(first));
    let driver = async move {
        let user = held.user();
        // A timeout only means that pieces which may be there are fetched again.
        let _ = timeout(CHECK_DEADLINE, held.checked()).await;
        let (reporter, reports) = mpsc::channel(MAX_REPORTS);
        let (partials, open, trace) = (RefCell::default(), RefCell::default(), Trunk::new(span));
        let tools = Tools { held: Arc::clone(&held), origin, pool, reporter, partials, open, shared, trace };
        let mut driver = Driver::new(Rc::new(tools), reports, reach, options);
        if let Some(sharing) = sharing {
            // Before anything is fetched: a scheduler may lead.
            let standing = sharing.exchange.standing_of(&held.meta.id);
            driver.share = Some(Share::new(sharing, &driver.tools));
            driver.hear(vec![Told::Standing(standing)]);
        }
        driver.drive().await;
        drop(user);
    };
    tokio_uring::spawn(driver);
    handle
}

impl Handle {
    /// A reader that waits for these bytes of the task; the first missing of them come first. `None`: the download is over
    /// or has [`MAX_READERS`].
    pub fn want(&self, bytes: Range<u64>) -> Option<ReaderGuard> {
        let mut inbox = self.shared.inbox();
        if inbox.closed || inbox.readers >= MAX_READERS {
            return None;
        }
        inbox.readers += 1;
        inbox.last_reader += 1;
        let reader = inbox.last_reader;
        self.shared.push(inbox, Command::Want { reader, bytes });
        Some(ReaderGuard { shared: Arc::clone(&self.shared), reader })
    }

    /// One more way to the object, for when earlier ones expire. Revives a download that failed for want of one.
    pub fn offer(&self, offer: Offer) {
        let mut inbox = self.shared.inbox();
        if inbox.closed {
            return;
        }
        let is_offer = |command: &Command| matches!(command, Command::Offer(_));
        if inbox.commands.iter().filter(|command| is_offer(command)).count() >= MAX_SOURCES
            && let Some(oldest) = inbox.commands.iter().position(is_offer)
        {
            inbox.commands.remove(oldest);
        }
        self.shared.status.send_if_modified(revive);
        self.shared.push(inbox, Command::Offer(Box::new(offer)));
    }

    /// How it stands now.
    pub fn status(&self) -> Status {
        self.shared.status.borrow().clone()
    }

    /// Follows the status: `changed().await` resolves at each change.
    pub fn watch(&self) -> watch::Receiver<Status> {
        self.shared.status.subscribe()
    }

    /// Bytes of bodies received from the origin so far.
    pub fn origin_bytes(&self) -> u64 {
        self.shared.from_origin.load(Ordering::Relaxed)
    }

    /// Bytes received from other nodes so far.
    pub fn peer_bytes(&self) -> u64 {
        self.shared.from_peers.load(Ordering::Relaxed)
    }

    /// Its span, where it is recorded.
    pub fn trace(&self) -> Option<Context> {
        self.shared.trace
    }

    /// Whether both lead to the same download.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }
}

impl Drop for ReaderGuard {
    fn drop(&mut self) {
        let mut inbox = self.shared.inbox();
        inbox.readers -= 1;
        if !inbox.closed {
            self.shared.push(inbox, Command::Unwant { reader: self.reader });
        }
    }
}

impl Shared {
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, mut inbox: MutexGuard<'_, Inbox>, command: Command) {
        inbox.commands.push(command);
        drop(inbox);
        self.wake.notify_one();
    }

    /// Nobody gets in any more.
    fn close(&self, status: Status) {
        let mut inbox = self.inbox();
        inbox.closed = true;
        inbox.commands.clear();
        self.status.send_replace(status);
    }

    /// Closes if nobody is interested; in one step with looking, so that no reader is lost in between.
    fn close_if_unused(&self) -> bool {
        let mut inbox = self.inbox();
        inbox.closed = inbox.readers == 0 && inbox.commands.is_empty();
        if inbox.closed {
            self.status.send_replace(Status::Stopped);
        }
        inbox.closed
    }

    /// Tells readers that no URL is left, unless one is on its way in.
    fn forbid(&self, error: DownloadError) {
        let inbox = self.inbox();
        if !inbox.commands.iter().any(|command| matches!(command, Command::Offer(_))) {
            self.status.send_replace(Status::Failed(Arc::new(error)));
        }
    }
}

fn revive(status: &mut Status) -> bool {
    let starved = matches!(status, Status::Failed(error) if matches!(**error, DownloadError::Forbidden(_)));
    if starved {
        *status = Status::Running;
    }
    starved
}

/// The shard's side.
struct Driver {
    machine: Download,
    tools: Rc<Tools>,
    /// Pieces that were there before.
    had: u32,
    share: Option<Share>,
    shared: Arc<Shared>,
    reports: mpsc::Receiver<Report>,
    runs: HashMap<RunId, Running>,
    sources: Vec<(SourceId, Rc<OriginRequest>, Rc<Expected>)>,
    next_source: u64,
    options: DriverOptions,
    begun: Instant,
    idle_since: Instant,
    last_error: Option<Arc<OriginError>>,
    store_error: Option<Arc<StoreError>>,
}

struct Running {
    task: AbortHandle,
    trimmed: Rc<Cell<bool>>,
}

impl Driver {
    fn new(tools: Rc<Tools>, reports: mpsc::Receiver<Report>, reach: Reach, options: DriverOptions) -> Self {
        let held = &tools.held;
        Self {
            machine: Download::new(held.meta.layout, held.bitmap(), reach, options.policy),
            had: held.bitmap().count(),
            share: None,
            shared: Arc::clone(&tools.shared),
            tools,
            reports,
            runs: HashMap::new(),
            sources: Vec::new(),
            next_source: 0,
            options,
            begun: Instant::now(),
            idle_since: Instant::now(),
            last_error: None,
            store_error: None,
        }
    }

    /// Until the download is done, has failed for good, or nobody wants it any more.
    async fn drive(mut self) {
        loop {
            self.take_commands();
            while let Some(action) = self.machine.poll(self.now()) {
                if let Some(end) = self.act(action) {
                    self.quiet().await;
                    return self.shared.close(end);
                }
            }
            let idle = self.machine.is_idle();
            if !idle {
                self.idle_since = Instant::now();
            } else if self.idle_since.elapsed() >= self.options.linger && self.shared.close_if_unused() {
                return;
            }
            self.wait(idle).await;
        }
    }

    /// Until no peer's bytes are being written any more: the next download of the task may begin at once.
    async fn quiet(&mut self) {
        let Some(share) = &mut self.share else { return };
        share.stop_all();
        while share.is_fetching() {
            match self.reports.recv().await {
                Some(Report::Fetched { link, piece, .. }) => share.forget(link, piece),
                Some(_) => {}
                None => return,
            }
        }
    }

    /// For a command, a report, or the time to look again.
    async fn wait(&mut self, idle: bool) {
        let linger = idle.then(|| self.idle_since + self.options.linger);
        let retry = self.machine.poll_timeout().map(|due| self.begun + due);
        let alarm = async {
            match linger.into_iter().chain(retry).min() {
                Some(at) => sleep_until(at).await,
                None => pending().await,
            }
        };
        let told = async {
            match &self.share {
                Some(share) => share.told().await,
                None => pending().await,
            }
        };
        tokio::select! {
            report = self.reports.recv() => if let Some(report) = report { self.note(report) },
            () = self.shared.wake.notified() => {}
            told = told => self.hear(told),
            () = alarm => {}
        }
    }

    /// What the scheduler told.
    fn hear(&mut self, told: Vec<Told>) {
        let (now, pieces) = (self.now(), self.tools.held.meta.layout.pieces());
        for told in told {
            let events = self.share.as_mut().map(|share| share.hear(told, pieces)).unwrap_or_default();
            events.into_iter().for_each(|event| self.machine.handle(now, event));
        }
    }

    fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    fn take_commands(&mut self) {
        let commands = std::mem::take(&mut self.shared.inbox().commands);
        for command in commands {
            let event = match command {
                Command::Want { reader, bytes } => Event::Want { reader, bytes },
                Command::Unwant { reader } => Event::Unwant { reader },
                Command::Offer(offer) => Event::UrlOffered { source: self.add_source(*offer) },
            };
            if matches!(event, Event::UrlOffered { .. }) {
                self.shared.status.send_if_modified(revive);
            }
            self.machine.handle(self.now(), event);
        }
    }

    fn add_source(&mut self, offer: Offer) -> SourceId {
        let source = SourceId(self.next_source);
        self.next_source += 1;
        // The machine keeps as many, and lets the oldest go as well.
        if self.sources.len() == MAX_SOURCES {
            self.sources.remove(0);
        }
        let total = Some(self.tools.held.meta.layout.len());
        // A window is asked for as the client would: without a condition.
        if let Some(open) = offer.open.take() {
            *self.tools.open.borrow_mut() = Some(open);
        }
        let decides = offer.request.window.is_none() && !offer.by_hash;
        let etag = offer.probe.etag.clone().filter(|_| decides);
        let expected = Expected { total, etag };
        self.sources.push((source, Rc::new(offer.request), Rc::new(expected)));
        source
    }

    fn note(&mut self, report: Report) {
        let event = match report {
            Report::Event(event) => self.keep_alive(event),
            Report::Done { run, piece, digest } => {
                let requests = self.machine.requests();
                self.share.iter().for_each(|share| share.piece_done(piece, digest, requests));
                Event::PieceDone { run, piece }
            }
            Report::Failed(run, RunError::Origin(error)) => {
                let class = error.class();
                tracing::debug!(%error, ?class, "a run failed");
                self.tools.origin.note_retry(class);
                self.last_error = Some(Arc::new(error));
                Event::RunFailed { run, class }
            }
            Report::Failed(_, RunError::Store(error)) => self.disk_failed(error),
            Report::LinkUp(id, link, span) => match &mut self.share {
                Some(share) => share.link_up(id, link, span),
                None => return,
            },
            Report::LinkDown(id) => match &mut self.share {
                Some(share) => share.link_down(id),
                None => return,
            },
            Report::Fetched { link, peer, piece, result } => return self.fetched(link, &peer, piece, result),
        };
        if let Event::RunEnded { run } | Event::RunFailed { run, .. } = event {
            self.runs.remove(&run);
        }
        self.machine.handle(self.now(), event);
    }

    fn fetched(&mut self, link: LinkId, peer: &PeerId, piece: u32, result: Fetched) {
        let Some(share) = &mut self.share else { return };
        let now = self.begun.elapsed();
        for event in share.fetched(link, peer, piece, &result) {
            self.machine.handle(now, event);
        }
        if let Err(FetchError::Store(error)) = result {
            let event = self.disk_failed(error);
            self.machine.handle(now, event);
        }
    }

    fn disk_failed(&mut self, error: StoreError) -> Event {
        self.store_error = Some(Arc::new(error));
        Event::DiskFailed
    }

    /// Bytes of a lease that come before a piece completes keep it.
    fn keep_alive(&mut self, event: Event) -> Event {
        if let (Some(share), Event::Progress { piece, .. }) = (&mut self.share, &event)
            && let Some(lease) = self.machine.lease_of(*piece)
        {
            share.moved(lease);
        }
        event
    }

    /// Carries an action out; the final status if it was the last one.
    fn act(&mut self, action: Action) -> Option<Status> {
        match action {
            Action::Fetch(fetch) => self.fetch(fetch),
            Action::Trim(run) => {
                if let Some(running) = self.runs.get(&run) {
                    running.trimmed.set(true);
                }
            }
            Action::Cancel(run) => {
                if let Some(running) = self.runs.remove(&run) {
                    running.task.abort();
                }
            }
            Action::Done => return Some(Status::Done),
            Action::Fail(Reason::Credentials) => self.shared.forbid(DownloadError::Forbidden(self.blamed())),
            Action::Fail(reason) => return Some(Status::Failed(Arc::new(self.failure(reason)))),
            Action::Ask { .. } | Action::Stop { .. } | Action::Return { .. } | Action::Tell(_) => {
                self.share_out(action);
            }
        }
        None
    }

    fn share_out(&mut self, action: Action) {
        let Some(share) = &mut self.share else { return };
        match action {
            Action::Ask { link, piece } if share.ask(link, piece) => {}
            Action::Ask { link, piece } => {
                self.machine.handle(self.begun.elapsed(), Event::PeerFailed { link, piece });
            }
            Action::Stop { link, piece } => share.stop(link, piece),
            Action::Return { lease, why } => share.give_back(lease, why),
            Action::Tell(wanted) => share.tell(wanted, self.options.policy.max_runs),
            _ => {}
        }
    }

    fn fetch(&mut self, fetch: Fetch) {
        let run = fetch.run;
        let paused = self.share.as_ref().is_some_and(Share::is_paused);
        let source = self.sources.iter().find(|(source, ..)| *source == fetch.source).filter(|_| !paused);
        let Some((_, request, expected)) = source else {
            // The cluster leaves the origin alone for now; or, since both keep the same newest sources, this is a run whose
            // URL has just been pushed out.
            return self.machine.handle(self.now(), Event::RunFailed { run, class: super::retry::Class::Busy });
        };
        let trimmed = Rc::new(Cell::new(false));
        let mut span = self.tools.trace.part("origin run", Kind::Client);
        asked_of_origin(&mut span, "GET", request);
        span.set("pondhawk.first_piece", u64::from(fetch.pieces.start));
        let job = Run {
            span: RefCell::new(span),
            tools: Rc::clone(&self.tools),
            request: Rc::clone(request),
            expected: Rc::clone(expected),
            trimmed: Rc::clone(&trimmed),
            fetch,
        };
        let task = tokio_uring::spawn(job.report()).abort_handle();
        self.runs.insert(run, Running { task, trimmed });
    }

    /// What became of it, for its trace.
    fn tell(&self, span: &mut Span) {
        let (origin, peers) = (&self.shared.from_origin, &self.shared.from_peers);
        let (origin, peers) = (origin.load(Ordering::Relaxed), peers.load(Ordering::Relaxed));
        span.set("pondhawk.origin_bytes", origin);
        span.set("pondhawk.peer_bytes", peers);
        let pieces = self.tools.held.bitmap().count().saturating_sub(self.had);
        span.add(pieces.into(), origin + peers);
        let outcome = match &*self.shared.status.borrow() {
            Status::Running | Status::Stopped => "stopped",
            Status::Done => "done",
            Status::Failed(error) => {
                span.fail(|| error.to_string());
                "failed"
            }
        };
        span.set("pondhawk.outcome", outcome);
    }

    fn failure(&self, reason: Reason) -> DownloadError {
        match (reason, &self.store_error) {
            (Reason::Disk, Some(error)) => DownloadError::Store(Arc::clone(error)),
            (Reason::Credentials, _) => DownloadError::Forbidden(self.blamed()),
            (Reason::Changed, _) => DownloadError::Changed(self.blamed()),
            (Reason::Refuted, _) => DownloadError::Refuted,
            (Reason::Exhausted | Reason::Refused | Reason::Disk, _) => DownloadError::Origin(self.blamed()),
        }
    }

    /// The error that led to a failure: there was one, since only failed runs make a download fail.
    fn blamed(&self) -> Arc<OriginError> {
        let label = || self.tools.held.about().label.clone();
        self.last_error.clone().unwrap_or_else(|| Arc::new(OriginError::Url { at: label() }))
    }
}

impl Drop for Driver {
    /// With its shard or at its end: no run outlives the driver, no reader waits for it.
    fn drop(&mut self) {
        self.runs.values().for_each(|running| running.task.abort());
        let ended = self.shared.inbox().closed;
        if !ended {
            self.shared.close(Status::Stopped);
        }
        // Their own parts end first.
        drop(self.share.take());
        self.tools.trace.end(|span| self.tell(span));
    }
}
