//! The Hub under a node's own address, and tunnels, request by request: who gets what, and what is kept of it.

#![expect(clippy::unwrap_used, reason = "a panic is how a test reports")]

#[allow(dead_code, reason = "other tests use the rest")]
#[path = "node/stage.rs"]
mod stage;

use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
    thread,
};

use pondhawk_bench::hub::{Access, Content};
use stage::{Answer, CDN, File, Stage, read_answer};

const MIB: u64 = 1 << 20;

/// A request in the form that servers get, with the node in the Hub's place.
fn ask(stage: &Stage, method: &str, path: &str, headers: &[&str]) -> Answer {
    let lines: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    let host = stage.node.proxy;
    let mut connection = stage.node.connect();
    let head = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{lines}\r\n");
    connection.write_all(head.as_bytes()).unwrap();
    read_answer(&mut connection, method == "HEAD")
}

/// Not begun for this request: a download that has just ended may still be known as one under way.
fn was_here(answer: &Answer) -> bool {
    matches!(answer.header("x-pondhawk-cache"), Some("hit" | "joined"))
}

fn path_of(file: &File) -> String {
    file.label.replacen("owner/model/", "/owner/model/resolve/main/", 1)
}

#[test]
fn a_large_file_is_answered_in_place_with_the_hubs_headers_and_from_the_store_again() {
    let stage = Stage::open(&[]);
    let file = stage.file("large.bin", 5 * MIB + 1, 3);
    let head = ask(&stage, "HEAD", &path_of(&file), &[]);
    let commit = stage.hub.commit("owner/model", "main").unwrap();
    assert_eq!((head.status, head.header("content-length")), (200, Some(&*file.len.to_string())));
    assert_eq!(head.header("x-repo-commit"), Some(&*commit));
    assert!(head.header("location").is_none() && head.header("etag").unwrap().len() == 66, "{:?}", head.headers);
    for here in [false, true] {
        let whole = ask(&stage, "GET", &path_of(&file), &[]);
        assert!(whole.status == 200 && whole.body == file.bytes(0, file.len), "{here}");
        assert_eq!((was_here(&whole), whole.header("x-repo-commit")), (here, Some(&*commit)));
        let finished = whole.header("x-pondhawk-cache") == Some("hit");
        assert_eq!(whole.header("x-dragonfly-task-download-finished"), Some(if finished { "true" } else { "false" }));
    }
    let part = ask(&stage, "GET", &path_of(&file), &["Range: bytes=1048570-1048579"]);
    assert!(part.status == 206 && part.body == file.bytes(1_048_570, 10));
    assert!(stage.ratio(&file) < 1.01, "{}", stage.ratio(&file));
    let resolved = stage.hub.stats().object(&file.label).resolves;
    assert_eq!(resolved, 1, "one question to the Hub for all of them");
}

#[test]
fn behind_a_server_that_speaks_tls_clients_are_led_to_the_name_that_they_know() {
    for (settings, ours) in
        [(&[][..], "http://127.0.0.1:"), (&["mirror.url=https://models.example"][..], "https://models.example/")]
    {
        let stage = Stage::open(settings);
        stage.file("large.bin", MIB, 3);
        let token = ask(&stage, "GET", "/api/models/owner/model/xet-read-token/main", &[]);
        let text = String::from_utf8(token.body).unwrap();
        let url = text.split_once("\"casUrl\":\"").map(|(_, rest)| rest.to_owned()).unwrap_or_default();
        assert!(token.status == 200 && url.starts_with(ours), "{text}");
    }
}

#[test]
fn a_private_repository_is_as_private_on_every_way_in() {
    let stage = Stage::open(&[]);
    stage.hub.set_access("owner/model", Access::Private("secret".into()));
    let file = stage.file("private.bin", 3 * MIB, 4);
    let (right, wrong) = (["Authorization: Bearer secret"], ["Authorization: Bearer other"]);
    assert!(ask(&stage, "GET", &path_of(&file), &right).body == file.bytes(0, file.len));
    // The bytes are on disk now, and the Hub's answer to that caller is remembered.
    for headers in [&wrong[..], &[]] {
        for method in ["GET", "HEAD"] {
            let refused = ask(&stage, method, &path_of(&file), headers);
            assert_eq!(refused.status, 401, "{method} {headers:?}");
            assert_eq!(refused.header("x-error-code"), Some("RepoNotFound"), "the Hub's own words");
        }
    }
    assert!(ask(&stage, "GET", &path_of(&file), &right).body == file.bytes(0, file.len));
    assert!(!stage.node.log().contains("secret"), "a credential in the log");
    let unsigned = stage.url(&file).split('?').next().unwrap().to_owned();
    assert_eq!(stage.node.get(&unsigned, &right).status, 403, "the CDN wants its signature, and knows no token");
}

#[test]
fn small_files_are_kept_by_their_commit_and_change_with_the_branch() {
    let stage = Stage::open(&[]);
    let path = "/owner/model/resolve/main/config.json";
    stage.hub.add_file_as("owner/model", "main", "config.json", Content::seeded(2_000, 1), false).unwrap();
    let first = ask(&stage, "GET", path, &[]);
    assert_eq!((first.status, first.header("x-pondhawk-cache")), (200, Some("miss")));
    assert!(was_here(&ask(&stage, "GET", path, &[])));
    let commit = stage.hub.commit("owner/model", "main").unwrap();
    let by_commit = ask(&stage, "GET", &path.replace("main", &commit), &[]);
    assert!(was_here(&by_commit) && by_commit.body == first.body, "the branch's file is its commit's");
    assert_eq!(ask(&stage, "GET", "/owner/model/resolve/main/absent.json", &[]).status, 404);
    // The API is passed through, and so is everything that changes.
    let info = ask(&stage, "GET", "/api/models/owner/model", &[]);
    assert!(info.status == 200 && info.header("x-pondhawk-cache").is_none());
}

#[test]
fn a_tunnel_to_another_host_carries_bytes_untouched_both_ways() {
    let far = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = far.local_addr().unwrap().port();
    let echo = thread::spawn(move || {
        let (mut connection, _) = far.accept().unwrap();
        let mut all = Vec::new();
        connection.read_to_end(&mut all).unwrap();
        connection.write_all(&all).unwrap();
    });
    let place = format!("echo.example:{port}");
    let (ports, to) =
        (format!("proxy.ports=[{port}]"), format!("origin.overrides={{\"echo.example\": \"127.0.0.1:{port}\"}}"));
    let stage = Stage::open(&[&ports, &to]);
    let mut tunnel = stage.node.connect();
    // What follows the head at once belongs to the far end.
    tunnel.write_all(format!("CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n\r\nearly ").as_bytes()).unwrap();
    let mut answer = [0; 39];
    tunnel.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 Connection established\r\n\r\n");
    let body = pondhawk_bench::hub::seeded(1, 0, 3_000_000);
    tunnel.write_all(&body).unwrap();
    tunnel.shutdown(std::net::Shutdown::Write).unwrap();
    let mut back = Vec::new();
    tunnel.read_to_end(&mut back).unwrap();
    echo.join().unwrap();
    assert!(back == [b"early ".as_slice(), &body].concat(), "{} bytes came back", back.len());
    let mut refused = stage.node.connect();
    refused.write_all(b"CONNECT 127.0.0.1:65535 HTTP/1.1\r\nHost: 127.0.0.1:65535\r\n\r\n").unwrap();
    assert_eq!(read_answer(&mut refused, false).status, 403);
}

#[test]
fn a_proxy_with_users_serves_nobody_else() {
    let users = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(users.path(), "# who\nalice:open sesame\n").unwrap();
    let stage = Stage::open(&[&format!("proxy.users={}", users.path().display())]);
    let file = stage.file("guarded.bin", MIB, 5);
    let url = stage.url(&file);
    let alone = stage.node.get(&url, &[]);
    assert_eq!(alone.status, 407);
    assert!(alone.header("proxy-authenticate").unwrap().starts_with("Basic realm="));
    // "alice:wrong" and "alice:open sesame".
    assert_eq!(stage.node.get(&url, &["Proxy-Authorization: Basic YWxpY2U6d3Jvbmc="]).status, 407);
    let admitted = stage.node.get(&url, &["Proxy-Authorization: Basic YWxpY2U6b3BlbiBzZXNhbWU="]);
    assert!(admitted.body == file.bytes(0, file.len));
    assert_eq!(ask(&stage, "GET", "/api/models/owner/model", &[]).status, 407, "the mirror is closed with it");
}

#[test]
fn wishes_name_the_origin_keep_or_pass_the_file_and_never_reach_the_origin() {
    let stage = Stage::open(&["rules=[{match: '/passed', store: false}]"]);
    let file = stage.file("wished.bin", 2 * MIB, 6);
    let url = stage.url(&file);
    let path = url.split(CDN).nth(1).unwrap();
    let registry = format!("X-Dragonfly-Registry: https://{CDN}");
    let named = ask(&stage, "GET", path, &[&registry]);
    assert!(named.body == file.bytes(0, file.len) && named.header("x-pondhawk-cache") == Some("miss"));
    assert_eq!(named.header("x-dragonfly-task-id"), named.header("x-pondhawk-task"));
    let passed = stage.node.get(&url, &["X-Dragonfly-Use-P2P: false"]);
    assert!(passed.body == file.bytes(0, file.len) && passed.header("x-pondhawk-cache").is_none());
    let mirrored = ask(&stage, "GET", &path_of(&file), &["X-Dragonfly-Use-P2P: false"]);
    assert!(mirrored.body == file.bytes(0, file.len) && mirrored.header("x-pondhawk-cache").is_none());
    let echoed = stage.node.request("POST", &format!("https://{CDN}/_echo"), &["X-Dragonfly-Tag: t"], b"hello");
    assert!(echoed.body == b"hello" && !format!("{echoed:?}").to_lowercase().contains("x-dragonfly-tag"));
    let wrong = ask(&stage, "GET", path, &["X-Dragonfly-Registry: nonsense"]);
    assert_eq!(wrong.status, 400);
}

#[test]
fn a_range_with_prefetch_brings_the_rest() {
    let stage = Stage::open(&[]);
    let file = stage.file("prefetched.bin", 8 * MIB, 7);
    let url = stage.url(&file);
    let part = stage.node.get(&url, &["Range: bytes=0-99", "X-Dragonfly-Prefetch: true"]);
    assert!(part.status == 206 && part.body == file.bytes(0, 100));
    let there = pondhawk_bench::lab::wait_until(std::time::Duration::from_secs(20), || {
        let first = stage.node.get(&url, &["Range: bytes=0-99"]);
        (first.header("x-pondhawk-cache") == Some("hit")).then_some(())
    });
    assert!(there.is_some(), "the rest never came");
    assert!(stage.ratio(&file) < 1.01, "{}", stage.ratio(&file));
}

/// Descriptors that the node has open.
fn descriptors(stage: &Stage) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", stage.node.daemon.pid())).unwrap().count()
}

/// Rules without a host once matched the mirror's own address: 403, or with private origins the node asked itself until it
/// had no descriptors left.
#[test]
fn a_rule_about_paths_is_about_the_hubs_urls_and_never_leads_the_node_to_itself() {
    for private in ["false", "true"] {
        let private = format!("origin.allow_private={private}");
        let stage = Stage::open(&["rules=[{match: '\\.json$', store: false}, {match: '.*'}]", &private]);
        stage.hub.add_file_as("owner/model", "main", "config.json", Content::seeded(2_000, 1), false).unwrap();
        let before = descriptors(&stage);
        let answer = ask(&stage, "GET", "/owner/model/resolve/main/config.json", &[]);
        assert!(answer.status == 200 && answer.body == pondhawk_bench::hub::seeded(1, 0, 2_000), "{answer:?}");
        let own = format!("http://{}/owner/model/resolve/main/config.json", stage.node.proxy);
        assert_eq!(stage.node.get(&own, &[]).status, 200, "as a proxy and as an endpoint at once");
        let after = descriptors(&stage);
        assert!(after < before + 50, "{before} descriptors became {after}");
    }
}

#[test]
fn the_node_is_no_origin_by_any_address_of_its_own() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let (listen, ports) = (format!("listen.proxy=127.0.0.1:{port}"), format!("proxy.ports=[{port}]"));
    let to = format!("origin.overrides={{\"turned.example\": \"127.0.0.1:{port}\"}}");
    let stage = Stage::open(&[&listen, &ports, &to, "origin.allow_private=true"]);
    let before = descriptors(&stage);
    for host in ["0.0.0.0", "[::ffff:127.0.0.1]", "127.1", "turned.example"] {
        let registry = format!("X-Dragonfly-Registry: http://{host}:{port}");
        let answer = ask(&stage, "GET", "/x.json", &[&registry]);
        let said = answer.header("x-pondhawk-error").unwrap_or_default();
        assert!(answer.status == 508 && said.starts_with("node; "), "{host}: {answer:?}");
        let mut tunnel = stage.node.connect();
        tunnel.write_all(format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).unwrap();
        assert!(matches!(read_answer(&mut tunnel, false).status, 400 | 508), "{host}");
    }
    let after = descriptors(&stage);
    assert!(after < before + 50, "{before} descriptors became {after}");
}

/// Each node sends its requests by the other: without Via they went round until the descriptors were used up.
#[test]
fn two_nodes_that_are_each_others_proxy_end_after_one_turn() {
    let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (first, second) = (free(), free());
    let hub = pondhawk_bench::hub::Hub::start(pondhawk_bench::hub::HubOptions::default()).unwrap();
    let start = |own: u16, other: u16| {
        let settings = [
            format!("listen.proxy=127.0.0.1:{own}"),
            format!("origin.proxy=http://127.0.0.1:{other}"),
            format!("proxy.ports=[{}]", hub.tls_address().port()),
            "origin.allow_private=true".to_owned(),
        ];
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        stage::Node::start(&hub, tempfile::tempdir().unwrap(), &settings)
    };
    let nodes = [start(first, second), start(second, first)];
    let answer = nodes[0].get(&format!("https://{CDN}/plain/x"), &["X-Pondhawk-Use-P2P: false"]);
    assert_eq!(answer.status, 508, "{answer:?}\n{}", nodes[0].log());
    for node in &nodes {
        let open = std::fs::read_dir(format!("/proc/{}/fd", node.daemon.pid())).unwrap().count();
        assert!(open < 300, "{open} descriptors");
    }
}

#[test]
fn a_file_of_a_pull_request_is_the_same_by_head_and_by_get() {
    let stage = Stage::open(&[]);
    stage.hub.add_file_as("owner/model", "refs/pr/1", "config.json", Content::seeded(2_000, 4), false).unwrap();
    for revision in ["refs/pr/1", "refs%2Fpr%2F1"] {
        let path = format!("/owner/model/resolve/{revision}/config.json");
        for method in ["HEAD", "GET"] {
            assert_eq!(ask(&stage, method, &path, &[]).status, 200, "{method} {path}");
        }
    }
}
