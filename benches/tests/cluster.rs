//! The network of a cluster is as planned, before any node runs in it.

use std::time::Duration;

use pondhawk_bench::lab::{
    cluster::{Cluster, Joining, Link, NodePlan, Plan},
    root_or_skip, run, wait_until,
};

#[test]
fn links_have_their_rate_and_packet_size_both_ways_and_can_be_cut_and_healed() {
    if !root_or_skip("links_have_their_rate_and_packet_size_both_ways_and_can_be_cut_and_healed") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let link = Link { rate: Some(500_000_000), mtu: Some(9000) };
    let plan = Plan {
        nodes: 2,
        pondhawk: "pondhawk".into(),
        folder: folder.path().to_owned(),
        files: &["owner/model/tiny.bin:1MiB:1"],
        hub: &[],
        hub_link: link,
        node_link: link,
        scheduler: None,
        node: NodePlan::default(),
    };
    let mut cluster = Cluster::open(&plan).unwrap();
    let hub = (cluster.hub_address(), 443).into();
    let [one, other] = cluster.nodes() else { panic!("two nodes are planned") };
    let machine = one.host().netns();
    let limits = run(machine.command("tc").args(["qdisc", "show", "dev", "eth0"])).unwrap();
    assert!(limits.contains("tbf") && limits.contains("rate 500Mbit"), "{limits}");
    assert!(machine.ip("link show eth0").unwrap().contains("mtu 9000"));
    // Full segments of jumbo size: a port of the switch that takes less would lose them all.
    let (url, ca) = (cluster.url("owner/model/tiny.bin").unwrap(), cluster.hub().ca());
    let count = ["--output", "/dev/null", "--write-out", "%{size_download}", "--cacert", ca.to_str().unwrap(), &url];
    assert_eq!(machine.curl(&count).unwrap(), (1 << 20).to_string());
    let name = other.host().netns().name();
    assert_ne!(name, machine.name(), "each node is in a namespace of its own");
    assert!(machine.reaches(hub));
    cluster.cut(0).unwrap();
    assert!(!cluster.nodes()[0].host().netns().reaches(hub));
    assert!(cluster.nodes()[1].host().netns().reaches(hub), "only one link was cut");
    cluster.heal(0).unwrap();
    let healed = || cluster.nodes()[0].host().netns().reaches(hub).then_some(());
    wait_until(Duration::from_secs(10), healed).expect("the healed link carries again");
    let pod = cluster.add_pod().unwrap();
    assert!(pod.netns().reaches(hub) && pod.v4() != cluster.nodes()[0].host().v4());
}

#[test]
fn a_node_that_does_not_run_says_so_rather_than_keeping_anyone_waiting() {
    if !root_or_skip("a_node_that_does_not_run_says_so_rather_than_keeping_anyone_waiting") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let plan = Plan {
        nodes: 1,
        pondhawk: "/nowhere/pondhawk".into(),
        folder: folder.path().to_owned(),
        files: &["owner/model/tiny.bin:1MiB:1"],
        hub: &[],
        hub_link: Link::default(),
        node_link: Link::default(),
        scheduler: None,
        node: NodePlan::default(),
    };
    let cluster = Cluster::open(&plan).unwrap();
    let node = &cluster.nodes()[0];
    assert!(node.freeze().unwrap_err().to_string().contains("does not run"));
    assert!(node.start(&Joining::Alone).unwrap_err().to_string().contains("ended with"));
    assert!(!node.is_running() && node.status().is_err());
}
