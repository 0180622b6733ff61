//! A server for one test: what it serves, and how wrong, is in the path.

use std::{
    net::SocketAddr,
    ops::Range,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use rcgen::{CertificateParams, KeyPair};
use rustls::{
    ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader},
    net::TcpListener,
    runtime::Runtime,
    time::{Instant, sleep, sleep_until},
};
use tokio_rustls::TlsAcceptor;

/// Size of /data.
pub(crate) const SIZE: usize = 300_000;

/// What /data serves.
pub(crate) fn data() -> Vec<u8> {
    (0..SIZE as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

/// A request as the server saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) connection: usize,
    pub(crate) path: String,
    pub(crate) range: Option<Range<usize>>,
    pub(crate) authorization: Option<String>,
}

#[derive(Default)]
struct State {
    seen: Mutex<Vec<Seen>>,
    /// With so many requests seen, none is answered for so long.
    stall: Mutex<Option<(usize, Duration)>>,
    stalled_until: Mutex<Option<Instant>>,
}

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    scheme: &'static str,
    state: Arc<State>,
    folder: tempfile::TempDir,
    /// Its tasks end with it.
    _runtime: Runtime,
}

impl Server {
    pub(crate) fn plain() -> Self {
        Self::start(None, tempfile::tempdir().unwrap())
    }

    pub(crate) fn tls() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
        std::fs::write(folder.path().join("ca.pem"), certificate.pem()).unwrap();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = config.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], key).unwrap();
        Self::start(Some(TlsAcceptor::from(Arc::new(config))), folder)
    }

    fn start(tls: Option<TlsAcceptor>, folder: tempfile::TempDir) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let (address, scheme) = (listener.local_addr().unwrap(), if tls.is_some() { "https" } else { "http" });
        let state = Arc::new(State::default());
        runtime.spawn(accept(listener, tls, Arc::clone(&state)));
        Self { address, scheme, state, folder, _runtime: runtime }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}://localhost:{}{path}", self.scheme, self.address.port())
    }

    pub(crate) fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// /data as a file.
    pub(crate) fn copy(&self) -> PathBuf {
        let path = self.folder.path().join("copy");
        std::fs::write(&path, data()).unwrap();
        path
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().unwrap().clone()
    }

    pub(crate) fn stall_after(&self, requests: usize, pause: Duration) {
        *self.state.stall.lock().unwrap() = Some((requests, pause));
    }
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, state: Arc<State>) {
    for connection in 0.. {
        let Ok((stream, _)) = listener.accept().await else { return };
        let (tls, state) = (tls.clone(), Arc::clone(&state));
        tokio::spawn(async move {
            match tls {
                None => serve(stream, connection, &state).await,
                Some(tls) => match tls.accept(stream).await {
                    Ok(stream) => serve(stream, connection, &state).await,
                    Err(_) => Ok(()),
                },
            }
        });
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, connection: usize, state: &State) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut seen = Seen { connection, path: String::new(), range: None, authorization: None };
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            let line = line.trim_end();
            if line.is_empty() {
                break;
            }
            if let Some(rest) = line.strip_prefix("GET ") {
                seen.path = rest.split(' ').next().unwrap().to_owned();
            } else if let Some(range) = line.strip_prefix("range: bytes=") {
                let (first, last) = range.split_once('-').unwrap();
                seen.range = Some(first.parse().unwrap()..last.parse::<usize>().unwrap() + 1);
            } else if let Some(value) = line.strip_prefix("authorization: ") {
                seen.authorization = Some(value.to_owned());
            }
        }
        let count = {
            let mut all = state.seen.lock().unwrap();
            all.push(seen.clone());
            all.len()
        };
        pause(state, count).await;
        let (answer, keep) = answer(&seen);
        if answer.is_empty() {
            sleep(Duration::from_secs(3600)).await;
        }
        stream.write_all(&answer).await?;
        stream.flush().await?;
        if !keep {
            return stream.shutdown().await;
        }
    }
}

async fn pause(state: &State, count: usize) {
    if let Some((after, pause)) = *state.stall.lock().unwrap()
        && count == after
    {
        *state.stalled_until.lock().unwrap() = Some(Instant::now() + pause);
    }
    let until = *state.stalled_until.lock().unwrap();
    if let Some(until) = until {
        sleep_until(until).await;
    }
}

/// The whole answer, and whether the connection stays.
fn answer(seen: &Seen) -> (Vec<u8>, bool) {
    let mut data = data();
    let (path, query) = seen.path.split_once('?').unwrap_or((&seen.path, ""));
    match path {
        "/data" => (part(data, seen.range.clone(), ""), true),
        "/once" => (part(data, None, "connection: close\r\n"), false),
        // Closes without having said so.
        "/rude" => (part(data, None, ""), false),
        "/wrong" => {
            data[SIZE / 2] ^= 1;
            (part(data, seen.range.clone(), ""), true)
        }
        "/short" => {
            let mut answer = part(data, None, "");
            answer.truncate(SIZE / 2);
            (answer, false)
        }
        "/whole" => (part(data, None, ""), true),
        "/chunked" => {
            let mut answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
            for chunk in data.chunks(70_001) {
                answer.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                answer.extend_from_slice(chunk);
                answer.extend_from_slice(b"\r\n");
            }
            answer.extend_from_slice(b"0\r\n\r\n");
            (answer, true)
        }
        "/redirect" => {
            (format!("HTTP/1.1 302 Found\r\nlocation: {query}\r\ncontent-length: 2\r\n\r\nno").into_bytes(), true)
        }
        "/hang" => (Vec::new(), false),
        "/ssh" => (b"SSH-2.0-OpenSSH_9.9\r\n".to_vec(), false),
        _ => (b"HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\n\r\nnone".to_vec(), true),
    }
}

fn part(data: Vec<u8>, range: Option<Range<usize>>, fields: &str) -> Vec<u8> {
    let (status, more, body) = match range {
        None => ("200 OK", String::new(), data),
        Some(range) => {
            let more = format!("content-range: bytes {}-{}/{}\r\n", range.start, range.end - 1, data.len());
            ("206 Partial Content", more, data[range].to_vec())
        }
    };
    let head = format!("HTTP/1.1 {status}\r\n{more}{fields}content-length: {}\r\n\r\n", body.len());
    [head.into_bytes(), body].concat()
}
