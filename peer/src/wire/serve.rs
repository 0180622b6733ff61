//! The parent's side of a link: reads what the other peer follows and which pieces it wants.

use std::{
    cell::RefCell,
    collections::HashMap,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use quinn::{Connection, RecvStream, SendStream};
use tokio::{
    sync::{Mutex, Semaphore},
    time::timeout,
};

use super::{
    PROGRESS, PeerId, Stop, Uploads, announce, code, expiry,
    frame::{Decoder, Frame, FrameError, VERSION},
    rate::Bucket,
    upload,
};
use crate::{
    store::{Held, Store, Verdict},
    task::{Layout, TaskId},
    trace::{Context, Kind, Span, Tracer},
};

/// Tasks that one link follows at a time, those that are just ending counted.
const MAX_FOLLOWED: usize = 256;
/// Opening a stored task's files takes a thread: so many at a time.
const OPENING: usize = 4;
/// What a link's requests may cost a second that lead to no piece. A peer that keeps to the protocol makes some; one that
/// makes nothing else would take the shard from everyone (compare CVE-2023-44487 of HTTP/2).
const MAX_WASTE: u64 = 4000;
/// As much may be wasted at once as [`MAX_WASTE`] allows in this time.
const WASTE_BURST: Duration = Duration::from_secs(4);
/// A request that was reset, or is for a piece that is not here, in the units of [`MAX_WASTE`].
pub(super) const ABANDONED: u64 = 4;
/// A request that comes while all places are taken: every link of a full node makes them, some ten a second and stream.
pub(super) const TURNED_AWAY: u64 = 1;
/// Bytes of a control stream read at a time.
const READ: usize = 4096;

/// Where pieces are found.
pub trait Library: Clone + 'static {
    /// The task, if any of it is here. Must not block the shard.
    fn find(&self, task: TaskId) -> impl Future<Output = Option<Arc<Held>>>;
}

impl Library for Arc<Store> {
    /// Opening its files may block, so it is done beside the shard.
    async fn find(&self, task: TaskId) -> Option<Arc<Held>> {
        let store = Arc::clone(self);
        // Fails only where the runtime is shutting down.
        let found = tokio::task::spawn_blocking(move || store.get(&task)).await.ok().flatten();
        // What has turned out wrong is on its way out of the store.
        found.filter(|held| !matches!(held.verdict(), Verdict::Mismatch | Verdict::Unreadable))
    }
}

/// What all links of a shard serve from.
pub(super) struct Service<L> {
    library: L,
    pub(super) uploads: Arc<Uploads>,
    tracer: Tracer,
    opening: Semaphore,
}

/// One link, seen from the parent.
pub(super) struct Served<L> {
    pub(super) service: Rc<Service<L>>,
    pub(super) peer: PeerId,
    pub(super) connection: Connection,
    /// Memory of the peer's uploads, over all its links.
    pub(super) blocks: Arc<Semaphore>,
    followed: RefCell<HashMap<TaskId, Rc<Followed>>>,
    /// Announcements that have not ended.
    announcing: Rc<()>,
    control: Mutex<SendStream>,
    /// What its requests cost that led to no piece.
    waste: RefCell<Bucket>,
}

/// A task that the other peer follows.
pub(super) struct Followed {
    /// Kept from eviction as long as it is followed: the other peer is downloading it.
    pub(super) held: RefCell<Option<Arc<Held>>>,
    pub(super) layout: Layout,
    pub(super) stop: Stop,
    /// What is served of it, where the other peer traces that.
    span: RefCell<Span>,
}

impl Followed {
    /// An answer begins, or so many pieces and bytes have left.
    pub(super) fn served(&self, pieces: u64, bytes: u64) {
        let mut span = self.span.borrow_mut();
        span.add(pieces, bytes);
        span.busy();
    }
}

impl<L: Library> Service<L> {
    pub(super) fn new(library: L, uploads: Arc<Uploads>, tracer: Tracer) -> Self {
        Self { library, uploads, tracer, opening: Semaphore::new(OPENING) }
    }

    pub(super) async fn find(&self, task: TaskId) -> Option<Arc<Held>> {
        let _turn = self.opening.acquire().await.expect("never closed");
        self.library.find(task).await
    }
}

/// Answers a peer until its connection ends. Closes it where what comes is garbage.
pub(super) async fn serve<L: Library>(
    service: &Rc<Service<L>>,
    peer: &PeerId,
    connection: &Connection,
    blocks: Arc<Semaphore>,
) {
    tracing::debug!(%peer, address = %connection.remote_address(), "a peer is linked");
    let Some((send, recv)) = control(connection).await else { return };
    let link = Rc::new(Served {
        service: Rc::clone(service),
        peer: peer.clone(),
        connection: connection.clone(),
        blocks,
        waste: RefCell::new(Bucket::new(MAX_WASTE)),
        followed: RefCell::default(),
        announcing: Rc::default(),
        control: Mutex::new(send),
    });
    tokio::select! {
        () = link.obey(recv) => {}
        () = answer_all(&link) => {}
        () = expiry::close_when_due(connection) => {}
        _ = connection.closed() => {}
    }
    link.end();
    tracing::debug!(%peer, why = ?connection.close_reason(), "its link ended");
}

/// The stream that the dialler opens first.
async fn control(connection: &Connection) -> Option<(SendStream, RecvStream)> {
    match timeout(PROGRESS, connection.accept_bi()).await {
        Ok(streams) => streams.ok(),
        Err(_) => {
            connection.close(code::SILENT, b"you opened no control stream");
            None
        }
    }
}

/// A stream a piece. How many there are at a time is bounded by the connection's own limit.
async fn answer_all<L: Library>(link: &Rc<Served<L>>) {
    while let Ok((send, recv)) = link.connection.accept_bi().await {
        let link = Rc::clone(link);
        tokio_uring::spawn(async move {
            if let Err(garbage) = upload::answer(&link, send, recv).await {
                link.garbage(garbage);
            }
        });
    }
}

impl<L: Library> Served<L> {
    /// Says hello and does what the control stream says, until the link ends.
    async fn obey(self: &Rc<Self>, mut recv: RecvStream) {
        if !self.say(&[Frame::Hello { version: VERSION }]).await {
            return;
        }
        let (mut decoder, mut bytes) = (Decoder::default(), [0; READ]);
        let mut greeted = false;
        loop {
            let read = recv.read(&mut bytes);
            // Only the greeting has a deadline: a peer that follows nothing more has nothing to say.
            let wait = if greeted { Duration::MAX } else { PROGRESS };
            let read = match timeout(wait, read).await {
                Err(_) => return self.connection.close(code::SILENT, b"you said no hello"),
                Ok(Ok(Some(read))) => read,
                // A dialler that ends its control stream ends the link.
                Ok(Ok(None) | Err(_)) => return self.connection.close(code::DONE, b"control stream ended"),
            };
            decoder.feed(&bytes[..read]);
            if let Err(garbage) = self.take_frames(&mut decoder, &mut greeted) {
                return self.garbage(garbage);
            }
        }
    }

    fn take_frames(self: &Rc<Self>, decoder: &mut Decoder, greeted: &mut bool) -> Result<(), FrameError> {
        while let Some(frame) = decoder.next_frame()? {
            match frame {
                Frame::Hello { .. } if !*greeted => *greeted = true,
                Frame::Follow { task, len } if *greeted => {
                    let layout = Layout::for_len(len).ok_or(FrameError::Unexpected)?;
                    self.follow(task, layout);
                }
                Frame::Unfollow { task } if *greeted => self.unfollow(&task),
                Frame::Trace { task, context } if *greeted => self.trace(&task, context),
                _ => return Err(FrameError::Unexpected),
            }
        }
        Ok(())
    }

    fn follow(self: &Rc<Self>, task: TaskId, layout: Layout) {
        self.unfollow(&task);
        if Rc::strong_count(&self.announcing) > MAX_FOLLOWED {
            return self.connection.close(code::TOO_MUCH, b"you follow too many tasks");
        }
        let followed =
            Rc::new(Followed { held: RefCell::default(), layout, stop: Stop::new(), span: RefCell::default() });
        self.followed.borrow_mut().insert(task, Rc::clone(&followed));
        let (link, counted) = (Rc::clone(self), Rc::clone(&self.announcing));
        tokio_uring::spawn(async move {
            announce::announce(&link, task, &followed).await;
            drop(counted);
        });
    }

    fn unfollow(&self, task: &TaskId) {
        if let Some(followed) = self.followed.borrow_mut().remove(task) {
            followed.stop.set();
        }
    }

    /// One span for all that is served of a task on this link: a large file has thousands of pieces.
    fn trace(&self, task: &TaskId, context: Context) {
        let Some(followed) = self.followed(task) else { return };
        let mut span = self.service.tracer.remote("serve", Kind::Server, Some(context)).when_busy();
        span.set_with("pondhawk.task", || task.to_string());
        span.set_with("pondhawk.peer", || self.peer.to_string());
        drop(followed.span.replace(span));
    }

    /// A task that the other peer follows.
    pub(super) fn followed(&self, task: &TaskId) -> Option<Rc<Followed>> {
        self.followed.borrow().get(task).cloned()
    }

    fn end(&self) {
        for (_, followed) in self.followed.borrow_mut().drain() {
            followed.stop.set();
        }
    }

    /// The task that a request names.
    pub(super) async fn find(&self, task: TaskId) -> Option<Arc<Held>> {
        let followed = self.followed.borrow().get(&task).and_then(|followed| followed.held.borrow().clone());
        match followed {
            Some(held) if !held.is_removed() => Some(held),
            _ => self.service.find(task).await,
        }
    }

    /// Sends frames in one go; whether the link still stands.
    pub(super) async fn say(&self, frames: &[Frame]) -> bool {
        let mut bytes = Vec::new();
        frames.iter().for_each(|frame| frame.encode(&mut bytes));
        let mut control = self.control.lock().await;
        match timeout(PROGRESS, control.write_all(&bytes)).await {
            Ok(written) => written.is_ok(),
            Err(_) => {
                // Half a frame may be out: the stream has no meaning any more.
                self.connection.close(code::SILENT, b"you read no control frames");
                false
            }
        }
    }

    /// Counts a request that led to no piece. Closes the link of a peer that makes too many.
    pub(super) fn waste(&self, cost: u64) {
        let (mut waste, now) = (self.waste.borrow_mut(), Instant::now());
        waste.take(now, cost);
        if waste.debt(now) > WASTE_BURST && self.connection.close_reason().is_none() {
            tracing::warn!(peer = %self.peer, "a peer's link is closed: too many of its requests led to nothing");
            self.connection.close(code::TOO_MUCH, b"too many of your requests led to nothing");
        }
    }

    /// The link carries nothing that can be understood.
    fn garbage(&self, garbage: FrameError) {
        tracing::warn!(peer = %self.peer, %garbage, "a peer's link is closed: it sent garbage");
        self.connection.close(code::GARBAGE, format!("you sent {garbage}").as_bytes());
    }
}
