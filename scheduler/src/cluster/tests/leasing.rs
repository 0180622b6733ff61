//! Leases in single stories.

use super::*;

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
    assert_eq!(leases(&told, a), [(1, 0..61)]);
    assert_eq!(leases(&told, b), [(2, 61..100)]);
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
    cluster.handle(at(4_000), b, Event::Progress(Progress { task: TASK, len: LEN, alive, ..Progress::default() }));
    cluster.tick(at(5_001));
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

fn window(wanted: Vec<Range<u32>>) -> Event {
    Event::Want {
        task: TASK,
        len: LEN,
        host: "hub".into(),
        can_fetch: true,
        connections: 0,
        wanted: Some(wanted),
        name: None,
    }
}

fn give_back(lease: u64, reason: ReturnReason) -> Event {
    Event::LeaseReturn { lease, reason, retry_after: Duration::ZERO }
}

#[test]
fn a_peer_is_leased_only_what_its_clients_wait_for() {
    let mut cluster = Cluster::new(Options::default());
    let (a, b) = (cluster.connect(info(0)), cluster.connect(info(1)));
    cluster.handle(at(0), a, window(vec![10..20, 60..200]));
    assert_eq!(leases(&drain(&mut cluster), a), [(1, 10..20), (2, 60..100)]);
    // The other's clients wait for pieces of which only some are free, then for a tail of what is leased.
    cluster.handle(at(1), b, window(vec![15..25]));
    assert_eq!(leases(&drain(&mut cluster), b), [(3, 20..23)]);
    cluster.handle(at(2), b, added(vec![20..23]));
    cluster.handle(at(2), b, added(vec![23..25]));
    assert_eq!(leases(&drain(&mut cluster), b), [(4, 23..24)]);
    cluster.handle(at(3), b, window(vec![97..100]));
    let told = drain(&mut cluster);
    assert_eq!((leases(&told, a), leases(&told, b)), (vec![(2, 60..98)], vec![(5, 98..100)]));
}

#[test]
fn what_a_peer_does_not_need_goes_to_another_and_not_back_to_it_before_it_wants_it_again() {
    let mut cluster = Cluster::new(Options::default());
    let (a, b) = (cluster.connect(info(0)), cluster.connect(info(1)));
    cluster.handle(at(0), a, want(true));
    cluster.handle(at(1), a, give_back(1, ReturnReason::Unneeded));
    cluster.tick(at(60));
    assert_eq!(leases(&drain(&mut cluster), a), [(1, 0..100)]);
    cluster.handle(at(100), b, want(true));
    assert_eq!(leases(&drain(&mut cluster), b), [(2, 0..16)]);
    cluster.handle(at(101), a, want(true));
    assert_eq!(leases(&drain(&mut cluster), a), [(3, 16..32)]);
}

#[test]
fn what_a_slow_peer_has_not_begun_goes_to_an_idle_one() {
    let mut cluster = Cluster::new(Options::default());
    let (a, b) = (cluster.connect(info(0)), cluster.connect(info(1)));
    cluster.handle(at(0), a, want(true));
    cluster.handle(at(1), a, added(vec![0..84]));
    drain(&mut cluster);
    // One piece since the last report, and one request under way: at most three more pieces are begun.
    let digests = vec![DigestRun { first: 84, digests: vec![[1; 32]] }];
    let progress = Progress { task: TASK, len: LEN, added: vec![84..85], digests, requests: 1, ..Progress::default() };
    cluster.handle(at(100), a, Event::Progress(progress));
    cluster.handle(at(101), b, want(true));
    let told = drain(&mut cluster);
    assert_eq!((leases(&told, a), leases(&told, b)), (vec![(1, 0..94)], vec![(2, 94..100)]));
}

#[test]
fn a_lease_that_fails_is_not_tried_again_at_once_by_the_same_peer() {
    let mut cluster = Cluster::new(Options::default());
    let a = cluster.connect(info(0));
    cluster.handle(at(0), a, want(true));
    cluster.handle(at(1), a, give_back(1, ReturnReason::Failed));
    cluster.tick(at(900));
    assert_eq!(leases(&drain(&mut cluster), a), [(1, 0..100)]);
    cluster.tick(at(1_001));
    assert_eq!(leases(&drain(&mut cluster), a), [(2, 0..100)]);
}

#[test]
fn pieces_that_another_fetched_without_a_lease_are_taken_off_the_holders() {
    let mut cluster = Cluster::new(Options::default());
    let (a, b) = (cluster.connect(info(0)), cluster.connect(info(1)));
    cluster.handle(at(0), a, want(true));
    cluster.handle(at(1), b, want(false));
    drain(&mut cluster);
    cluster.handle(at(2), b, added(vec![80..100]));
    assert_eq!(leases(&drain(&mut cluster), a), [(1, 0..80)]);
    cluster.handle(at(3), b, added(vec![10..80]));
    assert_eq!(leases(&drain(&mut cluster), a), [(1, 0..10)]);
    cluster.handle(at(4), b, added(vec![0..10]));
    assert!(drain(&mut cluster).contains(&(a, Directive::LeaseEnd { id: 1 })));
    assert!(cluster.leases.is_empty());
}

#[test]
fn what_only_a_peer_without_a_session_holds_is_leased_to_others_within_seconds() {
    let mut cluster = Cluster::new(Options::default());
    let (a, b) = (cluster.connect(info(0)), cluster.connect(info(1)));
    cluster.handle(at(0), a, want(true));
    cluster.handle(at(1), a, added(vec![0..100]));
    cluster.handle(at(2), b, want(true));
    assert_eq!(leases(&drain(&mut cluster), b), []);
    cluster.handle(at(3), a, Event::Gone);
    cluster.tick(at(3_010));
    assert_eq!(leases(&drain(&mut cluster), b), [(2, 0..16)]);
    // It comes back and names what it holds: nothing is left to fetch.
    let again = cluster.connect(info(0));
    cluster.handle(at(3_100), again, Event::InventoryStart);
    cluster.handle(at(3_100), again, Event::Held { task: TASK, len: LEN, complete: true, have: vec![] });
    cluster.handle(at(3_100), again, Event::InventoryEnd);
    assert!(drain(&mut cluster).contains(&(b, Directive::LeaseEnd { id: 2 })));
    assert_eq!(cluster.seen(0).unwrap().free.total(), 0);
}

#[test]
fn a_host_that_asks_for_less_is_left_alone_by_all_tasks() {
    let mut cluster = Cluster::new(Options::default());
    let (a, b) = (cluster.connect(info(0)), cluster.connect(info(1)));
    cluster.handle(at(0), a, want(true));
    let wants = |task| Event::Want {
        task: [task; 32],
        len: LEN,
        host: "hub".into(),
        can_fetch: true,
        connections: 0,
        wanted: None,
        name: None,
    };
    cluster.handle(at(1), b, wants(8));
    let retry_after = at(7_000);
    cluster.handle(at(2), b, Event::LeaseReturn { lease: 2, reason: ReturnReason::Throttled, retry_after });
    cluster.handle(at(3), b, wants(9));
    let told = drain(&mut cluster);
    let throttled = Directive::Throttle { host: "hub".into(), pause: retry_after };
    assert!(told.contains(&(a, throttled.clone())) && told.contains(&(b, throttled)));
    assert_eq!(leases(&told, b), [(2, 0..100)]);
    cluster.tick(at(7_003));
    assert_eq!(leases(&drain(&mut cluster), b).len(), 2);
}

#[test]
fn a_host_takes_no_more_connections_than_its_budget_and_tasks_wait_their_turn() {
    let mut cluster = Cluster::new(Options { origin_connections: 8, ..Options::default() });
    let peers: Vec<_> = (0..5).map(|n| cluster.connect(info(n))).collect();
    for (n, &peer) in (0..).zip(&peers) {
        let task = [n; 32];
        let host = "hub".into();
        let want = Event::Want { task, len: 1 << 20, host, can_fetch: true, connections: 4, wanted: None, name: None };
        cluster.handle(at(0), peer, want);
    }
    assert_eq!(cluster.leases.len(), 2);
    let mut served = 0;
    for round in 1..4 {
        for (peer, directive) in drain(&mut cluster) {
            if let Directive::Lease { task, pieces, .. } = directive {
                served += 1;
                let progress = Progress { task, len: 1 << 20, added: vec![pieces], ..Progress::default() };
                cluster.handle(at(round * 50), peer, Event::Progress(progress));
            }
        }
        assert!(cluster.hosts["hub"].in_use <= 8);
        cluster.tick(at(round * 50));
    }
    assert_eq!(served, 5);
}

#[test]
fn a_peer_that_came_back_without_its_wants_is_leased_nothing() {
    let mut cluster = Cluster::new(Options::default());
    let a = cluster.connect(info(0));
    cluster.handle(at(0), a, want(true));
    cluster.handle(at(1), a, Event::Gone);
    cluster.connect(info(0));
    cluster.handle(at(2), a, Event::InventoryStart);
    cluster.handle(at(2), a, Event::InventoryEnd);
    (0..20).for_each(|second| cluster.tick(at(second * 1_000)));
    assert_eq!(cluster.tasks(), 0);
    assert!(cluster.leases.is_empty());
}
