//! Setting the stage: an authority, peers with stores and endpoints, a file whose bytes follow from a number.

use std::{
    cell::Cell,
    net::SocketAddr,
    path::Path,
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime},
};

use pondhawk::{
    store::{About, Held, Keeping, Options as StoreOptions, Store, TaskMeta},
    swarm::exchange::{Exchange, Parent},
    task::{Layout, TaskId},
    trace::Tracer,
    uring::Pool,
    wire::{Endpoint, FetchError, Identity, Link, Links, Options, PeerId, Stop, Uploads},
};
use pondhawk_scheduler::authority::Authority;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use tempfile::TempDir;
use time::OffsetDateTime;

/// Far longer than anything here takes.
pub(crate) const LONG: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

/// Runs a test on a shard's kind of runtime, and not for ever.
pub(crate) fn on_a_shard(test: impl Future<Output = ()>) {
    tokio_uring::start(async { tokio::time::timeout(LONG, test).await.expect("the test ends in time") });
}

/// A cluster's CA.
pub(crate) struct Cluster {
    pub(crate) authority: Authority,
    _dir: TempDir,
}

impl Cluster {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { authority: Authority::open(dir.path()).unwrap(), _dir: dir }
    }

    /// A peer's certificate, signed now.
    pub(crate) fn identity(&self, name: &str) -> Identity {
        self.identity_at(name, SystemTime::now())
    }

    /// A peer's certificate, signed at another time.
    pub(crate) fn identity_at(&self, name: &str, at: SystemTime) -> Identity {
        let key = KeyPair::generate().unwrap();
        let csr = CertificateParams::new(Vec::new()).unwrap().serialize_request(&key).unwrap();
        let signed = self.authority.sign(name, csr.der(), OffsetDateTime::from(at)).unwrap();
        Identity {
            chain: signed.chain,
            key: PrivateKeyDer::Pkcs8(key.serialize_der().into()),
            root: self.authority.ca().clone(),
        }
    }
}

/// One peer: a store, an endpoint that serves from it, and links.
pub(crate) struct Peer {
    pub(crate) store: Arc<Store>,
    pub(crate) endpoint: Rc<Endpoint>,
    pub(crate) links: Rc<Links>,
    pub(crate) exchange: Arc<Exchange>,
    pub(crate) pool: Pool,
    pub(crate) id: PeerId,
    _dir: TempDir,
}

impl Peer {
    /// A peer of this cluster that serves without limits.
    pub(crate) fn start(cluster: &Cluster, name: &str) -> Self {
        Self::start_with(&cluster.identity(name), name, 64, 0)
    }

    /// A peer that shows this identity, and gives so many uploads, and bytes a second, at a time.
    pub(crate) fn start_with(identity: &Identity, name: &str, uploads: u32, rate: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let exchange = Arc::new(Exchange::default());
        let endpoint = Endpoint::bind(identity, options()).unwrap().with_denials(Arc::clone(&exchange.denials));
        let endpoint = Rc::new(endpoint);
        let store = open(dir.path());
        let limits = Uploads::new(Arc::clone(&exchange), uploads, rate);
        tokio_uring::spawn(Rc::clone(&endpoint).serve(Arc::clone(&store), limits, Tracer::default()));
        Self {
            store,
            links: Links::new(Rc::clone(&endpoint)),
            endpoint,
            exchange,
            pool: Pool::new(0, 16, 256 << 10),
            id: PeerId::new(name).unwrap(),
            _dir: dir,
        }
    }

    /// How others reach it.
    pub(crate) fn as_parent(&self) -> Parent {
        parent(self.id.as_str(), self.endpoint.local_addr().unwrap())
    }

    pub(crate) async fn link_to(&self, parent: &Self) -> Rc<Link> {
        self.links.link(&parent.as_parent()).await.unwrap()
    }

    /// Fetches a piece, and waits for its end.
    pub(crate) async fn fetch(
        &self,
        link: &Link,
        held: &Arc<Held>,
        piece: u32,
        digest: [u8; 32],
    ) -> Result<u64, FetchError> {
        link.fetch_piece(held, piece, digest, &self.pool, &Stop::new(), &Cell::new(0)).await
    }

    /// Puts all of the file into this peer's store.
    pub(crate) async fn hold(&self, file: Sample) -> Arc<Held> {
        let held = self.store.create(file.meta()).await.unwrap();
        for piece in 0..file.layout().pieces() {
            self.add(&held, file, piece).await;
        }
        held
    }

    /// Puts one piece of it into the store.
    pub(crate) async fn add(&self, held: &Arc<Held>, file: Sample, piece: u32) {
        let bytes = file.piece(piece);
        let mut at = 0;
        for part in bytes.chunks(self.pool.buf_len()) {
            let mut buf = self.pool.lease().await;
            buf[..part.len()].copy_from_slice(part);
            held.write(piece, at, buf, part.len()).await.0.unwrap();
            at += part.len() as u32;
        }
        held.commit(piece, blake3::hash(&bytes)).await.unwrap();
    }
}

/// Another peer, as the scheduler tells of it.
pub(crate) fn parent(name: &str, address: SocketAddr) -> Parent {
    Parent { peer: PeerId::new(name).unwrap(), address, endpoints: 1, nearness: 0, seed: false }
}

/// Any free port of this host.
pub(crate) fn options() -> Options {
    Options { listen: SocketAddr::from(([127, 0, 0, 1], 0)), link_mtu: 1500, shard: 0 }
}

fn open(dir: &Path) -> Arc<Store> {
    Store::open(dir, StoreOptions { quota: 1 << 40, keep_free: 0 }).unwrap()
}

/// A file whose content follows from its number.
#[derive(Clone, Copy)]
pub(crate) struct Sample {
    pub(crate) number: u8,
    pub(crate) len: u64,
}

impl Sample {
    /// Five pieces, the last one short.
    pub(crate) const SMALL: Self = Self { number: 7, len: 4 * MIB + 12_345 };

    pub(crate) fn id(self) -> TaskId {
        TaskId([self.number; 32])
    }

    pub(crate) fn layout(self) -> Layout {
        Layout::for_len(self.len).unwrap()
    }

    pub(crate) fn meta(self) -> TaskMeta {
        TaskMeta {
            id: self.id(),
            layout: self.layout(),
            proof: None,
            about: About { label: format!("host/{}", self.number), ..About::default() },
            keeping: Keeping::default(),
            created_unix: 1_700_000_000,
        }
    }

    pub(crate) fn piece(self, piece: u32) -> Vec<u8> {
        let bytes = self.layout().bytes_of(piece);
        let mut out = vec![0; usize::try_from(bytes.end - bytes.start).unwrap()];
        let mut content = blake3::Hasher::new_keyed(&[self.number; 32]).finalize_xof();
        content.set_position(bytes.start);
        content.fill(&mut out);
        out
    }

    pub(crate) fn digest(self, piece: u32) -> [u8; 32] {
        *blake3::hash(&self.piece(piece)).as_bytes()
    }
}
