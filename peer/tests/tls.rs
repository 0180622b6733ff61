//! TLS as real clients see it: over loopback, through io_uring sockets, trusting the node's CA and not.

#![expect(clippy::unwrap_used, reason = "a failing test panics, in its helpers too")]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use pondhawk::tls::{AcceptError, Authority, Distrust, End, LeafCache, Suffixes, TlsError, TlsStream, server_config};
use pondhawk::uring::{Listener, Pool, Socket};
use rustls::{AlertDescription, ServerConfig};
use tokio::time::Instant;

/// Longer than a buffer of the pool, so that replies take several rounds.
const BODY: usize = 1_000_003;
const HANDSHAKE: Duration = Duration::from_secs(20);
const PATIENCE: Duration = Duration::from_secs(30);

/// What the server saw of one connection.
#[derive(Debug)]
#[expect(dead_code, reason = "some fields are there for the message of a failed assertion")]
enum Seen {
    Served { resumed: bool },
    Silent { distrust: Option<Distrust>, ended: Option<End> },
    Refused(AcceptError),
    Broke(TlsError),
}

struct Node {
    dir: tempfile::TempDir,
    addr: SocketAddr,
    seen: mpsc::Receiver<Seen>,
}

impl Node {
    fn start() -> Self {
        Self::start_with(HANDSHAKE)
    }

    fn start_with(patience: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open(dir.path(), &suffixes()).unwrap();
        let config = server_config(Arc::new(LeafCache::new(Arc::new(authority)))).unwrap();
        let (addr_to, addr) = mpsc::channel();
        let (seen_to, seen) = mpsc::channel();
        thread::spawn(move || tokio_uring::start(serve(config, patience, addr_to, seen_to)));
        Self { addr: addr.recv().unwrap(), dir, seen }
    }

    fn ca(&self) -> PathBuf {
        self.dir.path().join("ca/ca.pem")
    }

    fn url(&self) -> String {
        format!("https://localhost:{}/file", self.addr.port())
    }

    fn saw(&self) -> Seen {
        self.seen.recv_timeout(PATIENCE).expect("the server sees a connection")
    }
}

fn suffixes() -> Suffixes {
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

fn pattern() -> Vec<u8> {
    (0..BODY).map(|i| u8::try_from(i % 251).unwrap()).collect()
}

/// Runs a client in an environment that names no CA of its own; `None` where this machine does not have it.
fn run(program: &str, args: &[&str]) -> Option<Output> {
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

fn assert_whole(client: &str, output: &Output) {
    assert!(output.status.success(), "{client}: {}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stdout == pattern(), "{client}: {} bytes, not the ones sent", output.stdout.len());
}

fn curl_args(version: &str) -> [&str; 6] {
    let max = if version == "1.2" { "1.2" } else { "1.3" };
    ["-sS", "--tls-max", max, "--max-time", "20", if version == "1.2" { "--tlsv1.2" } else { "--tlsv1.3" }]
}

const PYTHON: &str = "
import http.client, ssl, sys
context = ssl.create_default_context(cafile=sys.argv[2] if len(sys.argv) > 2 else None)
context.verify_flags |= ssl.VERIFY_X509_STRICT
c = http.client.HTTPSConnection('localhost', int(sys.argv[1]), timeout=20, context=context)
c.request('GET', '/file')
sys.stdout.buffer.write(c.getresponse().read())
";

#[test]
fn curl_with_the_ca_gets_every_byte_by_both_versions() {
    let node = Node::start();
    for version in ["1.2", "1.3"] {
        let (ca, url) = (node.ca(), node.url());
        let Some(out) = run("curl", &[&curl_args(version)[..], &["--cacert", ca.to_str().unwrap(), &url]].concat())
        else {
            return;
        };
        assert_whole("curl", &out);
        assert!(matches!(node.saw(), Seen::Served { .. }));
    }
}

#[test]
fn curl_without_the_ca_is_seen_to_distrust_by_its_alert() {
    let node = Node::start();
    for version in ["1.2", "1.3"] {
        let Some(out) = run("curl", &[&curl_args(version)[..], &[&node.url()]].concat()) else { return };
        assert_eq!(out.status.code(), Some(60));
        let seen = node.saw();
        let expected = Distrust::Alert(AlertDescription::UnknownCA);
        assert!(matches!(&seen, Seen::Refused(AcceptError::ClientDistrusts(d)) if *d == expected), "{seen:?}");
    }
}

#[test]
fn strict_python_accepts_the_chain_with_the_ca_and_says_so_without() {
    let node = Node::start();
    let (port, ca) = (node.addr.port().to_string(), node.ca());
    let Some(out) = run("python3", &["-c", PYTHON, &port, ca.to_str().unwrap()]) else { return };
    assert_whole("python3", &out);
    assert!(matches!(node.saw(), Seen::Served { .. }));
    let out = run("python3", &["-c", PYTHON, &port]).unwrap();
    assert!(!out.status.success());
    let seen = node.saw();
    assert!(matches!(&seen, Seen::Refused(AcceptError::ClientDistrusts(Distrust::Alert(_)))), "{seen:?}");
}

/// A CONNECT proxy that leads every host to the node: aria2c sends SNI only for names that are not "localhost".
fn tunnel(to: SocketAddr) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let copy = |mut from: TcpStream, mut to: TcpStream| {
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    };
    thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                client.read_exact(&mut byte).unwrap();
                head.extend(byte);
            }
            client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
            let server = TcpStream::connect(to).unwrap();
            let (client_too, server_too) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            thread::spawn(move || copy(client_too, server_too));
            thread::spawn(move || copy(server, client));
        }
    });
    url
}

fn assert_left_after_handshake(client: &str, seen: &Seen) {
    let expected = Some(Distrust::LeftAfterHandshake);
    assert!(matches!(seen, Seen::Silent { distrust, .. } if *distrust == expected), "{client}: {seen:?}");
}

#[test]
fn wget_is_served_with_the_ca_and_without_it_leaves_right_after_the_handshake() {
    let node = Node::start();
    let (ca, url) = (format!("--ca-certificate={}", node.ca().display()), node.url());
    let args = ["-q", "--tries=1", "--timeout=20", "-O", "-", &url];
    let Some(out) = run("wget", &[&args[..], &[&ca]].concat()) else { return };
    assert_whole("wget", &out);
    assert!(matches!(node.saw(), Seen::Served { .. }));
    assert!(!run("wget", &args).unwrap().status.success());
    assert_left_after_handshake("wget", &node.saw());
}

#[test]
fn aria2c_is_served_with_the_ca_and_without_it_leaves_right_after_the_handshake() {
    let node = Node::start();
    let (ca, proxy) =
        (format!("--ca-certificate={}", node.ca().display()), format!("--all-proxy={}", tunnel(node.addr)));
    let dir = node.dir.path().to_str().unwrap();
    let args = ["-q", "--no-conf", "--max-tries=1", "-d", dir, "-o", "got", &proxy, "https://cdn-lfs.hf.co/file"];
    let Some(out) = run("aria2c", &[&args[..], &[&ca]].concat()) else { return };
    assert!(out.status.success());
    assert!(std::fs::read(node.dir.path().join("got")).unwrap() == pattern());
    assert!(matches!(node.saw(), Seen::Served { .. }));
    assert!(!run("aria2c", &args).unwrap().status.success());
    assert_left_after_handshake("aria2c", &node.saw());
}

#[test]
fn node_js_without_the_ca_gives_up_during_the_handshake() {
    let node = Node::start();
    let script = format!("require('https').get('{}').on('error', e => process.exit(3))", node.url());
    let Some(out) = run("node", &["-e", &script]) else { return };
    assert_eq!(out.status.code(), Some(3));
    let seen = node.saw();
    let distrusts = matches!(&seen, Seen::Refused(AcceptError::ClientDistrusts(_)));
    assert!(distrusts || matches!(&seen, Seen::Silent { distrust: Some(_), .. }), "{seen:?}");
}

#[test]
fn key_updates_are_answered_and_renegotiation_is_refused() {
    let node = Node::start();
    let client = |version: &str, before: &str| {
        let command = format!(
            "(printf '{before}\\n'; sleep 0.5; printf 'GET / HTTP/1.1\\r\\n\\r\\n'; sleep 1) | \
             timeout 20 openssl s_client {version} -connect localhost:{} -servername localhost",
            node.addr.port()
        );
        run("sh", &["-c", &command]).unwrap()
    };
    if run("openssl", &["version"]).is_none() {
        return;
    }
    let out = client("-tls1_3", "K");
    let seen = node.saw();
    assert!(matches!(seen, Seen::Served { .. }), "{seen:?}: {}", String::from_utf8_lossy(&out.stderr));
    let out = client("-tls1_2", "R");
    assert_ne!(out.status.code(), Some(124), "the client waits for an answer");
    let seen = node.saw();
    assert!(!matches!(seen, Seen::Refused(_)), "{seen:?}");
}

#[test]
fn openssl_verifies_the_chain_strictly_and_resumes_the_session() {
    let node = Node::start();
    let (connect, ca) = (format!("localhost:{}", node.addr.port()), node.ca());
    let session = node.dir.path().join("session");
    for (option, resumed) in [("-sess_out", false), ("-sess_in", true)] {
        let command = format!(
            "printf 'GET / HTTP/1.1\\r\\n\\r\\n' | openssl s_client -tls1_2 -quiet -x509_strict -verify_return_error -verify_hostname localhost \
             -CAfile {} -connect {connect} -servername localhost {option} {}",
            ca.display(),
            session.display()
        );
        let Some(out) = run("sh", &["-c", &command]) else { return };
        let seen = node.saw();
        assert!(
            matches!(seen, Seen::Served { resumed: r } if r == resumed),
            "{seen:?}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
    }
}

#[test]
fn what_is_not_ours_comes_back_untouched_for_the_splice() {
    let node = Node::start();
    let port = node.addr.port();
    let foreign = [
        "-sS",
        "--max-time",
        "2",
        "--connect-to",
        &format!("example.org:443:127.0.0.1:{port}"),
        "https://example.org/",
    ];
    if run("curl", &foreign).is_some() {
        let seen = node.saw();
        let Seen::Refused(AcceptError::NotOurs { read, .. }) = seen else { panic!("{seen:?}") };
        assert!(read.windows(11).any(|part| part == b"example.org"));
        assert_eq!(read.len(), 5 + usize::from(u16::from_be_bytes([read[3], read[4]])));
    }
    let address = ["-sS", "-k", "--max-time", "2", &format!("https://127.0.0.1:{port}/")];
    if run("curl", &address).is_some() {
        let seen = node.saw();
        assert!(matches!(seen, Seen::Refused(AcceptError::NotOurs { .. })), "{seen:?}");
    }
    let plain = "POST / HTTP/1.1\r\nHost: localhost\r\n\r\n";
    TcpStream::connect(node.addr).unwrap().write_all(plain.as_bytes()).unwrap();
    let seen = node.saw();
    let Seen::Refused(AcceptError::NotOurs { read, .. }) = seen else { panic!("{seen:?}") };
    assert_eq!(read, plain.as_bytes());
}

#[test]
fn a_client_that_says_nothing_runs_into_the_deadline() {
    let node = Node::start_with(Duration::from_millis(200));
    let client = TcpStream::connect(node.addr).unwrap();
    (&client).write_all(&[0x16, 3, 1, 2, 0]).unwrap();
    let seen = node.saw();
    assert!(matches!(seen, Seen::Refused(AcceptError::Timeout { certificate_sent: false })), "{seen:?}");
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!((&client).read(&mut [0; 16]).unwrap(), 0, "the socket was let go");
}
