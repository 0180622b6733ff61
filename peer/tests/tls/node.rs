//! A server on the node's own TLS accept path, through io_uring sockets, and what runs clients against it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use pondhawk::tls::{AcceptError, Authority, Distrust, End, LeafCache, Suffixes, TlsError, TlsStream, server_config};
use pondhawk::uring::{Listener, Pool, Socket};
use rustls::ServerConfig;
use tokio::time::Instant;

/// Longer than a buffer of the pool, so that replies take several rounds.
pub(crate) const BODY: usize = 1_000_003;
const HANDSHAKE: Duration = Duration::from_secs(20);
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// What the server saw of one connection.
#[derive(Debug)]
#[expect(dead_code, reason = "some fields are there for the message of a failed assertion")]
pub(crate) enum Seen {
    Served { resumed: bool },
    Silent { distrust: Option<Distrust>, ended: Option<End> },
    Refused(AcceptError),
    Broke(TlsError),
}

pub(crate) struct Node {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) addr: SocketAddr,
    pub(crate) authority: Arc<Authority>,
    seen: mpsc::Receiver<Seen>,
}

impl Node {
    pub(crate) fn start() -> Self {
        Self::start_with(HANDSHAKE)
    }

    pub(crate) fn start_with(patience: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Arc::new(Authority::open(dir.path(), &suffixes()).unwrap());
        let config = server_config(Arc::new(LeafCache::new(Arc::clone(&authority)))).unwrap();
        let (addr_to, addr) = mpsc::channel();
        let (seen_to, seen) = mpsc::channel();
        thread::spawn(move || tokio_uring::start(serve(config, patience, addr_to, seen_to)));
        Self { addr: addr.recv().unwrap(), dir, authority, seen }
    }

    pub(crate) fn ca(&self) -> PathBuf {
        self.authority.info().path.clone()
    }

    pub(crate) fn url(&self) -> String {
        format!("https://localhost:{}/file", self.addr.port())
    }

    pub(crate) fn saw(&self) -> Seen {
        self.seen.recv_timeout(PATIENCE).expect("the server sees a connection")
    }
}

pub(crate) fn suffixes() -> Suffixes {
    Suffixes::new(["hf.co", "localhost"]).unwrap()
}

async fn serve(
    config: Arc<ServerConfig>,
    patience: Duration,
    addr: mpsc::Sender<SocketAddr>,
    seen: mpsc::Sender<Seen>,
) {
    let listener = Listener::bind(([127, 0, 0, 1], 0).into()).unwrap();
    addr.send(listener.local_addr().unwrap()).unwrap();
    let pool = Pool::new(4, 8, 256 << 10);
    loop {
        let socket = listener.accept().await.unwrap();
        let (config, seen, pool) = (Arc::clone(&config), seen.clone(), pool.clone());
        tokio_uring::spawn(async move {
            let outcome = connection(socket, config, patience, &pool).await;
            // The test may be over.
            let _ = seen.send(outcome);
        });
    }
}

async fn connection(socket: Socket, config: Arc<ServerConfig>, patience: Duration, pool: &Pool) -> Seen {
    let (_, already) = socket.recv(Vec::with_capacity(64)).await;
    let mut stream = match TlsStream::accept(socket, already, config, Instant::now() + patience).await {
        Ok(stream) => stream,
        Err(error) => return Seen::Refused(error),
    };
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        match stream.recv(&mut request).await {
            Ok(0) => return Seen::Silent { distrust: stream.distrust(), ended: stream.ended() },
            Ok(_) => {}
            Err(error) => return Seen::Broke(error),
        }
    }
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {BODY}\r\nConnection: close\r\n\r\n");
    let sent = match stream.send(head.as_bytes()).await {
        Ok(()) => body(&mut stream, pool).await,
        error => error,
    };
    let resumed = stream.session().is_resumed();
    stream.close().await;
    sent.map_or_else(Seen::Broke, |()| Seen::Served { resumed })
}

async fn body(stream: &mut TlsStream, pool: &Pool) -> Result<(), TlsError> {
    let plain = pattern();
    let mut rest = &plain[..];
    let mut out = pool.lease().await;
    while !rest.is_empty() {
        let (now, later) = rest.split_at(stream.max_plain(out.len()).min(rest.len()));
        let (result, back) = stream.send_buf(now, out).await;
        result?;
        (out, rest) = (back, later);
    }
    Ok(())
}

pub(crate) fn pattern() -> Vec<u8> {
    (0..BODY).map(|i| u8::try_from(i % 251).unwrap()).collect()
}

/// Runs a client in an environment that names no CA of its own; `None` where this machine does not have it.
pub(crate) fn run(program: &str, args: &[&str]) -> Option<Output> {
    let mut command = Command::new(program);
    command
        .args(args)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", "/nonexistent");
    match command.stdin(Stdio::null()).output() {
        Ok(output) => Some(output),
        Err(_) => {
            eprintln!("{program} is not installed: not tested with it");
            None
        }
    }
}

pub(crate) fn assert_whole(client: &str, output: &Output) {
    assert!(output.status.success(), "{client}: {}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stdout == pattern(), "{client}: {} bytes, not the ones sent", output.stdout.len());
}

pub(crate) fn curl_args(version: &str) -> [&str; 6] {
    let max = if version == "1.2" { "1.2" } else { "1.3" };
    ["-sS", "--tls-max", max, "--max-time", "20", if version == "1.2" { "--tlsv1.2" } else { "--tlsv1.3" }]
}
