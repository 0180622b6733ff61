//! How many requests a snapshot of a repository costs the Hub: with the real clients, without the mirror, cold and warm by it.

#![expect(clippy::unwrap_used, reason = "a panic is how a test reports")]

#[allow(dead_code, reason = "other tests use the rest")]
mod support;

use std::ffi::OsString;

use pondhawk_bench::clients::Client;
use support::{Site, Through, can_run};

const CLIENTS: [Client; 3] = [Client::Hub036, Client::Hub1, Client::Hub2];
/// Files of each repository: the Hub serves the small ones itself, the large ones are at its CDN.
const SMALL: usize = 25;
const LARGE: usize = 7;
const LARGE_LEN: u64 = 2 << 20;
const MIRROR: &str = "http://127.0.0.1:65001";
const SNAPSHOT: &str = "import os, sys; from huggingface_hub import snapshot_download; \
                        print(os.path.join(snapshot_download(sys.argv[1]), sys.argv[2]))";

fn repo(client: usize) -> String {
    format!("owner/repo{client}")
}

/// A repository for each client, so that each begins with a node that knows nothing of it.
fn files() -> Vec<String> {
    let mut all = Vec::new();
    for client in 0..CLIENTS.len() {
        let small = (0..SMALL).map(|n| (format!("small-{n}.json"), 1_000 + n as u64));
        let large = (0..LARGE).map(|n| (format!("large-{n}.bin"), LARGE_LEN));
        for (n, (name, len)) in small.chain(large).enumerate() {
            all.extend(["--file".to_owned(), format!("{}/{name}:{len}:{}", repo(client), client * 100 + n)]);
        }
    }
    all
}

/// Requests to the Hub for one snapshot, which is complete and right.
fn snapshot(site: &Site, client: usize, endpoint: Option<&str>) -> u64 {
    let wanted = site.stage.wanted(&repo(client), "large-3.bin", LARGE_LEN).unwrap();
    let mut recipe = site.stage.recipe(CLIENTS[client], &wanted).unwrap();
    let script = recipe.words.iter().position(|word| word == "-c").unwrap() + 1;
    recipe.words[script] = OsString::from(SNAPSHOT);
    recipe.env.extend(endpoint.map(|endpoint| ("HF_ENDPOINT", endpoint.into())));
    site.stage.hub().reset_stats().unwrap();
    let host = &site.stage.lab().node().netns;
    let name = CLIENTS[client].name();
    let download =
        site.stage.download(CLIENTS[client], &recipe, host).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(download.sha256, wanted.sha256, "{name}: {}", download.output);
    let stats = site.stage.hub().stats().unwrap();
    let seen = stats.objects.keys().filter(|label| label.starts_with(&repo(client))).count();
    assert!(endpoint.is_some() || seen == SMALL + LARGE, "{name} had {seen} files");
    stats.hub_requests
}

#[test]
fn a_snapshot_by_the_mirror_costs_the_hub_no_more_requests_than_without_it() {
    if !can_run("a_snapshot_by_the_mirror_costs_the_hub_no_more_requests_than_without_it", &CLIENTS) {
        return;
    }
    let files = files();
    let hub: Vec<&str> = files.iter().map(String::as_str).collect();
    let site = Site::open_hub(Through::Nothing, 1 << 20, &hub);
    let direct: Vec<u64> = (0..CLIENTS.len()).map(|client| snapshot(&site, client, None)).collect();
    drop(site);
    let site = Site::open_hub(Through::Node, 1 << 20, &hub);
    for (client, direct) in direct.into_iter().enumerate() {
        let cold = snapshot(&site, client, Some(MIRROR));
        let warm = snapshot(&site, client, Some(MIRROR));
        eprintln!("{}: {direct} direct, {cold} cold, {warm} warm", CLIENTS[client].name());
        assert!(direct > 2 * SMALL as u64, "the Hub counts no requests");
        assert!(cold <= direct && warm <= direct, "{}: {direct}, {cold}, {warm}", CLIENTS[client].name());
    }
}
