//! Clients that are told of the node, by a proxy, an endpoint or an adapter, and that nobody catches: right bytes, and each byte
//! from the origin once.

#![expect(clippy::unwrap_used, reason = "a panic is how a test reports")]

#[allow(dead_code, reason = "other tests use the rest")]
mod support;

use std::{ffi::OsString, sync::atomic::AtomicBool};

use pondhawk_bench::{
    clients::{Client, Recipe},
    lab::Cgroup,
    stage::{Download, run_client},
};
use support::{Site, Through, can_run, xorbs};

const MIB: u64 = 1 << 20;
const NODE: &str = "http://127.0.0.1:65001";

/// How a client is told.
#[derive(Clone, Copy)]
enum Told<'a> {
    /// In this variable.
    Variable(&'static str),
    /// By a script of its own, in place of the one that every user writes.
    Script(&'a str),
    /// By this variable, to a script.
    Both(&'static str, &'a str),
    /// By the URL of git-lfs's server.
    LfsUrl,
}

/// Files from the origin: one, and what each lone read of a file's end takes from it straight, 4 KiB.
const ONCE: std::ops::RangeInclusive<f64> = 1.0..=1.02;

/// Two downloads by each client; all together cost the origin one file. The way's name is that of the metric.
fn downloads_once(test: &str, way: &str, told: Told<'_>, clients: &[Client]) {
    if !can_run(test, clients) {
        return;
    }
    // huggingface_hub hands files to hf_transfer only when they are larger than 50 MB.
    let size = if clients.contains(&Client::HfTransfer) { 64 * MIB } else { 24 * MIB };
    let site = Site::open(Through::Node, size);
    // Beside the cgroup that is caught: these clients reach the node only because they are told to.
    let group = Cgroup::new("told").unwrap();
    for client in clients {
        for _ in 0..2 {
            let download = told_download(&site, *client, told, &group);
            assert_eq!(download.sha256, site.wanted.sha256, "{}:\n{}", client.name(), download.output);
        }
    }
    let ratio = site.origin_ratio();
    assert!(ONCE.contains(&ratio), "the origin sent {ratio:.3} files");
    let hits = site.requests(way, "hit");
    assert!(hits >= clients.len() as u64, "{hits} replies from the store by way of {way}");
    assert_eq!(site.requests("intercept", "hit") + site.requests("intercept", "miss"), 0, "caught after all");
}

fn told_download(site: &Site, client: Client, told: Told<'_>, group: &Cgroup) -> Download {
    let mut recipe = site.stage.recipe(client, &site.wanted).unwrap();
    match told {
        Told::Variable(name) => recipe.env.push((name, NODE.into())),
        Told::Script(script) => replace_script(&mut recipe, script),
        Told::Both(name, script) => {
            recipe.env.push((name, NODE.into()));
            replace_script(&mut recipe, script);
        }
        Told::LfsUrl => {
            let turned = |word: &OsString| word.to_string_lossy().replace("https://huggingface.co", NODE).into();
            recipe.words = recipe.words.iter().map(turned).collect();
        }
    }
    let host = &site.stage.lab().node().netns;
    let run = run_client(client, &recipe, host, group, &AtomicBool::new(false));
    // As a message and not as a value: what a client says when it fails is many lines long.
    run.unwrap_or_else(|error| panic!("{error}\n{}", site.log()))
}

fn replace_script(recipe: &mut Recipe, script: &str) {
    let at = recipe.words.iter().position(|word| word == "-c").unwrap() + 1;
    recipe.words[at] = script.into();
}

#[test]
fn https_proxy_leads_every_python_client_through_a_terminated_tunnel() {
    let clients = [Client::Hub017, Client::Hub036, Client::Hub1, Client::Hub2, Client::HfTransfer];
    let test = "https_proxy_leads_every_python_client_through_a_terminated_tunnel";
    downloads_once(test, "connect", Told::Variable("HTTPS_PROXY"), &clients);
}

#[test]
fn https_proxy_leads_curl_through_a_terminated_tunnel() {
    let test = "https_proxy_leads_curl_through_a_terminated_tunnel";
    downloads_once(test, "connect", Told::Variable("HTTPS_PROXY"), &[Client::Curl]);
}

#[test]
fn hf_endpoint_makes_the_node_the_hub_for_every_version() {
    let clients = [Client::Hub017, Client::Hub036, Client::Hub1, Client::Hub2, Client::HfTransfer];
    let test = "hf_endpoint_makes_the_node_the_hub_for_every_version";
    downloads_once(test, "mirror", Told::Variable("HF_ENDPOINT"), &clients);
}

#[test]
fn git_lfs_asks_the_mirror_and_is_led_back_to_it() {
    downloads_once("git_lfs_asks_the_mirror_and_is_led_back_to_it", "mirror", Told::LfsUrl, &[Client::GitLfs]);
}

#[test]
fn the_adapter_of_the_dragonfly_guide_works_as_printed() {
    let script = Told::Script(include_str!("ways_in/adapter_printed.py"));
    downloads_once("the_adapter_of_the_dragonfly_guide_works_as_printed", "proxy", script, &[Client::Hub017]);
}

#[test]
fn an_adapter_that_rewrites_what_is_sent_works_with_every_requests() {
    let script = Told::Script(include_str!("ways_in/adapter_send.py"));
    let test = "an_adapter_that_rewrites_what_is_sent_works_with_every_requests";
    downloads_once(test, "proxy", script, &[Client::Hub017, Client::Hub036]);
}

#[test]
fn a_transport_does_the_same_for_httpx() {
    let script = Told::Script(include_str!("ways_in/transport_httpx.py"));
    downloads_once("a_transport_does_the_same_for_httpx", "proxy", script, &[Client::Hub1, Client::Hub2]);
}

#[test]
fn ranges_of_a_file_system_cost_the_origin_each_byte_once_by_the_mirror() {
    let test = "ranges_of_a_file_system_cost_the_origin_each_byte_once_by_the_mirror";
    let told = Told::Both("HF_ENDPOINT", include_str!("ways_in/filesystem.py"));
    downloads_once(test, "mirror", told, &[Client::Hub036, Client::Hub2]);
}

#[test]
fn ranges_of_a_file_system_cost_the_origin_each_byte_once_by_a_tunnel() {
    let test = "ranges_of_a_file_system_cost_the_origin_each_byte_once_by_a_tunnel";
    let told = Told::Both("HTTPS_PROXY", include_str!("ways_in/filesystem.py"));
    downloads_once(test, "connect", told, &[Client::Hub1]);
}

/// hf_xet asks for parts of files, and finds where they are by what the Hub and its CAS server say: every URL must lead back here.
fn xet_downloads_once(test: &str, way: &str, told: Told<'_>) {
    if !can_run(test, &[Client::HfXet]) {
        return;
    }
    // Three xorbs, each fetched in two ranges or one.
    let site = Site::open_hub(Through::Node, 40 * MIB, &["--xet", "owner/model:256:160"]);
    let group = Cgroup::new("told").unwrap();
    let mut sent = Vec::new();
    for _ in 0..2 {
        let download = told_download(&site, Client::HfXet, told, &group);
        assert_eq!(download.sha256, site.wanted.sha256, "{}", download.output);
        sent.push(xorbs(&site.stage.hub().stats().unwrap()).1);
    }
    assert!((40 * MIB..41 * MIB).contains(&sent[0]), "{sent:?} bytes of xorbs");
    assert_eq!(sent[0], sent[1], "the second download came from the store");
    assert!(site.requests(way, "hit") >= 5, "not by way of {way}");
}

#[test]
fn hf_xet_downloads_once_by_the_mirror() {
    xet_downloads_once("hf_xet_downloads_once_by_the_mirror", "mirror", Told::Variable("HF_ENDPOINT"));
}

#[test]
fn hf_xet_downloads_once_by_terminated_tunnels() {
    xet_downloads_once("hf_xet_downloads_once_by_terminated_tunnels", "connect", Told::Variable("HTTPS_PROXY"));
}
