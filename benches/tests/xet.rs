//! The hub's Xet side: tokens, reconstructions, and xorbs that are given out only as signed.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::{Duration, SystemTime};

use common::{Reply, get, request};
use pondhawk_bench::hub::{Access, CdnStyle, Content, Fault, FaultKind, Hub, HubOptions, XetShape};
use serde_json::Value;

const LEN: u64 = 2_000_000;

fn hub() -> Hub {
    let hub = Hub::start(HubOptions::default()).unwrap();
    hub.set_style("acme/x", CdnStyle::Xet(XetShape { xorb_chunks: 20, term_chunks: 12 }));
    hub.add_file("acme/x", "main", "m.bin", Content::seeded(LEN, 7)).unwrap();
    hub
}

fn ask(hub: &Hub, host: &str, path: &str, headers: &[(&str, &str)]) -> Reply {
    get(hub.plain_address().unwrap(), path, &[headers, &[("Host", host)]].concat())
}

fn target_of(url: &str) -> &str {
    let rest = url.split_once("://").unwrap().1;
    &rest[rest.find('/').unwrap()..]
}

/// What hf_xet learns before it asks for xorbs: the file's hash and a token.
fn learn(hub: &Hub) -> (String, String) {
    let reply = ask(hub, "huggingface.co", "/acme/x/resolve/main/m.bin", &[]);
    let link = reply.header("link").unwrap();
    assert!(link.contains("rel=\"xet-reconstruction-info\""), "{link}");
    let auth = link.split(['<', '>']).nth(1).unwrap().to_owned();
    let hash = reply.header("x-xet-hash").unwrap().to_owned();
    let token: Value = serde_json::from_slice(&ask(hub, "huggingface.co", target_of(&auth), &[]).body).unwrap();
    assert!(token["casUrl"].as_str().unwrap().starts_with("https://cas-server.xethub.hf.co"));
    (hash, format!("Bearer {}", token["accessToken"].as_str().unwrap()))
}

fn reconstruct(hub: &Hub, version: &str, range: &str) -> Value {
    let (hash, token) = learn(hub);
    let path = format!("/{version}/reconstructions/{hash}");
    let reply = ask(hub, "cas-server.xethub.hf.co", &path, &[("Authorization", &token), ("Range", range)]);
    assert_eq!(reply.status, 200, "{range}");
    serde_json::from_slice(&reply.body).unwrap()
}

#[test]
fn a_reconstruction_names_what_makes_a_range_of_the_file() {
    let hub = hub();
    let all = reconstruct(&hub, "v2", "bytes=0-99999999");
    let lens = all["terms"].as_array().unwrap().iter().map(|term| term["unpacked_length"].as_u64().unwrap());
    assert_eq!((lens.clone().count(), lens.sum::<u64>()), (3, LEN));
    assert_eq!(all["xorbs"].as_object().unwrap().len(), 2);
    let part = reconstruct(&hub, "v1", "bytes=70000-70001");
    assert_eq!(part["offset_into_first_range"], 70_000 - 65_536);
    let fetch = part["fetch_info"].as_object().unwrap().values().next().unwrap()[0].clone();
    assert_eq!((fetch["range"]["start"].as_u64(), fetch["range"]["end"].as_u64()), (Some(1), Some(2)));
    assert_eq!(
        (fetch["url_range"]["start"].as_u64(), fetch["url_range"]["end"].as_u64()),
        (Some(65_544), Some(131_087))
    );
}

#[test]
fn a_reconstruction_needs_a_token_of_a_reader() {
    let hub = hub();
    let (hash, token) = learn(&hub);
    let path = format!("/v2/reconstructions/{hash}");
    for (auth, status) in [(String::new(), 401), (format!("{token}0"), 401), (token, 200)] {
        let reply = ask(&hub, "cas-server.xethub.hf.co", &path, &[("Authorization", &auth)]);
        assert_eq!(reply.status, status, "{auth}");
    }
    hub.set_access("acme/x", Access::Private("hf_x".into()));
    assert_eq!(ask(&hub, "huggingface.co", "/api/models/acme/x/xet-read-token/main", &[]).status, 401);
}

#[test]
fn a_xorb_is_given_only_for_exactly_the_signed_range() {
    let hub = hub();
    let all = reconstruct(&hub, "v2", "bytes=0-");
    let (hash, entries) = all["xorbs"].as_object().unwrap().iter().next().unwrap();
    let url = entries[0]["url"].as_str().unwrap();
    let bytes = &entries[0]["ranges"][0]["bytes"];
    let signed = format!("bytes={}-{}", bytes["start"], bytes["end"]);
    let of = |path: &str, range: &str| ask(&hub, "transfer.xethub.hf.co", path, &[("Range", range)]).status;
    let path = target_of(url);
    assert_eq!(of(path, &signed), 206);
    for range in ["bytes=0-0", "bytes=0-", ""] {
        assert_eq!(of(path, range), 403, "{range}");
    }
    let wider = path.replace("-", "-1");
    assert_eq!(of(&wider, &signed.replace('-', "-1")), 403);
    let label = format!("xorb/{hash}");
    let expired = hub.signed_url_at(&label, SystemTime::now() - Duration::from_secs(7200)).unwrap();
    let whole = |url: &str| format!("bytes={}", url.split("bytes%3D").nth(1).unwrap().split('&').next().unwrap());
    assert_eq!(of(target_of(&expired), &whole(&expired)), 403);
    let fresh = hub.signed_url(&label).unwrap();
    let address = hub.plain_address().unwrap();
    let head = request(address, "HEAD", target_of(&fresh), &[("Range", &whole(&fresh))], b"");
    assert_eq!(head.status, 206);
    let stats = hub.stats().object(&label);
    assert_eq!((stats.gets[&206], stats.heads[&206]), (1, 1));
}

#[test]
fn a_xorb_can_be_corrupted() {
    let hub = hub();
    let label = hub.stats().objects.keys().find(|label| label.starts_with("xorb/")).cloned();
    assert_eq!(label, None, "nothing was asked for yet");
    let all = reconstruct(&hub, "v2", "bytes=0-");
    let hash = all["xorbs"].as_object().unwrap().keys().next().unwrap();
    let url = all["xorbs"][hash][0]["url"].as_str().unwrap();
    let signed = format!("bytes={}", url.split("bytes%3D").nth(1).unwrap().split('&').next().unwrap());
    let get = || ask(&hub, "transfer.xethub.hf.co", target_of(url), &[("Range", &signed)]).body;
    let right = get();
    hub.faults().add(Fault::new(FaultKind::CorruptByte { offset: 100_000 }).object(format!("xorb/{hash}")).times(1));
    assert_ne!(get(), right);
    assert_eq!(get(), right);
}
