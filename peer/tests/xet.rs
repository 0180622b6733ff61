//! hf_xet from PyPI, unmodified: xorbs are fetched once, shared, checked, and never handed out wrong.

#![expect(clippy::unwrap_used, reason = "a panic is how a test reports")]

#[allow(dead_code, reason = "other tests use the rest")]
mod support;

use pondhawk_bench::{
    clients::Client,
    hub::{Fault, FaultKind, Stats},
};
use support::{Site, Through, can_run};

const MIB: u64 = 1 << 20;
/// Three xorbs, the first two of 16 MiB; each fetched whole.
const WHOLE: &str = "owner/model:256:256";
/// The same, each xorb in two ranges at least.
const PARTS: &str = "owner/model:256:160";
const SIZE: u64 = 40 * MIB;

/// GETs of xorbs, and bytes of them that the hub sent.
fn xorbs(stats: &Stats) -> (u64, u64) {
    let xorbs = stats.objects.iter().filter(|(label, _)| label.starts_with("xorb/"));
    xorbs.fold((0, 0), |(gets, bytes), (_, xorb)| (gets + xorb.all_gets(), bytes + xorb.body_bytes))
}

fn open(through: Through, shape: &str) -> Site {
    Site::open_hub(through, SIZE, &["--xet", shape])
}

#[test]
fn hf_xet_works_with_this_hub_without_a_node() {
    if !can_run("hf_xet_works_with_this_hub_without_a_node", &[Client::HfXet, Client::Hub036]) {
        return;
    }
    let site = open(Through::Nothing, PARTS);
    for client in [Client::HfXet, Client::Hub036] {
        site.stage.hub().reset_stats().unwrap();
        site.download(client, &site.stage.lab().node().netns);
        let (gets, bytes) = xorbs(&site.stage.hub().stats().unwrap());
        assert_eq!(gets, 5, "{}", client.name());
        assert!((SIZE..SIZE + MIB).contains(&bytes), "{bytes} bytes of xorbs to {}", client.name());
    }
}

/// Two downloads through interception, the second without a byte from the hub.
fn downloads_once(test: &str, shape: &str, ranges: u64) {
    if !can_run(test, &[Client::HfXet]) {
        return;
    }
    let site = open(Through::Node, shape);
    let host = &site.stage.lab().node().netns;
    site.download(Client::HfXet, host);
    let (gets, bytes) = xorbs(&site.stage.hub().stats().unwrap());
    assert_eq!(gets, ranges, "each signed range was asked for once");
    assert!((SIZE..SIZE + MIB).contains(&bytes), "{bytes} bytes of xorbs");
    site.stage.hub().reset_stats().unwrap();
    site.download(Client::HfXet, host);
    let stats = site.stage.hub().stats().unwrap();
    assert_eq!(xorbs(&stats), (0, 0), "the second download came from the store");
    let asked = stats.objects.keys().filter(|label| label.starts_with("reconstruction/")).count();
    assert_eq!(asked, 1, "each client asks for its own reconstruction");
    let status = site.stage.node_status().unwrap();
    assert!(status.totals.hits >= ranges, "{status:?}");
}

#[test]
fn hf_xet_downloads_whole_xorbs_once_through_interception() {
    downloads_once("hf_xet_downloads_whole_xorbs_once_through_interception", WHOLE, 3);
}

#[test]
fn hf_xet_downloads_parts_of_xorbs_once_through_interception() {
    downloads_once("hf_xet_downloads_parts_of_xorbs_once_through_interception", PARTS, 5);
}

#[test]
fn a_corrupted_xorb_is_fetched_again_and_never_handed_out() {
    if !can_run("a_corrupted_xorb_is_fetched_again_and_never_handed_out", &[Client::HfXet]) {
        return;
    }
    let site = open(Through::Node, WHOLE);
    let wrong = Fault::new(FaultKind::CorruptByte { offset: 5_000_000 }).times(2).min_bytes(MIB);
    site.stage.hub().add_fault(&wrong).unwrap();
    site.download(Client::HfXet, &site.stage.lab().node().netns);
    let (gets, _) = xorbs(&site.stage.hub().stats().unwrap());
    assert_eq!(gets, 5, "three xorbs, two of them twice");
}

/// The control of the test above: without a node the client notices nothing.
#[test]
fn hf_xet_by_itself_takes_a_corrupted_xorb() {
    if !can_run("hf_xet_by_itself_takes_a_corrupted_xorb", &[Client::HfXet]) {
        return;
    }
    let site = open(Through::Nothing, WHOLE);
    site.stage.hub().add_fault(&Fault::new(FaultKind::CorruptByte { offset: 5_000_000 }).times(1)).unwrap();
    let recipe = site.stage.recipe(Client::HfXet, &site.wanted).unwrap();
    let download = site.stage.download(Client::HfXet, &recipe, &site.stage.lab().node().netns).unwrap();
    assert_ne!(download.sha256, site.wanted.sha256);
}
