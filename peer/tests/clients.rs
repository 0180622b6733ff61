//! The clients that people use, unmodified, through real interception: right bytes, and each byte from the origin once.

#![expect(clippy::unwrap_used, reason = "a panic is how a test reports")]

#[allow(dead_code, reason = "other tests use the rest")]
mod support;

use pondhawk_bench::{clients::Client, stage::Download};
use support::{Site, Through, can_run};

const MIB: u64 = 1 << 20;

/// Two downloads, one file's worth of origin bytes.
fn downloads_once(test: &str, client: Client) {
    if !can_run(test, &[client]) {
        return;
    }
    let site = Site::open(Through::Node, size_for(client));
    let host = &site.stage.lab().node().netns;
    site.download(client, host);
    let first = site.origin_ratio();
    site.download(client, host);
    let both = site.origin_ratio();
    assert!(first >= 1.0, "the hub sent {first:.3} of the file to {}: its counter is wrong", client.name());
    assert!(both <= allowance(client), "{} had {both:.3} files from the origin, {first:.3} at first", client.name());
    let status = site.stage.node_status().unwrap();
    assert!(status.totals.requests >= 2, "the node was not asked: {status:?}");
    assert!(status.totals.hits >= 1, "nothing was served from the store: {status:?}");
}

/// huggingface_hub hands files to hf_transfer only when they are larger than 50 MB.
fn size_for(client: Client) -> u64 {
    if client == Client::HfTransfer { 64 * MIB } else { 24 * MIB }
}

/// Files from the origin in two downloads. A client that is killed half-way lets go of what was on the wire: at most one piece of
/// 1 MiB on each of 16 connections.
fn allowance(client: Client) -> f64 {
    if client == Client::Wget { 1.0 + 16.0 / 24.0 } else { 1.02 }
}

#[test]
fn huggingface_hub_0_17_1_downloads_right_bytes_once() {
    downloads_once("huggingface_hub_0_17_1_downloads_right_bytes_once", Client::Hub017);
}

#[test]
fn huggingface_hub_0_36_downloads_right_bytes_once() {
    downloads_once("huggingface_hub_0_36_downloads_right_bytes_once", Client::Hub036);
}

#[test]
fn huggingface_hub_1_downloads_right_bytes_once() {
    downloads_once("huggingface_hub_1_downloads_right_bytes_once", Client::Hub1);
}

#[test]
fn huggingface_hub_2_downloads_right_bytes_once() {
    downloads_once("huggingface_hub_2_downloads_right_bytes_once", Client::Hub2);
}

#[test]
fn hf_transfer_downloads_right_bytes_once() {
    downloads_once("hf_transfer_downloads_right_bytes_once", Client::HfTransfer);
}

#[test]
fn curl_downloads_right_bytes_once() {
    downloads_once("curl_downloads_right_bytes_once", Client::Curl);
}

#[test]
fn wget_continues_an_interrupted_download_to_the_right_bytes() {
    downloads_once("wget_continues_an_interrupted_download_to_the_right_bytes", Client::Wget);
}

#[test]
fn aria2c_with_sixteen_connections_downloads_right_bytes_once() {
    downloads_once("aria2c_with_sixteen_connections_downloads_right_bytes_once", Client::Aria2);
}

#[test]
fn git_lfs_downloads_right_bytes_once() {
    downloads_once("git_lfs_downloads_right_bytes_once", Client::GitLfs);
}

#[test]
fn clients_of_different_kinds_share_one_download() {
    let clients = [Client::Hub2, Client::Curl, Client::Hub036, Client::GitLfs];
    if !can_run("clients_of_different_kinds_share_one_download", &clients) {
        return;
    }
    let site = Site::open(Through::Node, 24 * MIB);
    for client in clients {
        site.download(client, &site.stage.lab().node().netns);
    }
    let ratio = site.origin_ratio();
    assert!((1.0..=1.02).contains(&ratio), "the origin sent {ratio:.3} files");
}

#[test]
fn a_client_in_another_network_namespace_is_caught_too() {
    if !can_run("a_client_in_another_network_namespace_is_caught_too", &[Client::Hub2, Client::Curl]) {
        return;
    }
    let site = Site::open(Through::Node, 24 * MIB);
    let pod = site.stage.lab().pod().unwrap();
    pod.netns.set_nameserver(Some(site.stage.lab().hub().v4.into())).unwrap();
    site.download(Client::Hub2, &pod.netns);
    let asked = site.stage.node_status().unwrap().totals.requests;
    assert!(asked >= 1, "the pod's connection did not reach the node");
    site.download(Client::Curl, &site.stage.lab().node().netns);
    let ratio = site.origin_ratio();
    assert!((1.0..=1.02).contains(&ratio), "pod and node together had {ratio:.3} files from the origin");
}

/// One run without a node. A client that this machine stalls for longer than its own patience fails, and no node is there to
/// ask the hub again for it: the caller gives it a second run.
fn straight(site: &Site, client: Client) -> Option<Download> {
    site.stage.hub().reset_stats().unwrap();
    let recipe = site.stage.recipe(client, &site.wanted).unwrap();
    match site.stage.download(client, &recipe, &site.stage.lab().node().netns) {
        Ok(download) => {
            assert_eq!(download.sha256, site.wanted.sha256, "{} got other bytes", client.name());
            Some(download)
        }
        Err(error) => {
            eprintln!("{}: {error}", client.name());
            None
        }
    }
}

/// The control: what the tests above run works against this hub without a node, so that a failure there is the node's.
#[test]
fn every_client_downloads_right_bytes_straight_from_the_hub() {
    if !can_run("every_client_downloads_right_bytes_straight_from_the_hub", &Client::ALL) {
        return;
    }
    let site = Site::open(Through::Nothing, 64 * MIB);
    for client in Client::ALL {
        let download = straight(&site, client).or_else(|| straight(&site, client));
        let download = download.unwrap_or_else(|| panic!("{} does not work with this hub", client.name()));
        let stats = site.stage.hub().stats().unwrap().object("owner/model/model.bin");
        // hf_transfer, aria2c and wget -c are here for their ranges: they must have asked for some.
        let ranged = [Client::HfTransfer, Client::Aria2, Client::Wget].contains(&client);
        assert_eq!(stats.gets.contains_key(&206), ranged, "{}: {stats:?}\n{}", client.name(), download.output);
    }
}
