//! The dashboard and the alerts in `deploy/` ask for nothing of the scheduler that it does not export.

#![expect(clippy::unwrap_used, reason = "a panic is how a test reports")]

mod support;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use support::{LONG, Up};

const WATCHERS: [(&str, &str); 2] = [
    ("dashboard", include_str!("../../deploy/chart/files/dashboard.json")),
    ("alerts", include_str!("../../deploy/chart/files/alerts.yaml")),
];
const PREFIX: &str = "pondhawk_scheduler_";

/// What a running scheduler's page gives to a scraper.
fn metrics() -> String {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(dir.path(), |_| {});
    let line = up.line_with("page up");
    let address = line.split_once("address=").unwrap().1.split_whitespace().next().unwrap();
    up.line_with("scheduler up");
    let mut stream = TcpStream::connect(address.parse::<SocketAddr>().unwrap()).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// The names of ours in a text, as Prometheus spells them.
fn names(text: &str) -> BTreeSet<&str> {
    let end = |rest: &str| rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len());
    text.match_indices(PREFIX).map(|(at, _)| &text[at..at + end(&text[at..])]).collect()
}

#[test]
fn what_is_watched_is_exported() {
    let metrics = metrics();
    let samples: String = metrics.lines().filter(|line| line.starts_with(PREFIX)).collect::<Vec<_>>().join("\n");
    let exported = names(&samples);
    for (what, text) in WATCHERS {
        let asked = names(text);
        assert!(asked.len() >= 3, "the {what} asks for {asked:?} alone");
        let missing: Vec<_> = asked.difference(&exported).collect();
        assert!(missing.is_empty(), "the {what} asks for {missing:?}; there are {exported:?}");
    }
    for reason in ["closed", "stopped"] {
        assert!(samples.contains(&format!("session_ends_total{{reason=\"{reason}\"}}")), "{samples}");
    }
}
