//! The one task that owns the cluster: events of all sessions in, messages to each session's queue out.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use pondhawk_proto::v1::SchedulerMessage;
use prost::Message as _;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval};
use tonic::Status as Refusal;

use super::Status;
use super::counts::SessionCounts;
use super::look::Question;
use super::tell::Letters;
use super::waits::{Traced, Waits};
use crate::cluster::{Cluster, Directive, Event, Options, PeerId, PeerInfo};
use crate::trace::Tracer;

/// Between two ticks of the cluster.
const TICK: Duration = Duration::from_millis(50);
/// Inputs that wait for the cluster; past it sessions wait, and with them their TCP connections. A session has one message
/// among them at most, so that the queue is a turn for each.
const QUEUE: usize = 1024;
/// Processor time after which the rest of a message waits for the session's next turn.
const TURN: Duration = Duration::from_millis(1);
/// The most that a session can owe the others for events that took longer than its turn.
const MAX_DEBT: Duration = Duration::from_millis(20);
/// A name's session is not replaced again before this: two nodes with one key must not keep the scheduler busy.
const REPLACED_APART: Duration = Duration::from_secs(10);
/// A peer that was refused for what it claimed is not let in again before this: to take its claims back is work too.
const REFUSED_APART: Duration = Duration::from_secs(60);
/// Messages that wait for one peer; past it the peer is too slow and its session ends.
pub(super) const OUTGOING: usize = 4096;
/// The same in bytes: all digests of the largest tasks in use fit several times.
pub(super) const OUTGOING_BYTES: usize = 32 << 20;
/// A peer for which this many bytes wait is not heard before it has read some of them: what it asks for makes more.
const UNREAD: usize = 1 << 20;

/// What sessions give the cluster.
pub(super) enum Input {
    /// A peer said Hello.
    Connect { info: PeerInfo, origin: IpAddr, session: Arc<Session> },
    /// What its messages say, in order.
    Events { session: Arc<Session>, events: Vec<Event>, traced: Option<Traced>, slot: Option<OwnedSemaphorePermit> },
    /// The session is over.
    Gone { session: Arc<Session> },
    /// Somebody looks, or has the cluster do something.
    Look(Question),
    /// Ends every session; answered when that is done.
    Stop(oneshot::Sender<()>),
}

/// The writing end of a session, and how it is ended from either side.
pub(super) struct Session {
    /// Set when the cluster has it.
    peer: OnceLock<PeerId>,
    /// The scheduler's address as this peer sees it.
    local: IpAddr,
    queue: mpsc::Sender<SchedulerMessage>,
    /// Bytes in the queue, and what is told when they become few again.
    unread: AtomicUsize,
    drained: Notify,
    /// One message at a time is on its way to the cluster.
    slot: Arc<Semaphore>,
    why: Mutex<Option<oneshot::Sender<Refusal>>>,
    ended: watch::Sender<bool>,
    counts: Arc<SessionCounts>,
}

impl Session {
    /// With its queue, and what ends the stream of messages in place of the queue's own end.
    pub(super) fn new(
        local: IpAddr,
        counts: Arc<SessionCounts>,
    ) -> (Arc<Self>, mpsc::Receiver<SchedulerMessage>, oneshot::Receiver<Refusal>) {
        let (queue, messages) = mpsc::channel(OUTGOING);
        let (why, over) = oneshot::channel();
        let (why, ended) = (Mutex::new(Some(why)), watch::Sender::new(false));
        let slot = Arc::new(Semaphore::new(1));
        let session = Self {
            peer: OnceLock::new(),
            local,
            queue,
            unread: AtomicUsize::new(0),
            drained: Notify::new(),
            slot,
            why,
            ended,
            counts,
        };
        (Arc::new(session), messages, over)
    }

    /// Queues a message; a full queue ends the session.
    pub(super) fn send(&self, message: SchedulerMessage) {
        let bytes = message.encoded_len();
        let unread = self.unread.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if unread > OUTGOING_BYTES {
            self.unread.fetch_sub(bytes, Ordering::Relaxed);
            return self.end(Refusal::resource_exhausted(format!("too slow: {unread} bytes wait for this peer")));
        }
        if let Err(error) = self.queue.try_send(message) {
            self.unread.fetch_sub(bytes, Ordering::Relaxed);
            if let mpsc::error::TrySendError::Full(_) = error {
                let why = format!("too slow: {OUTGOING} messages wait for this peer");
                self.end(Refusal::resource_exhausted(why));
            }
        }
    }

    /// A message has left the queue.
    pub(super) fn sent(&self, message: &SchedulerMessage) {
        let bytes = message.encoded_len();
        if self.unread.fetch_sub(bytes, Ordering::Relaxed).saturating_sub(bytes) <= UNREAD {
            self.drained.notify_one();
        }
    }

    /// Waits until the peer has read most of what waits for it and its last message was handled; what is returned goes with
    /// the next one.
    pub(super) async fn next_slot(&self) -> OwnedSemaphorePermit {
        while self.unread.load(Ordering::Relaxed) > UNREAD {
            self.drained.notified().await;
        }
        Arc::clone(&self.slot).acquire_owned().await.expect("the semaphore is never closed")
    }

    /// Ends it; the first reason counts.
    pub(super) fn end(&self, why: Refusal) {
        if let Some(sender) = self.why.lock().unwrap_or_else(PoisonError::into_inner).take() {
            self.counts.end(why.code());
            // The peer may be gone already.
            drop(sender.send(why));
        }
        self.ended.send_replace(true);
    }

    /// Waits for the end.
    pub(super) async fn ended(&self) {
        // The sender lives as long as `self`.
        drop(self.ended.subscribe().wait_for(|ended| *ended).await);
    }
}

/// Starts the task; it ends when all senders are gone.
pub(super) fn start(options: Options, tracer: Tracer) -> (mpsc::Sender<Input>, watch::Receiver<Status>) {
    let (inputs, queue) = mpsc::channel(QUEUE);
    let (status, seen) = watch::channel(Status::default());
    let actor = Actor {
        cluster: Cluster::new(options),
        sessions: HashMap::new(),
        replaced: HashMap::new(),
        refused: HashMap::new(),
        turns: VecDeque::new(),
        started: Instant::now(),
        letters: Letters::default(),
        waits: Waits::new(tracer),
        status,
    };
    tokio::spawn(actor.run(queue));
    (inputs, seen)
}

struct Actor {
    cluster: Cluster,
    sessions: HashMap<PeerId, Arc<Session>>,
    /// Names whose session was replaced lately, and when.
    replaced: HashMap<Arc<str>, Instant>,
    /// Names of peers that were refused lately, and when.
    refused: HashMap<Arc<str>, Instant>,
    /// Messages that were begun, or whose session owes time, in the order of their next turns.
    turns: VecDeque<Turn>,
    started: Instant,
    letters: Letters,
    waits: Waits,
    status: watch::Sender<Status>,
}

/// What is left of one message.
struct Turn {
    session: Arc<Session>,
    events: std::vec::IntoIter<Event>,
    /// Time that the session used beyond its turns.
    debt: Duration,
    /// The session ended behind this message.
    is_last: bool,
    /// Lets the session's next message come.
    _slot: Option<OwnedSemaphorePermit>,
}

impl Actor {
    async fn run(mut self, mut queue: mpsc::Receiver<Input>) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let waiting = !self.turns.is_empty();
            tokio::select! {
                biased;
                _ = ticks.tick() => {
                    self.cluster.tick(self.started.elapsed());
                    self.deliver();
                    self.report();
                }
                input = queue.recv() => match input {
                    Some(input) => self.take(input),
                    None => return,
                },
                () = tokio::task::yield_now(), if waiting => self.next_turn(),
            }
        }
    }

    /// Goes on with the message whose turn it is. Only new inputs go before it, of which each session has one at a time.
    fn next_turn(&mut self) {
        let Some(mut turn) = self.turns.pop_front() else { return };
        if !turn.debt.is_zero() && !self.turns.is_empty() {
            turn.debt = turn.debt.saturating_sub(TURN);
            return self.turns.push_back(turn);
        }
        let Some(peer) = self.current(&turn.session) else { return };
        let began = Instant::now();
        for event in turn.events.by_ref() {
            self.waits.said(peer, &event);
            self.cluster.handle(self.started.elapsed(), peer, event);
            self.deliver();
            if began.elapsed() >= TURN {
                break;
            }
        }
        turn.debt = began.elapsed().saturating_sub(TURN).min(MAX_DEBT);
        // A message that is done waits for its debt too: its session's next one would otherwise come at once.
        if turn.events.len() > 0 || !turn.debt.is_zero() && !turn.is_last {
            self.turns.push_back(turn);
        } else if turn.is_last {
            self.gone(peer);
        }
    }

    fn gone(&mut self, peer: PeerId) {
        self.sessions.remove(&peer);
        self.waits.said(peer, &Event::Gone);
        self.cluster.handle(self.started.elapsed(), peer, Event::Gone);
        self.deliver();
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Connect { info, origin, session } => self.connect(info, origin, session),
            Input::Events { session, events, traced, slot } => {
                let Some(peer) = self.current(&session) else { return };
                // Before the answer to it.
                traced.into_iter().for_each(|traced| self.waits.wanted(peer, traced));
                self.turns.push_back(Turn {
                    session,
                    events: events.into_iter(),
                    debt: Duration::ZERO,
                    is_last: false,
                    _slot: slot,
                });
            }
            Input::Gone { session } => {
                let Some(peer) = self.current(&session) else { return };
                let left = self.turns.iter_mut().rev().find(|turn| Arc::ptr_eq(&turn.session, &session));
                match left {
                    Some(turn) => turn.is_last = true,
                    None => self.gone(peer),
                }
            }
            Input::Look(question) => {
                question(&mut self.cluster, self.started.elapsed());
                self.deliver();
            }
            Input::Stop(stopped) => {
                for (_, session) in self.sessions.drain() {
                    session.end(Refusal::unavailable("the scheduler stops"));
                }
                self.waits = Waits::default();
                // Whoever asked may have given up waiting.
                let _ = stopped.send(());
            }
        }
    }

    fn connect(&mut self, info: PeerInfo, origin: IpAddr, session: Arc<Session>) {
        let name = Arc::clone(&info.name);
        self.replaced.retain(|_, at| at.elapsed() < REPLACED_APART);
        if self.replaced.contains_key(&name) {
            return session.end(Refusal::resource_exhausted(
                "two nodes share one name and key: is a data directory a copy of another node's? The last one was let in a moment ago",
            ));
        }
        self.refused.retain(|_, at| at.elapsed() < REFUSED_APART);
        if self.refused.contains_key(&name) {
            return session.end(greedy());
        }
        let peer = self.cluster.connect(info);
        self.cluster.set_origin(peer, origin);
        if self.cluster.is_banned_peer(self.started.elapsed(), peer) {
            session.end(banned());
            return self.cluster.handle(self.started.elapsed(), peer, Event::Gone);
        }
        // A session connects once.
        let _ = session.peer.set(peer);
        if let Some(before) = self.sessions.insert(peer, session) {
            tracing::info!(peer = %name, "a second session replaces the first");
            self.replaced.insert(name, Instant::now());
            self.waits.said(peer, &Event::Gone);
            before.end(Refusal::aborted("replaced by a newer session of the same name"));
        }
        self.deliver();
    }

    /// Whose session it is; `None` once another has replaced it.
    fn current(&self, session: &Arc<Session>) -> Option<PeerId> {
        let peer = *session.peer.get()?;
        self.sessions.get(&peer).filter(|current| Arc::ptr_eq(current, session)).map(|_| peer)
    }

    /// Everything that the cluster has decided goes to the queues: no peer can hold up the others.
    fn deliver(&mut self) {
        while let Some((peer, mut directive)) = self.cluster.poll() {
            let Some(session) = self.sessions.get(&peer) else { continue };
            if let Directive::Link { parent, .. } = &mut directive {
                reach(&mut parent.address, session.local);
            }
            self.waits.told(peer, &directive);
            self.letters.add(peer, directive);
        }
        for (peer, messages) in self.letters.take() {
            if let Some(session) = self.sessions.get(&peer) {
                messages.into_iter().for_each(|message| session.send(message));
            }
        }
        let refused = self.cluster.take_refused();
        for name in refused.iter().filter_map(|&peer| self.cluster.name(peer)) {
            self.refused.insert(name, Instant::now());
        }
        let ended = self.cluster.take_banned().into_iter().map(|peer| (peer, banned()));
        let ended: Vec<_> = ended.chain(refused.into_iter().map(|peer| (peer, greedy()))).collect();
        for (peer, why) in ended {
            if let Some(session) = self.sessions.remove(&peer) {
                session.end(why);
                self.waits.said(peer, &Event::Gone);
                self.cluster.handle(self.started.elapsed(), peer, Event::Gone);
            }
        }
    }

    fn report(&self) {
        let status = Status {
            sessions: self.sessions.len(),
            peers: self.cluster.peers(),
            tasks: self.cluster.tasks(),
            leases: self.cluster.leases(),
            moved: self.cluster.transferred(),
        };
        self.status.send_if_modified(|old| std::mem::replace(old, status) != status);
    }
}

/// Its own clients are served as without a scheduler.
fn banned() -> Refusal {
    Refusal::permission_denied("other peers blame this one: it takes no part for a while")
}

/// No node's store looks like what it claimed.
fn greedy() -> Refusal {
    Refusal::resource_exhausted(
        "what this peer says it holds takes more than its share of the scheduler's memory: too many scattered pieces",
    )
}

/// A node beside its scheduler comes to it over loopback, where no other finds it: they reach it where they reach the
/// scheduler.
fn reach(address: &mut SocketAddr, scheduler: IpAddr) {
    if address.ip().is_loopback() && !scheduler.is_loopback() {
        address.set_ip(scheduler);
    }
}
