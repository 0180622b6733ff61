//! A shard's links to the peers that it fetches from: dialled once, shared, closed when nobody needs them.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::SocketAddr,
    rc::{Rc, Weak},
    time::{Duration, Instant},
};

use super::{DialError, Endpoint, Link, LinkStatus, PeerId};
use crate::swarm::exchange::Parent;

/// A link that nobody has used for this long is closed.
const UNUSED: Duration = Duration::from_secs(30);
/// How often that is looked at.
const TIDY_EVERY: Duration = Duration::from_secs(5);
/// Links of a shard, those being dialled and the peers that are left alone counted.
const MAX_LINKS: usize = 256;
/// How long a peer is left alone after a failure; doubled with each one, up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_millis(250);
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// The dialler's side, one a shard.
pub struct Links {
    endpoint: Rc<Endpoint>,
    peers: RefCell<HashMap<PeerId, Rc<Slot>>>,
}

/// One peer.
#[derive(Default)]
struct Slot {
    /// Held while dialling, so that it is done once.
    turn: tokio::sync::Mutex<()>,
    link: RefCell<Option<Rc<Link>>>,
    unused_since: Cell<Option<Instant>>,
    /// In a row, without a link that ended well in between.
    failures: Cell<u32>,
    /// Where it failed last, and until when it is left alone there.
    backoff: Cell<Option<(SocketAddr, Instant)>>,
}

impl Links {
    /// No links yet. Must be called inside the shard's runtime.
    pub fn new(endpoint: Rc<Endpoint>) -> Rc<Self> {
        let links = Rc::new(Self { endpoint, peers: RefCell::default() });
        let tidied = Rc::downgrade(&links);
        tokio_uring::spawn(async move {
            loop {
                tokio::time::sleep(TIDY_EVERY).await;
                let Some(links) = Weak::upgrade(&tidied) else { return };
                links.tidy(Instant::now());
            }
        });
        links
    }

    /// The link to this peer, dialled if there is none. A peer that failed is left alone for a while.
    pub async fn link(self: &Rc<Self>, parent: &Parent) -> Result<Rc<Link>, DialError> {
        let slot = self.slot(&parent.peer)?;
        if let Some(link) = slot.live() {
            return Ok(link);
        }
        let _turn = slot.turn.lock().await;
        if let Some(link) = slot.live() {
            return Ok(link);
        }
        let address = endpoint_of(parent, self.endpoint.shard());
        match slot.link.take() {
            Some(ended) if ended.is_guilty() => slot.failed(address),
            Some(_) => slot.failures.set(0),
            None => {}
        }
        slot.check_backoff(parent, address)?;
        let opened = Link::open(&self.endpoint, &parent.peer, address).await;
        match &opened {
            Ok(link) => slot.opened(link),
            Err(_) => slot.failed(address),
        }
        opened
    }

    /// The links that stand.
    pub fn snapshot(&self) -> Vec<LinkStatus> {
        self.peers.borrow().values().filter_map(|slot| slot.live()).map(|link| link.status()).collect()
    }

    fn slot(&self, peer: &PeerId) -> Result<Rc<Slot>, DialError> {
        if let Some(slot) = self.peers.borrow().get(peer) {
            return Ok(Rc::clone(slot));
        }
        if self.peers.borrow().len() >= MAX_LINKS {
            self.drop_one_unused();
        }
        let mut peers = self.peers.borrow_mut();
        if peers.len() >= MAX_LINKS {
            return Err(DialError::TooMany { peer: peer.clone() });
        }
        Ok(Rc::clone(peers.entry(peer.clone()).or_default()))
    }

    fn tidy(&self, now: Instant) {
        self.peers.borrow_mut().retain(|_, slot| {
            if Rc::strong_count(slot) > 1 || slot.is_used() {
                slot.unused_since.set(None);
                return true;
            }
            let since = slot.unused_since.get().unwrap_or(now);
            slot.unused_since.set(Some(since));
            let keep = now.saturating_duration_since(since) < UNUSED;
            if !keep {
                slot.close();
            }
            keep
        });
    }

    fn drop_one_unused(&self) {
        let mut peers = self.peers.borrow_mut();
        let unused = peers.iter().filter(|(_, slot)| Rc::strong_count(slot) == 1 && !slot.is_used());
        let oldest = unused.min_by_key(|(_, slot)| slot.unused_since.get().unwrap_or_else(Instant::now));
        if let Some(slot) = oldest.map(|(peer, _)| peer.clone()).and_then(|peer| peers.remove(&peer)) {
            slot.close();
        }
    }
}

impl Slot {
    fn live(&self) -> Option<Rc<Link>> {
        self.link.borrow().as_ref().filter(|link| link.is_up()).map(Rc::clone)
    }

    /// Whether anybody but the slot and the link's own task has the link.
    fn is_used(&self) -> bool {
        self.link.borrow().as_ref().is_some_and(|link| link.is_up() && Rc::strong_count(link) > 2)
    }

    fn close(&self) {
        if let Some(link) = self.link.borrow_mut().take() {
            link.close();
        }
    }

    fn check_backoff(&self, parent: &Parent, address: SocketAddr) -> Result<(), DialError> {
        let Some((failed, until)) = self.backoff.get() else { return Ok(()) };
        let wait = until.saturating_duration_since(Instant::now());
        // A peer that has moved is another matter.
        if failed != address || wait.is_zero() {
            return Ok(());
        }
        Err(DialError::Backoff { peer: parent.peer.clone(), addr: address, wait })
    }

    fn opened(&self, link: &Rc<Link>) {
        *self.link.borrow_mut() = Some(Rc::clone(link));
        self.backoff.set(None);
    }

    /// It could not be dialled, or what it did ended the link.
    fn failed(&self, address: SocketAddr) {
        let failures = self.failures.get().min(10);
        self.failures.set(failures + 1);
        let wait = (MIN_BACKOFF * 2u32.pow(failures)).min(MAX_BACKOFF);
        self.backoff.set(Some((address, Instant::now() + wait)));
    }
}

/// Shards spread over the peer's endpoints.
fn endpoint_of(parent: &Parent, shard: u16) -> SocketAddr {
    let mut address = parent.address;
    address.set_port(address.port().saturating_add(shard % parent.endpoints.max(1)));
    address
}
