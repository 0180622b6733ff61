//! The front of a node on the wire: long-lived and slow connections, old versions, odd ranges, leaving and draining.

#![expect(clippy::unwrap_used, reason = "a panic is how a test reports")]

#[allow(dead_code, reason = "other tests use the rest")]
#[path = "node/stage.rs"]
mod stage;

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    thread,
    time::Duration,
};

use pondhawk_bench::{
    hub::{Rates, seeded},
    lab::wait_until,
};
use stage::{CDN, File, Stage, read_answer, request};

const MIB: u64 = 1 << 20;

/// A request that asks for the connection to be kept.
fn kept(url: &str, headers: &[&str]) -> Vec<u8> {
    let text = String::from_utf8(request("GET", url, headers, b"")).unwrap();
    text.replace("Connection: close\r\n", "").into_bytes()
}

fn warm(stage: &Stage, name: &str, len: u64) -> (File, String) {
    let file = stage.file(name, len, len);
    let url = stage.url(&file);
    assert!(stage.node.get(&url, &[]).body == file.bytes(0, len));
    (file, url)
}

#[test]
fn one_connection_carries_many_requests_of_all_kinds() {
    let stage = Stage::open(&[]);
    let (file, url) = warm(&stage, "kept", 3 * MIB + 1);
    let mut connection = stage.node.connect();
    for round in 0..100 {
        let (start, len) = (round * 29_989, 1 + round * 977);
        let range = format!("Range: bytes={start}-{}", start + len - 1);
        connection.write_all(&kept(&url, &[&range])).unwrap();
        let answer = read_answer(&mut connection, false);
        assert!(answer.status == 206 && answer.body == file.bytes(start, len), "round {round}");
    }
    let etag = format!("If-None-Match: {}", stage.node.get(&url, &[]).header("etag").unwrap());
    for (headers, status) in [(&*etag, 304), ("Range: bytes=99999999-", 416), ("If-Match: \"x\"", 412), ("A: b", 200)] {
        connection.write_all(&kept(&url, &[headers])).unwrap();
        let answer = read_answer(&mut connection, false);
        assert!(answer.status == status && answer.complete, "{headers}: {}", answer.status);
    }
    connection.write_all(&kept(&url.replace("Signature=", "Signature=A"), &[])).unwrap();
    assert_eq!(read_answer(&mut connection, false).status, 403);
    connection.write_all(&kept(&url, &[])).unwrap();
    assert!(read_answer(&mut connection, false).body == file.bytes(0, file.len), "a refusal keeps the connection");
}

#[test]
fn ranges_of_every_form_are_cut_right_on_a_miss_and_on_a_hit() {
    let stage = Stage::open(&[]);
    let len = 5 * MIB + 77;
    let (missed, held) = (stage.file("missed", len, 1), stage.file("held", len, 1));
    assert!(stage.get(&held).complete);
    let etag = stage.node.request("HEAD", &stage.url(&held), &[], b"").header("etag").unwrap().to_owned();
    let forms = [
        ("0-0", 0..1),
        ("1048575-1048576", MIB - 1..MIB + 1),
        ("-1", len - 1..len),
        ("-99999999", 0..len),
        ("3000000-", 3_000_000..len),
        ("5242880-99999999", 5 * MIB..len),
    ];
    for file in [&missed, &held] {
        for (form, span) in &forms {
            let headers = [format!("Range: bytes={form}"), format!("If-Range: {etag}")];
            let headers: Vec<_> = headers.iter().map(String::as_str).collect();
            // Both files have the same bytes, and so the same validator.
            let answer = stage.node.get(&stage.url(file), &headers);
            let told = format!("bytes {}-{}/{len}", span.start, span.end - 1);
            assert_eq!((answer.status, answer.header("content-range")), (206, Some(&*told)), "{form}");
            assert!(answer.complete && answer.body == file.bytes(span.start, span.end - span.start), "{form}");
        }
    }
}

#[test]
fn clients_of_http_1_0_get_whole_replies_that_end_with_the_connection() {
    let stage = Stage::open(&[]);
    let (file, url) = warm(&stage, "old", 700_001);
    let old = |url: &str| String::from_utf8(request("GET", url, &[], b"")).unwrap().replace("HTTP/1.1", "HTTP/1.0");
    let mut connection = stage.node.connect();
    connection.write_all(old(&url).replace("Connection: close\r\n", "").as_bytes()).unwrap();
    let mut all = Vec::new();
    connection.read_to_end(&mut all).unwrap();
    let head = all.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
    assert!(all[head..] == file.bytes(0, file.len));
    // No length is known here, and HTTP/1.0 has no chunks.
    let mut connection = stage.node.connect();
    let head = format!("POST http://{CDN}/_echo HTTP/1.0\r\nHost: {CDN}\r\nContent-Length: 5\r\n\r\nhello");
    connection.write_all(head.as_bytes()).unwrap();
    let answer = read_answer(&mut connection, false);
    assert_eq!((answer.status, answer.header("transfer-encoding")), (200, None));
    assert_eq!(answer.body, b"hello");
}

#[test]
fn a_client_that_reads_nothing_is_cut_off_and_harms_nobody() {
    let stage = Stage::open(&["limits.send_stall=1s"]);
    let (file, url) = warm(&stage, "slow", 48 * MIB);
    let mut idle: Vec<TcpStream> = (0..40).map(|_| stage.node.connect()).collect();
    idle.iter_mut().for_each(|connection| connection.write_all(&kept(&url, &[])).unwrap());
    for _ in 0..3 {
        assert!(stage.node.get(&url, &[]).body == file.bytes(0, file.len), "the others are served");
    }
    let open = "pondhawk_connections_open{way=\"proxy\"}";
    wait_until(Duration::from_secs(15), || (stage.node.metric(open) == 0).then_some(())).expect("all are cut off");
    let answer = read_answer(&mut idle[0], false);
    assert!(!answer.complete, "what was cut looks cut");
}

#[test]
fn idle_connections_and_half_heads_are_ended() {
    let stage = Stage::open(&["limits.idle_timeout=1s"]);
    let mut idle = stage.node.connect();
    assert_eq!(idle.read(&mut [0; 16]).unwrap(), 0, "closed in an orderly way");
    let (_, url) = warm(&stage, "then-idle", 100_000);
    let mut used = stage.node.connect();
    used.write_all(&kept(&url, &[])).unwrap();
    assert!(read_answer(&mut used, false).complete);
    assert_eq!(used.read(&mut [0; 16]).unwrap(), 0);
    let mut half = stage.node.connect();
    half.write_all(b"GET http://").unwrap();
    half.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(matches!(half.read(&mut [0; 16]), Ok(0) | Err(_)), "nothing is said to half a request");
}

#[test]
fn large_bodies_stream_both_ways_at_once_with_a_length_and_in_chunks() {
    let stage = Stage::open(&[]);
    let body = seeded(7, 0, 32 << 20);
    let head = format!("POST http://{CDN}/_echo HTTP/1.1\r\nHost: {CDN}\r\n");
    let whole = [format!("{head}Content-Length: {}\r\n\r\n", body.len()).into_bytes(), body.clone()].concat();
    let mut chunked = format!("{head}Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n").into_bytes();
    for chunk in body.chunks(70_001) {
        chunked.extend_from_slice(format!("{:x};ext=1\r\n", chunk.len()).as_bytes());
        chunked.extend_from_slice(chunk);
        chunked.extend_from_slice(b"\r\n");
    }
    chunked.extend_from_slice(b"0\r\nTrailer: x\r\n\r\n");
    for request in [whole, chunked] {
        let mut connection = stage.node.connect();
        let mut writer = connection.try_clone().unwrap();
        let sending = thread::spawn(move || writer.write_all(&request));
        let answer = read_answer(&mut connection, false);
        sending.join().unwrap().unwrap();
        assert!(answer.status == 200 && answer.complete && answer.body == body, "{:?}", answer.headers);
    }
}

#[test]
fn a_client_that_asks_first_sends_its_body_when_told_to_and_the_connection_goes_on() {
    let stage = Stage::open(&[]);
    let mut connection = stage.node.connect();
    let head = format!("POST http://{CDN}/_echo HTTP/1.1\r\nHost: {CDN}\r\nExpect: 100-continue\r\n");
    connection.write_all(format!("{head}Content-Length: 5\r\n\r\n").as_bytes()).unwrap();
    assert_eq!(read_answer(&mut connection, false).status, 100);
    connection.write_all(b"hello").unwrap();
    let answer = read_answer(&mut connection, false);
    assert_eq!((answer.status, &*answer.body), (200, &b"hello"[..]));
    if answer.header("connection") != Some("close") {
        connection.write_all(format!("HEAD http://{CDN}/_echo HTTP/1.1\r\nHost: {CDN}\r\n\r\n").as_bytes()).unwrap();
        assert_eq!(read_answer(&mut connection, true).status, 200);
    }
}

#[test]
fn a_download_finishes_alone_if_the_setting_says_so() {
    let stage = Stage::open(&["store.finish_alone=true"]);
    stage.hub.limits().set(Rates { connection: None, total: Some(16 * MIB) });
    let file = stage.file("alone", 24 * MIB, 8);
    let mut connection = stage.node.connect();
    connection.write_all(&request("GET", &stage.url(&file), &[], b"")).unwrap();
    wait_until(Duration::from_secs(10), || (stage.ratio(&file) > 0.05).then_some(())).unwrap();
    drop(connection);
    wait_until(Duration::from_secs(20), || (stage.node.log().contains("peer task done")).then_some(())).unwrap();
    assert!(stage.get(&file).body == file.bytes(0, file.len));
    assert!(stage.ratio(&file) < 1.01, "{} files", stage.ratio(&file));
}

#[test]
fn a_client_that_leaves_does_not_stop_those_that_stay() {
    let stage = Stage::open(&[]);
    stage.hub.limits().set(Rates { connection: None, total: Some(12 * MIB) });
    let file = stage.file("shared", 24 * MIB, 9);
    let url = stage.url(&file);
    let mut first = stage.node.connect();
    first.write_all(&request("GET", &url, &[], b"")).unwrap();
    wait_until(Duration::from_secs(10), || (stage.ratio(&file) > 0.05).then_some(())).unwrap();
    let mut second = stage.node.connect();
    second.write_all(&request("GET", &stage.url(&file), &[], b"")).unwrap();
    let joined = || {
        let series = "pondhawk_connections_open{way=\"proxy\"}";
        (stage.node.metric(series) == 2).then_some(())
    };
    wait_until(Duration::from_secs(10), joined).unwrap();
    drop(first);
    let answer = read_answer(&mut second, false);
    assert!(answer.complete && answer.body == file.bytes(0, file.len));
    assert!(stage.ratio(&file) < 1.1, "{} files", stage.ratio(&file));
}

#[test]
fn a_draining_node_takes_no_new_connections_and_ends_idle_ones() {
    let mut stage = Stage::open(&[]);
    let (_, url) = warm(&stage, "before", 100_000);
    let mut idle = stage.node.connect();
    idle.write_all(&kept(&url, &[])).unwrap();
    assert!(read_answer(&mut idle, false).complete);
    stage.hub.limits().set(Rates { connection: None, total: Some(6 * MIB) });
    let file = stage.file("drained", 24 * MIB, 10);
    let mut busy = stage.node.connect();
    busy.write_all(&request("GET", &stage.url(&file), &[], b"")).unwrap();
    wait_until(Duration::from_secs(10), || (stage.ratio(&file) > 0.05).then_some(())).unwrap();
    let reader = thread::spawn(move || read_answer(&mut busy, false));
    stage.node.daemon.signal(rustix::process::Signal::TERM).unwrap();
    assert_eq!(idle.read(&mut [0; 16]).unwrap(), 0, "an idle connection ends");
    let refused = || TcpStream::connect(stage.node.proxy).is_err().then_some(());
    wait_until(Duration::from_secs(5), refused).expect("new connections are refused");
    let answer = reader.join().unwrap();
    assert!(answer.complete && answer.body == file.bytes(0, file.len), "a running reply was cut");
    assert!(stage.node.daemon.wait_for_exit(Duration::from_secs(20)).unwrap().success());
}
