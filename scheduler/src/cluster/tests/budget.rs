//! What peers claim costs no more than they sent, and one peer's claims do not harm the others.

use super::super::budget::MAX_TASKS_A_PEER;
use super::*;

/// 64 TiB: 4,194,304 pieces.
const LONGEST: u64 = 64 << 40;

fn named(n: u32) -> TaskName {
    let mut name = [0; 32];
    name[..4].copy_from_slice(&n.to_be_bytes());
    name
}

fn claims(len: u64, n: u32, added: Vec<Range<u32>>) -> Event {
    Event::Progress(Progress { task: named(n), len, added, ..Progress::default() })
}

fn charged(cluster: &Cluster) -> usize {
    cluster.tasks.iter().flatten().flat_map(|task| &task.entries).map(|entry| entry.charged as usize).sum()
}

#[test]
fn the_longest_tasks_cost_what_their_runs_do() {
    let mut cluster = Cluster::new(Options::default());
    let peer = cluster.connect(info(0));
    for n in 0..1_000 {
        cluster.handle(at(0), peer, claims(LONGEST, n, vec![0..1, 4_000_000..4_194_304]));
    }
    let tasks = cluster.tasks.iter().flatten();
    let held: usize = tasks.map(|task| task.holders.bytes() + task.entries[0].have.bytes()).sum();
    assert!(held <= 1_000 * 128, "{held} bytes for 2,000 runs");
    assert_eq!((charged(&cluster), cluster.claimed), (cluster.claimed, cluster.claimed));
    assert!(cluster.take_refused().is_empty());
}

#[test]
fn a_peer_is_entered_at_no_more_tasks_than_its_budget_allows() {
    let mut cluster = Cluster::new(Options::default());
    let (greedy, modest) = (cluster.connect(info(0)), cluster.connect(info(1)));
    let most = u32::try_from(MAX_TASKS_A_PEER).unwrap();
    for n in 0..most + 10 {
        let held = Event::Held { task: named(n), len: LONGEST, complete: true, have: Vec::new() };
        cluster.handle(at(0), greedy, held);
    }
    assert_eq!(cluster.tasks(), MAX_TASKS_A_PEER);
    assert!(cluster.take_refused().is_empty(), "a node with a large store keeps its session");
    cluster.handle(at(1), modest, want(true));
    assert_eq!(leases(&drain(&mut cluster), modest), [(1, 0..100)]);
}

#[test]
fn a_peer_whose_runs_are_over_its_budget_is_refused_and_what_it_claimed_is_dropped() {
    let mut cluster = Cluster::new(Options::default());
    let (greedy, modest) = (cluster.connect(info(0)), cluster.connect(info(1)));
    cluster.handle(at(0), modest, added(vec![0..100]));
    let scattered: Vec<_> = (0..20_000).map(|n| n * 2..n * 2 + 1).collect();
    let mut tasks = 0;
    while cluster.refused.is_empty() && tasks < 1_000 {
        cluster.handle(at(1), greedy, claims(LONGEST, tasks, scattered.clone()));
        tasks += 1;
    }
    assert_eq!(cluster.take_refused(), [greedy]);
    assert!(tasks < 100, "{tasks} tasks of 20,000 runs");
    cluster.handle(at(2), greedy, claims(LONGEST, tasks, vec![0..1]));
    cluster.handle(at(3), greedy, Event::Gone);
    (0..100).for_each(|tick| cluster.tick(at(50 + tick * 50)));
    assert_eq!((cluster.peers(), cluster.tasks()), (1, 1));
    assert_eq!(cluster.claimed, charged(&cluster));
}

#[test]
fn where_all_claims_together_take_too_much_the_largest_is_refused() {
    let mut cluster = Cluster::new(Options { claim_memory: 4 << 20, ..Options::default() });
    let (greedy, modest) = (cluster.connect(info(0)), cluster.connect(info(1)));
    let scattered: Vec<_> = (0..20_000).map(|n| n * 2..n * 2 + 1).collect();
    (0..10).for_each(|n| cluster.handle(at(0), greedy, claims(LONGEST, n, scattered.clone())));
    assert_eq!(cluster.take_refused(), [greedy]);
    cluster.handle(at(1), modest, claims(LONGEST, 99, vec![5..6]));
    cluster.handle(at(1), modest, want(true));
    assert!(cluster.take_refused().is_empty());
    assert_eq!(leases(&drain(&mut cluster), modest), [(1, 0..100)]);
}

#[test]
fn one_peers_digests_do_not_push_out_those_of_others() {
    let mut cluster = Cluster::new(Options { digest_memory: 1 << 20, ..Options::default() });
    let (greedy, modest) = (cluster.connect(info(0)), cluster.connect(info(1)));
    let report = |n, count: u32| {
        let digests = vec![DigestRun { first: 0, digests: vec![[n; 32]; count as usize] }];
        let all = std::iter::once(0..count).collect();
        Event::Progress(Progress { task: [n; 32], len: LEN, added: all, digests, ..Progress::default() })
    };
    cluster.handle(at(0), modest, report(0, 100));
    (1..250).for_each(|n| cluster.handle(at(1), greedy, report(n, 100)));
    let known = |n: u8| cluster.by_name.get(&[n; 32]).and_then(|&at| cluster.seen(at)).unwrap().digests.known.count();
    assert_eq!(known(0), 100);
    assert_eq!((known(1), known(249)), (0, 100), "its own oldest ones made room");
    assert!(cluster.digest_bytes <= (1 << 20) / 4, "{}", cluster.digest_bytes);
}

#[test]
fn what_a_peer_says_again_and_again_leaves_nothing_behind() {
    let mut cluster = Cluster::new(Options::default());
    let (holder, fickle) = (cluster.connect(info(0)), cluster.connect(info(1)));
    cluster.handle(at(0), holder, added(vec![0..100]));
    for n in 0..10_000 {
        cluster.handle(at(n), fickle, want(true));
        cluster.handle(at(n), fickle, Event::Unwant { task: TASK });
        let digests = vec![DigestRun { first: 0, digests: vec![[1; 32]] }];
        let one = std::iter::once(0..1).collect();
        let report = Progress { task: [8; 32], len: LEN, added: one, digests, ..Progress::default() };
        cluster.handle(at(n), fickle, Event::Progress(report));
        cluster.handle(at(n), fickle, Event::Progress(Progress { task: [8; 32], gone: true, ..Progress::default() }));
        let label = ("zone".to_owned(), format!("z{n}"));
        cluster.connect(PeerInfo { labels: vec![label], ..info(1) });
        drain(&mut cluster);
    }
    let task = cluster.seen(0).unwrap();
    assert!(task.waiting.len() <= 2, "{} wait", task.waiting.len());
    assert!(cluster.digest_order.len() <= 1_100, "{} in order", cluster.digest_order.len());
    assert!(cluster.members.group_count() <= 4, "{} groups", cluster.members.group_count());
    assert!(cluster.lease_ends.len() <= cluster.leases.len());
    assert_eq!(cluster.claimed, charged(&cluster));
}

#[test]
fn one_peer_does_not_use_up_the_table_of_hosts() {
    let mut cluster = Cluster::new(Options::default());
    let (greedy, modest) = (cluster.connect(info(0)), cluster.connect(info(1)));
    let wants = |n: u32, host: &str| Event::Want {
        task: named(n),
        len: LEN,
        host: host.to_owned(),
        can_fetch: true,
        connections: 1,
        wanted: None,
        name: None,
    };
    (0..5_000).for_each(|n| cluster.handle(at(0), greedy, wants(n, &format!("h{n}"))));
    cluster.handle(at(1), modest, wants(9_999, "cdn.example"));
    assert_eq!(leases(&drain(&mut cluster), modest).len(), 1);
}

#[test]
fn one_peer_leaves_connections_to_an_origin_for_the_others() {
    let mut cluster = Cluster::new(Options::default());
    let (greedy, modest) = (cluster.connect(info(0)), cluster.connect(info(1)));
    let wants = |n: u32, connections| Event::Want {
        task: named(n),
        len: LEN,
        host: "cdn.example".to_owned(),
        can_fetch: true,
        connections,
        wanted: None,
        name: None,
    };
    (0..100).for_each(|n| cluster.handle(at(0), greedy, wants(n, 255)));
    (100..400).for_each(|n| cluster.handle(at(0), greedy, wants(n, 1)));
    cluster.handle(at(1), modest, wants(9_999, 4));
    assert_eq!(leases(&drain(&mut cluster), modest).len(), 1);
}

#[test]
fn a_peer_with_many_tasks_leaves_them_over_several_ticks() {
    let hold = |cluster: &mut Cluster, peer| {
        for n in 0..1_000 {
            cluster.handle(at(0), peer, Event::Held { task: named(n), len: LEN, complete: true, have: Vec::new() });
        }
    };
    let mut cluster = Cluster::new(Options::default());
    let peer = cluster.connect(info(0));
    hold(&mut cluster, peer);
    cluster.handle(at(1), peer, Event::InventoryStart);
    cluster.handle(at(1), peer, Event::InventoryEnd);
    assert_eq!(cluster.tasks(), 1_000 - sessions::TASKS_AT_ONCE);
    (1..20).for_each(|tick| cluster.tick(at(tick * 50)));
    assert_eq!((cluster.tasks(), cluster.claimed), (0, 0));
    hold(&mut cluster, peer);
    cluster.handle(at(1_000), peer, Event::Gone);
    cluster.tick(at(4_000));
    assert_eq!(cluster.tasks(), 1_000, "its place is kept for its return");
    (0..20).for_each(|tick| cluster.tick(at(20_000 + tick * 50)));
    assert_eq!((cluster.peers(), cluster.tasks(), cluster.claimed), (0, 0, 0));
}
