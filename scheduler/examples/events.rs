//! How many events a second the core takes on one core, and what a peer-task costs:
//! `cargo run --release -p pondhawk-scheduler --example events`.

use std::time::{Duration, Instant};

use pondhawk_scheduler::cluster::{Cluster, DigestRun, Event, Options, PeerId, PeerInfo, Progress};

const PEERS: u32 = 20_000;
const TASKS: u32 = 50;

fn main() {
    for pieces in [100, 1_000, 4_000] {
        run(pieces);
    }
}

/// Peers want tasks, then report their pieces ten at a time, in an order of their own.
fn run(pieces: u32) {
    let len = u64::from(pieces) << if pieces > 1_000 { 24 } else { 20 };
    let mut cluster = Cluster::new(Options::default());
    let peers: Vec<PeerId> = (0..PEERS).map(|n| cluster.connect(info(n))).collect();
    let task = |n: u32| {
        let mut name = [0; 32];
        name[..4].copy_from_slice(&(n % TASKS).to_be_bytes());
        name
    };
    let (mut events, mut directives) = (0u64, 0u64);
    let begin = Instant::now();
    let mut send = |cluster: &mut Cluster, peer, event| {
        let now = begin.elapsed();
        cluster.handle(now, peer, event);
        events += 1;
        if events % 5_000 == 0 {
            cluster.tick(now);
        }
        directives += std::iter::from_fn(|| cluster.poll()).count() as u64;
    };
    for (n, &peer) in (0..).zip(&peers) {
        let host = format!("hub{}", n % 3);
        send(
            &mut cluster,
            peer,
            Event::Want { task: task(n), len, host, can_fetch: true, connections: 0, wanted: None },
        );
    }
    for round in 0..10 {
        for (n, &peer) in (0u32..).zip(&peers) {
            let first = (n.wrapping_mul(2_654_435_761) % pieces + round * 10) % pieces;
            let digests = vec![DigestRun { first, digests: vec![[1; 32]] }];
            let added = std::iter::once(first..first + 10).collect();
            let progress = Progress { task: task(n), len, added, digests, ..Progress::default() };
            send(&mut cluster, peer, Event::Progress(progress));
        }
    }
    let took = begin.elapsed();
    let (count, bytes) = cluster.memory();
    println!(
        "{pieces} pieces: {:.0} events/s ({events} events, {directives} directives, {took:?}), {} B a peer-task",
        events as f64 / took.max(Duration::from_nanos(1)).as_secs_f64(),
        bytes / count
    );
}

fn info(n: u32) -> PeerInfo {
    let label = |key: &str, value: u32| (key.to_owned(), value.to_string());
    PeerInfo {
        name: format!("p{n}").into(),
        address: ([10, 0, 0, 1], 65_010).into(),
        endpoints: 1,
        labels: vec![label("zone", n % 4), label("rack", n % 200)],
        seed: n < 4,
    }
}
