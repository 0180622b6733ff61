//! Traces of one node, as a collector gets them.

#![expect(clippy::unwrap_used, reason = "a panic is how a test reports")]

#[path = "trace/collector.rs"]
#[expect(dead_code, reason = "a cluster is another test's")]
mod collector;
#[path = "node/stage.rs"]
#[expect(dead_code, reason = "what goes wrong is another test's")]
mod stage;

use std::{net::TcpListener, thread, time::Duration};

use collector::{Collector, Seen, assert_tree};
use pondhawk_bench::{
    hub::{Fault, FaultKind},
    lab::wait_until,
};
use stage::Stage;

const MIB: u64 = 1 << 20;
const LONG: Duration = Duration::from_secs(60);
const CLIENTS: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn local() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

fn traced(collector: &Collector) -> String {
    format!("tracing.endpoint=http://{}", collector.address)
}

/// The names of a process' threads.
fn threads(pid: u32) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let name = |task: std::io::Result<std::fs::DirEntry>| std::fs::read_to_string(task.ok()?.path().join("comm")).ok();
    tasks.filter_map(name).map(|name| name.trim().to_owned()).collect()
}

fn named<'a>(spans: &'a [Seen], trace: &str, name: &str) -> Vec<&'a Seen> {
    spans.iter().filter(|span| span.trace == trace && span.name == name).collect()
}

/// Values of the query that are long enough to be found by no accident.
fn secrets_of(url: &str) -> Vec<String> {
    let (_, query) = url.split_once('?').unwrap();
    let values = query.split('&').filter_map(|pair| pair.split_once('=')).map(|(_, value)| value.to_owned());
    values.filter(|value| value.len() >= 16).collect()
}

#[test]
fn a_download_is_one_tree_from_the_client_to_the_origin_and_tells_no_secret() {
    let collector = Collector::start(local());
    let mut stage = Stage::open(&[&traced(&collector)]);
    let file = stage.file("traced", 9 * MIB + 17, 3);
    let url = stage.url(&file);
    let headers =
        [&*format!("traceparent: {CLIENTS}"), "Authorization: Bearer verysecrettoken", "Cookie: a=verysecretcookie"];
    for _ in 0..2 {
        assert!(stage.node.get(&url, &headers).body == file.bytes(0, file.len));
    }
    assert!(threads(stage.node.daemon.pid()).iter().any(|name| name == "trace"));
    // What is still in the queue is sent before the end.
    assert!(stage.node.daemon.terminate(LONG).unwrap().success());
    let spans = collector.spans();
    let mut requests: Vec<_> = spans.iter().filter(|span| span.name == "request").collect();
    requests.sort_by_key(|request| request.lasts.start);
    let [miss, hit] = requests[..] else { panic!("{spans:#?}") };
    assert_eq!(assert_tree(&spans, &miss.trace).id, miss.id);
    assert_eq!(assert_tree(&spans, &hit.trace).id, hit.id);
    for (request, outcome) in [(miss, "miss"), (hit, "hit")] {
        let said = |key: &str| request.attributes[key].as_str();
        assert_eq!((said("pondhawk.outcome"), said("pondhawk.way")), (outcome, "proxy"));
        assert_eq!((said("http.request.method"), said("http.response.status_code")), ("GET", "200"));
        assert_eq!((said("server.address"), said("url.scheme")), ("cdn-lfs.huggingface.co", "https"));
        assert!(url.contains(said("url.path")), "{request:#?}");
        assert_eq!(request.number("pondhawk.bytes"), file.len);
        let clients = ("4bf92f3577b34da6a3ce929d0e0e4736".to_owned(), "00f067aa0ba902b7".to_owned());
        assert_eq!(request.links, [clients], "it refers to the client's trace and is no part of it");
        assert_eq!(named(&spans, &request.trace, "reply")[0].number("pondhawk.bytes"), file.len);
    }
    let of = |name: &str| named(&spans, &miss.trace, name);
    assert_eq!(of("authorize")[0].attributes["pondhawk.ground"], "asked");
    let fetch = of("fetch")[0];
    assert_eq!((&*fetch.attributes["pondhawk.outcome"], fetch.number("pondhawk.origin_bytes")), ("done", file.len));
    let runs = of("origin run");
    assert_eq!(runs.iter().map(|run| run.number("pondhawk.bytes")).sum::<u64>(), file.len, "{runs:#?}");
    assert_eq!(runs.iter().map(|run| run.number("pondhawk.pieces")).sum::<u64>(), fetch.number("pondhawk.pieces"));
    assert!(runs.iter().all(|run| run.parent == fetch.id && run.attributes["http.response.status_code"] == "206"));
    assert!(named(&spans, &hit.trace, "fetch").is_empty() && named(&spans, &hit.trace, "reply")[0].links.is_empty());
    assert!(spans.iter().all(|span| span.attributes.values().all(|text| !text.contains('?'))), "{spans:#?}");
    let secrets = secrets_of(&url);
    assert!(!secrets.is_empty(), "{url}");
    let bytes = collector.bytes();
    for secret in secrets.iter().map(String::as_str).chain(["verysecret"]) {
        assert!(!bytes.windows(secret.len()).any(|some| some == secret.as_bytes()), "{secret} is told");
    }
}

#[test]
fn who_joins_a_download_refers_to_it_and_a_run_that_fails_says_why() {
    let collector = Collector::start(local());
    let stage = Stage::open(&[&traced(&collector)]);
    let file = stage.file("shared", 12 * MIB, 4);
    let stalls = Fault::new(FaultKind::Stall { after: 100_000, millis: 3_000 }).min_bytes(2);
    stage.hub.faults().add(stalls.times(1).object(&*file.label));
    stage
        .hub
        .faults()
        .add(Fault::new(FaultKind::Status503 { retry_after: None }).min_bytes(2).times(1).object(&*file.label));
    thread::scope(|scope| {
        let get = || assert!(stage.get(&file).body == file.bytes(0, file.len));
        scope.spawn(get);
        wait_until(LONG, || (stage.ratio(&file) > 0.0).then_some(())).unwrap();
        get();
    });
    let done = |spans: &[Seen], name: &str| spans.iter().filter(|span| span.name == name).count();
    let spans = collector.wait_for(|spans| done(spans, "request") == 2 && done(spans, "fetch") == 1);
    let fetch = spans.iter().find(|span| span.name == "fetch").unwrap();
    let joined = spans.iter().find(|span| span.attributes.get("pondhawk.outcome").is_some_and(|text| text == "joined"));
    let joined = joined.unwrap_or_else(|| panic!("{spans:#?}"));
    assert_ne!(joined.trace, fetch.trace);
    let reply = named(&spans, &joined.trace, "reply")[0];
    assert_eq!(reply.links, [(fetch.trace.clone(), fetch.id.clone())]);
    let failed: Vec<_> = spans.iter().filter(|span| span.name == "origin run" && span.failed).collect();
    assert!(failed.iter().any(|run| run.number("http.response.status_code") == 503), "{spans:#?}");
    assert_tree(&spans, &fetch.trace);
}

#[test]
fn a_client_that_is_followed_decides_and_has_its_own_trace() {
    let collector = Collector::start(local());
    let mut stage = Stage::open(&[&traced(&collector), "tracing.follow=true", "tracing.sample=0"]);
    let file = stage.file("followed", MIB, 5);
    let url = stage.url(&file);
    stage.node.get(&url, &[&format!("traceparent: {CLIENTS}")]);
    stage.node.get(&url, &[&format!("traceparent: {}", CLIENTS.replace("-01", "-00"))]);
    stage.node.get(&url, &[]);
    assert!(stage.node.daemon.terminate(LONG).unwrap().success());
    let spans = collector.spans();
    let requests: Vec<_> = spans.iter().filter(|span| span.name == "request").collect();
    assert_eq!(requests.len(), 1, "{spans:#?}");
    assert!(spans.iter().all(|span| span.trace == "4bf92f3577b34da6a3ce929d0e0e4736"), "{spans:#?}");
    assert_eq!(requests[0].parent, "00f067aa0ba902b7");
}

#[test]
fn without_a_collector_downloads_are_right_memory_is_bounded_and_what_is_lost_is_counted() {
    let away = local().local_addr().unwrap();
    let stage = Stage::open(&[&format!("tracing.endpoint=http://{away}")]);
    let file = stage.file("unseen", 64 << 10, 6);
    let url = stage.url(&file);
    let many = |count: usize| {
        (0..count).for_each(|_| assert!(stage.node.get(&url, &[]).body == file.bytes(0, file.len)));
        stage.node.metric("pondhawk_process_resident_bytes")
    };
    // Each has at least three spans, of which 2560 wait at most; the last ones may end after their clients have all.
    let full = many(1000);
    let lost = stage.node.metric("pondhawk_trace_spans_dropped_total");
    assert!(lost >= 400, "{lost}");
    let later = many(1000);
    assert!(later < full + (4 << 20), "{full} bytes grew to {later}");
    assert!(stage.node.metric("pondhawk_trace_spans_dropped_total") >= lost + 2900);
    assert_eq!(stage.node.metric("pondhawk_trace_spans_exported_total"), 0);
    assert_eq!(stage.node.log().matches("traces are not taken").count(), 1);
}

#[test]
fn off_there_is_no_thread_and_nothing_is_counted() {
    let stage = Stage::open(&[]);
    let file = stage.file("untraced", MIB, 7);
    assert!(stage.get(&file).body == file.bytes(0, file.len));
    let threads = threads(stage.node.daemon.pid());
    assert!(threads.iter().any(|name| name.starts_with("shard-")), "{threads:?}");
    assert!(threads.iter().all(|name| name != "trace"), "{threads:?}");
    for series in ["pondhawk_trace_spans_exported_total", "pondhawk_trace_spans_dropped_total"] {
        assert_eq!(stage.node.metric(series), 0);
    }
}
