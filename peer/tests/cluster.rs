//! Nodes that share, each in a network namespace: what comes from the origin, what from each other, and what nobody gets to know.
//! What happens to them when parts fail is in cluster_failures.rs.

#![expect(clippy::unwrap_used, reason = "a panic is how a test reports")]

#[path = "cluster/stage.rs"]
mod stage;

use std::{path::Path, sync::mpsc, thread, time::Duration};

use pondhawk_bench::lab::{
    clean_command,
    cluster::{Fetched, Joining, Node, NodePlan, Way, found_in_memory},
    root_or_skip, run, wait_until,
};
use stage::{CLIENT, MIB, Scene, Stage};

#[test]
fn nodes_without_a_scheduler_download_each_for_itself() {
    if !root_or_skip("nodes_without_a_scheduler_download_each_for_itself") {
        return;
    }
    let stage = Stage::start(&Scene { scheduler: None, size: 8 * MIB, ..Scene::default() });
    let all = stage.crowd(&[0, 1], || ());
    all.iter().for_each(|fetched| stage.assert_right(fetched, "a client"));
    let ratio = stage.origin_ratio();
    assert!((1.99..2.02).contains(&ratio), "{ratio:.3} files from the origin");
}

#[test]
fn a_panic_leaves_no_namespace_and_no_file_of_a_cluster() {
    if !root_or_skip("a_panic_leaves_no_namespace_and_no_file_of_a_cluster") {
        return;
    }
    let (tell, told) = mpsc::channel();
    let outcome = thread::spawn(move || {
        let stage = Stage::start(&Scene { scheduler: None, size: MIB, ..Scene::default() });
        let names = stage.cluster.nodes().iter().map(|node| node.host().netns().name().to_owned()).collect::<Vec<_>>();
        let pids = stage.cluster.nodes().iter().filter_map(Node::pid).collect::<Vec<_>>();
        tell.send((names, pids, stage.cluster.folder().to_owned())).unwrap();
        panic!("on purpose");
    })
    .join();
    assert!(outcome.is_err());
    let (names, pids, folder) = told.recv().unwrap();
    let listed = run(clean_command("ip").args(["netns", "list"])).unwrap();
    assert!(names.iter().all(|name| !listed.contains(name)), "{names:?} in {listed}");
    assert!(pids.len() == 2 && pids.iter().all(|pid| !Path::new(&format!("/proc/{pid}")).exists()));
    assert!(!folder.exists());
}

#[test]
fn a_cut_link_and_a_frozen_node_only_delay_and_a_killed_node_comes_back_with_what_it_had() {
    if !root_or_skip("a_cut_link_and_a_frozen_node_only_delay") {
        return;
    }
    let hub = ["--limit-total", "16MiB"];
    let stage = Stage::start(&Scene { nodes: 1, scheduler: None, size: 24 * MIB, hub: &hub, ..Scene::default() });
    let all = stage.crowd(&[0], || {
        stage.wait_for_origin_bytes(4 * MIB);
        stage.cluster.cut(0).unwrap();
        assert!(!stage.node(0).host().netns().reaches(([10, 77, 0, 2], 443).into()), "the link is cut");
        stage.cluster.heal(0).unwrap();
        stage.node(0).freeze().unwrap();
        assert!(stage.node(0).status().is_err(), "a frozen node answers nothing");
        stage.node(0).thaw().unwrap();
    });
    stage.assert_right(&all[0], "the patient client");
    stage.node(0).kill().unwrap();
    assert!(!stage.fetch(0).ok, "no node, no file");
    stage.cluster.hub().reset_stats().unwrap();
    stage.node(0).start(&Joining::Alone).unwrap();
    stage.assert_right(&stage.fetch(0), "the client of the node that came back");
    assert!(stage.origin_ratio() < 0.1, "{:.3} files", stage.origin_ratio());
}

#[test]
fn a_second_node_has_the_file_from_the_first_one() {
    if !root_or_skip("a_second_node_has_the_file_from_the_first_one") {
        return;
    }
    let stage = Stage::start(&Scene::default());
    stage.assert_right(&stage.fetch(0), "the first client");
    stage.cluster.hub().reset_stats().unwrap();
    stage.assert_right(&stage.fetch(1), "the second client");
    let sent = stage.cluster.hub().stats().unwrap().object(&stage.file.label);
    assert!(sent.body_bytes <= 4096, "the origin was to be asked for its consent only: {sent:?}");
    assert!(sent.all_gets() >= 1, "and asked it must be: {sent:?}");
    let (first, second) = (stage.account(0), stage.account(1));
    assert_eq!((second.from_peers, second.origin_bytes > 4096), (stage.file.size, false), "{second:?}");
    assert!(first.to_peers >= stage.file.size, "{first:?}");
}

#[test]
fn a_node_that_dropped_a_file_has_it_from_the_other_one_again() {
    if !root_or_skip("a_node_that_dropped_a_file_has_it_from_the_other_one_again") {
        return;
    }
    let stage = Stage::start(&Scene { size: 16 * MIB, ..Scene::default() });
    stage.assert_right(&stage.fetch(0), "the first client");
    stage.assert_right(&stage.fetch(1), "the second client");
    stage.cluster.hub().reset_stats().unwrap();
    for dropping in [0, 1] {
        // A download stays in use for some seconds after its last reader.
        let dropped = || {
            stage.node(dropping).drop_tasks().unwrap();
            (stage.node(dropping).status().unwrap()["store"]["tasks"] == 0).then_some(())
        };
        wait_until(CLIENT, dropped).expect("the task is dropped");
        stage.assert_right(&stage.fetch(dropping), "the client of a node that dropped it");
    }
    let ratio = stage.origin_ratio();
    assert!(ratio <= 0.02, "{ratio:.3} files from the origin, though another node had it each time");
}

#[test]
fn two_nodes_exchange_what_each_has_downloaded() {
    if !root_or_skip("two_nodes_exchange_what_each_has_downloaded") {
        return;
    }
    let stage = Stage::start(&Scene { size: 12 * MIB, files: 2, ..Scene::default() });
    for (node, file) in [0, 1, 1, 0].into_iter().zip(stage.files.iter().chain(&stage.files)) {
        stage.assert_has(file, &stage.fetch_of(file, node), "a client");
    }
    for file in &stage.files {
        let ratio = stage.cluster.origin_ratio(&file.label, file.size).unwrap();
        assert!((1.0..=1.02).contains(&ratio), "{ratio:.3} times {} from the origin", file.label);
    }
}

#[test]
fn a_flash_crowd_on_four_nodes_takes_one_file_from_the_origin() {
    if !root_or_skip("a_flash_crowd_on_four_nodes_takes_one_file_from_the_origin") {
        return;
    }
    let hub_rate = Some(500_000_000);
    let stage = Stage::start(&Scene { nodes: 4, size: 64 * MIB, hub_rate, ..Scene::default() });
    let all = stage.crowd(&[0, 1, 2, 3], || ());
    all.iter().for_each(|fetched| stage.assert_right(fetched, "a client of the crowd"));
    let (ratio, accounts) = (stage.origin_ratio(), stage.cluster.accounts());
    // A lease that is cut for another node may have gone further than the last report said: one piece a node.
    let most = 1.02 + (4 * MIB) as f64 / stage.file.size as f64;
    assert!((1.0..=most).contains(&ratio), "{ratio:.3} files from the origin: {accounts:#?}");
    let shared: u64 = accounts.iter().map(|account| account.from_peers).sum();
    assert!(shared >= 3 * stage.file.size * 95 / 100, "{shared} bytes between the nodes: {accounts:#?}");
    let busy = accounts.iter().filter(|account| account.origin_bytes > MIB).count();
    assert!(busy >= 2, "the leases were to be spread over the nodes: {accounts:#?}");
}

#[test]
fn a_late_joiner_has_everything_from_the_others() {
    if !root_or_skip("a_late_joiner_has_everything_from_the_others") {
        return;
    }
    let stage = Stage::open(&Scene { nodes: 3, ..Scene::default() });
    let start = |number: usize| {
        stage.node(number).start(&stage.joining()).unwrap();
        stage.node(number).wait_joined().unwrap();
    };
    (0..2).for_each(start);
    stage.crowd(&[0, 1], || ()).iter().for_each(|fetched| stage.assert_right(fetched, "an early client"));
    let early = stage.origin_ratio();
    // One piece a node, as in a flash crowd.
    let most = 1.02 + (2 * MIB) as f64 / stage.file.size as f64;
    assert!(early <= most, "{early:.3} files from the origin");
    start(2);
    stage.assert_right(&stage.fetch(2), "the late client");
    let late = stage.origin_ratio() - early;
    assert!(late <= 0.001, "{late:.3} files from the origin for the late client");
}

#[test]
fn a_node_without_a_good_token_serves_its_clients_alone_and_says_why() {
    if !root_or_skip("a_node_without_a_good_token_serves_its_clients_alone_and_says_why") {
        return;
    }
    let stage = Stage::open(&Scene { nodes: 4, size: 8 * MIB, ..Scene::default() });
    let schedulers = vec![stage.cluster.scheduler().address()];
    let expired = stage.cluster.scheduler().token("1s").unwrap();
    let good = stage.cluster.scheduler().token("24h").unwrap();
    let wrong = good.with_file_name("token-wrong");
    std::fs::write(&wrong, forged(&std::fs::read_to_string(&good).unwrap())).unwrap();
    stage.node(0).start(&Joining::To { schedulers: schedulers.clone(), token: Some(good) }).unwrap();
    stage.node(0).wait_joined().unwrap();
    assert!(wait_until(Duration::from_secs(2), || None::<()>).is_none(), "the token expires meanwhile");
    let refused = [(1, None, "token"), (2, Some(wrong), "token"), (3, Some(expired), "expired")];
    for (number, token, why) in refused {
        let node = stage.node(number);
        node.start(&Joining::To { schedulers: schedulers.clone(), token }).unwrap();
        let reason = node.wait_for_status("reason", CLIENT, |status| {
            let said = status["swarm"]["error"].to_string().to_lowercase();
            said.contains(why).then_some(said)
        });
        let reason = reason.unwrap_or_else(|error| panic!("{error}\n{}", node.status().unwrap()["swarm"]));
        assert!(!node.account().unwrap().joined, "{reason}");
        assert!(node.log().to_lowercase().contains(why), "node {number} logs why: {}", node.log());
    }
    let all = stage.crowd(&[0, 1, 2, 3], || ());
    all.iter().for_each(|fetched| stage.assert_right(fetched, "a client"));
    let accounts = stage.cluster.accounts();
    assert!(accounts.iter().all(|account| account.from_peers == 0 && account.to_peers == 0), "{accounts:#?}");
}

/// A token of the same shape that nobody made: its last character is another.
fn forged(token: &str) -> String {
    let token = token.trim();
    let (rest, last) = token.split_at(token.len() - 1);
    format!("{rest}{}", if last == "a" { "b" } else { "a" })
}

#[test]
fn a_clients_signature_reaches_nobody_but_its_own_node_and_no_log() {
    if !root_or_skip("a_clients_signature_reaches_nobody_but_its_own_node_and_no_log") {
        return;
    }
    let node = NodePlan { log_level: "trace".to_owned(), ..NodePlan::default() };
    let hub = ["--limit-total", "16MiB"];
    let scheduler = Some(&["--log", "trace"][..]);
    let stage = Stage::start(&Scene { nodes: 2, size: 24 * MIB, node, hub: &hub, scheduler, ..Scene::default() });
    let urls = [(); 2].map(|()| stage.cluster.url(&stage.file.label).unwrap());
    let all: Vec<Fetched> = thread::scope(|scope| {
        let stage = &stage;
        let fetch = |(number, url): (usize, &String)| {
            let url = url.clone();
            scope.spawn(move || stage.node(number).fetch(&url, Way::Proxy, CLIENT).unwrap())
        };
        let clients: Vec<_> = urls.iter().enumerate().map(fetch).collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    all.iter().for_each(|fetched| stage.assert_right(fetched, "a client"));
    let secrets = urls.each_ref().map(|url| secrets(url));
    let scheduler = stage.cluster.scheduler();
    for (mine, others) in [(0, 1), (1, 0)] {
        let own: Vec<&str> = secrets[mine].iter().map(String::as_str).collect();
        let other: Vec<&str> = secrets[others].iter().map(String::as_str).collect();
        let node = stage.node(mine);
        // The control: what a node was given is found in its memory, so that not finding it elsewhere means something.
        assert_ne!(found_in_memory(node.pid().unwrap(), &own).unwrap(), Vec::<&str>::new(), "the search finds nothing");
        assert_eq!(found_in_memory(node.pid().unwrap(), &other).unwrap(), Vec::<&str>::new(), "in node {mine}");
        assert_eq!(found_in_memory(scheduler.pid().unwrap(), &own).unwrap(), Vec::<&str>::new(), "in the scheduler");
        for (name, log) in [(node.name(), node.log()), ("scheduler", scheduler.log())] {
            let leaked: Vec<&&str> = own.iter().filter(|secret| log.contains(**secret)).collect();
            assert!(leaked.is_empty() && !log.is_empty(), "{leaked:?} in the log of {name}");
        }
        // Its own log has neither its own nor the other's.
        let leaked: Vec<&&str> = other.iter().filter(|secret| node.log().contains(**secret)).collect();
        assert!(leaked.is_empty(), "{leaked:?} in the log of {}", node.name());
    }
}

/// The values of a signed URL that let whoever has them download.
fn secrets(url: &str) -> Vec<String> {
    let query = url.split_once('?').unwrap().1;
    let secret = |pair: &str| {
        let (name, value) = pair.split_once('=')?;
        ["Policy", "Signature"].contains(&name).then(|| value.to_owned())
    };
    let found: Vec<String> = query.split('&').filter_map(secret).collect();
    assert_eq!(found.len(), 2, "{url}");
    found
}

#[test]
fn caught_clients_of_two_nodes_share_one_download() {
    if !root_or_skip("caught_clients_of_two_nodes_share_one_download") {
        return;
    }
    let node = NodePlan { intercept: true, ..NodePlan::default() };
    let stage = Stage::start(&Scene { size: 16 * MIB, node, ..Scene::default() });
    for node in stage.cluster.nodes() {
        let url = stage.cluster.url(&stage.file.label).unwrap();
        stage.assert_right(&node.fetch(&url, Way::Caught, CLIENT).unwrap(), node.name());
        assert!(node.account().unwrap().requests >= 1, "{} was not asked", node.name());
    }
    let ratio = stage.origin_ratio();
    assert!((1.0..=1.02).contains(&ratio), "{ratio:.3} files from the origin");
}

#[test]
fn a_pod_that_trusts_the_clusters_root_alone_is_served_by_every_node() {
    if !root_or_skip("a_pod_that_trusts_the_clusters_root_alone_is_served_by_every_node") {
        return;
    }
    let node = NodePlan { intercept: true, ..NodePlan::default() };
    let mut stage = Stage::start(&Scene { size: 8 * MIB, node, ..Scene::default() });
    let pod = stage.cluster.add_pod().unwrap();
    let root = stage.cluster.scheduler().data_dir().join("trust-root.pem");
    for node in stage.cluster.nodes() {
        let signed = node.data_dir().join("ca/cluster.pem");
        wait_until(CLIENT, || signed.exists().then_some(())).expect("the scheduler signs the node's CA");
        let url = stage.cluster.url(&stage.file.label).unwrap();
        let fetched = node.fetch_from(&pod, &root, &url, CLIENT).unwrap();
        stage.assert_right(&fetched, &format!("the pod on {}", node.name()));
        assert!(node.account().unwrap().requests >= 1, "{} was not asked", node.name());
    }
    let ratio = stage.origin_ratio();
    assert!((1.0..=1.02).contains(&ratio), "{ratio:.3} files from the origin");
}
