//! The one task that owns the cluster: events of all sessions in, messages to each session's queue out.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use pondhawk_proto::v1::SchedulerMessage;
use tokio::sync::{mpsc, oneshot, watch};
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
/// Inputs that wait for the cluster; past it sessions wait, and with them their TCP connections.
const QUEUE: usize = 1024;
/// A name's session is not replaced again before this: two nodes with one key must not keep the scheduler busy.
const REPLACED_APART: Duration = Duration::from_secs(10);
/// Messages that wait for one peer; past it the peer is too slow and its session ends.
pub(super) const OUTGOING: usize = 4096;

/// What sessions give the cluster.
pub(super) enum Input {
    /// A peer said Hello.
    Connect { info: PeerInfo, origin: IpAddr, session: Arc<Session> },
    /// What its messages say, in order.
    Events { session: Arc<Session>, events: Vec<Event>, traced: Option<Traced> },
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
        (Arc::new(Self { peer: OnceLock::new(), local, queue, why, ended, counts }), messages, over)
    }

    /// Queues a message; a full queue ends the session.
    pub(super) fn send(&self, message: SchedulerMessage) {
        if let Err(mpsc::error::TrySendError::Full(_)) = self.queue.try_send(message) {
            let why = format!("too slow: {OUTGOING} messages wait for this peer");
            self.end(Refusal::resource_exhausted(why));
        }
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
    started: Instant,
    letters: Letters,
    waits: Waits,
    status: watch::Sender<Status>,
}

impl Actor {
    async fn run(mut self, mut queue: mpsc::Receiver<Input>) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    self.cluster.tick(self.started.elapsed());
                    self.deliver();
                    self.report();
                }
                input = queue.recv() => match input {
                    Some(input) => self.take(input),
                    None => return,
                },
            }
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Connect { info, origin, session } => self.connect(info, origin, session),
            Input::Events { session, events, traced } => {
                let Some(peer) = self.current(&session) else { return };
                // Before the answer to it.
                traced.into_iter().for_each(|traced| self.waits.wanted(peer, traced));
                for event in events {
                    self.waits.said(peer, &event);
                    self.cluster.handle(self.started.elapsed(), peer, event);
                    self.deliver();
                }
            }
            Input::Gone { session } => {
                let Some(peer) = self.current(&session) else { return };
                self.sessions.remove(&peer);
                self.waits.said(peer, &Event::Gone);
                self.cluster.handle(self.started.elapsed(), peer, Event::Gone);
                self.deliver();
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
        for peer in self.cluster.take_banned() {
            if let Some(session) = self.sessions.remove(&peer) {
                session.end(banned());
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

/// A node beside its scheduler comes to it over loopback, where no other finds it: they reach it where they reach the
/// scheduler.
fn reach(address: &mut SocketAddr, scheduler: IpAddr) {
    if address.ip().is_loopback() && !scheduler.is_loopback() {
        address.set_ip(scheduler);
    }
}
