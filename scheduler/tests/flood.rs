//! One certified peer that claims as much as it can, as fast as it can, beside honest ones.
//!
//! `PONDHAWK_FLOOD_SECONDS=600 cargo test --release -p pondhawk-scheduler --test flood -- --nocapture` is the long form; it prints
//! the growth of the scheduler's memory and the delays of honest leases with and without the flood.

#![expect(clippy::unwrap_used, reason = "a panic is how a test reports")]

#[path = "page/nodes.rs"]
#[allow(dead_code, reason = "each test file uses its part")]
mod nodes;
mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pondhawk_proto::v1 as proto;
use proto::peer_message::Body;
use proto::scheduler_client::SchedulerClient;
use proto::scheduler_message::Body as Answer;
use support::{LONG, Up};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

/// 64 TiB, the longest task that there is.
const LONGEST: u64 = 64 << 40;
/// The scheduler may grow by this much, whatever one peer sends.
const MOST_GROWTH: u64 = 64 << 20;
const HONEST: usize = 4;

struct Session {
    out: mpsc::Sender<proto::PeerMessage>,
    incoming: tonic::Streaming<proto::SchedulerMessage>,
}

impl Session {
    async fn open(channel: Channel, name: &str) -> Option<Self> {
        let (out, queue) = mpsc::channel(64);
        let hello = proto::Hello {
            protocol_min: pondhawk_proto::PROTOCOL_MIN,
            protocol_max: pondhawk_proto::PROTOCOL_MAX,
            name: name.to_owned(),
            quic_address: "0.0.0.0:65010".to_owned(),
            ..Default::default()
        };
        out.send(message(Body::Hello(hello))).await.ok()?;
        out.send(message(Body::Inventory(proto::Inventory { holdings: Vec::new(), last: true }))).await.ok()?;
        let answer = SchedulerClient::new(channel).session(ReceiverStream::new(queue)).await.ok()?;
        Some(Self { out, incoming: answer.into_inner() })
    }

    /// The delay from a Want to its Lease.
    async fn lease(&mut self, task: [u8; 32]) -> Duration {
        let began = Instant::now();
        self.out.send(message(Body::Want(want(task, 5 << 20, "cdn.example", 4)))).await.unwrap();
        loop {
            let answer = tokio::time::timeout(LONG, self.incoming.message()).await.expect("a lease comes").unwrap();
            match answer.expect("an honest peer keeps its session").body {
                Some(Answer::Lease(lease)) if lease.task[..] == task => break,
                Some(Answer::Ping(ping)) => {
                    self.out.send(message(Body::Pong(proto::Pong { nonce: ping.nonce }))).await.unwrap();
                }
                _ => {}
            }
        }
        let delay = began.elapsed();
        self.out.send(message(Body::Unwant(proto::Unwant { task: task.to_vec().into() }))).await.unwrap();
        delay
    }
}

fn message(body: Body) -> proto::PeerMessage {
    proto::PeerMessage { body: Some(body) }
}

fn want(task: [u8; 32], len: u64, host: &str, connections: u32) -> proto::Want {
    let (task, origin_host) = (task.to_vec().into(), host.to_owned());
    proto::Want { task, len, origin_host, can_fetch: true, connections, ..Default::default() }
}

fn named(kind: u8, n: u32) -> [u8; 32] {
    let mut task = [kind; 32];
    task[..4].copy_from_slice(&n.to_be_bytes());
    task
}

/// What the hostile peer says in its `n`th message: most tasks, longest tasks, scattered runs, digests far apart, wishes that it
/// changes, all in turn. It stays within what is refused, so that it goes on for as long as the test.
fn hostile(n: u32) -> Body {
    let progress = |changed| Body::Progress(proto::Progress { tasks: changed, ..Default::default() });
    let base = proto::TaskProgress { len: LONGEST, ..Default::default() };
    let set = |runs: Vec<u32>| Some(proto::PieceSet { runs });
    match n % 6 {
        0 => {
            let one = |k: u32| proto::TaskProgress {
                task: named(1, n.wrapping_mul(4_096) + k).to_vec().into(),
                complete: k.is_multiple_of(2),
                added: set(vec![k, 1]),
                ..base.clone()
            };
            progress((0..4_096).map(one).collect())
        }
        1 => {
            let runs = (0..2_000).flat_map(|run| [(n / 24 % 12) * 4_000 + run * 2, 1]).collect();
            progress(vec![proto::TaskProgress { task: named(2, n / 6 % 4).to_vec().into(), added: set(runs), ..base }])
        }
        2 => {
            let one = |k: u32| proto::DigestRun { first: k * 1_024 + n % 1_024, digests: vec![n as u8; 32].into() };
            let digests = (0..4_000).map(one).collect();
            let task = named(3, n % 64).to_vec().into();
            progress(vec![proto::TaskProgress { task, complete: true, digests, ..base }])
        }
        3 => Body::Want(want(named(4, n), LONGEST, &format!("h{n}.example"), 255)),
        4 => Body::Unwant(proto::Unwant { task: named(4, n.wrapping_sub(7)).to_vec().into() }),
        _ => Body::Want(want(named(5, n), LONGEST, "cdn.example", 255)),
    }
}

/// Sends until it is stopped, and comes back whenever its session ends.
async fn flood(channel: Channel, stop: &AtomicBool) -> (u64, u64) {
    let (mut sent, mut sessions, mut n) = (0, 0, 0);
    while !stop.load(Ordering::Relaxed) {
        let Some(mut session) = Session::open(channel.clone(), "hostile").await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        sessions += 1;
        let out = session.out.clone();
        let reading = tokio::spawn(async move {
            while let Ok(Some(answer)) = session.incoming.message().await {
                if let Some(Answer::Ping(ping)) = answer.body {
                    let _ = session.out.send(message(Body::Pong(proto::Pong { nonce: ping.nonce }))).await;
                }
            }
        });
        while !stop.load(Ordering::Relaxed) && !reading.is_finished() {
            let sending = out.send(message(hostile(n)));
            if !matches!(tokio::time::timeout(Duration::from_secs(1), sending).await, Ok(Ok(()))) {
                continue;
            }
            n = n.wrapping_add(1);
            sent += 1;
        }
        reading.abort();
    }
    (sent, sessions)
}

/// Leases of all honest peers for a while, one after the other.
async fn leases(honest: &mut [Session], first: &mut u32, during: Duration) -> Vec<Duration> {
    let until = Instant::now() + during;
    let mut delays = Vec::new();
    while Instant::now() < until {
        for session in honest.iter_mut() {
            *first += 1;
            delays.push(session.lease(named(0, *first)).await);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    delays.sort_unstable();
    delays
}

fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

fn report(what: &str, delays: &[Duration]) {
    let at = |share: usize| delays[(delays.len() - 1) * share / 100];
    println!("{what}: {} leases, p50 {:?}, p99 {:?}, longest {:?}", delays.len(), at(50), at(99), at(100));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_peer_neither_fills_the_schedulers_memory_nor_keeps_others_from_their_leases() {
    let seconds = std::env::var("PONDHAWK_FLOOD_SECONDS").map_or(10, |seconds| seconds.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(dir.path(), |_| {});
    let line = up.line_with("scheduler up");
    let address: SocketAddr =
        line.split_once("address=").unwrap().1.split_whitespace().next().unwrap().parse().unwrap();
    let mut honest = Vec::new();
    for n in 0..HONEST {
        let name = format!("honest-{n}");
        honest.push(Session::open(nodes::channel(dir.path(), address, &name).await, &name).await.unwrap());
    }
    let mut first = 0;
    report("without flood", &leases(&mut honest, &mut first, Duration::from_secs(2)).await);
    let (pid, before) = (up.child().id(), resident(up.child().id()));
    let stop = Arc::new(AtomicBool::new(false));
    let (hostile_stop, channel) = (Arc::clone(&stop), nodes::channel(dir.path(), address, "hostile").await);
    let flooding = tokio::spawn(async move { flood(channel, &hostile_stop).await });
    let watching_stop = Arc::clone(&stop);
    let watching = tokio::spawn(async move {
        let mut most = 0;
        while !watching_stop.load(Ordering::Relaxed) {
            most = most.max(resident(pid));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        most
    });
    let delays = leases(&mut honest, &mut first, Duration::from_secs(seconds)).await;
    stop.store(true, Ordering::Relaxed);
    let ((sent, sessions), most) = (flooding.await.unwrap(), watching.await.unwrap());
    report("with flood", &delays);
    let growth = most.saturating_sub(before);
    println!(
        "{sent} hostile messages and {sessions} sessions in {seconds} s; memory {} KiB, grown by {} KiB at most",
        before >> 10,
        growth >> 10
    );
    assert!(
        sent > 100 && sessions == 1,
        "{sent} messages in {sessions} sessions: it was to stay within its budget, and to be heard all the time"
    );
    assert!(growth < MOST_GROWTH, "grown by {growth} bytes");
}
