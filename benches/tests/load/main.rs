//! The load generator asks for what it should, counts what came of it, and says what went wrong.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod server;

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use pondhawk_bench::load::{self, Arrivals, Check, ErrorKind, LoadError, Outcome, Pace, Plan, Popularity, Shape};
use server::{SIZE, Seen, Server, data};

fn plan(server: &Server, path: &str, requests: u64) -> Plan {
    Plan { urls: vec![server.url(path)], duration: None, requests: Some(requests), ..Plan::default() }
}

fn run(plan: &Plan) -> Outcome {
    let outcome = load::run(plan).unwrap();
    let total = outcome.all_completed + outcome.failed + outcome.not_started + outcome.unfinished;
    assert!(plan.requests.is_none_or(|requests| requests == total || outcome.unfinished > 0), "{outcome}");
    assert_eq!(outcome.whole.count(), outcome.all_completed, "{outcome}");
    assert_eq!(outcome.first_byte.count(), outcome.all_completed, "{outcome}");
    outcome
}

fn open(rate: f64, connections: usize, queue: usize) -> Pace {
    Pace::Open { rate, arrivals: Arrivals::Constant, connections, queue }
}

fn fails_with(plan: &Plan, kind: ErrorKind, message: &str) {
    let outcome = run(plan);
    assert_eq!((outcome.errors.of(kind), outcome.all_completed), (plan.requests.unwrap(), 0), "{outcome}");
    let first = &outcome.errors.0[&kind].first;
    assert!(first.contains(message), "{first}");
    assert!(outcome.to_string().contains(first), "{outcome}");
}

#[test]
fn a_closed_loop_keeps_its_connections_and_counts_every_byte() {
    let server = Server::plain();
    let outcome = run(&Plan { pace: Pace::Closed { clients: 3 }, ..plan(&server, "/data", 50) });
    assert_eq!((outcome.completed, outcome.bytes, outcome.failed), (50, 50 * SIZE as u64, 0));
    assert_eq!(outcome.requests, 50);
    assert!(outcome.connections <= 3, "{outcome}");
    let connections: BTreeSet<_> = server.seen().iter().map(|seen| seen.connection).collect();
    assert_eq!(connections.len() as u64, outcome.connections);
}

#[test]
fn tls_needs_the_servers_ca() {
    let server = Server::tls();
    let trusting = Plan { authorities: vec![server.ca()], ..plan(&server, "/data", 9) };
    let outcome =
        run(&Plan { pace: Pace::Closed { clients: 2 }, check: Check::Copies(vec![server.copy()]), ..trusting });
    assert_eq!((outcome.completed, outcome.bytes), (9, 9 * SIZE as u64));
    fails_with(&plan(&server, "/data", 2), ErrorKind::Tls, "CA");
}

#[test]
fn random_ranges_are_asked_for_and_compared() {
    let server = Server::plain();
    let plan = Plan {
        shape: Shape::Random { bytes: 1000 },
        check: Check::Copies(vec![server.copy()]),
        pace: Pace::Closed { clients: 4 },
        ..plan(&server, "/data", 200)
    };
    let outcome = run(&plan);
    assert_eq!((outcome.completed, outcome.bytes), (200, 200_000));
    let seen = server.seen();
    let ranges: Vec<_> = seen.iter().skip(1).map(|seen| seen.range.clone().unwrap()).collect();
    assert_eq!(ranges.len(), 200);
    assert!(ranges.iter().all(|range| range.len() == 1000 && range.end <= SIZE));
    assert!(ranges.iter().map(|range| range.start).collect::<BTreeSet<_>>().len() > 150);
}

#[test]
fn a_client_reads_from_start_to_end_and_again() {
    let server = Server::plain();
    let shape = Shape::Sequential { bytes: 100_001, readers: 1 };
    run(&Plan { shape, check: Check::Copies(vec![server.copy()]), ..plan(&server, "/data", 6) });
    let ranges: Vec<_> = server.seen().iter().skip(1).map(|seen| seen.range.clone().unwrap()).collect();
    let once = [0..100_001, 100_001..200_002, 200_002..SIZE];
    assert_eq!(ranges, [once.clone(), once].concat());
}

#[test]
fn a_file_in_parallel_ranges_is_one_operation() {
    let server = Server::plain();
    let shape = Shape::Parallel { bytes: 32 << 10, at_once: 4 };
    let outcome = run(&Plan { shape, check: Check::Copies(vec![server.copy()]), ..plan(&server, "/data", 3) });
    assert_eq!((outcome.completed, outcome.bytes, outcome.requests), (3, 3 * SIZE as u64, 30));
    assert!((2..=4).contains(&outcome.connections), "{outcome}");
    let mut starts: Vec<_> = server.seen()[1..11].iter().map(|seen| seen.range.clone().unwrap().start).collect();
    starts.sort_unstable();
    assert_eq!(starts, (0..SIZE).step_by(32 << 10).collect::<Vec<_>>());
    fails_with(&Plan { shape, ..plan(&server, "/whole", 2) }, ErrorKind::Status, "ignores");
}

#[test]
fn popular_objects_are_asked_for_more_often() {
    let server = Server::plain();
    let urls = (0..10).map(|number| server.url(&format!("/data?{number}"))).collect();
    run(&Plan { urls, popularity: Popularity::Zipf(1.5), ..plan(&server, "", 300) });
    let count = |number: usize| {
        let path = format!("/data?{number}");
        server.seen().iter().filter(|seen| seen.path == path).count()
    };
    assert!(count(0) > 100 && count(0) > 3 * count(5), "{} {}", count(0), count(5));
}

#[test]
fn wrong_and_missing_bytes_are_caught() {
    let server = Server::plain();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &data());
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let sha256 = Check::Sha256(vec![hex]);
    let copy = Check::Copies(vec![server.copy()]);
    assert_eq!(run(&Plan { check: sha256.clone(), ..plan(&server, "/data", 2) }).failed, 0);
    assert_eq!(run(&Plan { check: sha256.clone(), ..plan(&server, "/chunked", 2) }).failed, 0);
    fails_with(&Plan { check: sha256, ..plan(&server, "/wrong", 2) }, ErrorKind::Digest, "SHA-256");
    fails_with(&Plan { check: copy, ..plan(&server, "/wrong", 2) }, ErrorKind::Digest, "byte at 150000");
    fails_with(&plan(&server, "/short", 2), ErrorKind::ShortBody, "of 300000 bytes");
}

#[test]
fn errors_are_named() {
    let server = Server::plain();
    fails_with(&plan(&server, "/missing", 3), ErrorKind::Status, "404");
    fails_with(&plan(&server, "/redirect?/data", 3), ErrorKind::Status, "a redirect to /data");
    fails_with(&plan(&server, "/ssh", 3), ErrorKind::Protocol, "no HTTP/1");
    let hanging = Plan { deadline: Duration::from_millis(50), ..plan(&server, "/hang", 2) };
    fails_with(&hanging, ErrorKind::Timeout, "0.05 s");
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let refused = Plan { connect: Some(nobody.to_string()), ..plan(&server, "/data", 2) };
    fails_with(&refused, ErrorKind::Connect, "nothing listens there");
}

#[test]
fn redirects_are_followed_if_told_to_and_secrets_stay_with_their_host() {
    let (first, second) = (Server::plain(), Server::plain());
    let path = format!("/redirect?{}", second.url("/data"));
    let fields = vec![("authorization".to_owned(), "secret".to_owned())];
    let outcome = run(&Plan { follow: true, fields, ..plan(&first, &path, 5) });
    assert_eq!((outcome.completed, outcome.requests, outcome.connections), (5, 10, 2));
    let secret = |seen: &Seen| seen.authorization.as_deref() == Some("secret");
    assert!(first.seen().iter().all(secret));
    assert!(second.seen().iter().all(|seen| seen.authorization.is_none()));
    let endless = Plan { follow: true, ..plan(&first, "/redirect?", 1) };
    fails_with(&endless, ErrorKind::Status, "more than 5 redirects");
}

#[test]
fn a_connection_that_the_server_has_closed_is_no_error() {
    let server = Server::plain();
    for path in ["/once", "/rude"] {
        let outcome = run(&plan(&server, path, 5));
        assert_eq!((outcome.completed, outcome.connections, outcome.failed), (5, 5, 0), "{path}: {outcome}");
    }
}

/// One client that waits would have asked once during a stall; those who come in meanwhile all wait.
#[test]
fn a_stall_is_late_for_all_that_arrive_meanwhile() {
    let server = Server::plain();
    server.stall_after(100, Duration::from_millis(500));
    let outcome = run(&Plan { pace: open(400.0, 4, 100_000), ..plan(&server, "/data", 600) });
    assert_eq!((outcome.all_completed, outcome.failed, outcome.not_started), (600, 0, 0));
    // 500 ms are 200 arrivals, and those of the first 400 ms wait for 100 ms and more.
    let late = outcome.whole.count_from(Duration::from_millis(100));
    assert!(late >= 150, "{late} operations were late: {outcome}");
    assert!(outcome.first_byte.quantile(0.999) >= Duration::from_millis(400), "{outcome}");
    assert!(outcome.connections <= 4);
}

#[test]
fn what_finds_no_room_in_the_queue_is_not_started() {
    let server = Server::plain();
    let plan =
        Plan { pace: open(1000.0, 2, 3), threads: 1, deadline: Duration::from_secs(1), ..plan(&server, "/hang", 60) };
    let outcome = run(&plan);
    assert!(outcome.not_started > 0 && outcome.errors.of(ErrorKind::Timeout) >= 5, "{outcome}");
    assert_eq!(outcome.not_started + outcome.failed, 60, "{outcome}");
}

#[test]
fn any_number_of_threads_plays_the_same_load() {
    let asked = |threads| {
        let server = Server::plain();
        let shape = Shape::Random { bytes: 10 };
        run(&Plan { shape, threads, pace: open(5000.0, 8, 1000), ..plan(&server, "/data", 100) });
        let mut starts: Vec<_> = server.seen().iter().map(|seen| seen.range.clone().unwrap().start).collect();
        starts.sort_unstable();
        starts
    };
    assert_eq!(asked(1), asked(3));
}

#[test]
fn idle_connections_are_held_and_answer_at_the_end() {
    let server = Server::plain();
    let outcome = run(&Plan { idle: 70, ..plan(&server, "/data", 5) });
    let idle = outcome.idle.unwrap();
    assert_eq!((idle.wanted, idle.opened, idle.answered, idle.error), (70, 70, 70, None));
    assert_eq!(server.seen().len(), 70 + 5 + 70);

    let idle = run(&Plan { idle: 7, ..plan(&server, "/rude", 1) }).idle.unwrap();
    assert_eq!((idle.opened, idle.answered), (7, 0));
    assert!(idle.error.is_some());
}

#[test]
fn time_ends_a_closed_loop_and_a_stop_any() {
    let server = Server::plain();
    let hanging = Plan { requests: None, ..plan(&server, "/hang", 0) };
    let outcome = run(&Plan { duration: Some(Duration::from_millis(100)), ..hanging.clone() });
    assert_eq!((outcome.unfinished, outcome.all_completed), (1, 0));
    for pace in [Pace::Closed { clients: 2 }, open(100.0, 2, 100_000)] {
        let stop = AtomicBool::new(false);
        let plan = Plan { pace, ..hanging.clone() };
        let started = Instant::now();
        let outcome = thread::scope(|scope| {
            let running = scope.spawn(|| load::run_until(&plan, &stop));
            thread::park_timeout(Duration::from_millis(300));
            stop.store(true, Ordering::Relaxed);
            running.join().unwrap().unwrap()
        });
        assert!(outcome.unfinished >= 2 && started.elapsed() < plan.deadline, "{outcome}");
    }
}

#[test]
fn a_process_under_test_is_measured() {
    let server = Server::plain();
    let outcome = run(&Plan {
        requests: None,
        duration: Some(Duration::from_millis(600)),
        processes: vec![std::process::id()],
        ..plan(&server, "/data", 0)
    });
    assert!(outcome.cpu_seconds_per_gigabyte().unwrap() > 0.0, "{outcome}");
    assert!(outcome.generator_cpu_seconds > 0.0 && outcome.process.as_ref().unwrap().rss_peak > 1 << 20, "{outcome}");
    assert!(
        outcome.series.len() >= 3 && outcome.series.is_sorted_by(|a, b| a.seconds <= b.seconds && a.bytes <= b.bytes)
    );
    let page = load::page(&outcome);
    for needed in ["Latency by percentile", "Throughput", "CPU of", "Memory of", "prefers-color-scheme:dark"] {
        assert!(page.contains(needed), "{needed}");
    }
    for foreign in ["<script", "src=", "href=", "url(", "NaN", "inf"] {
        assert!(!page.contains(foreign), "{foreign}");
    }
    let json = serde_json::to_value(&outcome).unwrap();
    assert!(json["whole"]["p999_us"].as_u64().unwrap() > 0 && json["process"]["rss_peak"].is_u64(), "{json}");
}

#[test]
fn plans_that_cannot_be_played_say_why() {
    let server = Server::plain();
    let base = plan(&server, "/data", 1);
    let refused = |plan: Plan| load::run(&plan).unwrap_err().to_string();
    let contains = |text: String, part: &str| assert!(text.contains(part), "{text}");
    assert!(matches!(load::run(&Plan::default()), Err(LoadError::NoUrl)));
    contains(refused(Plan { urls: vec!["ftp://a/".to_owned()], ..base.clone() }), "ftp");
    contains(refused(Plan { urls: vec!["model.bin".to_owned()], ..base.clone() }), "http://");
    contains(refused(Plan { pace: open(-1.0, 1, 1), ..base.clone() }), "rate");
    contains(refused(Plan { threads: 0, ..base.clone() }), "threads");
    contains(refused(Plan { connect: Some("host".to_owned()), ..base.clone() }), "HOST:PORT");
    contains(refused(Plan { authorities: vec![server.copy()], ..base.clone() }), "CA certificate");
    contains(refused(Plan { check: Check::Sha256(vec!["12".to_owned()]), ..base.clone() }), "64");
    let ranges = Plan { shape: Shape::Random { bytes: 1 }, ..base.clone() };
    contains(refused(Plan { check: Check::Sha256(vec!["12".to_owned()]), ..ranges.clone() }), "whole object");
    contains(refused(Plan { urls: vec![server.url("/missing")], ..ranges }), "404");
    contains(refused(Plan { idle: 1 << 40, ..base }), "ulimit");
}
