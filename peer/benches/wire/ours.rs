//! Two peers: from one store to the other, each piece verified.

use std::{cell::Cell, net::SocketAddr, os::unix::fs::FileExt as _, path::Path, rc::Rc, sync::Arc, time::SystemTime};

use pondhawk::{
    store::{About, Held, Keeping, Options as StoreOptions, Store, TaskMeta},
    swarm::exchange::{Exchange, Parent},
    task::{Layout, TaskId},
    trace::Tracer,
    uring::{Pool, probe},
    wire::{Endpoint, Identity, Link, Links, Options, PeerId, Stop, Uploads},
};
use pondhawk_scheduler::authority::Authority;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use tempfile::TempDir;
use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot};

use super::{End, Run, measured, sides};

const BUF: usize = 256 << 10;

/// Two stores, and a file in one of them.
pub(crate) struct Stage {
    authority: Authority,
    seed: Arc<Store>,
    leech: Arc<Store>,
    meta: TaskMeta,
    digests: Vec<[u8; 32]>,
    _dir: TempDir,
}

impl Stage {
    pub(crate) fn new(dir: &Path, len: u64) -> Self {
        let dir = tempfile::tempdir_in(dir).unwrap();
        let open = |name| Store::open(&dir.path().join(name), StoreOptions { quota: 1 << 50, keep_free: 0 }).unwrap();
        let meta = TaskMeta {
            id: TaskId([1; 32]),
            layout: Layout::for_len(len).unwrap(),
            proof: None,
            about: About { label: "bench".to_owned(), ..About::default() },
            keeping: Keeping::default(),
            created_unix: 0,
        };
        let (seed, leech) = (open("seed"), open("leech"));
        let digests = on_ring(fill(&seed, &meta));
        Self { authority: Authority::open(&dir.path().join("ca")).unwrap(), seed, leech, meta, digests, _dir: dir }
    }

    fn identity(&self, name: &str) -> Identity {
        let key = KeyPair::generate().unwrap();
        let csr = CertificateParams::new(Vec::new()).unwrap().serialize_request(&key).unwrap();
        let signed = self.authority.sign(name, csr.der(), OffsetDateTime::from(SystemTime::now())).unwrap();
        Identity {
            chain: signed.chain,
            key: PrivateKeyDer::Pkcs8(key.serialize_der().into()),
            root: self.authority.ca().clone(),
        }
    }
}

async fn fill(store: &Arc<Store>, meta: &TaskMeta) -> Vec<[u8; 32]> {
    let held = store.create(meta.clone()).await.unwrap();
    let pool = Pool::new(0, 4, BUF);
    let mut digests = Vec::new();
    for piece in 0..meta.layout.pieces() {
        let bytes = meta.layout.bytes_of(piece);
        let mut content = vec![0; usize::try_from(bytes.end - bytes.start).unwrap()];
        blake3::Hasher::new_keyed(&[9; 32]).update(&piece.to_be_bytes()).finalize_xof().fill(&mut content);
        for (number, part) in content.chunks(BUF).enumerate() {
            let mut buf = pool.lease().await;
            buf[..part.len()].copy_from_slice(part);
            held.write(piece, (number * BUF) as u32, buf, part.len()).await.0.unwrap();
        }
        let digest = blake3::hash(&content);
        held.commit(piece, digest).await.unwrap();
        digests.push(*digest.as_bytes());
    }
    digests
}

/// Fetches the whole file once, `pieces` at a time, and removes it again.
pub(crate) fn run(stage: &Stage, seed: &End, leech: &End, mtu: u16, pieces: usize) -> Run {
    let options = |end: &End| Options { listen: end.any_port(), link_mtu: mtu, shard: 0 };
    let run = sides(
        seed,
        leech,
        |listening, done| on_ring(serve(stage, options(seed), listening, done)),
        |address| on_ring(fetch_all(stage, options(leech), address, pieces)),
    );
    assert!(stage.leech.remove(&stage.meta.id));
    run
}

async fn serve(
    stage: &Stage,
    options: Options,
    listening: std::sync::mpsc::Sender<SocketAddr>,
    done: oneshot::Receiver<()>,
) {
    let endpoint = Rc::new(Endpoint::bind(&stage.identity("seed"), options).unwrap());
    listening.send(endpoint.local_addr().unwrap()).unwrap();
    let uploads = Uploads::new(Arc::new(Exchange::default()), 64, 0);
    let serving = Rc::clone(&endpoint).serve(Arc::clone(&stage.seed), uploads, Tracer::default());
    tokio::select! {
        () = serving => {}
        _ = done => endpoint.close(),
    }
}

async fn fetch_all(stage: &Stage, options: Options, address: SocketAddr, pieces: usize) -> Run {
    let endpoint = Rc::new(Endpoint::bind(&stage.identity("leech"), options).unwrap());
    let links = Links::new(endpoint);
    let parent = Parent { peer: PeerId::new("seed").unwrap(), address, endpoints: 1, nearness: 0, seed: true };
    let link = links.link(&parent).await.unwrap();
    let _follow = link.follow(stage.meta.id, stage.meta.layout);
    let held = stage.leech.create(stage.meta.clone()).await.unwrap();
    warm(&held);
    // Path MTU discovery ends before the clock starts, as it does for bare quinn.
    tokio::time::sleep(super::bare::SETTLE).await;
    let run = measured(fetch_pieces(stage, &link, &held, pieces)).await;
    assert!(held.bitmap().is_full());
    run
}

/// Has the file's page cache there before the clock starts. In a virtual machine the first write into a page that the host has not
/// backed costs six times the next one: 1.7 CPU-s/GB where this was written, more than everything else together.
fn warm(held: &Held) {
    let chunk = vec![0; 1 << 20];
    for at in (0..held.meta.layout.len()).step_by(chunk.len()) {
        held.file().write_all_at(&chunk, at).unwrap();
    }
}

async fn fetch_pieces(stage: &Stage, link: &Rc<Link>, held: &Arc<Held>, at_once: usize) {
    let pool = Pool::new(8, at_once + 8, BUF);
    let next = Rc::new(Cell::new(0));
    let (ended, mut ends) = mpsc::channel(at_once);
    for _ in 0..at_once {
        let (link, held, next, pool) = (Rc::clone(link), Arc::clone(held), Rc::clone(&next), pool.clone());
        let (digests, ended) = (stage.digests.clone(), ended.clone());
        tokio_uring::spawn(async move {
            let (stop, moved) = (Stop::new(), Cell::new(0));
            while next.get() < held.meta.layout.pieces() {
                let piece = next.replace(next.get() + 1);
                link.fetch_piece(&held, piece, digests[piece as usize], &pool, &stop, &moved).await.unwrap();
            }
            ended.send(()).await.unwrap();
        });
    }
    drop(ended);
    while ends.recv().await.is_some() {}
}

fn on_ring<T>(work: impl Future<Output = T>) -> T {
    let ring = probe::ring_builder(probe::probe().unwrap());
    tokio_uring::builder().entries(1024).uring_builder(&ring).start(work)
}
