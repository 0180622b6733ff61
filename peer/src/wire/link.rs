//! The dialler's side of one link: what it follows, and what the parent says.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    rc::{Rc, Weak},
    time::{Duration, Instant},
};

use quinn::{Connection, RecvStream, SendStream};
use tokio::{
    sync::{Notify, Semaphore},
    time::timeout,
};

use super::{
    Blame, BlameKind, DialError, Endpoint, FetchError, Follow, PROGRESS, PeerId, code, expiry,
    follow::View,
    frame::{Decoder, Frame, FrameError, VERSION},
    meter::Meter,
    transport::STREAMS,
};
use crate::{
    task::{Layout, TaskId},
    trace::Context,
};

/// Pieces asked for at a time; the ones past it wait for their turn here, where nobody is blamed for it.
pub(super) const PIECES: usize = STREAMS as usize / 2;
/// Frames that wait to be sent. There is one each time a download begins or ends: more means that the peer reads none.
const MAX_ORDERS: usize = 4096;
/// Bytes of the control stream read at a time.
const READ: usize = 16 << 10;
/// The longest that a peer can ask to be left alone.
const MAX_THROTTLE: Duration = Duration::from_secs(30);

/// A connection to a peer that may have pieces. Shared by all downloads of the shard.
pub struct Link {
    peer: PeerId,
    address: SocketAddr,
    pub(super) connection: Connection,
    pub(super) pieces: Semaphore,
    pub(super) traffic: Traffic,
    views: RefCell<HashMap<TaskId, Weak<View>>>,
    orders: RefCell<VecDeque<Frame>>,
    ordered: Notify,
    /// What the peer did that ended the link.
    guilt: Cell<Option<BlameKind>>,
    throttle: Cell<Option<(u32, Instant)>>,
    /// Something came that every follower hears of: a throttle, or the end.
    pub(super) news: Notify,
}

/// What a link has carried.
#[derive(Default)]
pub(super) struct Traffic {
    bytes: Cell<u64>,
    under_way: Cell<u32>,
    meter: RefCell<Meter>,
}

/// A link as status shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkStatus {
    /// The parent.
    pub peer: PeerId,
    /// Its address.
    pub address: SocketAddr,
    /// Bytes a second lately, while pieces were under way.
    pub rate: u64,
    /// Round trip.
    pub rtt: Duration,
    /// Bytes of pieces that came.
    pub bytes: u64,
    /// Pieces under way.
    pub under_way: u32,
}

impl Link {
    /// Dials, and waits until the peer has said hello: only then has it accepted this side's certificate.
    pub(super) async fn open(endpoint: &Endpoint, peer: &PeerId, address: SocketAddr) -> Result<Rc<Self>, DialError> {
        let connection = endpoint.dial(peer, address).await?;
        let failed = |error: &dyn std::error::Error| match connection.close_reason() {
            Some(reason) => DialError::explain(&reason, peer, address),
            None => DialError::Failed { peer: peer.clone(), addr: address, why: error.to_string() },
        };
        let (mut send, recv) = connection.open_bi().await.map_err(|error| failed(&error))?;
        let mut hello = Vec::new();
        Frame::Hello { version: VERSION }.encode(&mut hello);
        send.write_all(&hello).await.map_err(|error| failed(&error))?;
        let link = Rc::new(Self::new(peer.clone(), address, connection.clone()));
        let mut ears = Ears { recv, decoder: Decoder::default(), bytes: vec![0; READ] };
        match timeout(PROGRESS, ears.frame()).await {
            Err(_) => {
                connection.close(code::SILENT, b"you said no hello");
                return Err(DialError::Silent { peer: peer.clone(), addr: address });
            }
            Ok(Ok(Frame::Hello { .. })) => {}
            Ok(Err(Unheard::Ended)) => return Err(failed(&FrameError::Unexpected)),
            Ok(Ok(_) | Err(Unheard::Garbage(_))) => {
                connection.close(code::GARBAGE, b"you said no hello");
                return Err(DialError::Garbage { peer: peer.clone(), addr: address });
            }
        }
        tokio_uring::spawn(Rc::clone(&link).live(send, ears));
        Ok(link)
    }

    fn new(peer: PeerId, address: SocketAddr, connection: Connection) -> Self {
        Self {
            peer,
            address,
            connection,
            pieces: Semaphore::new(PIECES),
            traffic: Traffic::default(),
            views: RefCell::default(),
            orders: RefCell::default(),
            ordered: Notify::new(),
            guilt: Cell::new(None),
            throttle: Cell::new(None),
            news: Notify::new(),
        }
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &PeerId {
        &self.peer
    }

    /// Whether it can still be used.
    pub fn is_up(&self) -> bool {
        self.connection.close_reason().is_none()
    }

    /// Whether it ended by the peer's own fault.
    pub(super) fn is_guilty(&self) -> bool {
        self.guilt.get().is_some()
    }

    /// What it carries.
    pub fn status(&self) -> LinkStatus {
        LinkStatus {
            peer: self.peer.clone(),
            address: self.address,
            rate: self.traffic.meter.borrow().rate(),
            rtt: self.connection.rtt(),
            bytes: self.traffic.bytes.get(),
            under_way: self.traffic.under_way.get(),
        }
    }

    /// Hears from now on which pieces of the task the peer has, until the guard drops.
    pub fn follow(self: &Rc<Self>, task: TaskId, layout: Layout) -> Follow {
        let known = self.views.borrow().get(&task).and_then(Weak::upgrade);
        let view = known.filter(|view| view.layout == layout).unwrap_or_else(|| {
            let view = Rc::new(View::new(layout));
            self.views.borrow_mut().insert(task, Rc::downgrade(&view));
            self.order(Frame::Follow { task, len: layout.len() });
            view
        });
        Follow::new(Rc::clone(self), task, view)
    }

    /// Says under which span the peer may record what it serves of a task that is followed.
    pub fn trace(&self, task: TaskId, context: Context) {
        self.order(Frame::Trace { task, context });
    }

    /// The last follower of a task leaves.
    pub(super) fn unfollow(&self, task: TaskId, view: &Rc<View>) {
        let mut views = self.views.borrow_mut();
        if views.get(&task).is_some_and(|current| std::ptr::eq(current.as_ptr(), Rc::as_ptr(view))) {
            views.remove(&task);
            drop(views);
            self.order(Frame::Unfollow { task });
        }
    }

    /// Until when the peer asks to be left alone, and the number of the request.
    pub(super) fn throttle(&self) -> Option<(u32, Instant)> {
        self.throttle.get()
    }

    /// Why the link ended; `None` while it stands.
    pub(super) fn end(&self) -> Option<FetchError> {
        let reason = self.connection.close_reason()?;
        Some(match self.guilt.get() {
            Some(kind) => FetchError::Blamed(Blame { peer: self.peer.clone(), kind }),
            None => FetchError::Down { peer: self.peer.clone(), why: reason.to_string() },
        })
    }

    /// The peer's fault ends the link.
    pub(super) fn condemn(&self, kind: BlameKind, text: &str) {
        if self.guilt.get().is_none() {
            tracing::warn!(peer = %self.peer, text, "a link is closed");
            self.guilt.set(Some(kind));
        }
        let code = if kind == BlameKind::Silent { code::SILENT } else { code::GARBAGE };
        self.connection.close(code, text.as_bytes());
        self.news.notify_waiters();
    }

    /// Ends the link: nobody needs it.
    pub(super) fn close(&self) {
        self.connection.close(code::DONE, b"not needed any more");
    }

    fn order(&self, frame: Frame) {
        let mut orders = self.orders.borrow_mut();
        if orders.len() == MAX_ORDERS {
            drop(orders);
            return self.condemn(BlameKind::Silent, "you read no control frames");
        }
        orders.push_back(frame);
        drop(orders);
        self.ordered.notify_one();
    }

    /// Speaks and listens until the connection ends.
    async fn live(self: Rc<Self>, send: SendStream, ears: Ears) {
        tokio::select! {
            () = self.speak(send) => {}
            () = self.listen(ears) => {}
            () = expiry::close_when_due(&self.connection) => {}
            _ = self.connection.closed() => {}
        }
        tracing::debug!(peer = %self.peer, why = ?self.connection.close_reason(), "a link ended");
        self.news.notify_waiters();
    }

    async fn speak(&self, mut send: SendStream) {
        loop {
            let mut bytes = Vec::new();
            self.orders.borrow_mut().drain(..).for_each(|frame| frame.encode(&mut bytes));
            match timeout(PROGRESS, send.write_all(&bytes)).await {
                Ok(Ok(())) => self.ordered.notified().await,
                Ok(Err(_)) => return self.connection.close(code::DONE, b"control stream ended"),
                Err(_) => return self.condemn(BlameKind::Silent, "you read no control frames"),
            }
        }
    }

    async fn listen(&self, mut ears: Ears) {
        loop {
            let garbage = match ears.frame().await {
                Ok(frame) => match self.hear(frame) {
                    Ok(()) => continue,
                    Err(garbage) => garbage,
                },
                Err(Unheard::Garbage(garbage)) => garbage,
                Err(Unheard::Ended) => return self.connection.close(code::DONE, b"control stream ended"),
            };
            return self.condemn(BlameKind::Garbage, &format!("you sent {garbage}"));
        }
    }

    fn hear(&self, frame: Frame) -> Result<(), FrameError> {
        // What is not followed any more may still be on its way.
        let view = |task: &TaskId| self.views.borrow().get(task).and_then(Weak::upgrade);
        match frame {
            Frame::Have { task, len, pieces } => {
                view(&task).map_or(Ok(()), |view| view.change(|held| held.add(&pieces), Some(len)))
            }
            Frame::HaveDelta { task, ranges } => view(&task).map_or(Ok(()), |view| {
                view.change(|held| ranges.into_iter().try_for_each(|range| held.add_range(range)), None)
            }),
            Frame::Forget { task } => view(&task).map_or(Ok(()), |view| {
                view.change(
                    |held| {
                        held.forget();
                        Ok(())
                    },
                    None,
                )
            }),
            Frame::Throttle { millis } => {
                let wait = Duration::from_millis(millis.into()).min(MAX_THROTTLE);
                let number = self.throttle.get().map_or(0, |(number, _)| number).wrapping_add(1);
                self.throttle.set(Some((number, Instant::now() + wait)));
                self.news.notify_waiters();
                Ok(())
            }
            Frame::Hello { .. } | Frame::Follow { .. } | Frame::Unfollow { .. } | Frame::Trace { .. } => {
                Err(FrameError::Unexpected)
            }
        }
    }
}

impl Traffic {
    pub(super) fn begin(&self) {
        if self.under_way.replace(self.under_way.get() + 1) == 0 {
            self.meter.borrow_mut().begin(Instant::now());
        }
    }

    pub(super) fn add(&self, bytes: usize) {
        self.bytes.set(self.bytes.get() + bytes as u64);
        self.meter.borrow_mut().add(Instant::now(), bytes as u64);
    }

    pub(super) fn end(&self) {
        self.under_way.set(self.under_way.get() - 1);
    }
}

/// The control stream's incoming half.
struct Ears {
    recv: RecvStream,
    decoder: Decoder,
    bytes: Vec<u8>,
}

/// Why no frame comes any more.
enum Unheard {
    Garbage(FrameError),
    Ended,
}

impl Ears {
    async fn frame(&mut self) -> Result<Frame, Unheard> {
        loop {
            match self.decoder.next_frame() {
                Ok(Some(frame)) => return Ok(frame),
                Ok(None) => {}
                Err(garbage) => return Err(Unheard::Garbage(garbage)),
            }
            match self.recv.read(&mut self.bytes).await {
                Ok(Some(read)) => self.decoder.feed(&self.bytes[..read]),
                Ok(None) | Err(_) => return Err(Unheard::Ended),
            }
        }
    }
}

const _: () = assert!(PIECES < STREAMS as usize);
