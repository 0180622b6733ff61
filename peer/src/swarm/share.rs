//! A download's part in the swarm: links to parents, digests, what the scheduler tells and is told.

use std::{
    cell::Cell,
    collections::HashMap,
    ops::Range,
    rc::Rc,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};

use tokio::{task::AbortHandle, time::Instant};

use super::{
    download::{Event, GiveBack, Leader, LinkId, Wanted},
    exchange::{Exchange, Membership, Parent, Return, Said, Standing, Told, Want, Wrong},
    run::{Report, Tools},
};
use crate::{
    metrics::{Metrics, Source},
    store::Held,
    trace::{Kind, Span},
    wire::{BlameKind, FetchError, Have, Link, Links, PeerId, Stop, rate::Bucket},
};

/// The first pause before a parent is dialled again, and the longest.
const REDIAL: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(10)];
/// A lease under which bytes come but no piece completes is reported as alive this often.
const ALIVE_EVERY: Duration = Duration::from_secs(1);
/// A download leaves an origin alone for so long in all because the scheduler says so; then it asks under its own backoff. Readers
/// give up soon after, and a scheduler that renews the pause forever must not keep them from the origin.
const MAX_PAUSED: Duration = Duration::from_secs(6);
/// Parents of one download.
const MAX_PARENTS: usize = 64;

/// How a download shares with other nodes.
pub struct Sharing {
    /// Where the scheduler is heard.
    pub exchange: Arc<Exchange>,
    /// The shard's connections to other peers; none before this node has joined a cluster.
    pub links: Option<Rc<Links>>,
    /// Bytes of peers are counted here.
    pub metrics: Arc<Metrics>,
    /// How fast all downloads of this node may fetch from peers.
    pub pace: Arc<Mutex<Bucket>>,
    /// The origin's host name, with a port that is not the scheme's own.
    pub host: String,
    /// What the task's name is made of, for nodes that have no URL.
    pub name: Option<Vec<u8>>,
    /// Fetch all from the origin and believe no peer: pieces of before were wrong. What is fetched is told nevertheless.
    pub alone: bool,
}

/// The driver's side of it.
pub(super) struct Share {
    sharing: Sharing,
    membership: Membership,
    held: Arc<Held>,
    tools: Rc<Tools>,
    parents: HashMap<PeerId, Parenthood>,
    links: HashMap<LinkId, Linked>,
    fetches: HashMap<(LinkId, u32), Asked>,
    next_link: Rc<Cell<u64>>,
    digests: Vec<Option<[u8; 32]>>,
    /// Pieces that came from peers, and the digests with which they were verified.
    from_peers: HashMap<u32, [u8; 32]>,
    epoch: Option<u64>,
    alive: HashMap<u64, Instant>,
    /// When a pause of the origin first held a run up.
    paused_since: Cell<Option<Instant>>,
}

struct Parenthood {
    task: AbortHandle,
    current: Rc<Cell<Option<LinkId>>>,
}

struct Linked {
    link: Rc<Link>,
    /// From the first to the last piece that the peer is asked for.
    span: Span,
}

struct Asked {
    stop: Rc<Stop>,
    digest: [u8; 32],
}

/// What became of a piece that a peer was asked for.
pub(super) type Fetched = Result<u64, FetchError>;

impl Share {
    pub(super) fn new(sharing: Sharing, tools: &Rc<Tools>) -> Self {
        let (held, tools) = (Arc::clone(&tools.held), Rc::clone(tools));
        let digests = vec![None; held.meta.layout.pieces() as usize];
        Self {
            membership: sharing.exchange.join(held.meta.id),
            sharing,
            held,
            tools,
            parents: HashMap::new(),
            links: HashMap::new(),
            fetches: HashMap::new(),
            next_link: Rc::default(),
            digests,
            from_peers: HashMap::new(),
            epoch: None,
            alive: HashMap::new(),
            paused_since: Cell::new(None),
        }
    }

    /// Waits until the scheduler has told something.
    pub(super) async fn told(&self) -> Vec<Told> {
        self.membership.told().await
    }

    /// What it means for the machine.
    pub(super) fn hear(&mut self, told: Told, max_pieces: u32) -> Vec<Event> {
        match told {
            Told::Standing(standing) => self.stand(standing).into_iter().collect(),
            _ if self.is_alone() => Vec::new(),
            Told::Link(parent) => self.adopt(parent).into_iter().collect(),
            Told::Unlink(peer) => self.part(&peer).into_iter().collect(),
            Told::Lease { id, pieces } => vec![Event::Leased { lease: id, pieces }],
            Told::LeaseEnd(lease) => vec![Event::LeaseEnded { lease }],
            Told::Digests(first, digests) => {
                let end = first.saturating_add(u32::try_from(digests.len()).unwrap_or(u32::MAX)).min(max_pieces);
                for (piece, digest) in (first..end).zip(digests) {
                    self.digests[piece as usize] = Some(digest);
                }
                let refuted = self.refuted(first..end);
                std::iter::once(Event::Known { pieces: first..end }).chain(refuted).collect()
            }
            Told::Disputed(piece) => {
                self.digests.get_mut(piece as usize).into_iter().for_each(|digest| *digest = None);
                vec![Event::Disputed { piece }]
            }
        }
    }

    fn stand(&mut self, standing: Standing) -> Option<Event> {
        let leader = match standing {
            _ if self.is_alone() => Leader::None,
            Standing::Never => Leader::None,
            Standing::Lost { .. } if self.epoch.is_none() => Leader::None,
            Standing::Lost { .. } => Leader::Lost,
            Standing::Up { epoch } if self.epoch.replace(epoch) == Some(epoch) => Leader::Same,
            Standing::Up { .. } => Leader::New,
        };
        Some(Event::Led(leader))
    }

    fn is_alone(&self) -> bool {
        self.sharing.alone || self.sharing.links.is_none()
    }

    /// Links with a parent; one told again is perhaps at another address.
    fn adopt(&mut self, parent: Parent) -> Option<Event> {
        let parted = self.part(&parent.peer);
        let Some(links) = self.sharing.links.clone().filter(|_| self.parents.len() < MAX_PARENTS) else {
            return parted;
        };
        let peer = parent.peer.clone();
        let current = Rc::new(Cell::new(None));
        let keeper = Keeper {
            links,
            parent,
            tools: Rc::clone(&self.tools),
            next_link: Rc::clone(&self.next_link),
            current: Rc::clone(&current),
        };
        let task = tokio_uring::spawn(keeper.keep()).abort_handle();
        self.parents.insert(peer, Parenthood { task, current });
        parted
    }

    fn part(&mut self, peer: &PeerId) -> Option<Event> {
        let parenthood = self.parents.remove(peer)?;
        parenthood.task.abort();
        let link = parenthood.current.take()?;
        self.links.remove(&link);
        Some(Event::LinkDown { link })
    }

    pub(super) fn link_up(&mut self, id: LinkId, link: Rc<Link>, span: Span) -> Event {
        self.links.insert(id, Linked { link, span });
        Event::LinkUp { link: id }
    }

    pub(super) fn link_down(&mut self, link: LinkId) -> Event {
        self.links.remove(&link);
        Event::LinkDown { link }
    }

    /// Asks a peer for a piece; reports how it went. False if the link or the digest has gone since that was decided.
    pub(super) fn ask(&mut self, id: LinkId, piece: u32) -> bool {
        let digest = self.digests.get(piece as usize).copied().flatten();
        let (Some(linked), Some(digest)) = (self.links.get_mut(&id), digest) else { return false };
        linked.span.busy();
        let link = Rc::clone(&linked.link);
        let stop = Rc::new(Stop::default());
        self.fetches.insert((id, piece), Asked { stop: Rc::clone(&stop), digest });
        let tools = Rc::clone(&self.tools);
        let bytes = self.held.meta.layout.bytes_of(piece);
        let mut pace = self.sharing.pace.lock().unwrap_or_else(PoisonError::into_inner);
        let due = pace.take(std::time::Instant::now(), bytes.end - bytes.start);
        drop(pace);
        tokio_uring::spawn(async move {
            let moved = Cell::new(0);
            if !due.is_zero() {
                tokio::select! {
                    () = tokio::time::sleep(due) => {}
                    () = stop.wait() => {}
                }
            }
            let result = link.fetch_piece(&tools.held, piece, digest, &tools.pool, &stop, &moved).await;
            tools.shared.from_peers.fetch_add(moved.get(), Ordering::Relaxed);
            let peer = link.peer().clone();
            // The driver is gone only if nobody wants to know.
            let _ = tools.reporter.send(Report::Fetched { link: id, peer, piece, result }).await;
        });
        true
    }

    pub(super) fn stop(&self, link: LinkId, piece: u32) {
        if let Some(asked) = self.fetches.get(&(link, piece)) {
            asked.stop.set();
        }
    }

    pub(super) fn stop_all(&self) {
        self.fetches.values().for_each(|asked| asked.stop.set());
    }

    pub(super) fn is_fetching(&self) -> bool {
        !self.fetches.is_empty()
    }

    pub(super) fn forget(&mut self, link: LinkId, piece: u32) {
        self.fetches.remove(&(link, piece));
    }

    /// How a piece came, or did not; a peer that lied, or is none, is blamed and parted from.
    pub(super) fn fetched(&mut self, link: LinkId, peer: &PeerId, piece: u32, result: &Fetched) -> Vec<Event> {
        let asked = self.fetches.remove(&(link, piece));
        let failed = Event::PeerFailed { link, piece };
        match result {
            Ok(bytes) => {
                self.sharing.metrics.received(Source::Peers, *bytes);
                if let Some(Linked { span, .. }) = self.links.get_mut(&link) {
                    span.add(1, *bytes);
                    span.busy();
                }
                let (task, len) = (self.held.meta.id, self.held.meta.layout.len());
                self.sharing.exchange.held(task, len, piece, None);
                self.from_peers.extend(asked.map(|asked| (piece, asked.digest)));
                let refuted = self.refuted(piece..piece + 1);
                std::iter::once(Event::PeerPiece { link, piece }).chain(refuted).collect()
            }
            Err(FetchError::Blamed(blame)) => {
                tracing::warn!(%peer, piece, task = %self.held.meta.id, "{blame}: parted from it");
                let kind = match blame.kind {
                    BlameKind::WrongBytes => Wrong::Piece,
                    BlameKind::Garbage => Wrong::Garbage,
                    BlameKind::Silent => Wrong::Silent,
                    BlameKind::Missing => Wrong::Missing,
                };
                self.links.get_mut(&link).into_iter().for_each(|linked| linked.span.fail(|| blame.to_string()));
                self.sharing.exchange.say(Said::Blame { peer: peer.clone(), task: self.held.meta.id, piece, kind });
                let parted = self.part(peer);
                [failed].into_iter().chain(parted).collect()
            }
            Err(FetchError::Busy(_)) => vec![failed, Event::LinkBusy { link, pause: Duration::from_millis(100) }],
            Err(error) => {
                tracing::debug!(%peer, piece, %error, "a piece did not come");
                vec![failed]
            }
        }
    }

    /// A piece that was verified with a digest which is another one now: somebody lied, and was believed.
    fn refuted(&self, pieces: Range<u32>) -> Option<Event> {
        let is_refuted = |piece: &u32| {
            let used = self.from_peers.get(piece);
            used.is_some_and(|used| self.digests[*piece as usize].is_some_and(|known| known != *used))
        };
        pieces.into_iter().find(is_refuted).map(|piece| Event::Refuted { piece })
    }

    /// A piece came from the origin, one of `requests` that are under way.
    pub(super) fn piece_done(&self, piece: u32, digest: [u8; 32], requests: usize) {
        let (task, len) = (self.held.meta.id, self.held.meta.layout.len());
        let requests = u32::try_from(requests).unwrap_or(u32::MAX);
        self.sharing.exchange.fetched(task, len, piece, digest, requests);
    }

    /// Bytes came from the origin under a lease.
    pub(super) fn moved(&mut self, lease: u64) {
        let now = Instant::now();
        self.alive.retain(|_, said| now.duration_since(*said) < ALIVE_EVERY);
        if let std::collections::hash_map::Entry::Vacant(unsaid) = self.alive.entry(lease) {
            unsaid.insert(now);
            self.sharing.exchange.alive(self.held.meta.id, self.held.meta.layout.len(), lease);
        }
    }

    /// Whether the origin asked the cluster to be left alone, and this download still waits for that.
    pub(super) fn is_paused(&self) -> bool {
        if self.sharing.exchange.paused(&self.sharing.host).is_none() {
            return false;
        }
        let since = self.paused_since.get().unwrap_or_else(Instant::now);
        self.paused_since.set(Some(since));
        since.elapsed() < MAX_PAUSED
    }

    pub(super) fn give_back(&self, lease: u64, why: GiveBack) {
        let why = match why {
            GiveBack::Expired => Return::Expired,
            GiveBack::Throttled(after) => Return::Throttled(after),
            GiveBack::Failed => Return::Failed,
            GiveBack::Unneeded => Return::Unneeded,
        };
        self.sharing.exchange.say(Said::Return { task: self.held.meta.id, lease, why });
    }

    pub(super) fn tell(&self, wanted: Wanted, connections: usize) {
        let task = self.held.meta.id;
        let said = match wanted {
            Wanted::Nothing => Said::Unwant(task),
            Wanted::Pieces { can_fetch, runs } => Said::Want(Want {
                task,
                len: self.held.meta.layout.len(),
                host: self.sharing.host.clone(),
                can_fetch: can_fetch && !self.is_alone(),
                content_named: self.held.meta.proof.is_some(),
                connections: u32::try_from(connections).unwrap_or(u32::MAX),
                wanted: runs,
                name: self.sharing.name.clone(),
                trace: self.tools.trace.context(),
            }),
        };
        self.sharing.exchange.say(said);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.parents.values().for_each(|parent| parent.task.abort());
        self.stop_all();
    }
}

/// Keeps one parent linked for as long as the scheduler says so.
struct Keeper {
    links: Rc<Links>,
    parent: Parent,
    tools: Rc<Tools>,
    next_link: Rc<Cell<u64>>,
    current: Rc<Cell<Option<LinkId>>>,
}

impl Keeper {
    async fn keep(self) {
        let mut pause = REDIAL[0];
        loop {
            match self.links.link(&self.parent).await {
                Ok(link) => {
                    pause = REDIAL[0];
                    self.follow(link).await;
                }
                Err(error) => tracing::debug!(%error, "no link"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(REDIAL[1]);
        }
    }

    /// Until the link is lost.
    async fn follow(&self, link: Rc<Link>) {
        let id = LinkId(self.next_link.get());
        self.next_link.set(id.0 + 1);
        self.current.set(Some(id));
        let meta = &self.tools.held.meta;
        let mut follow = link.follow(meta.id, meta.layout);
        let span = self.begin(&link);
        self.report(Report::LinkUp(id, link, span)).await;
        let lost = loop {
            match follow.next().await {
                Ok(Have::Pieces(runs)) => {
                    for pieces in runs {
                        self.report(Report::Event(Event::LinkHas { link: id, pieces })).await;
                    }
                }
                Ok(Have::Gone) => self.report(Report::Event(Event::LinkForgot { link: id })).await,
                Ok(Have::Throttled(pause)) => self.report(Report::Event(Event::LinkBusy { link: id, pause })).await,
                Err(error) => break error,
            }
        };
        tracing::debug!(peer = %self.parent.peer, error = %lost, "link lost");
        self.current.set(None);
        self.report(Report::LinkDown(id)).await;
    }

    /// One span for all that comes on a link, of which the peer is told.
    fn begin(&self, link: &Link) -> Span {
        let mut span = self.tools.trace.part("peer fetch", Kind::Client).when_busy();
        span.set_with("pondhawk.peer", || self.parent.peer.to_string());
        span.set_with("network.peer.address", || self.parent.address.ip().to_string());
        if let Some(context) = span.context() {
            link.trace(self.tools.held.meta.id, context);
        }
        span
    }

    async fn report(&self, report: Report) {
        // The driver is gone only if nobody wants to know.
        let _ = self.tools.reporter.send(report).await;
    }
}
