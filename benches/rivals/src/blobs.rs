//! iroh-blobs: one blob from one store on disk to the other.

use std::{
    fs::{self, File},
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    time::Duration,
};

use iroh::{
    Endpoint, EndpointAddr, RelayMode, SecretKey,
    endpoint::{MtuDiscoveryConfig, QuicTransportConfig, presets},
    protocol::Router,
};
use iroh_blobs::{
    ALPN, BlobsProtocol, Hash,
    api::blobs::BlobStatus,
    store::fs::{FsStore, options::PathOptions},
};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use tempfile::TempDir;
use tokio::sync::oneshot;

use super::{End, Run, measured, sides};

/// How long a new connection is left alone before it is measured: MTU discovery takes some round trips.
const SETTLE: Duration = Duration::from_millis(300);
const CHUNK: usize = 1 << 20;

/// The seed's store with the blob in it, and where the leech's are made.
pub(crate) struct Stage {
    hash: Hash,
    len: u64,
    /// Flow control of a stream in bytes, if not as iroh has it.
    window: Option<u32>,
    dir: TempDir,
}

impl Stage {
    pub(crate) fn new(dir: &Path, len: u64, window: Option<u32>) -> Self {
        let dir = tempfile::tempdir_in(dir).unwrap();
        let source = dir.path().join("source");
        let mut file = File::create(&source).unwrap();
        let mut content = blake3::Hasher::new_keyed(&[9; 32]).finalize_xof();
        let mut chunk = vec![0; CHUNK];
        for _ in 0..len / CHUNK as u64 {
            content.fill(&mut chunk);
            file.write_all(&chunk).unwrap();
        }
        let stage = Self { hash: on_tokio(import(&dir.path().join("seed"), &source)), len, window, dir };
        fs::remove_file(source).unwrap();
        stage
    }

    fn seed(&self) -> PathBuf {
        self.dir.path().join("seed")
    }

    /// Writes and deletes as much as is about to be written. In a virtual machine the first write into a page that the host has not
    /// backed costs six times the next one. The store takes no file that is already there, so this is the most that it can be given.
    fn warm(&self) {
        let path = self.dir.path().join("warm");
        let mut file = File::create(&path).unwrap();
        let chunk = vec![0; CHUNK];
        for _ in 0..self.len / CHUNK as u64 {
            file.write_all(&chunk).unwrap();
        }
        fs::remove_file(path).unwrap();
    }
}

async fn import(store: &Path, source: &Path) -> Hash {
    let store = FsStore::load(store).await.unwrap();
    let tag = store.blobs().add_path(source).await.unwrap();
    store.shutdown().await.unwrap();
    tag.hash
}

/// Downloads the blob once and removes it again. Reads it back as well if told to `check`.
pub(crate) fn run(stage: &Stage, seed: &End, leech: &End, mtu: u16, check: bool) -> Run {
    let key = SecretKey::generate();
    let id = key.public();
    sides(
        seed,
        leech,
        |listening, done| on_tokio(serve(stage, seed.any_port(), mtu, key, listening, done)),
        |address| {
            let seed_at = EndpointAddr::new(id).with_ip_addr(address);
            let dir = tempfile::tempdir_in(stage.dir.path()).unwrap();
            let run = on_tokio(fetch(stage, dir.path(), (seed, leech), mtu, seed_at));
            if check {
                let mut hasher = blake3::Hasher::new();
                hasher.update_reader(File::open(PathOptions::new(dir.path()).data_path(&stage.hash)).unwrap()).unwrap();
                assert_eq!(Hash::from(hasher.finalize()), stage.hash);
            }
            run
        },
    )
}

async fn serve(
    stage: &Stage,
    listen: SocketAddr,
    mtu: u16,
    key: SecretKey,
    listening: mpsc::Sender<SocketAddr>,
    done: oneshot::Receiver<()>,
) {
    let store = FsStore::load(stage.seed()).await.unwrap();
    let endpoint = endpoint(listen, mtu, stage.window, key).await;
    let address = endpoint.bound_sockets()[0];
    let router = Router::builder(endpoint).accept(ALPN, BlobsProtocol::new(&store, None)).spawn();
    listening.send(address).unwrap();
    // An error is a leech that failed, and says so itself.
    let _ = done.await;
    router.shutdown().await.unwrap();
    // The router has told the protocol to shut the store down.
    let _ = store.shutdown().await;
}

async fn fetch(stage: &Stage, dir: &Path, (seed, leech): (&End, &End), mtu: u16, address: EndpointAddr) -> Run {
    let store = FsStore::load(dir).await.unwrap();
    let endpoint = endpoint(leech.any_port(), mtu, stage.window, SecretKey::generate()).await;
    let connection = endpoint.connect(address, ALPN).await.unwrap();
    stage.warm();
    tokio::time::sleep(SETTLE).await;
    let run = measured(seed, leech, async {
        store.remote().fetch(connection.clone(), stage.hash).await.unwrap();
    });
    let mut run = run.await;
    for path in connection.paths().iter() {
        let stats = path.stats();
        run.payload = run.payload.max(stats.current_mtu);
        run.sent += stats.sent_packets;
        run.lost += stats.lost_packets;
    }
    let status = store.blobs().status(stage.hash).await.unwrap();
    assert!(matches!(status, BlobStatus::Complete { size } if size == stage.len), "{status:?}");
    connection.close(0u32.into(), b"");
    endpoint.close().await;
    store.shutdown().await.unwrap();
    run
}

/// No relay, no discovery, one socket. The packets may grow as far as the link and the other end allow.
async fn endpoint(listen: SocketAddr, mtu: u16, window: Option<u32>, key: SecretKey) -> Endpoint {
    let payload = mtu - 48;
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(payload);
    let mut transport =
        QuicTransportConfig::builder().initial_mtu(payload.min(1452)).mtu_discovery_config(Some(discovery));
    if let Some(window) = window {
        transport = transport.stream_receive_window(window.into()).send_window(2 * u64::from(window));
    }
    Endpoint::builder(presets::Empty)
        .crypto_provider(provider())
        .relay_mode(RelayMode::Disabled)
        .clear_address_lookup()
        .transport_config(transport.build())
        .secret_key(key)
        .clear_ip_transports()
        .bind_addr(listen)
        .unwrap()
        .bind()
        .await
        .unwrap()
}

/// The cheapest cipher, as ours.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256];
    Arc::new(provider)
}

fn on_tokio<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}
