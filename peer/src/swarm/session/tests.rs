//! Sessions with a real scheduler over loopback.

mod chain;
mod life;
mod older;
mod refused;
mod secrets;

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use pondhawk_scheduler::service::{Options as SchedulerOptions, Scheduler};
use tempfile::TempDir;
use tokio::{
    net::TcpListener,
    sync::{oneshot, watch},
    task::JoinHandle,
};
use tracing::subscriber::DefaultGuard;

use super::{SessionOptions, SwarmStatus};
use crate::{
    store::{About, Keeping, Options, Store, TaskMeta},
    swarm::{
        exchange::{Exchange, Membership, Standing, Told, Want},
        identity::Token,
    },
    task::{Layout, TaskId},
    uring::Pool,
    wire::{Identity, PeerId},
};

/// Far longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;
const HOUR: Duration = Duration::from_secs(3600);

/// A scheduler that runs.
struct Running {
    scheduler: Arc<Scheduler>,
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Running {
    async fn start(dir: &Path, address: SocketAddr) -> Self {
        Self::with(dir, address, SchedulerOptions::default()).await
    }

    async fn with(dir: &Path, address: SocketAddr, options: SchedulerOptions) -> Self {
        let scheduler = Arc::new(Scheduler::open(dir, options).unwrap());
        let listener = soon(bind(address)).await;
        let address = listener.local_addr().unwrap();
        let (stop, stopping) = oneshot::channel::<()>();
        let serving = Arc::clone(&scheduler);
        let task = tokio::spawn(async move {
            let stopping = async { drop(stopping.await) };
            serving.serve(listener, stopping).await.unwrap();
        });
        Self { scheduler, address, stop, task }
    }

    async fn new(dir: &TempDir) -> Self {
        Self::start(dir.path(), ([127, 0, 0, 1], 0).into()).await
    }

    /// Writes a token that is good for an hour.
    fn token(&self, dir: &Path) -> PathBuf {
        write_token(dir, &self.scheduler.token(HOUR).unwrap())
    }

    async fn stop(self) {
        drop(self.stop);
        soon(self.task).await.unwrap();
    }
}

/// The port may still be held by the connections of the scheduler before.
async fn bind(address: SocketAddr) -> TcpListener {
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

/// A node's session, and what it has to do with.
struct Node {
    dir: TempDir,
    exchange: Arc<Exchange>,
    store: Arc<Store>,
    status: Arc<SwarmStatus>,
    identity: watch::Receiver<Option<Arc<Identity>>>,
    task: JoinHandle<()>,
}

impl Node {
    fn start(name: &str, scheduler: SocketAddr, token: Option<PathBuf>) -> Self {
        Self::over(tempfile::tempdir().unwrap(), name, scheduler, token)
    }

    fn over(dir: TempDir, name: &str, scheduler: SocketAddr, token: Option<PathBuf>) -> Self {
        let options = SessionOptions {
            schedulers: vec![scheduler.to_string()],
            name: PeerId::new(name).unwrap(),
            quic_address: "0.0.0.0:65010".parse().unwrap(),
            quic_endpoints: 2,
            labels: vec![("zone".to_owned(), "a".to_owned())],
            seed: false,
            data_dir: dir.path().to_owned(),
            token: token.map(Token::File),
            authority: None,
        };
        let store = open_store(dir.path());
        let exchange = Arc::new(Exchange::default());
        let status = Arc::new(SwarmStatus::new(&options.schedulers[0]));
        let (sender, identity) = watch::channel(None);
        let running = super::run(
            options,
            Arc::clone(&exchange),
            Arc::clone(&store),
            sender,
            vec![Arc::clone(&status)],
            std::future::pending(),
        );
        let task = tokio::spawn(running);
        Self { dir, exchange, store, status, identity, task }
    }

    async fn up(&self) -> u64 {
        let up = until(|| match self.exchange.standing() {
            Standing::Up { epoch } => Some(epoch),
            _ => None,
        });
        up.await
    }

    /// Waits for an error whose text has all of these.
    async fn fails_with(&self, words: &[&str]) -> String {
        let found = || {
            let error = self.status.snapshot().error()?.to_owned();
            words.iter().all(|word| error.contains(word)).then_some(error)
        };
        tokio::time::timeout(LONG, until(found)).await.unwrap_or_else(|_| {
            panic!("no error with {words:?}, but {:?}", self.status.snapshot());
        })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn open_store(dir: &Path) -> Arc<Store> {
    Store::open(&dir.join("store"), Options { quota: 1 << 40, keep_free: 0 }).unwrap()
}

fn write_token(dir: &Path, token: &str) -> PathBuf {
    let path = dir.join("token");
    std::fs::write(&path, format!("{token}\n")).unwrap();
    path
}

/// Puts the first `held` pieces, of 1 MiB each, of a task of five into the store in `dir`. Outside of any runtime.
fn fill(dir: &Path, task: TaskId, held: u32) {
    fill_as(dir, meta(task), held);
}

fn fill_as(dir: &Path, meta: TaskMeta, held: u32) {
    let store = open_store(dir);
    let adding = Arc::clone(&store);
    tokio_uring::start(async move {
        let held_task = adding.create(meta).await.unwrap();
        let pool = Pool::new(1, 2, 1 << 20);
        for piece in 0..held {
            let mut buf = pool.lease().await;
            buf.fill(u8::try_from(piece).unwrap());
            held_task.write(piece, 0, buf, 1 << 20).await.0.unwrap();
            held_task.commit(piece, blake3::Hash::from(digest(piece))).await.unwrap();
        }
    });
    store.close();
}

fn meta(task: TaskId) -> TaskMeta {
    TaskMeta {
        id: task,
        layout: Layout::for_len(5 * MIB).unwrap(),
        proof: None,
        about: About { label: "host/path".to_owned(), ..About::default() },
        keeping: Keeping::default(),
        created_unix: 1_700_000_000,
    }
}

/// Of a piece as [`fill`] writes it.
fn digest(piece: u32) -> [u8; 32] {
    blake3::hash(&vec![u8::try_from(piece).unwrap(); 1 << 20]).into()
}

fn want(task: TaskId, can_fetch: bool) -> Want {
    Want {
        task,
        len: 5 * MIB,
        host: "cdn.example".to_owned(),
        can_fetch,
        content_named: false,
        connections: 1,
        wanted: None,
        name: None,
        trace: None,
    }
}

/// Collects what a download is told until `done` is satisfied with all of it.
async fn told(member: &Membership, mut done: impl FnMut(&[Told]) -> bool) -> Vec<Told> {
    let mut all = Vec::new();
    while !done(&all) {
        let more = tokio::time::timeout(LONG, member.told()).await;
        all.extend(more.unwrap_or_else(|_| panic!("told only {all:?}")));
    }
    all
}

/// Within a deadline that only a hang reaches.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, future).await.expect("it hangs")
}

async fn until<T>(mut found: impl FnMut() -> Option<T>) -> T {
    let waiting = async {
        loop {
            if let Some(found) = found() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(waiting).await
}

/// What this thread logs.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn start(level: tracing::Level) -> (Self, DefaultGuard) {
        let log = Self::default();
        let lines = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(level)
            .with_ansi(false)
            .with_writer(move || lines.clone())
            .finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }

    async fn shows(&self, words: &str) {
        let shown = until(|| self.text().contains(words).then_some(()));
        tokio::time::timeout(LONG, shown).await.unwrap_or_else(|_| panic!("no {words:?} in the log:\n{}", self.text()));
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
