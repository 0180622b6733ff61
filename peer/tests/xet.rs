//! hf_xet from PyPI, unmodified: xorbs are fetched once, shared, checked, and never handed out wrong.

#![expect(clippy::unwrap_used, reason = "a panic is how a test reports")]

#[allow(dead_code, reason = "other tests use the rest")]
mod support;

use std::{path::Path, sync::atomic::AtomicBool};

use pondhawk_bench::{
    clients::{Client, Place, Wanted},
    hub::{Fault, FaultKind},
    lab::{
        Cgroup,
        cluster::{Cluster, Link, Node, NodePlan, Plan},
    },
    stage::run_client,
};
use support::{Site, Through, can_run, target_dir, xorbs};

const MIB: u64 = 1 << 20;
/// Three xorbs, the first two of 16 MiB; each fetched whole.
const WHOLE: &str = "owner/model:256:256";
/// The same, each xorb in two ranges at least.
const PARTS: &str = "owner/model:256:160";
const SIZE: u64 = 40 * MIB;

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

#[test]
fn hf_xet_downloads_through_the_unix_socket_once() {
    if !can_run("hf_xet_downloads_through_the_unix_socket_once", &[Client::HfXet]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("client.sock");
    let more = format!("listen:\n  unix: {}\n", path.display());
    let site = Site::open_node(SIZE, &["--xet", WHOLE], &more);
    // On a host whose connections nobody catches: what is shared came through the socket.
    let elsewhere = &site.stage.lab().node().netns;
    for ranges in [3, 0] {
        site.stage.hub().reset_stats().unwrap();
        let mut recipe = site.stage.recipe(Client::HfXet, &site.wanted).unwrap();
        recipe.env.push(("HF_XET_CLIENT_UNIX_SOCKET_PATH", path.clone().into()));
        let apart = Cgroup::new("apart").unwrap();
        let download = run_client(Client::HfXet, &recipe, elsewhere, &apart, &AtomicBool::new(false));
        let download = download.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(download.sha256, site.wanted.sha256, "{}", download.output);
        assert_eq!(xorbs(&site.stage.hub().stats().unwrap()).0, ranges, "GETs of xorbs");
    }
    // Without TLS, as where a mirror has named a CAS server by http.
    let url = site.stage.hub().urls().unwrap().into_iter().find(|url| url.contains("/xorbs/")).unwrap();
    let signed = url.split("bytes%3D").nth(1).unwrap().split('&').next().unwrap();
    let (path, url) = (path.to_str().unwrap(), url.replacen("https://", "http://", 1));
    let curl = ["--unix-socket", path, "--output", "/dev/null", "--write-out", "%{http_code}", "--range", signed, &url];
    assert_eq!(elsewhere.curl(&curl).unwrap(), "206");
    assert_eq!(xorbs(&site.stage.hub().stats().unwrap()), (0, 0), "from the store");
}

/// Two nodes that catch hf_xet's connections, and a scheduler.
fn cluster(shape: &str) -> Cluster {
    let (offer, target) = (format!("owner/model/model.bin:{SIZE}:7"), target_dir());
    let link = Link { rate: Some(1_000_000_000), mtu: None };
    let plan = Plan {
        nodes: 2,
        pondhawk: env!("CARGO_BIN_EXE_pondhawk").into(),
        folder: Path::new(env!("CARGO_TARGET_TMPDIR")).to_owned(),
        files: &[&offer],
        hub: &["--xet", shape],
        hub_link: Link::default(),
        node_link: link,
        scheduler: Some(&[]),
        node: NodePlan { intercept: true, more: "store:\n  keep_free: 64MiB\n".to_owned(), ..NodePlan::default() },
    };
    assert!(target.exists());
    Cluster::start(&plan).unwrap_or_else(|error| panic!("{error}"))
}

/// One hf_xet on this node, which must get the right bytes.
fn download(cluster: &Cluster, node: &Node) {
    let sha256 = cluster.sha256("owner/model/model.bin").unwrap();
    let wanted = Wanted { repo: "owner/model".to_owned(), file: "model.bin".to_owned(), sha256, size: SIZE };
    let dir = tempfile::Builder::new().prefix("client-").tempdir_in(cluster.folder()).unwrap();
    let place = Place { target: target_dir(), dir: dir.path().to_owned(), bundle: cluster.trusted(node).unwrap() };
    let recipe = Client::HfXet.recipe(&wanted, &place);
    let caught = node.clients().unwrap();
    let download = run_client(Client::HfXet, &recipe, node.host().netns(), caught, &AtomicBool::new(false));
    let download = download.unwrap_or_else(|error| panic!("{error}\n{}", node.log()));
    assert_eq!(download.sha256, wanted.sha256, "{}", download.output);
}

#[test]
fn a_second_node_sends_the_origin_for_no_byte_of_a_xorb() {
    if !can_run("a_second_node_sends_the_origin_for_no_byte_of_a_xorb", &[Client::HfXet]) {
        return;
    }
    let cluster = cluster(PARTS);
    let [first, second] = cluster.nodes() else { panic!("two nodes") };
    download(&cluster, first);
    let (gets, bytes) = xorbs(&cluster.hub().stats().unwrap());
    assert_eq!(gets, 5, "one request for each range");
    assert!((SIZE..SIZE + MIB).contains(&bytes), "{bytes}");
    cluster.hub().reset_stats().unwrap();
    download(&cluster, second);
    let stats = cluster.hub().stats().unwrap();
    assert_eq!(xorbs(&stats), (0, 0), "{:#?}", cluster.accounts());
    assert!(second.account().unwrap().from_peers >= SIZE, "{:#?}", cluster.accounts());
}

#[test]
fn two_nodes_at_once_share_what_each_fetches() {
    if !can_run("two_nodes_at_once_share_what_each_fetches", &[Client::HfXet]) {
        return;
    }
    let cluster = cluster(WHOLE);
    std::thread::scope(|scope| {
        for node in cluster.nodes() {
            scope.spawn(|| download(&cluster, node));
        }
    });
    let (gets, bytes) = xorbs(&cluster.hub().stats().unwrap());
    // A reader that nobody brought anything for some seconds asks by itself, though others bring the rest: on a busy machine
    // the origin may be asked for every range twice, and yet is some of it shared.
    let from_peers: u64 = cluster.accounts().iter().map(|account| account.from_peers).sum();
    assert!(
        gets < 6 || from_peers > 0,
        "nothing was shared: {gets} requests, {bytes} bytes: {:#?}",
        cluster.accounts()
    );
}
