//! The core under single stories and random ones.

use super::*;

fn info(n: u32) -> PeerInfo {
    PeerInfo {
        name: format!("p{n}").into(),
        address: ([10, 0, 0, 1], 1).into(),
        labels: vec![("zone".into(), format!("z{}", n % 3)), ("rack".into(), format!("r{}", n % 9))],
        seed: false,
    }
}

const LEN: u64 = 100 << 20;
const TASK: TaskName = [7; 32];

fn at(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn want(can_fetch: bool) -> Event {
    Event::Want { task: TASK, len: LEN, host: "hub".into(), can_fetch, connections: 0 }
}

fn added(runs: Vec<Range<u32>>) -> Event {
    Event::Progress(Progress { task: TASK, len: LEN, added: runs, ..Progress::default() })
}

fn digest(piece: u32, byte: u8) -> Event {
    let digests = vec![DigestRun { first: piece, digests: vec![[byte; 32]] }];
    Event::Progress(Progress { task: TASK, len: LEN, digests, ..Progress::default() })
}

fn drain(cluster: &mut Cluster) -> Vec<(PeerId, Directive)> {
    std::iter::from_fn(|| cluster.poll()).collect()
}

fn leases(all: &[(PeerId, Directive)], of: PeerId) -> Vec<(u64, Range<u32>)> {
    let lease = |(to, directive): &(PeerId, Directive)| match directive {
        Directive::Lease { id, pieces, .. } if *to == of => Some((*id, pieces.clone())),
        _ => None,
    };
    all.iter().filter_map(lease).collect()
}

#[test]
fn a_peer_alone_gets_everything_and_shares_it_with_a_late_joiner() {
    let mut cluster = Cluster::new(Options::default());
    let a = cluster.connect(info(0));
    cluster.handle(at(0), a, want(true));
    assert_eq!(leases(&drain(&mut cluster), a), [(1, 0..100)]);
    cluster.handle(at(10), a, added(vec![0..10]));
    let b = cluster.connect(info(1));
    cluster.handle(at(20), b, want(true));
    let told = drain(&mut cluster);
    assert_eq!(leases(&told, a), [(1, 0..55)]);
    assert_eq!(leases(&told, b), [(2, 55..100)]);
    assert_eq!(told.iter().filter(|(_, d)| matches!(d, Directive::Link { .. })).count(), 2);
}

#[test]
fn a_silent_lease_goes_to_another_peer() {
    let mut cluster = Cluster::new(Options::default());
    let (a, b) = (cluster.connect(info(0)), cluster.connect(info(1)));
    cluster.handle(at(0), a, want(true));
    cluster.handle(at(0), a, added(vec![0..3]));
    cluster.handle(at(0), b, want(false));
    cluster.handle(at(1), b, want(true));
    let first = leases(&drain(&mut cluster), b);
    assert!(!first.is_empty());
    let alive = vec![first[0].0];
    cluster.handle(at(9_000), b, Event::Progress(Progress { task: TASK, len: LEN, alive, ..Progress::default() }));
    cluster.tick(at(10_001));
    let told = drain(&mut cluster);
    assert!(told.contains(&(a, Directive::LeaseEnd { id: 1 })));
}

#[test]
fn an_expired_url_hands_its_leases_to_the_others() {
    let mut cluster = Cluster::new(Options::default());
    let (a, b) = (cluster.connect(info(0)), cluster.connect(info(1)));
    cluster.handle(at(0), a, want(true));
    cluster.handle(at(0), b, want(true));
    drain(&mut cluster);
    let reason = ReturnReason::Expired;
    cluster.handle(at(1), a, Event::LeaseReturn { lease: 1, reason, retry_after: Duration::ZERO });
    cluster.handle(at(2), b, added(vec![50..100]));
    assert_eq!(leases(&drain(&mut cluster), b).into_iter().map(|(_, run)| run).collect::<Vec<_>>(), [0..50]);
}

#[test]
fn two_that_agree_outvote_the_liar() {
    let mut cluster = Cluster::new(Options::default());
    let peers: Vec<_> = (0..3).map(|n| cluster.connect(info(n))).collect();
    for &peer in &peers {
        cluster.handle(at(0), peer, want(true));
    }
    cluster.handle(at(1), peers[0], digest(4, 66));
    cluster.handle(at(2), peers[1], digest(4, 1));
    let told = drain(&mut cluster);
    assert_eq!(told.iter().filter(|(_, d)| matches!(d, Directive::Dispute { refetch: true, .. })).count(), 2);
    cluster.handle(at(3), peers[1], digest(4, 1));
    assert!(cluster.members.get(0).unwrap().banned_until.is_none());
    cluster.handle(at(4), peers[2], digest(4, 1));
    assert!(cluster.members.get(0).unwrap().banned_until.is_some());
    assert!(cluster.members.get(1).unwrap().banned_until.is_none());
    assert!(cluster.seen_entry(0, 0).unwrap().links.is_empty());
}

#[test]
fn a_peer_that_two_blame_is_nobodys_parent_and_one_accuser_is_not_enough() {
    let mut cluster = Cluster::new(Options::default());
    let peers: Vec<_> = (0..4).map(|n| cluster.connect(info(n))).collect();
    for &peer in &peers {
        cluster.handle(at(0), peer, want(false));
    }
    let blame = || Event::Blame { peer: "p0".into(), task: TASK, piece: 0 };
    cluster.handle(at(1), peers[1], blame());
    cluster.handle(at(1), peers[1], blame());
    assert_eq!(cluster.seen_entry(0, 0).unwrap().links.len(), 2);
    cluster.handle(at(2), peers[2], blame());
    assert!(cluster.seen_entry(0, 0).unwrap().links.is_empty());
}

#[test]
fn after_a_restart_the_inventories_say_all_and_a_holder_is_asked_for_digests() {
    let mut cluster = Cluster::new(Options::default());
    let (a, b) = (cluster.connect(info(0)), cluster.connect(info(1)));
    cluster.handle(at(0), a, Event::InventoryStart);
    cluster.handle(at(0), a, Event::Held { task: TASK, len: LEN, complete: true, have: vec![] });
    cluster.handle(at(0), a, Event::InventoryEnd);
    cluster.handle(at(1), b, want(true));
    let told = drain(&mut cluster);
    assert!(leases(&told, b).is_empty());
    assert!(told.contains(&(a, Directive::DigestsWanted { task: TASK, pieces: vec![0..100] })));
    cluster.handle(at(2), a, Event::Gone);
    cluster.tick(at(20_000));
    assert_eq!(leases(&drain(&mut cluster), b).into_iter().map(|(_, run)| run).collect::<Vec<_>>(), [0..100]);
}

#[test]
fn a_peer_and_task_take_at_most_300_bytes_at_a_thousand_pieces() {
    let mut cluster = Cluster::new(Options::default());
    for n in 0..5_000 {
        let peer = cluster.connect(info(n));
        let len = 1_000 << 20;
        cluster.handle(
            at(0),
            peer,
            Event::Want { task: TASK, len, host: String::new(), can_fetch: false, connections: 0 },
        );
        let added = vec![n % 900..n % 900 + 3];
        cluster.handle(at(0), peer, Event::Progress(Progress { task: TASK, len, added, ..Progress::default() }));
        drain(&mut cluster);
    }
    let (count, bytes) = cluster.memory();
    assert_eq!(count, 5_000);
    assert!(bytes / count <= 300, "{}", bytes / count);
}

fn check(cluster: &Cluster) {
    let Some(task) = cluster.tasks.first().and_then(Option::as_ref) else { return };
    let mut end = 0;
    for id in task.leases.values() {
        let lease = &cluster.leases[id];
        assert!(lease.start >= end && lease.end > lease.start, "leases overlap");
        end = lease.end;
        assert!(task.fetchers.contains_key(&lease.peer));
    }
    assert_eq!(task.leases.len(), cluster.leases.len());
    let in_use: u32 = task.fetchers.values().map(|fetcher| fetcher.connections).sum();
    assert!(in_use <= cluster.options.origin_connections);
    for entry in &task.entries {
        assert!(entry.links.len() <= cluster.options.max_links + 2);
        for &other in &entry.links {
            assert!(cluster.seen_entry(0, other).unwrap().links.contains(&entry.peer), "links are mutual");
        }
    }
}

proptest::proptest! {
    #[test]
    fn leases_never_overlap_and_every_piece_is_fetched_in_the_end(
        steps in proptest::collection::vec((0u32..30, 0u8..7, 0u32..100), 1..150)
    ) {
        let mut cluster = Cluster::new(Options::default());
        let mut now = 0;
        for (peer, what, piece) in steps {
            now += 300;
            let id = cluster.connect(info(peer));
            let event = match what {
                0 | 1 => want(true),
                2 => want(false),
                3 => added(vec![piece..piece + 5]),
                4 => Event::Unwant { task: TASK },
                5 => Event::Gone,
                _ => Event::LeaseReturn { lease: u64::from(piece), reason: ReturnReason::Failed, retry_after: at(0) },
            };
            cluster.handle(at(now), id, event);
            cluster.tick(at(now));
            check(&cluster);
        }
        let last = cluster.connect(info(99));
        drain(&mut cluster);
        cluster.handle(at(now), last, want(true));
        for _ in 0..400 {
            now += 1_000;
            for (peer, directive) in drain(&mut cluster) {
                if let (true, Directive::Lease { pieces, .. }) = (peer == last, directive) {
                    cluster.handle(at(now), last, added(vec![pieces]));
                }
            }
            cluster.tick(at(now));
            check(&cluster);
        }
        let task = cluster.tasks[0].as_ref().unwrap();
        proptest::prop_assert_eq!(task.free.total(), 0);
    }
}
