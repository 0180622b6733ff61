//! Requests that two readers could cut differently, and what breaks off half-way: each is refused or closed, and what follows it on the
//! connection is never answered as a request of its own.

#![expect(clippy::unwrap_used, reason = "a panic is how a test reports")]

#[allow(dead_code, reason = "other tests use the rest")]
#[path = "node/stage.rs"]
mod stage;

use std::{
    io::{Read as _, Write as _},
    time::Duration,
};

use pondhawk_bench::hub::{Content, PlainRules};
use stage::{CDN, Stage};

/// What must never be answered: it is hidden in, or behind, a request that is wrong.
const HIDDEN: &str = "GET http://cdn-lfs.huggingface.co/plain/hidden HTTP/1.1\r\nHost: cdn-lfs.huggingface.co\r\n\r\n";

/// Everything that comes back until the node ends the connection.
fn answers(stage: &Stage, bytes: &[u8]) -> String {
    let mut connection = stage.node.connect();
    connection.set_read_timeout(Some(Duration::from_secs(40))).unwrap();
    // The node may end the connection before it has read all of it.
    let _ = connection.write_all(bytes);
    let mut back = Vec::new();
    // A reset ends it as well.
    let _ = connection.read_to_end(&mut back);
    String::from_utf8_lossy(&back).into_owned()
}

/// A stage on which the hidden request would be answered, if it came out.
fn open() -> Stage {
    let stage = Stage::open(&[]);
    stage.hub.add_plain("hidden", Content::seeded(100, 1), PlainRules::default()).unwrap();
    stage
}

/// How often the hidden request came to the origin.
fn reached(stage: &Stage) -> u64 {
    stage.hub.stats().object("plain/hidden").all_gets()
}

fn statuses(answers: &str) -> Vec<u16> {
    let starts = answers.match_indices("HTTP/1.1 ").map(|(at, _)| at + 9);
    starts.filter_map(|at| answers.get(at..at + 3)?.parse().ok()).collect()
}

fn posted(lines: &str, body: &str) -> String {
    format!("POST http://{CDN}/_echo HTTP/1.1\r\nHost: {CDN}\r\n{lines}\r\n{body}")
}

/// The control: well-formed, it is answered.
#[test]
fn what_is_hidden_elsewhere_is_answered_when_it_is_asked_for() {
    let stage = open();
    let back = answers(&stage, HIDDEN.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n").as_bytes());
    assert_eq!((statuses(&back), reached(&stage) > 0), (vec![200], true), "{back}");
}

#[test]
fn a_request_whose_end_is_ambiguous_is_refused_and_nothing_behind_it_is_answered() {
    let stage = open();
    let cases = [
        posted("Content-Length: 1\r\nContent-Length: 2\r\n", "ab"),
        posted("Content-Length: 1, 2\r\n", "ab"),
        posted("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        posted("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "0\r\n\r\n"),
        posted("Transfer-Encoding: chunked, identity\r\n", "0\r\n\r\n"),
        posted("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"),
        posted("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        posted("Transfer-Encoding : chunked\r\n", "0\r\n\r\n"),
        posted("Transfer-Encoding:\x0bchunked\r\n", "0\r\n\r\n"),
        posted("Content-Length: +2\r\n", "ab"),
        posted("Content-Length: 0x2\r\n", "ab"),
        posted("Content-Length: -1\r\n", ""),
        posted("Content-Length: 99999999999999999999\r\n", ""),
        posted("Content-Length: 2\r\n folded: x\r\n", "ab"),
        posted("X: a\r\n\tb\r\nContent-Length: 0\r\n", ""),
        posted("X: a\0b\r\nContent-Length: 0\r\n", ""),
        posted("X: a\rb\r\nContent-Length: 0\r\n", ""),
        posted("Bad Name: x\r\nContent-Length: 0\r\n", ""),
        posted(": x\r\nContent-Length: 0\r\n", ""),
        format!("POST http://{CDN}/_echo HTTP/1.1\r\nContent-Length: 0\r\n\r\n").replace(&format!("http://{CDN}"), ""),
        format!("GET http://{CDN}/ HTTP/1.1\r\nHost: {CDN}\r\nHost: other.example\r\n\r\n"),
        format!("GET http://{CDN}/ HTTP/1.1\r\nHost: {CDN}, other.example\r\n\r\n"),
        format!("GET  http://{CDN}/ HTTP/1.1\r\nHost: {CDN}\r\n\r\n"),
        format!("GET http://{CDN}/ HTTP/1.1 \r\nHost: {CDN}\r\n\r\n"),
        format!("GET http://{CDN}/a b HTTP/1.1\r\nHost: {CDN}\r\n\r\n"),
        format!("GET http://user@{CDN}/ HTTP/1.1\r\nHost: {CDN}\r\n\r\n"),
        format!("GET http://{CDN}/ HTTP/2.0\r\nHost: {CDN}\r\n\r\n"),
        format!("GET http://{CDN}/ HTTP/1.1\r\n\r\n Host: {CDN}\r\n\r\n").replace(CDN, ""),
        format!("CONNECT {CDN}:443 HTTP/1.1\r\nHost: {CDN}:443\r\nContent-Length: 4\r\n\r\nabcd"),
        format!("GET http://{CDN}/ HTTP/1.1\r\nHost: {CDN}\r\nX: {}\r\n\r\n", "x".repeat(70_000)),
        format!("GET http://{CDN}/{} HTTP/1.1\r\nHost: {CDN}\r\n\r\n", "x".repeat(20_000)),
        format!("GET http://{CDN}/ HTTP/1.1\r\nHost: {CDN}\r\n{}\r\n", "A: b\r\n".repeat(200)),
    ];
    for case in &cases {
        let back = answers(&stage, format!("{case}{HIDDEN}").as_bytes());
        let statuses = statuses(&back);
        let shown = &case[..case.len().min(160)];
        assert!(statuses.len() <= 1, "{shown:?} was followed by another answer: {statuses:?}");
        assert!(statuses.iter().all(|status| (400..600).contains(status)), "{shown:?}: {statuses:?}");
    }
    assert_eq!(reached(&stage), 0, "what was hidden reached the origin");
}

/// A bare LF ends a line for some readers: either it is refused, or the request is read as they read it, and one answer comes.
#[test]
fn bare_line_feeds_never_make_two_requests_of_one() {
    let stage = Stage::open(&[]);
    for case in [
        format!("GET http://{CDN}/_echo HTTP/1.1\nHost: {CDN}\nConnection: close\n\n"),
        format!("GET http://{CDN}/_echo HTTP/1.1\r\nHost: {CDN}\r\nX: a\nConnection: close\r\n\r\n"),
    ] {
        let statuses = statuses(&answers(&stage, case.as_bytes()));
        assert!(statuses.len() <= 1, "{case:?}: {statuses:?}");
    }
}

#[test]
fn a_body_that_breaks_its_framing_ends_the_connection() {
    let stage = open();
    let chunked = "Transfer-Encoding: chunked\r\n";
    for body in [
        "zz\r\nab\r\n0\r\n\r\n",
        "2\r\nabc\r\n0\r\n\r\n",
        "-2\r\nab\r\n0\r\n\r\n",
        "2 ;x\r\nab\n0\r\n\r\n",
        "ffffffffffffffffff\r\nab\r\n0\r\n\r\n",
        "2\nab\n0\n\n",
        "0\r\nX: a\r\n b\r\n\0\r\n\r\n",
    ] {
        let back = answers(&stage, format!("{}{HIDDEN}", posted(chunked, body)).as_bytes());
        assert!(statuses(&back).len() <= 1, "{body:?}: {back}");
    }
    assert_eq!(reached(&stage), 0);
}

/// A head that never ends costs a connection for a bounded time only.
#[test]
fn a_head_that_trickles_is_cut_off() {
    let stage = Stage::open(&[]);
    let back = answers(&stage, format!("GET http://{CDN}/ HTTP/1.1\r\nHost: {CDN}\r\nX: ").as_bytes());
    assert!(statuses(&back).iter().all(|status| *status >= 400), "{back}");
}

/// A request in the form that servers get, with the node in the Hub's place.
fn mirrored(stage: &Stage, method: &str, path: &str, lines: &str, body: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n{lines}\r\n{body}", stage.node.proxy)
}

/// The mirror once answered a GET or HEAD without reading its body, and then answered the body: behind a server that speaks
/// TLS and shares its connections, as another client's request.
#[test]
fn a_body_of_a_get_or_a_head_is_never_the_next_request() {
    let stage = open();
    stage.hub.add_file_as("owner/model", "main", "small.json", Content::seeded(900, 2), false).unwrap();
    stage.file("large.bin", 200_000, 3);
    let chunk = format!("{:x}\r\n{HIDDEN}\r\n0\r\n\r\n", HIDDEN.len());
    let length = format!("Content-Length: {}\r\n", HIDDEN.len());
    let resolve = "/owner/model/resolve/main";
    for method in ["GET", "HEAD"] {
        for path in
            [format!("{resolve}/small.json"), format!("{resolve}/large.bin"), "/api/models/owner/model".to_owned()]
        {
            for (lines, body) in [
                (length.clone(), HIDDEN),
                (format!("{length}Expect: 100-continue\r\n"), HIDDEN),
                ("Transfer-Encoding: chunked\r\n".to_owned(), &*chunk),
            ] {
                // Ends the connection where the body was read.
                let last = mirrored(&stage, "GET", "/api/models/owner/model", "Connection: close\r\n", "");
                let bytes = mirrored(&stage, method, &path, &lines, body) + &last;
                let finals =
                    statuses(&answers(&stage, bytes.as_bytes())).into_iter().filter(|status| *status != 100).count();
                assert!((1..=2).contains(&finals), "{method} {path} {lines:?}: {finals} answers");
                assert_eq!(reached(&stage), 0, "{method} {path} {lines:?}: the body was answered");
            }
        }
    }
}
