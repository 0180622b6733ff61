//! The cluster's task and the queues of sessions. Whole sessions over TLS are tested with the peer's client.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use pondhawk_proto::v1 as proto;
use prost::Message as _;
use proto::scheduler_message::Body;
use tokio::sync::{mpsc, oneshot};
use tonic::Code;

use super::actor::{self, Input, OUTGOING, OUTGOING_BYTES, Session};
use super::hear::{self, Heard, Inventory};
use super::tell::message;
use super::waits::Traced;
use crate::cluster::{self, Event, PeerInfo, TaskName};
use crate::trace::Tracer;

#[path = "../../../proto/recorded/read.rs"]
mod recorded;

const TASK: TaskName = [7; 32];
const MIB: u64 = 1 << 20;
/// Far longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);

struct Peer {
    session: Arc<Session>,
    queue: mpsc::Receiver<proto::SchedulerMessage>,
    over: oneshot::Receiver<tonic::Status>,
    inputs: mpsc::Sender<Input>,
}

impl Peer {
    /// A session of a peer at `ip`, which sees the scheduler at `local`.
    async fn connect(inputs: &mpsc::Sender<Input>, name: &str, ip: [u8; 4], local: [u8; 4]) -> Self {
        let (session, queue, over) = Session::new(IpAddr::from(local), Arc::default());
        let info =
            PeerInfo { name: name.into(), address: (ip, 65010).into(), endpoints: 2, labels: Vec::new(), seed: false };
        inputs.send(Input::Connect { info, origin: ip.into(), session: Arc::clone(&session) }).await.unwrap();
        let peer = Self { session, queue, over, inputs: inputs.clone() };
        peer.tell(vec![Event::InventoryStart, Event::InventoryEnd]).await;
        peer
    }

    async fn tell(&self, events: Vec<Event>) {
        self.tell_traced(events, None).await;
    }

    async fn tell_traced(&self, events: Vec<Event>, traced: Option<Traced>) {
        self.inputs
            .send(Input::Events { session: Arc::clone(&self.session), events, traced, slot: None })
            .await
            .unwrap();
    }

    async fn hold(&self, task: TaskName) {
        self.tell(vec![Event::Held { task, len: 5 * MIB, complete: true, have: Vec::new() }]).await;
    }

    async fn want(&self) {
        let host = "cdn.example".to_owned();
        let (len, can_fetch) = (5 * MIB, false);
        self.tell(vec![Event::Want { task: TASK, len, host, can_fetch, connections: 1, wanted: None, name: None }])
            .await;
    }

    async fn parent(&mut self) -> proto::Parent {
        loop {
            let told = tokio::time::timeout(LONG, self.queue.recv()).await.unwrap().unwrap();
            if let Some(Body::Parents(parents)) = told.body
                && let Some(parent) = parents.add.into_iter().next()
            {
                return parent;
            }
        }
    }

    async fn ended(self) -> Code {
        tokio::time::timeout(LONG, self.over).await.unwrap().unwrap().code()
    }
}

#[tokio::test]
async fn a_node_beside_its_scheduler_is_reached_where_the_others_reach_the_scheduler() {
    let (inputs, _status) = actor::start(cluster::Options::default(), Tracer::default());
    let own = Peer::connect(&inputs, "own", [127, 0, 0, 1], [127, 0, 0, 1]).await;
    own.hold(TASK).await;
    let mut far = Peer::connect(&inputs, "far", [10, 0, 0, 2], [10, 0, 0, 1]).await;
    far.want().await;
    assert_eq!(far.parent().await.quic_address, "10.0.0.1:65010");
    let mut near = Peer::connect(&inputs, "near", [127, 0, 0, 1], [127, 0, 0, 1]).await;
    near.want().await;
    let parent = near.parent().await;
    assert_eq!((&*parent.quic_address, parent.quic_endpoints), ("127.0.0.1:65010", 2));
}

#[tokio::test]
async fn what_a_replaced_session_still_says_does_not_count() {
    let (inputs, mut status) = actor::start(cluster::Options::default(), Tracer::default());
    let first = Peer::connect(&inputs, "twin", [10, 0, 0, 1], [10, 0, 0, 9]).await;
    let second = Peer::connect(&inputs, "twin", [10, 0, 0, 2], [10, 0, 0, 9]).await;
    first.hold(TASK).await;
    inputs.send(Input::Gone { session: Arc::clone(&first.session) }).await.unwrap();
    second.hold([8; 32]).await;
    tokio::time::timeout(LONG, status.wait_for(|status| status.tasks > 0)).await.unwrap().unwrap();
    let status = *status.borrow();
    assert_eq!((status.sessions, status.peers, status.tasks), (1, 1, 1));
    assert_eq!(first.ended().await, Code::Aborted);
    let (stopped, done) = oneshot::channel();
    inputs.send(Input::Stop(stopped)).await.unwrap();
    tokio::time::timeout(LONG, done).await.unwrap().unwrap();
    assert_eq!(second.ended().await, Code::Unavailable);
}

#[tokio::test]
async fn a_peer_that_reads_nothing_loses_its_session() {
    let (session, _queue, over) = Session::new(IpAddr::from([10, 0, 0, 9]), Arc::default());
    for nonce in 0..=OUTGOING as u64 {
        session.send(message(Body::Ping(proto::Ping { nonce })));
    }
    tokio::time::timeout(LONG, session.ended()).await.unwrap();
    let why = over.await.unwrap();
    assert_eq!(why.code(), Code::ResourceExhausted);
    assert!(why.message().contains("too slow"), "{why}");
}

#[tokio::test]
async fn a_peer_that_is_told_more_than_it_reads_is_not_heard_and_then_loses_its_session() {
    let (session, mut queue, over) = Session::new(IpAddr::from([10, 0, 0, 9]), Arc::default());
    let digests = vec![proto::DigestRun { first: 0, digests: vec![7; 1 << 20].into() }];
    let large = message(Body::Digests(proto::Digests { task: TASK.to_vec().into(), runs: digests }));
    let has_slot = || async {
        tokio::select! {
            biased;
            _ = session.next_slot() => true,
            () = std::future::ready(()) => false,
        }
    };
    assert!(has_slot().await);
    session.send(large.clone());
    assert!(!has_slot().await, "a message of over a MiB waits");
    session.sent(&queue.recv().await.unwrap());
    assert!(has_slot().await, "it was read");
    for _ in 0..OUTGOING_BYTES >> 20 {
        session.send(large.clone());
    }
    let why = over.await.unwrap();
    assert_eq!(why.code(), Code::ResourceExhausted);
    assert!(why.message().contains("bytes wait"), "{why}");
}

#[tokio::test]
async fn a_long_message_of_one_peer_does_not_hold_up_the_lease_of_another() {
    let (inputs, _status) = actor::start(cluster::Options::default(), Tracer::default());
    let mut long = Peer::connect(&inputs, "long", [10, 0, 0, 1], [10, 0, 0, 9]).await;
    let mut short = Peer::connect(&inputs, "short", [10, 0, 0, 2], [10, 0, 0, 9]).await;
    let want = |task| Event::Want {
        task,
        len: 5 * MIB,
        host: "cdn.example".to_owned(),
        can_fetch: true,
        connections: 1,
        wanted: None,
        name: None,
    };
    let held = |n: u32| {
        let mut task = [0; 32];
        task[..4].copy_from_slice(&n.to_be_bytes());
        Event::Held { task, len: 5 * MIB, complete: true, have: Vec::new() }
    };
    long.tell((1..30_000).map(held).chain([want([9; 32])]).collect()).await;
    short.tell(vec![want(TASK)]).await;
    let leased = |told: &proto::SchedulerMessage| matches!(told.body, Some(Body::Lease(_)));
    while !leased(&tokio::time::timeout(LONG, short.queue.recv()).await.unwrap().unwrap()) {}
    while let Ok(told) = long.queue.try_recv() {
        assert!(!leased(&told), "the long message was handled to its end before the short one");
    }
    while !leased(&tokio::time::timeout(LONG, long.queue.recv()).await.unwrap().unwrap()) {}
}

#[tokio::test]
async fn a_peer_over_its_budget_is_told_so() {
    let (inputs, _status) = actor::start(cluster::Options::default(), Tracer::default());
    let peer = Peer::connect(&inputs, "greedy", [10, 0, 0, 1], [10, 0, 0, 9]).await;
    let scattered: Vec<_> = (0..50_000).map(|n| n * 2..n * 2 + 1).collect();
    let claim = |n| Event::Held { task: [n; 32], len: 64 << 40, complete: false, have: scattered.clone() };
    for n in 1..20 {
        peer.tell(vec![claim(n)]).await;
    }
    assert_eq!(peer.ended().await, Code::ResourceExhausted);
    let again = Peer::connect(&inputs, "greedy", [10, 0, 0, 1], [10, 0, 0, 9]).await;
    assert_eq!(again.ended().await, Code::ResourceExhausted, "not let in again at once");
}

#[tokio::test]
async fn a_peer_of_an_older_version_is_understood_and_gets_its_leases() {
    let (inputs, mut status) = actor::start(cluster::Options::default(), Tracer::default());
    let (session, mut queue, _over) = Session::new(IpAddr::from([10, 0, 0, 9]), Arc::default());
    let mut inventory = Inventory::default();
    for (kind, message) in recorded::recorded::<proto::PeerMessage>("peer") {
        if let Some(proto::peer_message::Body::Hello(hello)) = message.body {
            assert!(pondhawk_proto::common_version(hello.protocol_min, hello.protocol_max).is_some());
            let info = hear::hello(hello, IpAddr::from([10, 0, 0, 1])).unwrap();
            assert_eq!((&*info.name, info.seed, info.endpoints), ("older", true, 2));
            let origin = IpAddr::from([10, 0, 0, 1]);
            inputs.send(Input::Connect { info, origin, session: Arc::clone(&session) }).await.unwrap();
            continue;
        }
        match (kind, hear::message(message, &mut inventory).unwrap()) {
            ("renew", Heard::Renew(csr)) => assert_eq!(csr[..], [1, 2, 3]),
            ("pong", Heard::Nothing) => {}
            (_, Heard::Events(events)) => {
                assert!(!events.is_empty(), "{kind}");
                inputs
                    .send(Input::Events { session: Arc::clone(&session), events, traced: None, slot: None })
                    .await
                    .unwrap();
            }
            (kind, other) => panic!("{kind}: {other:?}"),
        }
        if kind == "want" {
            let leased = async {
                loop {
                    if let Some(Body::Lease(lease)) = queue.recv().await.unwrap().body {
                        return (lease.task, lease.first, lease.count);
                    }
                }
            };
            // It holds the first two of five pieces.
            let (task, first, count) = tokio::time::timeout(LONG, leased).await.unwrap();
            assert_eq!((&task[..], first, count), (&TASK[..], 2, 3));
        }
    }
    // In the end it has nothing of the task, and the other one of its inventory.
    tokio::time::timeout(LONG, status.wait_for(|status| status.tasks == 1)).await.unwrap().unwrap();
}

#[test]
fn what_a_peer_of_a_later_version_says_beside_that_is_passed_over() {
    // Arm 99 of the body, with a string in it.
    let later = proto::PeerMessage::decode(&[0x9a, 0x06, 3, b'n', b'e', b'w'][..]).unwrap();
    assert!(matches!(hear::message(later, &mut Inventory::Done).unwrap(), Heard::Nothing));
}

#[tokio::test]
async fn a_traced_wish_says_how_long_it_waited_and_what_it_was_leased() {
    let (tracer, exporter, receiver) = crate::trace::tests::recorded().await;
    let (inputs, _status) = actor::start(cluster::Options::default(), tracer.clone());
    let context = crate::trace::Context { trace: [7; 16], span: [8; 8] };
    let first = Peer::connect(&inputs, "first", [10, 0, 0, 1], [10, 0, 0, 9]).await;
    let want = |can_fetch| Event::Want {
        task: TASK,
        len: 5 * MIB,
        host: "cdn.example".to_owned(),
        can_fetch,
        connections: 1,
        wanted: None,
        name: None,
    };
    let traced = |name: &str| Some(Traced { task: TASK, context, name: name.into() });
    first.tell_traced(vec![want(true)], traced("first")).await;
    first.tell_traced(vec![want(true)], traced("first")).await;
    let mut second = Peer::connect(&inputs, "second", [10, 0, 0, 2], [10, 0, 0, 9]).await;
    second.tell_traced(vec![want(false)], traced("second")).await;
    second.parent().await;
    first.tell(vec![Event::Unwant { task: TASK }]).await;
    let (stopped, done) = oneshot::channel();
    inputs.send(Input::Stop(stopped)).await.unwrap();
    tokio::time::timeout(LONG, done).await.unwrap().unwrap();
    crate::trace::tests::finish(exporter).await;
    let spans = receiver.told();
    let of = |name: &str, peer: &str| -> Vec<_> {
        let is =
            |span: &&std::collections::HashMap<String, String>| span["name"] == name && span["pondhawk.peer"] == peer;
        spans.iter().filter(is).collect()
    };
    let (waited, leased) = (of("want", "first"), of("lease", "first"));
    assert_eq!((waited.len(), &*waited[0]["pondhawk.answer"]), (1, "lease"), "{spans:#?}");
    assert_eq!((leased.len(), &*leased[0]["pondhawk.pieces"]), (1, "5"), "{spans:#?}");
    assert_eq!(of("want", "second")[0]["pondhawk.answer"], "parents");
    assert!(of("lease", "second").is_empty(), "it may not fetch");
    assert!(spans.iter().all(|span| span["trace"] == "07".repeat(16) && span["parent"] == "08".repeat(8)));
}
