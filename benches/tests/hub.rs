//! The hub does what a Hub and a CDN do, and goes wrong exactly as told.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::{
    io,
    net::TcpStream,
    sync::Arc,
    time::{Duration, SystemTime},
};

use common::{exchange, get, request};
use pondhawk_bench::{
    hub::{Access, CdnStyle, Content, Fault, FaultKind, Hub, HubOptions, PlainRules, Rates, seeded},
    lab::wait_until,
};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    pki_types::{CertificateDer, pem::PemObject},
};
use serde_json::Value;

const LEN: u64 = 3_000_001;
const LABEL: &str = "acme/tiny/model.bin";

fn hub() -> Hub {
    let hub = Hub::start(HubOptions::default()).unwrap();
    hub.add_file("acme/tiny", "main", "model.bin", Content::seeded(LEN, 7)).unwrap();
    hub.add_file("acme/tiny", "main", "config.json", Content::bytes("{\"a\":1}")).unwrap();
    hub
}

/// The path and query of the object's URL.
fn target(hub: &Hub) -> String {
    target_of(&hub.signed_url(LABEL).unwrap())
}

fn target_of(url: &str) -> String {
    let rest = url.split_once("://").unwrap().1;
    rest[rest.find('/').unwrap()..].to_owned()
}

fn bytes() -> Vec<u8> {
    seeded(7, 0, LEN as usize)
}

#[test]
fn ranges_give_the_right_bytes() {
    let hub = hub();
    let address = hub.plain_address().unwrap();
    let whole = bytes();
    for (range, from, to) in [
        ("bytes=0-0", 0, 1),
        ("bytes=1000000-1999999", 1_000_000, 2_000_000),
        ("bytes=2999990-", 2_999_990, 3_000_001),
        ("bytes=-11", 2_999_990, 3_000_001),
        ("bytes=0-9999999", 0, 3_000_001),
    ] {
        let reply = get(address, &target(&hub), &[("Range", range)]);
        assert_eq!(reply.status, 206, "{range}");
        assert_eq!(reply.header("content-range").unwrap(), format!("bytes {from}-{}/{LEN}", to - 1));
        assert!(reply.body == whole[from..to], "{range}");
    }
    let reply = get(address, &target(&hub), &[("Range", "bytes=3000001-")]);
    assert_eq!((reply.status, reply.header("content-range")), (416, Some("bytes */3000001")));
    let reply = get(address, &target(&hub), &[]);
    assert_eq!((reply.status, reply.broken), (200, None));
    assert!(reply.body == whole);
}

#[test]
fn a_range_is_given_only_if_the_validator_still_holds() {
    let hub = hub();
    let address = hub.plain_address().unwrap();
    let etag = request(address, "HEAD", &target(&hub), &[], b"").header("etag").unwrap().to_owned();
    let range = ("Range", "bytes=0-9");
    assert_eq!(get(address, &target(&hub), &[range, ("If-Range", &etag)]).status, 206);
    assert_eq!(get(address, &target(&hub), &[range, ("If-Range", "\"other\"")]).status, 200);
    assert_eq!(get(address, &target(&hub), &[("If-None-Match", &etag)]).status, 304);
}

#[test]
fn a_forged_or_expired_signature_is_refused_in_xml() {
    let hub = hub();
    let address = hub.plain_address().unwrap();
    let good = target(&hub);
    let long_ago = SystemTime::now() - Duration::from_secs(7200);
    let expired = target_of(&hub.signed_url_at(LABEL, long_ago).unwrap());
    let path = good.split('?').next().unwrap().to_owned();
    for bad in [good.replace("Signature=", "Signature=x"), expired, path] {
        let reply = get(address, &bad, &[]);
        assert_eq!(reply.status, 403);
        assert!(reply.body.starts_with(b"<?xml"), "{:?}", String::from_utf8(reply.body));
    }
    assert_eq!(get(address, &good, &[("Range", "bytes=0-0")]).status, 206);
}

#[test]
fn a_bridge_url_is_signed_in_the_s3_shape() {
    let hub = hub();
    hub.set_style("acme/xet", CdnStyle::Bridge { host: "cas-bridge.xethub.hf.co".into() });
    let sha256 = hub.add_file("acme/xet", "main", "m.bin", Content::seeded(100_000, 3)).unwrap();
    let url = hub.signed_url("acme/xet/m.bin").unwrap();
    assert!(url.starts_with("https://cas-bridge.xethub.hf.co:"), "{url}");
    assert!(!url.contains(&sha256));
    let reply = get(hub.plain_address().unwrap(), &target_of(&url), &[]);
    assert!(reply.body == seeded(3, 0, 100_000));
    let forged = target_of(&url).replace("X-Amz-Expires=3600", "X-Amz-Expires=7200");
    assert_eq!(get(hub.plain_address().unwrap(), &forged, &[]).status, 403);
}

#[test]
fn resolve_redirects_large_files_and_serves_small_ones() {
    let hub = hub();
    let address = hub.plain_address().unwrap();
    let commit = hub.commit("acme/tiny", "main").unwrap();
    let host = ("Host", "huggingface.co");
    let reply = request(address, "HEAD", "/acme/tiny/resolve/main/model.bin", &[host], b"");
    assert_eq!(reply.status, 302);
    assert_eq!(reply.header("x-repo-commit"), Some(commit.as_str()));
    assert_eq!(reply.header("x-linked-size"), Some("3000001"));
    let location = reply.header("location").unwrap();
    assert!(location.starts_with("https://cdn-lfs.huggingface.co:"), "{location}");
    assert_eq!(get(address, &target_of(location), &[("Host", "cdn-lfs.huggingface.co")]).body.len(), LEN as usize);
    let reply = get(address, &format!("/acme/tiny/resolve/{commit}/config.json"), &[host]);
    assert_eq!((reply.status, reply.body.as_slice()), (200, b"{\"a\":1}".as_slice()));
    assert_eq!(get(address, "/acme/tiny/resolve/main/none", &[host]).header("x-error-code"), Some("EntryNotFound"));
    assert_eq!(get(address, "/acme/tiny/resolve/main/config.json", &[("Host", "cdn-lfs.hf.co")]).status, 404);
    assert_eq!(get(address, &target_of(location), &[host]).status, 404);
}

#[test]
fn a_private_repository_needs_its_token() {
    let hub = hub();
    let address = hub.plain_address().unwrap();
    let path = "/acme/tiny/resolve/main/config.json";
    hub.set_access("acme/tiny", Access::Private("hf_x".into()));
    let reply = get(address, path, &[]);
    assert_eq!((reply.status, reply.header("x-error-code")), (401, Some("RepoNotFound")));
    assert_eq!(get(address, path, &[("Authorization", "Bearer hf_x")]).status, 200);
    hub.set_access("acme/tiny", Access::Gated("hf_x".into()));
    assert_eq!(get(address, path, &[("Authorization", "Bearer hf_y")]).status, 403);
    assert_eq!(get(address, "/api/models/acme/tiny", &[]).status, 401);
}

#[test]
fn the_api_lists_files_and_the_lfs_batch_signs_them() {
    let hub = hub();
    let address = hub.plain_address().unwrap();
    let info: Value = serde_json::from_slice(&get(address, "/api/models/acme/tiny/revision/main", &[]).body).unwrap();
    assert_eq!(info["sha"], hub.commit("acme/tiny", "main").unwrap());
    let oid = info["siblings"][1]["lfs"]["sha256"].as_str().unwrap();
    let tree: Value = serde_json::from_slice(&get(address, "/api/models/acme/tiny/tree/main", &[]).body).unwrap();
    assert_eq!(tree.as_array().unwrap().len(), 2);
    let form = b"paths=model.bin&paths=none&expand=False";
    let paths = request(address, "POST", "/api/models/acme/tiny/paths-info/main", &[], form);
    let paths: Value = serde_json::from_slice(&paths.body).unwrap();
    assert_eq!((paths.as_array().unwrap().len(), &paths[0]["size"]), (1, &Value::from(LEN)));
    let ask = format!(r#"{{"operation":"download","objects":[{{"oid":"{oid}","size":{LEN}}}]}}"#);
    let reply = request(address, "POST", "/acme/tiny.git/info/lfs/objects/batch", &[], ask.as_bytes());
    let batch: Value = serde_json::from_slice(&reply.body).unwrap();
    let href = batch["objects"][0]["actions"]["download"]["href"].as_str().unwrap();
    assert!(get(address, &target_of(href), &[]).body == bytes());
}

#[test]
fn a_cut_ends_cleanly_and_a_reset_does_not() {
    let hub = hub();
    let address = hub.plain_address().unwrap();
    hub.faults().add(Fault::new(FaultKind::Cut { after: 1_234_567 }).times(1));
    let reply = get(address, &target(&hub), &[]);
    assert_eq!((reply.status, reply.broken), (200, Some(io::ErrorKind::UnexpectedEof)));
    assert!(reply.body == bytes()[..1_234_567]);
    hub.faults().add(Fault::new(FaultKind::Reset { after: 100_000 }).times(1));
    let reply = get(address, &target(&hub), &[]);
    assert_eq!(reply.broken, Some(io::ErrorKind::ConnectionReset));
    assert!(reply.body.len() <= 100_000 && bytes().starts_with(&reply.body));
    assert_eq!(get(address, &target(&hub), &[]).broken, None);
}

#[test]
fn a_stall_pauses_and_then_goes_on() {
    let hub = hub();
    hub.faults().add(Fault::new(FaultKind::Stall { after: 1000, millis: 300 }).times(1));
    let start = std::time::Instant::now();
    let reply = get(hub.plain_address().unwrap(), &target(&hub), &[]);
    assert!(reply.body == bytes());
    assert!(start.elapsed() >= Duration::from_millis(300));
}

#[test]
fn faults_that_replace_the_answer() {
    let hub = hub();
    let address = hub.plain_address().unwrap();
    hub.faults().add(Fault::new(FaultKind::Status503 { retry_after: Some(2) }).times(1));
    let reply = get(address, &target(&hub), &[]);
    assert_eq!((reply.status, reply.header("retry-after")), (503, Some("2")));
    hub.faults().add(Fault::new(FaultKind::Forbidden).times(1));
    assert_eq!(get(address, &target(&hub), &[]).status, 403);
    hub.faults().add(Fault::new(FaultKind::Redirect));
    let reply = get(address, &target(&hub), &[]);
    assert_eq!(reply.status, 307);
    let location = reply.header("location").unwrap().to_owned();
    assert!(get(address, &location, &[]).body == bytes());
    hub.faults().clear();
    hub.faults().add(Fault::new(FaultKind::Status503 { retry_after: None }).at_resolve().times(1));
    assert_eq!(get(address, "/acme/tiny/resolve/main/model.bin", &[]).status, 503);
}

#[test]
fn faults_that_change_the_framing() {
    let hub = hub();
    let address = hub.plain_address().unwrap();
    let range = ("Range", "bytes=5-9");
    hub.faults().add(Fault::new(FaultKind::NoLength).times(1));
    let reply = get(address, &target(&hub), &[range]);
    assert_eq!((reply.status, reply.header("content-length"), reply.broken), (200, None, None));
    assert!(reply.body == bytes());
    hub.faults().add(Fault::new(FaultKind::IgnoreRange).times(1));
    let reply = get(address, &target(&hub), &[range]);
    assert_eq!((reply.status, reply.body.len()), (200, LEN as usize));
    hub.faults().add(Fault::new(FaultKind::NoLength).times(1));
    hub.faults().add(Fault::new(FaultKind::Cut { after: 70_000 }).times(1));
    let reply = get(address, &target(&hub), &[]);
    assert_eq!((reply.body.len(), reply.broken), (70_000, Some(io::ErrorKind::UnexpectedEof)));
}

#[test]
fn a_corrupt_byte_is_one_byte_as_often_as_asked() {
    let hub = hub();
    let address = hub.plain_address().unwrap();
    hub.faults().add(Fault::new(FaultKind::CorruptByte { offset: 2_000_000 }).times(1));
    let good = bytes();
    let got = get(address, &target(&hub), &[("Range", "bytes=1500000-")]).body;
    let wrong: Vec<usize> = (0..got.len()).filter(|at| got[*at] != good[1_500_000 + at]).collect();
    assert_eq!(wrong, [500_000]);
    assert!(get(address, &target(&hub), &[]).body == good);
}

#[test]
fn a_change_under_way_shows_in_bytes_and_etag_of_the_next_request() {
    let hub = hub();
    let address = hub.plain_address().unwrap();
    hub.add_plain("o", Content::seeded(1000, 1), PlainRules { etag: Some("v".into()), ..PlainRules::default() })
        .unwrap();
    hub.faults().add(Fault::new(FaultKind::ChangeEtag).times(1));
    let old = get(address, "/plain/o", &[]);
    let new = get(address, "/plain/o", &[("Range", "bytes=10-19"), ("If-Range", old.header("etag").unwrap())]);
    assert_eq!(old.header("etag"), Some("\"v\""));
    assert_eq!((new.status, new.header("etag")), (200, Some("\"v-1\"")));
    assert!(old.body == seeded(1, 0, 1000));
    assert!(old.body.iter().zip(&new.body).all(|(old, new)| old != new));
}

#[test]
fn gzip_comes_as_a_valid_stream() {
    let hub = hub();
    hub.faults().add(Fault::new(FaultKind::Gzip).times(1));
    let reply = get(hub.plain_address().unwrap(), &target(&hub), &[("Accept-Encoding", "identity")]);
    assert_eq!((reply.header("content-encoding"), reply.broken), (Some("gzip"), None));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("body.gz");
    std::fs::write(&path, &reply.body).unwrap();
    let out = std::process::Command::new("gzip").arg("-dc").arg(&path).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(out.stdout == bytes());
}

#[test]
fn plain_objects_have_the_headers_asked_for_and_no_others() {
    let hub = hub();
    let address = hub.plain_address().unwrap();
    let rules =
        PlainRules { cache_control: Some("no-store".into()), vary: Some("Cookie".into()), ..PlainRules::default() };
    hub.add_plain("a/b", Content::bytes("x"), rules).unwrap();
    let reply = get(address, "/plain/a/b", &[]);
    assert_eq!((reply.header("cache-control"), reply.header("vary")), (Some("no-store"), Some("Cookie")));
    assert_eq!((reply.header("etag"), reply.header("last-modified")), (None, None));
}

#[test]
fn statistics_count_what_was_sent() {
    let hub = hub();
    let address = hub.plain_address().unwrap();
    get(address, &target(&hub), &[]);
    get(address, &target(&hub), &[("Range", "bytes=0-99")]);
    request(address, "HEAD", &target(&hub), &[], b"");
    get(address, "/acme/tiny/resolve/main/model.bin", &[]);
    let reply = get(address, "/_hub/stats", &[]);
    let stats: pondhawk_bench::hub::Stats = serde_json::from_slice(&reply.body).unwrap();
    let object = stats.object(LABEL);
    assert_eq!(object.body_bytes, LEN + 100);
    assert_eq!((object.gets[&200], object.gets[&206], object.heads[&200]), (1, 1, 1));
    assert_eq!((object.resolves, object.connections, object.under_way), (1, 3, 0));
    assert_eq!(stats.body_bytes, LEN + 100);
    hub.reset_stats();
    assert_eq!(hub.stats().object(LABEL).body_bytes, 0);
}

#[test]
fn a_total_limit_holds_over_all_connections() {
    let hub = hub();
    hub.limits().set(Rates { connection: None, total: Some(2_000_000) });
    let address = hub.plain_address().unwrap();
    let start = std::time::Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                assert_eq!(get(address, &target(&hub), &[("Range", "bytes=0-999999")]).body.len(), 1_000_000);
            });
        }
    });
    // 3 MB at 2 MB/s take 1.5 s less the last frame; a slow machine only makes it longer.
    assert!(start.elapsed() > Duration::from_millis(1300), "{:?}", start.elapsed());
}

#[test]
fn control_by_json_sets_faults_and_limits_and_adds_files() {
    let hub = hub();
    let address = hub.plain_address().unwrap();
    let post = |path: &str, body: &str| request(address, "POST", path, &[], body.as_bytes());
    assert_eq!(post("/_hub/faults", r#"[{"kind":{"kind":"forbidden"},"times":1}]"#).status, 200);
    assert_eq!(get(address, &target(&hub), &[]).status, 403);
    assert_eq!(post("/_hub/limits", r#"{"connection":1000}"#).status, 200);
    assert_eq!(hub.limits().get(), Rates { connection: Some(1000), total: None });
    assert_eq!(post("/_hub/limits", r#"{"speed":1000}"#).status, 400);
    assert_eq!(post("/_hub/files", r#"{"repo":"a/b","path":"c","len":10,"seed":4}"#).status, 200);
    hub.limits().set(Rates::default());
    assert_eq!(get(address, "/a/b/resolve/main/c", &[]).body, seeded(4, 0, 10));
}

#[test]
fn tls_is_trusted_by_the_hubs_own_ca_only() {
    let hub = hub();
    let reply = exchange(&mut tls(&hub, "cdn-lfs.huggingface.co", true), "GET", &target(&hub), &[], b"");
    assert!(reply.body == bytes());
    hub.faults().add(Fault::new(FaultKind::Cut { after: 500_000 }).times(1));
    let reply = exchange(&mut tls(&hub, "cdn-lfs.huggingface.co", true), "GET", &target(&hub), &[], b"");
    assert!(reply.body == bytes()[..500_000] && reply.broken.is_some());
    let mut stranger = tls(&hub, "cdn-lfs.huggingface.co", false);
    assert!(io::Write::write_all(&mut stranger, b"GET / HTTP/1.1\r\n\r\n").is_err());
}

fn tls(hub: &Hub, name: &str, trusting: bool) -> StreamOwned<ClientConnection, TcpStream> {
    let mut roots = RootCertStore::empty();
    let other = (!trusting).then(|| Hub::start(HubOptions::default()).unwrap());
    let pem = other.as_ref().map_or(hub.ca_pem(), Hub::ca_pem);
    roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connection = ClientConnection::new(Arc::new(config), name.to_owned().try_into().unwrap()).unwrap();
    StreamOwned::new(connection, TcpStream::connect(hub.tls_address()).unwrap())
}

#[test]
fn a_reset_reaches_through_tls() {
    let hub = hub();
    hub.faults().add(Fault::new(FaultKind::Reset { after: 10_000 }).times(1));
    let reply = exchange(&mut tls(&hub, "cdn-lfs.huggingface.co", true), "GET", &target(&hub), &[], b"");
    assert_eq!(reply.broken, Some(io::ErrorKind::ConnectionReset));
}

#[test]
fn a_pause_longer_than_the_test_does_not_keep_a_hub_from_stopping() {
    let hub = hub();
    let address = hub.plain_address().unwrap();
    hub.faults().add(Fault::new(FaultKind::Stall { after: 1000, millis: 3_600_000 }));
    let target = target(&hub);
    let waiting = std::thread::spawn(move || get(address, &target, &[]));
    let paused = || (hub.stats().object(LABEL).body_bytes == 1000).then_some(());
    wait_until(Duration::from_secs(30), paused).expect("the body begins");
    // Dropped inside a runtime, as tests of the peer do.
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async { drop(hub) });
    let reply = waiting.join().unwrap();
    assert!(reply.broken.is_some() && reply.body == bytes()[..1000]);
    assert!(TcpStream::connect(address).is_err());
}

#[test]
fn any_method_is_echoed() {
    let hub = hub();
    let body = bytes();
    let reply = request(hub.plain_address().unwrap(), "PUT", "/_echo", &[], &body);
    assert_eq!(reply.header("x-echo-method"), Some("PUT"));
    assert!(reply.body == body);
}
