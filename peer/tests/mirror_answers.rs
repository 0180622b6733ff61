//! Whose answer a client gets: validators and headers of its own URL, answers that vary, and questions that are shared.

#![expect(clippy::unwrap_used, reason = "a panic is how a test reports")]

#[allow(dead_code, reason = "other tests use the rest")]
#[path = "node/stage.rs"]
mod stage;

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    thread,
    time::Duration,
};

use pondhawk_bench::{
    hub::{Access, Content, Fault, FaultKind, Place, PlainRules},
    lab::wait_until,
};
use stage::{Answer, CDN, File, Stage, read_answer};

const MIB: u64 = 1 << 20;
const FILE_INFO: &str = "Accept: application/vnd.xet-fileinfo+json";

/// A request in the form that servers get, with the node in the Hub's place.
fn ask(stage: &Stage, method: &str, path: &str, headers: &[&str]) -> Answer {
    let lines: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    let mut connection = stage.node.connect();
    let head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{lines}\r\n", stage.node.proxy);
    connection.write_all(head.as_bytes()).unwrap();
    read_answer(&mut connection, method == "HEAD")
}

fn path_of(file: &File) -> String {
    file.label.replacen("owner/model/", "/owner/model/resolve/main/", 1)
}

/// A file that the Hub serves itself.
fn small(stage: &Stage, name: &str, len: u64) -> (String, Vec<u8>) {
    stage.hub.add_file_as("owner/model", "main", name, Content::seeded(len, len), false).unwrap();
    let bytes = pondhawk_bench::hub::seeded(len, 0, usize::try_from(len).unwrap());
    (format!("/owner/model/resolve/main/{name}"), bytes)
}

/// Has the node remove a task.
fn remove(stage: &Stage, task: &str) {
    let mut connection = UnixStream::connect(stage.node.dir.path().join("data/admin.sock")).unwrap();
    let head = format!("DELETE /v1/tasks/{task} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
    connection.write_all(head.as_bytes()).unwrap();
    let answer = read_answer(&mut connection, false);
    assert!((200..300).contains(&answer.status), "{answer:?}");
}

/// Requests that reached the Hub itself since this was asked last.
fn asked_of_hub(stage: &Stage) -> u64 {
    let asked = stage.hub.stats().hub_requests;
    stage.hub.reset_stats();
    asked
}

/// The edges of a CDN may have strong ETags of their own for one object: background_downloader 541, warehouse 15387.
#[test]
fn under_a_name_that_is_a_hash_the_etags_of_a_cdns_edges_decide_nothing() {
    let stage = Stage::open(&[]);
    stage.hub.manners().set_edges(2);
    let file = stage.file("edges.bin", 24 * MIB + 7, 1);
    let part = stage.node.get(&stage.url(&file), &["Range: bytes=0-99"]);
    assert!(part.status == 206 && part.body == file.bytes(0, 100), "{}", part.status);
    for _ in 0..3 {
        let url = stage.url(&file);
        let whole = stage.node.get(&url, &[]);
        assert_eq!((whole.status, whole.complete), (200, true), "{:?}", whole.header("x-pondhawk-error"));
        assert!(whole.body == file.bytes(0, file.len));
        let tag = whole.header("etag").expect("the edge's own").to_owned();
        let rest = stage.node.get(&url, &["Range: bytes=1000-", &format!("If-Range: {tag}")]);
        assert!(rest.status == 206 && rest.body == file.bytes(1000, file.len - 1000), "{}: {tag}", rest.status);
        let same = stage.node.get(&url, &[&format!("If-None-Match: {tag}")]);
        assert_eq!(same.status, 304, "{tag}");
    }
    let other = stage.node.get(&stage.url(&file), &["Range: bytes=1000-", "If-Range: \"other\""]);
    assert_eq!((other.status, other.body.len() as u64), (200, file.len));
}

/// fairseq2 1280, hub-docs 142: the first asker's file name and type went to everyone.
#[test]
fn each_url_of_one_content_gets_the_headers_that_its_own_query_asks_for() {
    for settings in [&[][..], &["authorize.public=[cdn-lfs.huggingface.co]"][..]] {
        let stage = Stage::open(settings);
        let names = ["first.bin", "second.json", "third.txt"];
        for name in names {
            stage.hub.add_file_as("owner/model", "main", name, Content::seeded(2 * MIB, 9), true).unwrap();
        }
        for name in names.into_iter().chain(names) {
            let url = stage.hub.signed_url(&format!("owner/model/{name}")).unwrap();
            let answer = stage.node.get(&url, &[]);
            let disposition = answer.header("content-disposition").unwrap_or_default();
            assert!(disposition.contains(name), "{name}: {disposition} {:?}", answer.header("x-pondhawk-cache"));
            let kind = match name {
                "second.json" => "application/json",
                "third.txt" => "text/plain; charset=utf-8",
                _ => "binary/octet-stream",
            };
            assert_eq!(answer.header("content-type"), Some(kind), "{name}");
            assert_eq!(answer.headers.iter().filter(|(name, _)| name == "content-disposition").count(), 1);
        }
    }
}

/// huggingface_hub 3750, 2272: a listing whose head took 12 s was a 504 after 9 s, a body that paused for 8 s was cut.
#[test]
fn what_is_only_passed_through_waits_as_long_as_its_client_does() {
    let stage = Stage::open(&["origin.head_timeout=500ms", "origin.stall_timeout=500ms"]);
    let file = stage.file("slow.bin", MIB, 2);
    stage.hub.faults().add(Fault { place: Place::Api, ..Fault::new(FaultKind::Delay { millis: 3_000 }) });
    let listing = ask(&stage, "GET", "/api/models/owner/model/tree/main", &[]);
    assert_eq!((listing.status, listing.complete), (200, true), "{}", String::from_utf8_lossy(&listing.body));
    stage.hub.faults().clear();
    stage.hub.faults().add(Fault::new(FaultKind::Stall { after: 1_000, millis: 3_000 }));
    let paused = stage.node.get(&stage.url(&file), &["X-Pondhawk-Use-P2P: false"]);
    assert!(paused.complete && paused.body == file.bytes(0, file.len), "cut after {} bytes", paused.body.len());
}

#[test]
fn a_request_that_is_passed_through_ends_with_its_client() {
    let stage = Stage::open(&[]);
    let rules = PlainRules { cache_control: Some("no-store".into()), ..PlainRules::default() };
    stage.hub.add_plain("endless", Content::seeded(4 * MIB, 3), rules).unwrap();
    stage.hub.faults().add(Fault::new(FaultKind::Stall { after: 1_000, millis: 300_000 }).min_bytes(2));
    let mut connection = stage.node.connect();
    let url = format!("https://{CDN}/plain/endless");
    connection.write_all(&stage::request("GET", &url, &[], b"")).unwrap();
    connection.read_exact(&mut [0; 100]).unwrap();
    let under_way = || stage.hub.stats().object("plain/endless").under_way;
    assert_eq!(under_way(), 1);
    drop(connection);
    let ended = wait_until(Duration::from_secs(60), || (under_way() == 0).then_some(()));
    assert!(ended.is_some(), "the origin is still sending to a client that has left");
}

/// vllm 24541, huggingface_hub 3186: clients send a trace id of its own with each request.
#[test]
fn requests_that_differ_in_what_tracing_adds_share_one_question() {
    let stage = Stage::open(&[]);
    let file = stage.file("traced.bin", 5 * MIB, 4);
    for n in 0..4_u64 {
        let lines = [
            format!("Range: bytes={}-{}", n * MIB, n * MIB + 99),
            format!("X-Amzn-Trace-Id: {n}"),
            format!("traceparent: 00-{n:032x}-{n:016x}-01"),
            format!("X-Something-Unheard-Of: {n}"),
        ];
        let part = ask(&stage, "GET", &path_of(&file), &lines.each_ref().map(String::as_str));
        assert!(part.status == 206 && part.body == file.bytes(n * MIB, 100), "{n}: {}", part.status);
    }
    assert_eq!(ask(&stage, "HEAD", &path_of(&file), &["X-Request-Id: 9"]).status, 200);
    assert_eq!(asked_of_hub(&stage), 1);
}

#[test]
fn no_file_costs_the_hub_more_requests_than_without_the_node() {
    let stage = Stage::open(&[]);
    let (alone, bytes) = small(&stage, "alone.json", 3_000);
    assert!(ask(&stage, "GET", &alone, &[]).body == bytes);
    assert_eq!(asked_of_hub(&stage), 1, "a GET brings head and bytes");
    assert!(ask(&stage, "GET", &alone, &["X-Request-Id: 2"]).body == bytes);
    assert_eq!(asked_of_hub(&stage), 0, "and is remembered");
    let (looked_at, bytes) = small(&stage, "looked-at.json", 5_000);
    let head = ask(&stage, "HEAD", &looked_at, &["X-Request-Id: 3"]);
    assert_eq!(head.header("content-length"), Some("5000"));
    assert!(ask(&stage, "GET", &looked_at, &["X-Request-Id: 4"]).body == bytes);
    assert_eq!(asked_of_hub(&stage), 2, "what the client does without the node");
    for path in ["/owner/model/resolve/main/absent.json", "/absent/here/resolve/main/config.json"] {
        assert!(ask(&stage, "GET", path, &[]).status >= 401);
        assert_eq!(asked_of_hub(&stage), 1, "{path}");
    }
    let (revalidated, _) = small(&stage, "revalidated.json", 7_000);
    assert_eq!(ask(&stage, "GET", &revalidated, &["If-None-Match: \"x\""]).status, 200);
    assert_eq!(asked_of_hub(&stage), 1, "a condition on what is not here is the client's own request");
    stage.hub.manners().rename("owner/old", "owner/model");
    let moved = ask(&stage, "GET", "/owner/old/resolve/main/alone.json", &[]);
    let location = moved.header("location").unwrap_or_default();
    assert!(moved.status == 307 && location.ends_with("/owner/model/resolve/main/alone.json"), "{location}");
    assert_eq!(asked_of_hub(&stage), 1);
}

#[test]
fn what_is_no_longer_remembered_costs_one_question_whether_it_is_held_or_not() {
    let stage = Stage::open(&["authorize.cap=0s"]);
    let (branch, bytes) = small(&stage, "again.json", 8_000);
    let commit = stage.hub.commit("owner/model", "main").unwrap();
    let by_commit = branch.replace("/main/", &format!("/{commit}/"));
    for path in [&branch, &by_commit, &by_commit, &branch] {
        assert!(ask(&stage, "GET", path, &[]).body == bytes);
        assert_eq!(asked_of_hub(&stage), 1, "{path}");
    }
    let sent = stage.hub.stats().body_bytes;
    assert!(ask(&stage, "GET", &by_commit, &[]).body == bytes);
    assert_eq!(stage.hub.stats().body_bytes, sent, "what is held is asked about by HEAD");
    let held = ask(&stage, "GET", &by_commit, &[]);
    remove(&stage, held.header("x-pondhawk-task").unwrap());
    asked_of_hub(&stage);
    assert!(ask(&stage, "GET", &by_commit, &[]).body == bytes);
    assert_eq!(asked_of_hub(&stage), 1, "what is gone is asked for by GET");
}

#[test]
fn equal_questions_at_the_same_time_are_one() {
    let stage = Stage::open(&[]);
    let (path, bytes) = small(&stage, "crowded.json", 90_000);
    thread::scope(|scope| {
        let asking: Vec<_> = (0..12)
            .map(|n| {
                let (stage, path) = (&stage, &path);
                scope.spawn(move || ask(stage, "GET", path, &[&format!("X-Amzn-Trace-Id: {n}")]))
            })
            .collect();
        for one in asking {
            assert!(one.join().unwrap().body == bytes);
        }
    });
    assert_eq!(asked_of_hub(&stage), 1);
}

#[test]
fn no_caller_gets_an_answer_to_another_callers_credentials() {
    let stage = Stage::open(&[]);
    stage.hub.set_access("owner/model", Access::Private("secret".into()));
    let (path, bytes) = small(&stage, "private.json", 2_000);
    let file = stage.file("private.bin", MIB, 8);
    for path in [path, path_of(&file)] {
        assert_eq!(ask(&stage, "GET", &path, &["Authorization: Bearer secret", "X-Request-Id: 1"]).status, 200);
        for lines in [&["X-Request-Id: 1"][..], &["Authorization: Bearer other", "X-Request-Id: 1"]] {
            for method in ["GET", "HEAD"] {
                assert_eq!(ask(&stage, method, &path, lines).status, 401, "{method} {path} {lines:?}");
            }
        }
    }
    assert_eq!(bytes.len(), 2_000);
}

/// hf-mirror-site 31, huggingface_hub 2920.
#[test]
fn an_answer_that_varies_goes_only_to_those_who_asked_for_it() {
    let stage = Stage::open(&[]);
    stage.hub.manners().set_negotiates(true);
    let (zipped, bytes) = small(&stage, "zipped.json", 4_000);
    assert_eq!(ask(&stage, "GET", &zipped, &["Accept-Encoding: gzip"]).status, 200);
    let head = ask(&stage, "HEAD", &zipped, &["Accept-Encoding: identity"]);
    assert_eq!(head.header("content-length"), Some("4000"));
    assert!(head.header("etag").is_some_and(|tag| tag.starts_with('"')), "{:?}", head.header("etag"));
    assert!(ask(&stage, "GET", &zipped, &["Accept-Encoding: identity"]).body == bytes);

    let (plain, bytes) = small(&stage, "plain.json", 6_000);
    for _ in 0..2 {
        let info = ask(&stage, "GET", &plain, &[FILE_INFO]);
        assert_eq!(info.header("content-type"), Some("application/vnd.xet-fileinfo+json"));
        let head = ask(&stage, "HEAD", &plain, &[]);
        assert_eq!(head.header("content-length"), Some("6000"));
        assert!(ask(&stage, "GET", &plain, &["Accept: */*"]).body == bytes);
    }
    let file = stage.file("large.bin", MIB, 9);
    assert_eq!(ask(&stage, "HEAD", &path_of(&file), &[FILE_INFO]).header("content-type"), Some(&FILE_INFO[8..]));
    assert!(ask(&stage, "GET", &path_of(&file), &[]).body == file.bytes(0, file.len));
}
