//! What is shown of small clusters, and how much of large ones.

use super::super::{DigestRun, Event, Load, Options, PeerId, PeerInfo, Progress, TaskName};
use super::*;

const MIB: u64 = 1 << 20;
const TASK: TaskName = [0xab; 32];

fn at(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn connect(cluster: &mut Cluster, name: &str) -> PeerId {
    let labels = vec![("zone".to_owned(), "a".to_owned())];
    let address = ([10, 0, 0, 1], 65010).into();
    let peer = cluster.connect(PeerInfo { name: name.into(), address, endpoints: 1, labels, seed: false });
    cluster.handle(at(0), peer, Event::InventoryStart);
    cluster.handle(at(0), peer, Event::InventoryEnd);
    peer
}

fn want(cluster: &mut Cluster, peer: PeerId, can_fetch: bool) {
    let (host, len) = ("cdn.example".to_owned(), 10 * MIB);
    cluster.handle(
        at(1),
        peer,
        Event::Want { task: TASK, len, host, can_fetch, connections: 1, wanted: None, name: None },
    );
}

fn fetched(cluster: &mut Cluster, peer: PeerId, first: u32, count: u32) {
    let run = first..first + count;
    let digests = vec![DigestRun { first, digests: vec![[1; 32]; count as usize] }];
    let progress = Progress { task: TASK, len: 10 * MIB, added: vec![run], digests, ..Progress::default() };
    cluster.handle(at(2), peer, Event::Progress(progress));
}

#[test]
fn a_download_shows_who_wants_holds_and_fetches_what() {
    let mut cluster = Cluster::new(Options::default());
    let (a, b) = (connect(&mut cluster, "a"), connect(&mut cluster, "b"));
    want(&mut cluster, a, true);
    want(&mut cluster, b, false);
    fetched(&mut cluster, a, 0, 4);
    let taken = vec![0..1];
    let progress = Progress { task: TASK, len: 10 * MIB, added: taken, ..Progress::default() };
    cluster.handle(at(3), b, Event::Progress(progress));

    let seen = cluster.snapshot(at(5_000));
    assert_eq!((seen.gauges.connected, seen.gauges.wants, seen.gauges.leases), (2, 2, 1));
    assert_eq!((seen.counts.pieces_from_origin, seen.counts.pieces_from_peers), (4, 1));
    assert_eq!(seen.nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!((seen.nodes[0].wants, seen.nodes[0].leases, seen.nodes[0].connected_for), (1, 1, Some(5)));
    assert_eq!(seen.links, [(0, 1, 1)]);
    let [task] = &seen.tasks[..] else { panic!("{:?}", seen.tasks) };
    assert_eq!((task.name.as_str(), task.host.as_deref()), (&*"ab".repeat(32), Some("cdn.example")));
    assert_eq!((task.pieces, task.held, task.leased, task.digests, task.wanters), (10, 4, 6, 4, 2));
    assert_eq!(task.strip, [2, 1, 1, 1, 0, 0, 0, 0, 0, 0]);
    assert_eq!(task.leases.iter().map(|lease| (lease.node.as_str(), lease.left)).collect::<Vec<_>>(), [("a", 6)]);

    let detail = cluster.node_detail(at(5_000), "b").expect("it is there");
    let [task] = &detail.tasks[..] else { panic!("{detail:?}") };
    assert_eq!((task.held, task.wants, task.can_fetch, task.links.len()), (1, true, false, 1));
    assert!(cluster.node_detail(at(5_000), "c").is_none());
}

#[test]
fn a_node_that_is_gone_blamed_or_banned_is_shown_so() {
    let mut cluster = Cluster::new(Options::default());
    let peers: Vec<PeerId> = ["a", "b", "c", "d"].iter().map(|name| connect(&mut cluster, name)).collect();
    // Only those that are linked can blame each other.
    for &peer in &peers[..3] {
        let (host, wanted, name) = (String::new(), None, None);
        let want = Event::Want { task: TASK, len: 10 << 20, host, can_fetch: false, connections: 0, wanted, name };
        cluster.handle(at(50), peer, want);
    }
    let blame = |by: PeerId, cluster: &mut Cluster, whom: &str| {
        let event = Event::Blame { peer: whom.to_owned(), task: TASK, piece: 0, silent: false };
        cluster.handle(at(100), by, event);
    };
    blame(peers[0], &mut cluster, "b");
    blame(peers[0], &mut cluster, "c");
    blame(peers[1], &mut cluster, "c");
    cluster.handle(at(100), peers[3], Event::Gone);
    let states = |now| cluster.snapshot(now).nodes.iter().map(|node| node.state).collect::<Vec<_>>();
    assert_eq!(states(at(200)), [State::Up, State::Blamed, State::Banned, State::Away]);
    assert_eq!(states(at(3_600_000)), [State::Up, State::Up, State::Up, State::Away], "blame ends with its time");
    let gauges = cluster.gauges(at(200));
    assert_eq!((gauges.connected, gauges.known, gauges.banned, gauges.blamed), (3, 4, 1, 1));
    assert_eq!((cluster.counts().blames, cluster.counts().bans), (3, 1));
    assert_eq!(cluster.node_detail(at(200), "b").expect("it is there").accusers, ["a"]);
}

#[test]
fn of_a_large_cluster_the_busy_part_is_shown_and_what_is_left_out_is_counted() {
    let mut cluster = Cluster::new(Options::default());
    for n in 0..MAX_NODES + 5 {
        let peer = connect(&mut cluster, &format!("n{n}"));
        let mut task = TASK;
        task[..8].copy_from_slice(&n.to_be_bytes());
        cluster.handle(at(1), peer, Event::Held { task, len: MIB, complete: true, have: Vec::new() });
    }
    let busy = connect(&mut cluster, "zz-busy");
    want(&mut cluster, busy, true);
    let seen = cluster.snapshot(at(10));
    assert_eq!((seen.nodes.len(), seen.more_nodes), (MAX_NODES, 6));
    assert_eq!((seen.tasks.len(), seen.more_tasks), (MAX_TASKS, MAX_NODES + 6 - MAX_TASKS));
    assert!(seen.nodes.iter().any(|node| node.name == "zz-busy"));
    assert_eq!(seen.tasks[0].wanters, 1);
}

#[test]
fn the_strip_of_a_huge_task_has_as_many_cells_as_any() {
    let mut cluster = Cluster::new(Options::default());
    let peer = connect(&mut cluster, "a");
    let len = 1 << 40;
    cluster.handle(at(1), peer, Event::Held { task: TASK, len, complete: false, have: vec![0..32_768] });
    let seen = cluster.snapshot(at(2));
    assert_eq!((seen.tasks[0].pieces, seen.tasks[0].held), (65_536, 32_768));
    assert_eq!(seen.tasks[0].strip, [[1; 24], [0; 24]].concat());
}

#[test]
fn what_a_node_says_of_itself_is_shown_as_it_is_said() {
    let mut cluster = Cluster::new(Options::default());
    let peer = connect(&mut cluster, "a");
    let totals = Totals { from_origin: 5, requests: 2, ..Totals::default() };
    let load = Load { uploads: 3, upload_rate: 9, totals: Some((at(1_500), totals)) };
    cluster.handle(at(2_000), peer, Event::Load(load));
    let node = cluster.snapshot(at(2_000)).nodes.remove(0);
    assert_eq!((node.uploads, node.upload_rate, node.uptime, node.totals), (3, 9, Some(1), Some(totals)));
}
