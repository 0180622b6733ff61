//! Nodes that share while parts of the cluster fail: whoever is not hit itself notices nothing.

#![expect(clippy::unwrap_used, reason = "a panic is how a test reports")]

#[path = "cluster/chaos.rs"]
mod chaos;
#[path = "cluster/liar.rs"]
mod liar;
#[path = "cluster/stage.rs"]
mod stage;

use pondhawk_bench::lab::{
    cluster::{SchedulerProcess, Way},
    root_or_skip,
};
use stage::{CLIENT, MIB, Scene, Stage};

/// Slow enough for something to happen in the middle.
const SLOW_HUB: [&str; 2] = ["--limit-total", "16MiB"];

#[test]
fn nodes_whose_scheduler_cannot_be_reached_serve_their_clients_alone() {
    if !root_or_skip("nodes_whose_scheduler_cannot_be_reached_serve_their_clients_alone") {
        return;
    }
    let stage = Stage::open(&Scene { size: 8 * MIB, ..Scene::default() });
    let joining = stage.joining();
    stage.cluster.scheduler().kill().unwrap();
    for node in stage.cluster.nodes() {
        node.start(&joining).unwrap();
    }
    let all = stage.crowd(&[0, 1], || ());
    all.iter().for_each(|fetched| stage.assert_right(fetched, "a client"));
    assert!(!stage.account(0).joined);
    stage.cluster.scheduler().restart().unwrap();
    stage.cluster.nodes().iter().for_each(|node| node.wait_joined().unwrap());
}

#[test]
fn a_scheduler_that_restarts_in_the_middle_of_a_crowd_costs_no_client_anything() {
    if !root_or_skip("a_scheduler_that_restarts_in_the_middle_of_a_crowd_costs_no_client_anything") {
        return;
    }
    let stage = Stage::start(&Scene { nodes: 4, size: 48 * MIB, hub: &SLOW_HUB, ..Scene::default() });
    let all = stage.crowd(&[0, 1, 2, 3], || {
        stage.wait_for_origin_bytes(12 * MIB);
        stage.cluster.scheduler().kill().unwrap();
        stage.cluster.scheduler().restart().unwrap();
    });
    all.iter().for_each(|fetched| stage.assert_right(fetched, "a client of the crowd"));
    let ratio = stage.origin_ratio();
    assert!(ratio <= 1.4, "{ratio:.3} files from the origin: {:#?}", stage.cluster.accounts());
    stage.cluster.nodes().iter().for_each(|node| node.wait_joined().unwrap());
}

#[test]
fn a_scheduler_that_dies_for_good_in_the_middle_of_a_crowd_costs_no_client_anything() {
    if !root_or_skip("a_scheduler_that_dies_for_good_in_the_middle_of_a_crowd_costs_no_client_anything") {
        return;
    }
    let stage = Stage::start(&Scene { nodes: 3, size: 32 * MIB, hub: &SLOW_HUB, ..Scene::default() });
    let all = stage.crowd(&[0, 1, 2], || {
        stage.wait_for_origin_bytes(12 * MIB);
        stage.cluster.scheduler().kill().unwrap();
    });
    all.iter().for_each(|fetched| stage.assert_right(fetched, "a client of the crowd"));
}

/// Tasks are spread over the schedulers; those of the one that dies go to the others, with what is held and who wants what.
#[test]
fn one_of_three_schedulers_that_dies_in_the_middle_of_a_crowd_is_replaced_by_the_others() {
    if !root_or_skip("one_of_three_schedulers_that_dies_in_the_middle_of_a_crowd_is_replaced_by_the_others") {
        return;
    }
    let hub = ["--limit-total", "32MiB"];
    let mut stage = Stage::open(&Scene { nodes: 3, size: 48 * MIB, files: 4, hub: &hub, ..Scene::default() });
    stage.cluster.add_replica().unwrap();
    stage.cluster.add_replica().unwrap();
    let joining = stage.joining();
    let all_up = |status: serde_json::Value| {
        (status["swarm"]["session"] == "up" && status["swarm"]["error"].is_null()).then_some(())
    };
    for node in stage.cluster.nodes() {
        node.start(&joining).unwrap();
        node.wait_for_status("session with each scheduler", CLIENT, all_up).unwrap();
    }
    let clients: Vec<_> = (0..3)
        .flat_map(|node| stage.files.iter().map(move |file| (node, file)))
        .map(|(node, file)| {
            let url = stage.cluster.url(&file.label).unwrap();
            (node, file, stage.node(node).start_fetch(&url, Way::Proxy, CLIENT).unwrap())
        })
        .collect();
    stage.wait_for_origin_bytes(12 * MIB);
    let led = |scheduler: &SchedulerProcess| {
        let page = scheduler.host().netns().curl(&["--max-time", "4", "http://127.0.0.1:65101/metrics"]).unwrap();
        let line = page.lines().find_map(|line| line.strip_prefix("pondhawk_scheduler_tasks "));
        line.unwrap().parse::<u32>().unwrap()
    };
    let shares: Vec<u32> =
        std::iter::once(stage.cluster.scheduler()).chain(stage.cluster.replicas()).map(led).collect();
    assert!(shares.iter().sum::<u32>() == 4 && shares.iter().all(|share| *share < 4), "{shares:?}");
    let busiest = (0..3).max_by_key(|at| shares[*at]).unwrap();
    let dies = match busiest {
        0 => stage.cluster.scheduler(),
        at => &stage.cluster.replicas()[at - 1],
    };
    dies.kill().unwrap();
    for (node, file, client) in clients {
        stage.assert_has(file, &client.finish().unwrap(), &format!("a client of node {node}"));
    }
    for node in 0..3 {
        assert!(stage.node(node).log().contains("the others take its tasks over"), "{}", stage.node(node).log());
    }
    // What is under way while a task moves may be fetched twice: some pieces, however large the file.
    let twice = |file: &stage::File| {
        let ratio = stage.cluster.origin_ratio(&file.label, file.size).unwrap();
        (ratio - 1.0) * file.size as f64 / MIB as f64
    };
    let twice: Vec<f64> = stage.files.iter().map(twice).collect();
    eprintln!("files by scheduler {shares:?}, MiB of each read twice {twice:.1?}");
    assert!(twice.iter().all(|twice| *twice < 20.0), "{twice:?}: {:#?}", stage.cluster.accounts());
    // Back, it has its tasks again, and the nodes a session with each.
    dies.restart().unwrap();
    for node in stage.cluster.nodes() {
        node.wait_for_status("session with each scheduler", CLIENT, all_up).unwrap();
    }
}

#[test]
fn a_killed_node_and_a_cut_one_in_the_middle_of_a_crowd_leave_the_others_clients_whole() {
    if !root_or_skip("a_killed_node_and_a_cut_one_in_the_middle_of_a_crowd_leave_the_others_clients_whole") {
        return;
    }
    let stage = Stage::start(&Scene { nodes: 4, size: 48 * MIB, hub: &SLOW_HUB, ..Scene::default() });
    let url = stage.cluster.url(&stage.file.label).unwrap();
    let cut_off = stage.node(2).start_fetch(&url, Way::Proxy, CLIENT).unwrap();
    let all = stage.crowd(&[0, 1, 3], || {
        stage.wait_for_origin_bytes(12 * MIB);
        stage.node(1).kill().unwrap();
        stage.cluster.cut(2).unwrap();
    });
    stage.assert_right(&all[0], "the client of node 0");
    stage.assert_right(&all[2], "the client of node 3");
    assert!(!all[1].ok, "the client of a killed node must notice");
    stage.cluster.heal(2).unwrap();
    let cut_off = cut_off.finish().unwrap();
    assert!(!cut_off.ok || cut_off.sha256 == stage.file.sha256, "an error or the file: {cut_off:?}");
    stage.node(1).start(&stage.joining()).unwrap();
    for number in [1, 2] {
        stage.node(number).wait_joined().unwrap();
        stage.assert_right(&stage.fetch(number), "the client of a node that is back");
    }
}

#[test]
fn a_node_that_freezes_in_the_middle_of_a_crowd_is_done_without() {
    if !root_or_skip("a_node_that_freezes_in_the_middle_of_a_crowd_is_done_without") {
        return;
    }
    let stage = Stage::start(&Scene { nodes: 3, size: 32 * MIB, hub: &SLOW_HUB, ..Scene::default() });
    let url = stage.cluster.url(&stage.file.label).unwrap();
    let frozen = stage.node(2).start_fetch(&url, Way::Proxy, CLIENT).unwrap();
    let all = stage.crowd(&[0, 1], || {
        stage.wait_for_origin_bytes(8 * MIB);
        stage.node(2).freeze().unwrap();
    });
    all.iter().for_each(|fetched| stage.assert_right(fetched, "a client of the crowd"));
    stage.node(2).thaw().unwrap();
    stage.assert_right(&frozen.finish().unwrap(), "the client of the node that was frozen");
}

#[test]
fn whatever_fails_at_random_every_client_ends_with_the_right_bytes() {
    if !root_or_skip("whatever_fails_at_random_every_client_ends_with_the_right_bytes") {
        return;
    }
    let hub = ["--limit-total", "64MiB"];
    let stage = Stage::start(&Scene { nodes: 4, size: 12 * MIB, files: 12, hub: &hub, ..Scene::default() });
    chaos::rage(&stage, chaos::seed(), chaos::time());
}

/// The worst case of the scheduler's rule that the first report of a digest counts: a node with a good certificate says
/// first that it holds the whole file, and serves bytes that have the digests it reported.
#[test]
fn a_node_that_lies_about_bytes_and_digests_is_found_out_and_nobody_keeps_its_bytes() {
    if !root_or_skip("a_node_that_lies_about_bytes_and_digests_is_found_out_and_nobody_keeps_its_bytes") {
        return;
    }
    let stage = Stage::open(&Scene { nodes: 4, size: 8 * MIB, ..Scene::default() });
    let url = stage.cluster.url(&stage.file.label).unwrap();
    liar::poison(&stage.node(0).data_dir(), &url, stage.file.size);
    for node in stage.cluster.nodes() {
        node.start(&stage.joining()).unwrap();
        node.wait_joined().unwrap();
    }
    let mut tries = 0;
    for node in [1, 2, 3] {
        let right = std::iter::from_fn(|| Some(stage.fetch(node))).take(3).find(|fetched| {
            tries += 1;
            assert!(!fetched.ok || fetched.sha256 == stage.file.sha256, "node {node} gave a complete wrong file");
            fetched.ok
        });
        stage.assert_right(&right.expect("a client that asks again gets the file"), "a client that asks again");
    }
    assert!(tries > 3, "nobody met the lie");
    // By the first node, or by a later one, where the first asked again before the scheduler had heard of it, and alone then.
    let named = [1, 2, 3].iter().any(|node| stage.node(*node).log().contains("node-0"));
    assert!(named, "the liar is named: {}{}", stage.node(1).log(), stage.node(2).log());
    assert!(
        stage.account(3).from_peers >= stage.file.size * 9 / 10,
        "the honest share: {:?}",
        stage.cluster.accounts()
    );
}
