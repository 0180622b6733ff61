//! One session, from Welcome to its end: whatever carries its messages.

use std::{
    collections::{HashMap, VecDeque},
    io,
    ops::RangeInclusive,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use pondhawk_proto::v1 as proto;
use pondhawk_scheduler::warning_limit::WarningLimit;
use proto::{peer_message::Body, scheduler_message::Body as Message};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};
use tokio_stream::{Stream, StreamExt};
use tonic::Status;

use super::{SwarmStatus, convert};
use crate::{
    store::Store,
    swarm::exchange::{Exchange, Return, Said, Spreading, Standing, Told},
    task::TaskId,
    wire::{PeerId, denials::DeniedPeers},
};

/// For the scheduler's Welcome.
const WELCOME: Duration = Duration::from_secs(10);
/// For room in the queue to the scheduler.
const SEND: Duration = Duration::from_secs(10);
/// Pings missed that end a session.
const SILENT_PINGS: u32 = 3;
/// Load is told at most this often where nothing else is.
const LOAD_EVERY: Duration = Duration::from_secs(1);
/// Between two reports that come before their time.
const REPORTS_APART: Duration = Duration::from_millis(20);
/// Reads of piece tables at once.
const LOOKUPS: usize = 8;
/// Leases whose tasks are remembered; past it the oldest are forgotten, and their end is not told.
const MAX_LEASES: usize = 65_536;
/// Bounds of Welcome.progress_ms.
const PROGRESS_EVERY: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(10);
/// Bounds of Welcome.ping_ms. A scheduler that chose weeks could be silent for weeks, and its downloads would wait for it.
const PING_EVERY: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(60);
/// Messages that wait for the inventory to be told.
const MAX_EARLY: usize = 4_096;

/// What ended a session.
#[derive(Debug)]
pub(super) enum End {
    /// The scheduler, or the connection.
    Status(Status),
    /// The scheduler closed without a word.
    Closed,
    /// Nothing was heard for so long.
    Silent(Duration),
    /// It takes no messages any more.
    Stuck,
    /// It broke the protocol.
    Nonsense(&'static str),
}

/// A session's state.
pub(super) struct Live {
    exchange: Arc<Exchange>,
    /// The scheduler's in the exchange.
    seat: usize,
    store: Arc<Store>,
    status: Arc<SwarmStatus>,
    out: mpsc::Sender<proto::PeerMessage>,
    leases: HashMap<u64, TaskId>,
    lease_order: VecDeque<u64>,
    lookups: JoinSet<io::Result<Found>>,
    /// The inventory and the wants are told.
    announced: bool,
    early: Vec<proto::PeerMessage>,
    load: Load,
    warnings: SessionWarnings,
}

/// Lines of the log that a scheduler can cause by the thousand.
#[derive(Default)]
struct SessionWarnings {
    pause: WarningLimit,
    denied: WarningLimit,
    dispute: WarningLimit,
}

/// What was read from a piece table.
enum Found {
    /// The scheduler asked.
    Wanted {
        task: TaskId,
        len: u64,
        digests: Vec<(u32, [u8; 32])>,
    },
    /// Somebody disagrees about this one.
    Disputed {
        task: TaskId,
        len: u64,
        piece: u32,
        digest: [u8; 32],
    },
    Nothing,
}

/// What this node sends to others, and when that was told.
struct Load {
    sent: u64,
    rate: u64,
    uploads: u32,
    totals: Option<proto::Totals>,
    measured: Instant,
}

impl Live {
    pub(super) fn new(
        (exchange, seat): (Arc<Exchange>, usize),
        store: Arc<Store>,
        status: Arc<SwarmStatus>,
        out: mpsc::Sender<proto::PeerMessage>,
    ) -> Self {
        let load = Load { sent: exchange.sent(), rate: 0, uploads: 0, totals: None, measured: Instant::now() };
        Self {
            exchange,
            seat,
            store,
            status,
            out,
            leases: HashMap::new(),
            lease_order: VecDeque::new(),
            lookups: JoinSet::new(),
            announced: false,
            early: Vec::new(),
            load,
            warnings: SessionWarnings::default(),
        }
    }

    /// Speaks until the session ends. Hello was sent.
    pub(super) async fn run<S>(&mut self, incoming: &mut S) -> End
    where
        S: Stream<Item = Result<proto::SchedulerMessage, Status>> + Unpin,
    {
        match self.speak(incoming).await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn speak<S>(&mut self, incoming: &mut S) -> Result<std::convert::Infallible, End>
    where
        S: Stream<Item = Result<proto::SchedulerMessage, Status>> + Unpin,
    {
        let welcome = welcome(incoming).await?;
        let (exchange, seat) = (Arc::clone(&self.exchange), self.seat);
        let (store, out) = (Arc::clone(&self.store), self.out.clone());
        let silence = convert::millis(welcome.ping_ms, PING_EVERY) * SILENT_PINGS;
        let mut reports = interval(convert::millis(welcome.progress_ms, PROGRESS_EVERY));
        reports.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let announce = || announce((Arc::clone(&exchange), seat), Arc::clone(&store), out.clone(), welcome.epoch);
        exchange.came(seat);
        let mut announcing = std::pin::pin!(announce());
        let (mut heard, mut reported) = (Instant::now(), Instant::now());
        loop {
            tokio::select! {
                told = &mut announcing, if !self.announced => {
                    told?;
                    self.announced = true;
                    self.status.up(welcome.epoch);
                    for message in std::mem::take(&mut self.early) {
                        self.send(message).await?;
                    }
                }
                message = incoming.next(), if self.lookups.len() < LOOKUPS => {
                    self.hear(message.ok_or(End::Closed)?.map_err(End::Status)?).await?;
                    heard = Instant::now();
                }
                said = exchange.said(seat), if self.announced => self.say(said).await?,
                // From now on until it is told again what is held, and by then for the tasks that are here now.
                () = exchange.moved(seat), if self.announced => {
                    self.report().await?;
                    announcing.set(announce());
                    self.announced = false;
                }
                _ = reports.tick(), if self.announced => self.report().await?,
                () = early(&exchange, seat, reported), if self.announced => {
                    self.report().await?;
                    reported = Instant::now();
                }
                Some(found) = self.lookups.join_next() => self.found(found).await?,
                () = sleep_until(heard + silence) => return Err(End::Silent(silence)),
            }
        }
    }

    async fn hear(&mut self, message: proto::SchedulerMessage) -> Result<(), End> {
        match message.body {
            Some(Message::Parents(parents)) => self.parents(&parents),
            Some(Message::Lease(lease)) => self.lease(&lease).await,
            Some(Message::LeaseEnd(end)) => {
                if let Some(task) = self.leases.remove(&end.id) {
                    self.exchange.tell(self.seat, &task, Told::LeaseEnd(end.id));
                }
                Ok(())
            }
            Some(Message::Digests(digests)) => self.digests(&digests),
            Some(Message::DigestsWanted(wanted)) => {
                let task = task(&wanted.task)?;
                let pieces = wanted.pieces.unwrap_or_default();
                self.look_up(task, move |len, digests| Found::Wanted {
                    task,
                    len,
                    digests: convert::select(digests, &pieces),
                });
                Ok(())
            }
            Some(Message::Dispute(dispute)) => self.dispute(&dispute),
            Some(Message::Throttle(throttle)) => {
                if let Some((host, pause)) = convert::pause(throttle) {
                    if let Some(left_out) = self.warnings.pause.allow(std::time::Instant::now()) {
                        tracing::info!(host, ?pause, left_out, "the cluster leaves an origin alone");
                    }
                    self.exchange.pause(host, pause);
                }
                Ok(())
            }
            Some(Message::Preheat(preheat)) => {
                convert::wish(preheat).into_iter().for_each(|wish| self.exchange.wish(wish));
                Ok(())
            }
            Some(Message::Spreading(told)) => {
                let proto::Spreading { peers, complete, failed, .. } = told;
                self.exchange.spreading(&task(&told.task)?, Spreading { peers, complete, failed });
                Ok(())
            }
            Some(Message::Ping(ping)) => {
                self.queue(convert::message(Body::Pong(proto::Pong { nonce: ping.nonce }))).await
            }
            Some(Message::Welcome(_)) => Err(End::Nonsense("a second Welcome")),
            Some(Message::Denied(denied)) => {
                let list =
                    DeniedPeers::new(denied.names, &denied.keys).ok_or(End::Nonsense("too many denied peers"))?;
                if let Some(left_out) = self.warnings.denied.allow(std::time::Instant::now()) {
                    tracing::info!(names_and_keys = list.len(), left_out, "the scheduler says who is denied");
                }
                self.exchange.denials.replace(self.seat, list);
                Ok(())
            }
            // A certificate is renewed by Join; what has no body is of a later protocol.
            Some(Message::Renewed(_)) | None => Ok(()),
        }
    }

    fn parents(&self, parents: &proto::Parents) -> Result<(), End> {
        let task = task(&parents.task)?;
        for peer in &parents.drop {
            let peer = PeerId::new(peer).map_err(|_| End::Nonsense("a peer's name that is none"))?;
            self.exchange.tell(self.seat, &task, Told::Unlink(peer));
        }
        for parent in &parents.add {
            let parent = convert::parent(parent).ok_or(End::Nonsense("a parent without name or address"))?;
            if !convert::is_dialable(&parent) {
                tracing::debug!(parent = %parent.peer, address = %parent.address, "not linked: no host has this address");
                continue;
            }
            self.exchange.tell(self.seat, &task, Told::Link(parent));
        }
        Ok(())
    }

    async fn lease(&mut self, lease: &proto::Lease) -> Result<(), End> {
        let task = task(&lease.task)?;
        let end = lease.first.checked_add(lease.count).ok_or(End::Nonsense("a lease past all pieces"))?;
        let told = Told::Lease { id: lease.id, pieces: lease.first..end };
        if !self.exchange.tell(self.seat, &task, told) {
            // The download ended while the lease was on its way.
            let back = convert::lease_return(lease.id, Return::Unneeded);
            return self.send(convert::message(Body::LeaseReturn(back))).await;
        }
        if self.leases.insert(lease.id, task).is_none() {
            self.lease_order.push_back(lease.id);
            if self.lease_order.len() > MAX_LEASES
                && let Some(oldest) = self.lease_order.pop_front()
            {
                self.leases.remove(&oldest);
            }
        }
        Ok(())
    }

    fn digests(&self, digests: &proto::Digests) -> Result<(), End> {
        let task = task(&digests.task)?;
        for run in &digests.runs {
            let (first, digests) = convert::digest_run(run).ok_or(End::Nonsense("digests of other than 32 bytes"))?;
            self.exchange.tell(self.seat, &task, Told::Digests(first, digests));
        }
        Ok(())
    }

    /// This node stands by the piece it holds: its digest is told again, and so is that it is held, for the scheduler has
    /// taken it as lost.
    fn dispute(&mut self, dispute: &proto::Dispute) -> Result<(), End> {
        let (task, piece) = (task(&dispute.task)?, dispute.piece);
        if let Some(left_out) = self.warnings.dispute.allow(std::time::Instant::now()) {
            // Neither name is checked, and a line of the log must not become as long as a message.
            let [first, second] = [&dispute.first, &dispute.second].map(|name| PeerId::new(name).ok());
            tracing::warn!(%task, piece, ?first, ?second, left_out, "two peers disagree on a digest");
        }
        self.exchange.tell(self.seat, &task, Told::Disputed(piece));
        self.look_up(task, move |len, digests| {
            let stored = digests.binary_search_by_key(&piece, |(piece, _)| *piece);
            stored.map_or(Found::Nothing, |at| Found::Disputed { task, len, piece, digest: digests[at].1 })
        });
        Ok(())
    }

    /// Reads a piece table where blocking is allowed.
    fn look_up(&mut self, task: TaskId, then: impl FnOnce(u64, Vec<(u32, [u8; 32])>) -> Found + Send + 'static) {
        let store = Arc::clone(&self.store);
        self.lookups.spawn_blocking(move || {
            Ok(store.digests(&task)?.map_or(Found::Nothing, |(len, digests)| then(len, digests)))
        });
    }

    async fn found(&mut self, found: Result<io::Result<Found>, tokio::task::JoinError>) -> Result<(), End> {
        match found {
            Ok(Ok(Found::Wanted { task, len, digests })) => {
                for report in convert::digests_report(&task, len, digests) {
                    self.send_report(report).await?;
                }
            }
            Ok(Ok(Found::Disputed { task, len, piece, digest })) => self.exchange.held(task, len, piece, Some(digest)),
            Ok(Ok(Found::Nothing)) => {}
            Ok(Err(error)) => tracing::warn!(%error, "a piece table cannot be read"),
            Err(error) => tracing::error!(%error, "reading a piece table failed"),
        }
        Ok(())
    }

    /// What is held goes first: a scheduler that hears the end of a want before it would lease to others what is here.
    async fn say(&mut self, said: Vec<Said>) -> Result<(), End> {
        self.report().await?;
        for said in said {
            match &said {
                Said::Return { lease, .. } => drop(self.leases.remove(lease)),
                Said::Unwant(task) => {
                    self.leases.retain(|_, of| of != task);
                    self.lease_order.retain(|lease| self.leases.contains_key(lease));
                }
                Said::Want(_) | Said::Spread(_) | Said::Blame { .. } => {}
            }
            self.send(convert::said(said)).await?;
        }
        Ok(())
    }

    async fn report(&mut self) -> Result<(), End> {
        let changes = self.exchange.changes(self.seat);
        let news = self.load.measure(&self.exchange);
        if changes.is_empty() && !news {
            return Ok(());
        }
        for report in convert::progress(changes) {
            self.send_report(report).await?;
        }
        Ok(())
    }

    async fn send_report(&mut self, report: proto::Progress) -> Result<(), End> {
        let Load { rate, uploads, totals, .. } = self.load;
        self.send(convert::message(Body::Progress(proto::Progress { upload_rate: rate, uploads, totals, ..report })))
            .await
    }

    /// Sends once the inventory is told.
    async fn send(&mut self, message: proto::PeerMessage) -> Result<(), End> {
        if self.announced {
            return self.queue(message).await;
        }
        if self.early.len() >= MAX_EARLY {
            return Err(End::Stuck);
        }
        self.early.push(message);
        Ok(())
    }

    async fn queue(&self, message: proto::PeerMessage) -> Result<(), End> {
        queue(&self.out, message).await
    }
}

impl Load {
    /// Measures every [`LOAD_EVERY`]; whether anything changed.
    fn measure(&mut self, exchange: &Exchange) -> bool {
        let elapsed = self.measured.elapsed();
        if elapsed < LOAD_EVERY {
            return false;
        }
        let sent = exchange.sent();
        let rate = u128::from(sent.saturating_sub(self.sent)) * 1000 / elapsed.as_millis();
        let rate = u64::try_from(rate).unwrap_or(u64::MAX);
        let uploads = exchange.uploads.load(Ordering::Relaxed);
        let totals = exchange.totals().map(|(uptime, totals)| convert::totals(uptime, &totals, sent));
        let moved = |totals: Option<proto::Totals>| totals.map(|totals| proto::Totals { uptime_ms: 0, ..totals });
        let news = (rate, uploads, moved(totals)) != (self.rate, self.uploads, moved(self.totals));
        *self = Self { sent, rate, uploads, totals, measured: Instant::now() };
        news
    }
}

/// When there is much to report, and not too soon after the last time.
async fn early(exchange: &Exchange, seat: usize, reported: Instant) {
    sleep_until(reported + REPORTS_APART).await;
    exchange.much_changed(seat).await;
}

async fn welcome<S>(incoming: &mut S) -> Result<proto::Welcome, End>
where
    S: Stream<Item = Result<proto::SchedulerMessage, Status>> + Unpin,
{
    let first = timeout(WELCOME, incoming.next()).await.map_err(|_| End::Silent(WELCOME))?;
    match first.ok_or(End::Closed)?.map_err(End::Status)?.body {
        Some(Message::Welcome(welcome))
            if pondhawk_proto::common_version(welcome.protocol, welcome.protocol).is_some() =>
        {
            Ok(welcome)
        }
        Some(Message::Welcome(_)) => Err(End::Nonsense("a protocol version that this node does not speak")),
        _ => Err(End::Nonsense("something other than Welcome first")),
    }
}

/// Tells what is held, and then what is wanted. Downloads hear of the session in between: leases come after wants.
async fn announce(
    (exchange, seat): (Arc<Exchange>, usize),
    store: Arc<Store>,
    out: mpsc::Sender<proto::PeerMessage>,
    epoch: u64,
) -> Result<(), End> {
    let reading = tokio::task::spawn_blocking(move || store.inventory());
    let mut holdings = reading.await.map_err(|_| End::Nonsense("no inventory: reading it failed here"))?;
    holdings.retain(|holding| exchange.is_home(seat, &holding.task));
    let tasks = holdings.len();
    let report = convert::inventory(holdings);
    for message in report.inventory {
        queue(&out, convert::message(Body::Inventory(message))).await?;
    }
    for message in report.additions {
        queue(&out, convert::message(Body::Progress(message))).await?;
    }
    exchange.stand(seat, Standing::Up { epoch });
    let wants = exchange.restart(seat);
    tracing::debug!(tasks, wants = wants.len(), "inventory told");
    for want in wants {
        queue(&out, convert::message(Body::Want(convert::want(want)))).await?;
    }
    Ok(())
}

async fn queue(out: &mpsc::Sender<proto::PeerMessage>, message: proto::PeerMessage) -> Result<(), End> {
    match timeout(SEND, out.send(message)).await {
        Ok(Ok(())) => Ok(()),
        // The stream's reader is gone: its error says why.
        Ok(Err(_)) => Err(End::Closed),
        Err(_) => Err(End::Stuck),
    }
}

fn task(bytes: &bytes::Bytes) -> Result<TaskId, End> {
    convert::task(bytes).ok_or(End::Nonsense("a task's name of other than 32 bytes"))
}
