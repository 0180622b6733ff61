//! Random events never break what always holds.

use proptest::prelude::*;

use super::*;

const PEERS: u32 = 24;

/// What the peers were told, checked against itself: no piece is two peers' to fetch at once.
#[derive(Default)]
struct Told {
    leases: HashMap<u64, (PeerId, TaskName, Range<u32>)>,
}

impl Told {
    fn take(&mut self, cluster: &mut Cluster) {
        for (peer, directive) in drain(cluster) {
            match directive {
                Directive::Lease { id, task, pieces, .. } => {
                    let before = self.leases.insert(id, (peer, task, pieces.clone()));
                    if let Some((holder, of, run)) = before {
                        let shorter = run.start == pieces.start && pieces.end < run.end;
                        assert!(holder == peer && of == task && shorter, "{run:?} became {pieces:?}");
                    }
                }
                Directive::LeaseEnd { id } => drop(self.leases.remove(&id)),
                _ => {}
            }
        }
        self.leases.retain(|id, _| cluster.leases.contains_key(id));
        for (id, lease) in &cluster.leases {
            let connected = cluster.members.get(lease.peer).unwrap().connected;
            // One without a session is not told, and hears it when the lease is silent.
            assert!(!connected || self.leases.get(id).is_none_or(|(.., run)| run.start == lease.start));
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Peer(u32, Event),
    Return(u32, usize, ReturnReason),
    Connect(u32),
    Wait(u64),
}

fn runs() -> impl Strategy<Value = Vec<Range<u32>>> {
    proptest::collection::vec((0u32..110, 1u32..30), 0..4)
        .prop_map(|runs| runs.into_iter().map(|(start, len)| start..start + len).collect())
}

fn event() -> impl Strategy<Value = Event> {
    let task = || (0u8..3).prop_map(|task| [task; 32]);
    let host = || prop_oneof![Just("a".to_owned()), Just("b".to_owned())];
    let digests = (0u32..100, 0u8..3).prop_map(|(first, byte)| DigestRun { first, digests: vec![[byte; 32]] });
    prop_oneof![
        4 => (task(), host(), any::<bool>(), 0u32..6, proptest::option::of(runs())).prop_map(
            |(task, host, can_fetch, connections, wanted)| Event::Want {
                task, len: LEN, host, can_fetch, connections, wanted, name: Some(Arc::from(&[1][..])),
            }
        ),
        1 => (task(), host(), any::<bool>(), 0usize..3, any::<bool>()).prop_map(|(task, host, seeds, count, pin)| {
            let scope = Scope { seeds, labels: Vec::new(), count };
            Event::Spread { task, len: LEN, host, name: Some(Arc::from(&[1][..])), scope, pin }
        }),
        1 => task().prop_map(|task| Event::Unwant { task }),
        6 => (task(), runs(), runs(), proptest::collection::vec(digests, 0..3), 0u8..24).prop_map(
            |(task, added, lost, digests, what)| {
                let lost = if what < 4 { lost } else { vec![] };
                let (complete, gone, wrong) = (what == 5, what == 6 || what == 7, what == 7);
                let progress = Progress { task, len: LEN, added, lost, digests, complete, gone, wrong, ..Progress::default() };
                Event::Progress(progress)
            }
        ),
        1 => Just(Event::Gone),
        1 => Just(Event::InventoryStart),
        1 => Just(Event::InventoryEnd),
        1 => (task(), runs(), 0u8..5).prop_map(|(task, have, n)| Event::Held { task, len: LEN, complete: n == 0, have }),
        1 => (0..PEERS, task(), any::<bool>()).prop_map(|(peer, task, silent)| Event::Blame { peer: format!("p{peer}"), task, piece: 1, silent }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let reason = prop_oneof![
        Just(ReturnReason::Expired),
        Just(ReturnReason::Throttled),
        Just(ReturnReason::Failed),
        Just(ReturnReason::Unneeded)
    ];
    prop_oneof![
        12 => (0..PEERS, event()).prop_map(|(peer, event)| Step::Peer(peer, event)),
        2 => (0..PEERS, 0usize..8, reason).prop_map(|(peer, nth, reason)| Step::Return(peer, nth, reason)),
        2 => (0..PEERS).prop_map(Step::Connect),
        2 => (1u64..4_000).prop_map(Step::Wait),
    ]
}

fn run(cluster: &mut Cluster, steps: Vec<Step>) -> Duration {
    let mut told = Told::default();
    let mut now = Duration::ZERO;
    let ids: Vec<PeerId> = (0..PEERS).map(|n| cluster.connect(info(n))).collect();
    for step in steps {
        now += at(30);
        match step {
            Step::Peer(peer, event) => cluster.handle(now, ids[peer as usize], event),
            Step::Connect(peer) => assert!(cluster.connect(info(peer)).0 < PEERS),
            Step::Wait(ms) => now += at(ms.min(400)),
            Step::Return(peer, nth, reason) => {
                let mut own: Vec<u64> =
                    cluster.leases.iter().filter(|(_, lease)| lease.peer == peer).map(|(id, _)| *id).collect();
                own.sort_unstable();
                if let Some(&lease) = own.get(nth) {
                    cluster.handle(now, PeerId(peer), Event::LeaseReturn { lease, reason, retry_after: at(0) });
                }
            }
        }
        cluster.check_invariants(now);
        cluster.tick(now);
        cluster.check_invariants(now);
        told.take(cluster);
    }
    now
}

proptest! {
    #[test]
    fn pieces_links_leases_and_budgets_stay_in_order_and_a_peer_that_can_fetch_gets_all_in_the_end(
        steps in proptest::collection::vec(step(), 1..120),
        small: bool,
    ) {
        let links = if small { 3 } else { 16 };
        let mut options = Options { max_links: links, parents: links.min(12), ..Options::default() };
        options.origin_connections = if small { 6 } else { 64 };
        let mut cluster = Cluster::new(options);
        let mut now = run(&mut cluster, steps);
        let last = cluster.connect(info(99));
        let wants = |task| Event::Want {
            task: [task; 32], len: LEN, host: "a".into(), can_fetch: true, connections: 1, wanted: None, name: None,
        };
        (0..3).for_each(|task| cluster.handle(now, last, wants(task)));
        // Long enough for all that took a lease and fell silent to have been tried a few times.
        for _ in 0..800 {
            now += at(1_000);
            for (peer, directive) in drain(&mut cluster) {
                if let (true, Directive::Lease { task, pieces, .. }) = (peer == last, directive) {
                    let progress = Progress { task, len: LEN, added: vec![pieces], ..Progress::default() };
                    cluster.handle(now, last, Event::Progress(progress));
                }
            }
            cluster.tick(now);
        }
        cluster.check_invariants(now);
        for task in cluster.tasks.iter().flatten() {
            let unheld = task.unheld(0..task.pieces);
            let disputed = unheld.iter().cloned().flatten().all(|piece| task.digests.is_disputed(piece));
            prop_assert!(disputed, "{unheld:?} free {:?} waiting {:?}", task.free, task.waiting);
        }
    }

    #[test]
    fn the_same_events_give_the_same_directives(steps in proptest::collection::vec(step(), 1..80)) {
        let play = |steps: Vec<Step>| {
            let mut cluster = Cluster::new(Options::default());
            let ids: Vec<PeerId> = (0..PEERS).map(|n| cluster.connect(info(n))).collect();
            let mut told = Vec::new();
            for (n, step) in (0..).zip(steps) {
                if let Step::Peer(peer, event) = step {
                    cluster.handle(at(n * 100), ids[peer as usize], event);
                    cluster.tick(at(n * 100));
                    told.extend(drain(&mut cluster));
                }
            }
            told
        };
        prop_assert_eq!(play(steps.clone()), play(steps));
    }
}
