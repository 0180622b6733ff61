//! Between the session with the scheduler (control thread) and the downloads (shards).
//!
//! A download [joins](Exchange::join) with its task and is told what the scheduler decides about it; what it and the store
//! have to say is collected here and taken by the session. Without a session everything waits here, within bounds: after a
//! reconnection an inventory tells the scheduler all that it missed.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    net::SocketAddr,
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use super::seats::Seats;
use crate::{
    metrics::{Metrics, Totals},
    task::TaskId,
    trace::Context,
    wire::{PeerId, denials::DenialList},
};

/// Tasks with changes that wait to be reported; what does not fit is told by the next inventory.
const MAX_CHANGED: usize = 4096;
/// Said and not yet taken by the session.
const MAX_SAID: usize = 16_384;
/// Told and not yet taken by the download.
const MAX_TOLD: usize = 16_384;
/// Digests among them, over all messages: 32 MiB. A download takes them as they come, so that only one that is held up, or a
/// scheduler that repeats itself, meets this bound; pieces whose digests are passed over come from the origin.
const MAX_TOLD_DIGESTS: usize = 1 << 20;
/// So many pieces are worth a report of their own: leases and digests of others wait for it.
const MANY_PIECES: usize = 4;
/// And so is the first one after this time without a report: somebody may wait for a small file.
const QUIET: Duration = Duration::from_millis(100);
/// Between two looks at schedulers that may be gone.
const LOOK_AT_SEATS: Duration = Duration::from_millis(500);
/// Wishes that wait to be taken; more are not heard.
const MAX_WISHES: usize = 4096;
/// Hosts that are paused at once.
const MAX_PAUSED: usize = 256;

/// How the session with the scheduler stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// This node has never had one.
    Never,
    /// It ended; the session tries to come back.
    Lost {
        /// When.
        since: Instant,
    },
    /// It stands.
    Up {
        /// Changes when the scheduler starts anew: leases of before are void then.
        epoch: u64,
    },
}

/// What the scheduler decides about one task.
#[derive(Clone, Debug, PartialEq)]
pub enum Told {
    /// A peer that may have pieces.
    Link(Parent),
    /// Part from it.
    Unlink(PeerId),
    /// Fetch these pieces from the origin; one of an id that was told before takes its place.
    Lease {
        /// Names it.
        id: u64,
        /// Consecutive pieces.
        pieces: Range<u32>,
    },
    /// The lease is over: stop fetching what is left of it.
    LeaseEnd(u64),
    /// BLAKE3 of consecutive pieces, from the first one on.
    Digests(u32, Vec<[u8; 32]>),
    /// The digest of the piece is contested: it is void.
    Disputed(u32),
    /// The session began, ended, or meets another scheduler.
    Standing(Standing),
}

/// A peer that has, or will have, pieces of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parent {
    /// Its name, as in its certificate.
    pub peer: PeerId,
    /// Its first QUIC endpoint.
    pub address: SocketAddr,
    /// Endpoints at consecutive ports, at least 1.
    pub endpoints: u16,
    /// More is nearer.
    pub nearness: u32,
    /// It is there to hold and serve.
    pub seed: bool,
}

/// What is said to the scheduler at once.
#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    /// Clients of this node wait for the task. Said again whenever something in it changes.
    Want(Want),
    /// They do not any more.
    Unwant(TaskId),
    /// Others are to hold a task.
    Spread(Spread),
    /// What is left of a lease goes back.
    Return {
        /// Of which task.
        task: TaskId,
        /// The lease.
        lease: u64,
        /// Why.
        why: Return,
    },
    /// A peer misbehaved.
    Blame {
        /// Who.
        peer: PeerId,
        /// Over which task.
        task: TaskId,
        /// And piece.
        piece: u32,
        /// How.
        kind: Wrong,
    },
}

/// Clients of this node wait for a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Want {
    /// The task.
    pub task: TaskId,
    /// Its bytes.
    pub len: u64,
    /// The origin's host name, with a port that is not the scheme's own. Nothing else of the URL leaves the node.
    pub host: String,
    /// Whether a client's URL is there to fetch with.
    pub can_fetch: bool,
    /// Whether the task's name is the SHA-256 of its content.
    pub content_named: bool,
    /// Connections that would be used at once.
    pub connections: u32,
    /// The pieces that clients wait for, as rising runs, at most 64; none: all.
    pub wanted: Option<Vec<Range<u32>>>,
    /// What the task's name is made of: see [`Identity::to_content_name`](crate::task::Identity::to_content_name).
    pub name: Option<Vec<u8>>,
    /// The span of the download, where it is recorded.
    pub trace: Option<Context>,
}

/// Which other nodes are to hold a task.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Only seed peers.
    pub seeds: bool,
    /// Only nodes with all of these labels.
    pub labels: Vec<(String, String)>,
    /// So many of them; 0: all.
    pub count: u32,
}

/// Other nodes are to hold a task that this one holds or brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spread {
    /// Which, and how they can want it without a URL.
    pub wish: Wish,
    /// Who.
    pub scope: Scope,
}

/// A task that a node is to hold though no client of its own asked for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// The task.
    pub task: TaskId,
    /// Its bytes.
    pub len: u64,
    /// The origin's host name, as in [`Want`].
    pub host: String,
    /// What its name is made of; not to be believed before the task's name is seen to follow from it.
    pub name: Vec<u8>,
    /// Whether it is to be kept whatever room is needed.
    pub pin: bool,
}

/// How far other nodes are with a task that they are to hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spreading {
    /// Nodes.
    pub peers: u32,
    /// Of those, how many hold it.
    pub complete: u32,
    /// And how many will not.
    pub failed: u32,
}

impl Spreading {
    /// Whether no more will come.
    pub fn is_over(self) -> bool {
        self.complete.saturating_add(self.failed) >= self.peers
    }
}

/// Why a lease goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Return {
    /// No client's URL is accepted any more.
    Expired,
    /// The origin refuses.
    Refused,
    /// The origin asks for less.
    Throttled(Option<Duration>),
    /// The transfer failed.
    Failed,
    /// The clients left.
    Unneeded,
}

/// How a peer misbehaved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wrong {
    /// A piece without its digest.
    Piece,
    /// Bytes that are no answer.
    Garbage,
    /// No answer.
    Silent,
    /// It does not have what it says it has.
    Missing,
}

/// Changes of one task since the last report.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Bytes in the task.
    pub len: u64,
    /// Pieces that came to be held.
    pub added: Vec<u32>,
    /// BLAKE3 of some of them: those from the origin.
    pub digests: Vec<(u32, [u8; 32])>,
    /// Nothing is held any more.
    pub gone: bool,
    /// What was held did not have the SHA-256 in its name.
    pub wrong: bool,
    /// Leases that moved though no piece completed.
    pub alive: HashSet<u64>,
    /// Requests to the origin at once.
    pub requests: u32,
}

/// The one meeting place of a node. Where the cluster has several schedulers, each has a seat here, and hears and tells of
/// the tasks that have their home with it.
#[derive(Debug)]
pub struct Exchange {
    state: Mutex<State>,
    bells: Box<[Bells]>,
    /// Something is wished for.
    wished: Notify,
    /// Bytes sent to other peers since the start; kept by wire/.
    pub sent_to_peers: AtomicU64,
    /// Pieces that are being sent now; kept by wire/.
    pub uploads: AtomicU32,
    /// Who the schedulers say has no part in the cluster; obeyed by wire/.
    pub denials: Arc<DenialList>,
    /// The node's start, and what it counts since then.
    counted: OnceLock<(std::time::Instant, Arc<Metrics>)>,
}

/// What wakes the session of a seat.
#[derive(Debug, Default)]
struct Bells {
    /// Something was said.
    said: Notify,
    /// Much has changed.
    changed: Notify,
    /// Tasks have moved here or away: all is to be told anew.
    moved: Notify,
}

#[derive(Debug)]
struct State {
    seats: Seats,
    desks: Box<[Desk]>,
    members: HashMap<TaskId, Arc<Inbox>>,
    wants: HashMap<TaskId, Want>,
    paused: HashMap<String, Instant>,
    wishes: VecDeque<Wish>,
    spreads: HashMap<TaskId, watch::Sender<Option<Spreading>>>,
}

/// What waits for one scheduler.
#[derive(Debug)]
struct Desk {
    standing: Standing,
    said: VecDeque<Said>,
    changed: HashMap<TaskId, Changes>,
    pieces: usize,
    /// When changes were last taken.
    reported: Instant,
}

#[derive(Debug, Default)]
struct Inbox {
    told: Mutex<InboxQueue>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct InboxQueue {
    told: VecDeque<Told>,
    /// Digests in `told`.
    digests: usize,
}

/// A download's membership: dropped, the scheduler hears that the task is not wanted any more.
#[derive(Debug)]
pub struct Membership {
    exchange: Arc<Exchange>,
    task: TaskId,
    inbox: Arc<Inbox>,
}

impl Default for Exchange {
    /// With one scheduler.
    fn default() -> Self {
        Self::new(&[String::new()])
    }
}

impl Exchange {
    /// With these schedulers, named alike on every node.
    pub fn new(schedulers: &[String]) -> Self {
        Self {
            state: Mutex::new(State::new(schedulers)),
            bells: schedulers.iter().map(|_| Bells::default()).collect(),
            wished: Notify::new(),
            sent_to_peers: AtomicU64::new(0),
            uploads: AtomicU32::new(0),
            denials: Arc::default(),
            counted: OnceLock::new(),
        }
    }
}

/// For downloads and the store.
impl Exchange {
    /// Joins with a task. The standing is told first.
    pub fn join(self: &Arc<Self>, task: TaskId) -> Membership {
        let inbox = Arc::new(Inbox::default());
        let mut state = self.state();
        inbox.push(Told::Standing(state.desks[state.seats.home(&task)].standing));
        state.members.insert(task, Arc::clone(&inbox));
        drop(state);
        Membership { exchange: Arc::clone(self), task, inbox }
    }

    /// How the sessions stand: the best of them.
    pub fn standing(&self) -> Standing {
        let state = self.state();
        let rank = |standing: &Standing| match standing {
            Standing::Up { .. } => 2,
            Standing::Lost { .. } => 1,
            Standing::Never => 0,
        };
        state.desks.iter().map(|desk| desk.standing).max_by_key(rank).unwrap_or(Standing::Never)
    }

    /// How the session with the scheduler of a task stands.
    pub fn standing_of(&self, task: &TaskId) -> Standing {
        let state = self.state();
        state.desks[state.seats.home(task)].standing
    }

    /// Says something at once.
    pub fn say(&self, said: Said) {
        let mut state = self.state();
        match &said {
            Said::Want(want) => drop(state.wants.insert(want.task, want.clone())),
            Said::Unwant(task) => drop(state.wants.remove(task)),
            Said::Return { .. } | Said::Blame { .. } | Said::Spread(_) => {}
        }
        let home = state.seats.home(said.task());
        let desk = &mut state.desks[home];
        if let Said::Want(want) = &said {
            // Only the newest of a task counts.
            desk.said.retain(|other| !matches!(other, Said::Want(other) if other.task == want.task));
        }
        if desk.said.len() < MAX_SAID {
            desk.said.push_back(said);
        }
        drop(state);
        self.bells[home].said.notify_one();
    }

    /// Has others hold a task; follows how far they are, as soon as the scheduler says.
    pub fn spread(&self, spread: Spread) -> watch::Receiver<Option<Spreading>> {
        let (tell, told) = watch::channel(None);
        let mut state = self.state();
        state.spreads.retain(|_, tell| !tell.is_closed());
        state.spreads.insert(spread.wish.task, tell);
        drop(state);
        self.say(Said::Spread(spread));
        told
    }

    /// Waits until the scheduler wishes that this node holds a task.
    pub async fn wished(&self) -> Wish {
        loop {
            let notified = self.wished.notified();
            if let Some(wish) = self.state().wishes.pop_front() {
                return wish;
            }
            notified.await;
        }
    }

    /// A piece came to be held; its digest where it came from the origin.
    pub fn held(&self, task: TaskId, len: u64, piece: u32, digest: Option<[u8; 32]>) {
        self.add(task, len, piece, digest, None);
    }

    /// A piece came from the origin, to which so many requests are made at once.
    pub fn fetched(&self, task: TaskId, len: u64, piece: u32, digest: [u8; 32], requests: u32) {
        self.add(task, len, piece, Some(digest), Some(requests));
    }

    fn add(&self, task: TaskId, len: u64, piece: u32, digest: Option<[u8; 32]>, requests: Option<u32>) {
        let mut state = self.state();
        let home = state.seats.home(&task);
        let desk = &mut state.desks[home];
        if let Some(changes) = desk.changes_of(task) {
            changes.len = len;
            changes.added.push(piece);
            changes.digests.extend(digest.map(|digest| (piece, digest)));
            changes.requests = requests.unwrap_or(changes.requests);
        }
        desk.pieces += 1;
        if desk.pieces >= MANY_PIECES || desk.reported.elapsed() >= QUIET {
            self.bells[home].changed.notify_one();
        }
    }

    /// A lease moved.
    pub fn alive(&self, task: TaskId, len: u64, lease: u64) {
        self.change(task, |changes| {
            changes.len = len;
            changes.alive.insert(lease);
        });
    }

    /// The task left the store.
    pub fn gone(&self, task: TaskId) {
        self.change(task, |changes| *changes = Changes { gone: true, wrong: changes.wrong, ..Changes::default() });
    }

    /// All pieces had their digests, and the whole has not the SHA-256 in its name: so it is gone. What came to be held since
    /// stays to be told.
    pub fn wrong(&self, task: TaskId) {
        self.change(task, |changes| (changes.gone, changes.wrong) = (true, true));
    }

    /// Whether an origin asked the cluster to be left alone, and until when.
    pub fn paused(&self, host: &str) -> Option<Instant> {
        self.state().paused.get(host).copied().filter(|until| *until > Instant::now())
    }

    fn change(&self, task: TaskId, apply: impl FnOnce(&mut Changes)) {
        let mut state = self.state();
        let home = state.seats.home(&task);
        if let Some(changes) = state.desks[home].changes_of(task) {
            apply(changes);
        }
    }

    /// Bytes sent to other peers since the start.
    pub fn sent(&self) -> u64 {
        self.sent_to_peers.load(Ordering::Relaxed)
    }

    /// Says what the node counts since its start, so that the scheduler can be told. Only the first call counts.
    pub fn count(&self, started: std::time::Instant, metrics: Arc<Metrics>) {
        let _ = self.counted.set((started, metrics));
    }

    /// The time since the node's start and its sums; `None` where nobody counts.
    pub fn totals(&self) -> Option<(Duration, Totals)> {
        self.counted.get().map(|(started, metrics)| (started.elapsed(), metrics.totals()))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// For the sessions, each in its seat.
impl Exchange {
    /// Waits until something was said, and takes it all.
    pub async fn said(&self, seat: usize) -> Vec<Said> {
        loop {
            let notified = self.bells[seat].said.notified();
            let said: Vec<Said> = self.state().desks[seat].said.drain(..).collect();
            if !said.is_empty() {
                return said;
            }
            notified.await;
        }
    }

    /// Waits until there is enough to report before its time.
    pub async fn much_changed(&self, seat: usize) {
        self.bells[seat].changed.notified().await;
    }

    /// Waits until all is to be told anew, because tasks have another home now.
    pub async fn moved(&self, seat: usize) {
        self.bells[seat].moved.notified().await;
    }

    /// Takes the changes since the last call.
    pub fn changes(&self, seat: usize) -> HashMap<TaskId, Changes> {
        let mut state = self.state();
        let desk = &mut state.desks[seat];
        let changed = std::mem::take(&mut desk.changed);
        if !changed.is_empty() {
            (desk.pieces, desk.reported) = (0, Instant::now());
        }
        changed
    }

    /// Whether a task has its home with this scheduler.
    pub fn is_home(&self, seat: usize, task: &TaskId) -> bool {
        self.state().seats.home(task) == seat
    }

    /// What is wanted now of this scheduler: to be said after a reconnection. What was said before and not taken is dropped.
    pub fn restart(&self, seat: usize) -> Vec<Want> {
        let mut state = self.state();
        state.desks[seat].said.retain(|said| matches!(said, Said::Blame { .. }));
        state.wants.values().filter(|want| state.seats.home(&want.task) == seat).cloned().collect()
    }

    /// Tells the download of a task; false where none is under way, or it is led by another scheduler.
    pub fn tell(&self, seat: usize, task: &TaskId, told: Told) -> bool {
        let state = self.state();
        let inbox = state.members.get(task).filter(|_| state.seats.home(task) == seat).cloned();
        drop(state);
        inbox.is_some_and(|inbox| inbox.push(told))
    }

    /// A session begins: tasks may have their home with it from now on.
    pub fn came(&self, seat: usize) {
        let mut state = self.state();
        let moved = state.seats.came(seat);
        drop(state);
        if moved {
            self.ring_moved(Some(seat));
        }
    }

    /// The standing of a session changed: every download that it leads hears of it.
    pub fn stand(&self, seat: usize, standing: Standing) {
        let mut state = self.state();
        state.desks[seat].standing = standing;
        if !matches!(standing, Standing::Up { .. }) {
            state.seats.left(seat, Instant::now());
        }
        let led = state.members.iter().filter(|(task, _)| state.seats.home(task) == seat);
        let led: Vec<Arc<Inbox>> = led.map(|(_, inbox)| Arc::clone(inbox)).collect();
        drop(state);
        for inbox in led {
            inbox.push(Told::Standing(standing));
        }
    }

    /// The scheduler wishes that this node holds a task.
    pub fn wish(&self, wish: Wish) {
        let mut state = self.state();
        if state.wishes.len() < MAX_WISHES {
            state.wishes.push_back(wish);
        }
        drop(state);
        self.wished.notify_one();
    }

    /// How far others are with a task that they are to hold.
    pub fn spreading(&self, task: &TaskId, spreading: Spreading) {
        if let Some(tell) = self.state().spreads.get(task) {
            tell.send_replace(Some(spreading));
        }
    }

    /// The session's end, where one stood.
    pub fn lost(&self, seat: usize) {
        let stood = matches!(self.state().desks[seat].standing, Standing::Up { .. });
        if stood {
            self.stand(seat, Standing::Lost { since: Instant::now() });
        }
    }

    /// Sees to it, for as long as it is polled, that the tasks of a scheduler that is gone get another home.
    pub async fn keep_homes(&self) {
        loop {
            tokio::time::sleep(LOOK_AT_SEATS).await;
            let moved = self.state().seats.give_up(Instant::now());
            if moved {
                tracing::warn!("a scheduler is gone: the others take its tasks over");
                self.ring_moved(None);
            }
        }
    }

    fn ring_moved(&self, but: Option<usize>) {
        self.bells
            .iter()
            .enumerate()
            .filter(|(at, _)| Some(*at) != but)
            .for_each(|(_, bells)| bells.moved.notify_one());
    }

    /// The cluster leaves this origin alone for a while.
    pub fn pause(&self, host: String, pause: Duration) {
        let mut state = self.state();
        let now = Instant::now();
        state.paused.retain(|_, until| *until > now);
        if state.paused.len() < MAX_PAUSED {
            state.paused.insert(host, now + pause);
        }
    }
}

impl Said {
    fn task(&self) -> &TaskId {
        match self {
            Self::Want(want) => &want.task,
            Self::Spread(spread) => &spread.wish.task,
            Self::Unwant(task) | Self::Return { task, .. } | Self::Blame { task, .. } => task,
        }
    }
}

impl State {
    fn new(schedulers: &[String]) -> Self {
        let now = Instant::now();
        let desk = |_| Desk {
            standing: Standing::Never,
            said: VecDeque::new(),
            changed: HashMap::new(),
            pieces: 0,
            reported: now,
        };
        Self {
            seats: Seats::new(schedulers, now),
            desks: schedulers.iter().map(desk).collect(),
            members: HashMap::new(),
            wants: HashMap::new(),
            paused: HashMap::new(),
            wishes: VecDeque::new(),
            spreads: HashMap::new(),
        }
    }
}

impl Desk {
    fn changes_of(&mut self, task: TaskId) -> Option<&mut Changes> {
        let room = self.changed.len() < MAX_CHANGED || self.changed.contains_key(&task);
        room.then(|| self.changed.entry(task).or_default())
    }
}

impl Membership {
    /// Waits until something was told, and takes it all, in order.
    pub async fn told(&self) -> Vec<Told> {
        loop {
            let notified = self.inbox.wake.notified();
            let told: Vec<Told> = self.inbox.take();
            if !told.is_empty() {
                return told;
            }
            notified.await;
        }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        let mut state = self.exchange.state();
        // The next download of the task may have joined already.
        let own = state.members.get(&self.task).is_some_and(|inbox| Arc::ptr_eq(inbox, &self.inbox));
        if own {
            state.members.remove(&self.task);
        }
        drop(state);
        if own {
            self.exchange.say(Said::Unwant(self.task));
        }
    }
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, InboxQueue> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, told: Told) -> bool {
        let digests = if let Told::Digests(_, digests) = &told { digests.len() } else { 0 };
        let mut queue = self.lock();
        if queue.told.len() >= MAX_TOLD || queue.digests + digests > MAX_TOLD_DIGESTS {
            return false;
        }
        queue.digests += digests;
        queue.told.push_back(told);
        drop(queue);
        self.wake.notify_one();
        true
    }

    fn take(&self) -> Vec<Told> {
        std::mem::take(&mut *self.lock()).told.into()
    }
}

impl std::fmt::Display for Standing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Never => "none",
            Self::Lost { .. } => "lost",
            Self::Up { .. } => "up",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_that_a_download_does_not_take_are_passed_over_past_a_bound() {
        let (exchange, task) = (Arc::new(Exchange::default()), TaskId([1; 32]));
        let member = exchange.join(task);
        let quarter = || Told::Digests(0, vec![[0; 32]; MAX_TOLD_DIGESTS / 4]);
        let accepted = (0..10).filter(|_| exchange.tell(0, &task, quarter())).count();
        assert_eq!(accepted, 4);
        assert!(exchange.tell(0, &task, Told::LeaseEnd(1)), "what is small still gets through");
        member.inbox.take();
        assert!(exchange.tell(0, &task, quarter()), "what was taken makes room");
    }
}
