//! The core under single stories and random ones.

use super::*;

mod budget;
mod leasing;
mod random;
mod spreading;
mod trust;

fn info(n: u32) -> PeerInfo {
    PeerInfo {
        name: format!("p{n}").into(),
        address: ([10, 0, 0, 1], 1).into(),
        endpoints: 1,
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
    Event::Want { task: TASK, len: LEN, host: "hub".into(), can_fetch, connections: 0, wanted: None, name: None }
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
            Event::Want {
                task: TASK,
                len,
                host: String::new(),
                can_fetch: false,
                connections: 0,
                wanted: None,
                name: None,
            },
        );
        let added = vec![n % 900..n % 900 + 3];
        cluster.handle(at(0), peer, Event::Progress(Progress { task: TASK, len, added, ..Progress::default() }));
        drain(&mut cluster);
    }
    let (count, bytes) = cluster.memory();
    assert_eq!(count, 5_000);
    assert!(bytes / count <= 300, "{}", bytes / count);
}
