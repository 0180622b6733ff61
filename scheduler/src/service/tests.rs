//! The cluster's task and the queues of sessions. Whole sessions over TLS are tested with the peer's client.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use pondhawk_proto::v1 as proto;
use proto::scheduler_message::Body;
use tokio::sync::{mpsc, oneshot};
use tonic::Code;

use super::actor::{self, Input, OUTGOING, Session};
use super::tell::message;
use crate::cluster::{self, Event, PeerInfo, TaskName};

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
        let (session, queue, over) = Session::new(IpAddr::from(local));
        let info =
            PeerInfo { name: name.into(), address: (ip, 65010).into(), endpoints: 2, labels: Vec::new(), seed: false };
        inputs.send(Input::Connect { info, session: Arc::clone(&session) }).await.unwrap();
        let peer = Self { session, queue, over, inputs: inputs.clone() };
        peer.tell(vec![Event::InventoryStart, Event::InventoryEnd]).await;
        peer
    }

    async fn tell(&self, events: Vec<Event>) {
        self.inputs.send(Input::Events { session: Arc::clone(&self.session), events }).await.unwrap();
    }

    async fn hold(&self, task: TaskName) {
        self.tell(vec![Event::Held { task, len: 5 * MIB, complete: true, have: Vec::new() }]).await;
    }

    async fn want(&self) {
        let host = "cdn.example".to_owned();
        let (len, can_fetch) = (5 * MIB, false);
        self.tell(vec![Event::Want { task: TASK, len, host, can_fetch, connections: 1, wanted: None }]).await;
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
    let (inputs, _status) = actor::start(cluster::Options::default());
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
    let (inputs, mut status) = actor::start(cluster::Options::default());
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
    let (session, _queue, over) = Session::new(IpAddr::from([10, 0, 0, 9]));
    for nonce in 0..=OUTGOING as u64 {
        session.send(message(Body::Ping(proto::Ping { nonce })));
    }
    tokio::time::timeout(LONG, session.ended()).await.unwrap();
    let why = over.await.unwrap();
    assert_eq!(why.code(), Code::ResourceExhausted);
    assert!(why.message().contains("too slow"), "{why}");
}
