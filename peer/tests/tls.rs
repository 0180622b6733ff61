//! TLS as real clients see it: over loopback, through io_uring sockets, trusting the node's CA and not.

#![expect(clippy::unwrap_used, reason = "a failing test panics, in its helpers too")]

#[path = "tls/node.rs"]
mod node;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use node::{Node, PATIENCE, Seen, assert_whole, curl_args, pattern, run};
use pondhawk::tls::{AcceptError, Distrust};
use rustls::AlertDescription;

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
