//! Files that nodes are to hold before anybody asks: one node has a URL, the others have the file from it.

#![expect(clippy::unwrap_used, reason = "a panic is how a test reports")]

#[allow(dead_code, reason = "other tests use the rest")]
#[path = "cluster/stage.rs"]
mod stage;

use pondhawk_bench::lab::{cluster::Joining, root_or_skip, wait_until};
use serde_json::Value;
use stage::{CLIENT, MIB, Scene, Stage};

/// `pondhawk` on one of the nodes.
fn pondhawk(stage: &Stage, node: usize, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = stage.node(node).host().netns().command(env!("CARGO_BIN_EXE_pondhawk"));
    let output = command.args(arguments).output().unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    (output.status.code(), text)
}

/// What a node says of the only task that it holds.
fn only_task(stage: &Stage, node: usize) -> Value {
    let (code, text) = pondhawk(stage, node, &["ls", "--json"]);
    assert_eq!(code, Some(0), "{text}");
    let tasks: Vec<Value> = serde_json::from_str(&text).unwrap();
    assert_eq!(tasks.len(), 1, "{text}");
    tasks.into_iter().next().unwrap()
}

#[test]
fn every_node_has_a_file_that_one_of_them_read_and_gives_it_to_whoever_the_origin_lets_have_it() {
    if !root_or_skip("every_node_has_a_file_that_one_of_them_read") {
        return;
    }
    let stage = Stage::start(&Scene { nodes: 4, size: 24 * MIB, ..Scene::default() });
    let url = stage.cluster.url(&stage.file.label).unwrap();
    let (code, text) =
        pondhawk(&stage, 0, &["preheat", &url, "--scope", "all", "--pin", "--wait", "--quiet", "--json"]);
    assert_eq!(code, Some(0), "{text}");
    let done: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (&done[0]["nodes"]["peers"], &done[0]["nodes"]["complete"]),
        (&Value::from(3), &Value::from(3)),
        "{text}"
    );
    let ratio = stage.origin_ratio();
    assert!((1.0..=1.02).contains(&ratio), "{ratio:.3} files from the origin");
    for node in 1..4 {
        let task = only_task(&stage, node);
        let seen = (&task["held_bytes"], &task["verdict"], &task["pinned"]);
        assert_eq!(
            seen,
            (&Value::from(stage.file.size), &Value::from("verified"), &Value::from(true)),
            "node {node}: {task}"
        );
        assert!(task["label"].as_str().unwrap().ends_with("(from other nodes)"), "{task}");
        assert_eq!(stage.account(node).origin_bytes, 0);
    }
    let expired = url.replace("Expires=", "Expires=1&Was=");
    let refused = stage.node(1).fetch(&expired, pondhawk_bench::lab::cluster::Way::Proxy, CLIENT).unwrap();
    assert!(!refused.ok, "the origin lets nobody have it with that URL");
    for node in 1..4 {
        stage.assert_right(&stage.fetch(node), "a client of a node that nobody had asked");
        let label = only_task(&stage, node)["label"].as_str().unwrap().to_owned();
        assert!(
            label.contains("/repos/") && !label.contains("other nodes"),
            "what the origin said is known now: {label}"
        );
    }
    let ratio = stage.origin_ratio();
    assert!((1.0..=1.02).contains(&ratio), "{ratio:.3} files from the origin");
    // What was learnt of the file stays with it.
    stage.node(2).kill().unwrap();
    stage.node(2).start(&stage.joining()).unwrap();
    assert!(only_task(&stage, 2)["label"].as_str().unwrap().contains("/repos/"));
}

#[test]
fn a_count_is_kept_and_what_cannot_be_told_to_others_says_why() {
    if !root_or_skip("a_count_is_kept_and_what_cannot_be_told_to_others_says_why") {
        return;
    }
    let stage = Stage::start(&Scene { nodes: 3, size: 4 * MIB, ..Scene::default() });
    let url = stage.cluster.url(&stage.file.label).unwrap();
    let (code, text) = pondhawk(&stage, 0, &["preheat", &url, "--count", "1", "--wait", "--quiet"]);
    assert!(code == Some(0) && text.contains("on 1 of 1 other nodes"), "{text}");
    let holders = (1..3).filter(|node| !stage.node(*node).holds_nothing().unwrap()).count();
    assert_eq!(holders, 1);
    let (code, text) = pondhawk(&stage, 0, &["preheat", &url, "--label", "zone=nowhere", "--wait", "--quiet"]);
    assert!(code == Some(0) && text.contains("on 0 of 0 other nodes"), "{text}");
    stage.cluster.scheduler().kill().unwrap();
    let lost = |status: Value| (status["swarm"]["session"] == "lost").then_some(());
    stage.node(0).wait_for_status("lost session", CLIENT, lost).unwrap();
    let (code, text) = pondhawk(&stage, 0, &["preheat", &url, "--scope", "all", "--wait", "--quiet"]);
    assert!(code == Some(1) && text.contains("no scheduler answers"), "{text}");
}

#[test]
fn a_node_that_waits_for_others_in_vain_asks_a_client_that_comes_for_its_url() {
    if !root_or_skip("a_node_that_waits_for_others_in_vain_asks_a_client_that_comes_for_its_url") {
        return;
    }
    let hub = ["--limit-total", "2MiB"];
    let stage = Stage::start(&Scene { nodes: 2, size: 16 * MIB, hub: &hub, ..Scene::default() });
    let url = stage.cluster.url(&stage.file.label).unwrap();
    let (code, text) = pondhawk(&stage, 0, &["preheat", &url, "--scope", "all", "--quiet"]);
    assert_eq!(code, Some(0), "{text}");
    let begun = || stage.node(1).holds_nothing().is_ok_and(|nothing| !nothing).then_some(());
    wait_until(CLIENT, begun).expect("node 1 begins");
    stage.node(0).kill().unwrap();
    stage.assert_right(&stage.fetch(1), "a client of the node that was left alone");
    stage.node(0).start(&Joining::Alone).unwrap();
}
