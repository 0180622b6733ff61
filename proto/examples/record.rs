//! Writes one message of every kind that this version sends, as it goes over the wire, for later versions to be tested with:
//! `cargo run -p pondhawk-proto --example record > proto/recorded/VERSION.txt`, once for each release.
//!
//! A line is who sends it, its kind, and the bytes in hexadecimal. Recordings are never edited: what an older version sent stays
//! what it sent.

use pondhawk_proto::v1 as proto;
use prost::Message;
use proto::{peer_message::Body as Peer, scheduler_message::Body as Scheduler};

const TASK: [u8; 32] = [7; 32];
const MIB: u64 = 1 << 20;

fn main() {
    for (kind, body) in of_peers() {
        line("peer", kind, &proto::PeerMessage { body: Some(body) });
    }
    for (kind, body) in of_the_scheduler() {
        line("scheduler", kind, &proto::SchedulerMessage { body: Some(body) });
    }
}

fn line(who: &str, kind: &str, message: &impl Message) {
    let hex: String = message.encode_to_vec().iter().map(|byte| format!("{byte:02x}")).collect();
    println!("{who} {kind} {hex}");
}

fn set(runs: &[u32]) -> Option<proto::PieceSet> {
    Some(proto::PieceSet { runs: runs.to_vec() })
}

fn digests(first: u32) -> Vec<proto::DigestRun> {
    vec![proto::DigestRun { first, digests: vec![9; 64].into() }]
}

/// A session in the order of its messages: five pieces of 1 MiB, of which the peer holds two.
// long: a list of messages
fn of_peers() -> Vec<(&'static str, Peer)> {
    let task = || TASK.to_vec().into();
    let label = proto::Label { key: "zone".into(), value: "a".into() };
    let progress = proto::TaskProgress {
        task: task(),
        len: 5 * MIB,
        added: set(&[2, 2]),
        lost: set(&[4, 1]),
        digests: digests(2),
        alive: vec![1],
        requests: 2,
        ..proto::TaskProgress::default()
    };
    let wrong = proto::TaskProgress { task: task(), gone: true, wrong: true, ..proto::TaskProgress::default() };
    vec![
        (
            "hello",
            Peer::Hello(proto::Hello {
                protocol_min: pondhawk_proto::PROTOCOL_MIN,
                protocol_max: pondhawk_proto::PROTOCOL_MAX,
                name: "older".into(),
                quic_address: "0.0.0.0:65010".into(),
                labels: vec![label],
                seed: true,
                quic_endpoints: 2,
            }),
        ),
        (
            "inventory",
            Peer::Inventory(proto::Inventory {
                holdings: vec![
                    proto::Holding { task: task(), len: 5 * MIB, complete: false, have: set(&[0, 2]) },
                    proto::Holding { task: vec![8; 32].into(), len: MIB, complete: true, have: None },
                ],
                last: true,
            }),
        ),
        (
            "want",
            Peer::Want(proto::Want {
                task: task(),
                len: 5 * MIB,
                origin_host: "cdn.example".into(),
                can_fetch: true,
                content_named: true,
                connections: 4,
                wanted: set(&[0, 5]),
                ..proto::Want::default()
            }),
        ),
        (
            "progress",
            Peer::Progress(proto::Progress {
                tasks: vec![progress],
                upload_rate: 1_000_000,
                uploads: 3,
                ..Default::default()
            }),
        ),
        (
            "lease-return",
            Peer::LeaseReturn(proto::LeaseReturn {
                lease: 1,
                reason: proto::lease_return::Reason::Throttled.into(),
                retry_after_ms: 500,
            }),
        ),
        (
            "blame",
            Peer::Blame(proto::Blame {
                peer: "another".into(),
                task: task(),
                piece: 3,
                kind: proto::blame::Kind::WrongPiece.into(),
            }),
        ),
        ("renew", Peer::Renew(proto::Renew { csr: vec![1, 2, 3].into() })),
        ("pong", Peer::Pong(proto::Pong { nonce: 5 })),
        ("unwant", Peer::Unwant(proto::Unwant { task: task() })),
        ("wrong", Peer::Progress(proto::Progress { tasks: vec![wrong], ..proto::Progress::default() })),
    ]
}

fn of_the_scheduler() -> Vec<(&'static str, Scheduler)> {
    let task = || TASK.to_vec().into();
    let parent = proto::Parent {
        name: "node-b".into(),
        quic_address: "10.0.0.2:65010".into(),
        seed: true,
        nearness: 1,
        complete: true,
        quic_endpoints: 2,
    };
    vec![
        (
            "welcome",
            Scheduler::Welcome(proto::Welcome {
                protocol: pondhawk_proto::PROTOCOL_MAX,
                progress_ms: 200,
                ping_ms: 5_000,
                epoch: 77,
            }),
        ),
        (
            "parents",
            Scheduler::Parents(proto::Parents { task: task(), add: vec![parent], drop: vec!["node-c".into()] }),
        ),
        ("lease", Scheduler::Lease(proto::Lease { id: 4, task: task(), first: 2, count: 3, silence_ms: 5_000 })),
        ("digests", Scheduler::Digests(proto::Digests { task: task(), runs: digests(0) })),
        ("digests-wanted", Scheduler::DigestsWanted(proto::DigestsWanted { task: task(), pieces: set(&[0, 5]) })),
        (
            "dispute",
            Scheduler::Dispute(proto::Dispute {
                task: task(),
                piece: 1,
                first: "node-a".into(),
                second: "node-b".into(),
                refetch: true,
            }),
        ),
        ("preheat", Scheduler::Preheat(proto::Preheat { task: task(), len: 5 * MIB, ..proto::Preheat::default() })),
        ("throttle", Scheduler::Throttle(proto::Throttle { origin_host: "cdn.example".into(), for_ms: 700 })),
        ("renewed", Scheduler::Renewed(proto::Renewed { chain: vec![vec![1].into()], not_after_unix: 1_800_000_000 })),
        ("ping", Scheduler::Ping(proto::Ping { nonce: 5 })),
        ("denied", Scheduler::Denied(proto::Denied { names: vec!["node-d".into()], keys: vec![vec![6; 32].into()] })),
        ("lease-end", Scheduler::LeaseEnd(proto::LeaseEnd { id: 4 })),
    ]
}
