//! Nodes as the scheduler meets them: a certificate, a session over mutual TLS, and what they say there.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pondhawk_proto::v1 as proto;
use pondhawk_scheduler::authority::{Authority, SCHEDULER_NAME};
use proto::peer_message::Body;
use proto::scheduler_client::SchedulerClient;
use proto::scheduler_message::Body as Message;
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

pub(crate) const MIB: u64 = 1 << 20;

/// A node with a session; dropped, the session ends.
pub(crate) struct Node {
    out: mpsc::Sender<proto::PeerMessage>,
    told: Arc<Mutex<Told>>,
}

/// What is said again and again.
#[derive(Default)]
struct Told {
    wants: Wants,
    load: proto::Progress,
    /// Tasks that it was told to want though no client of its own does, and whether it is to keep them.
    preheats: Vec<(bytes::Bytes, bool)>,
}

/// Tasks and their bytes.
type Wants = BTreeMap<bytes::Bytes, u64>;

impl Node {
    /// Joins by a certificate that the scheduler's own authority signs, and tells what it holds.
    pub(crate) async fn connect(
        data_dir: &Path,
        scheduler: SocketAddr,
        name: &str,
        labels: &[(&str, &str)],
        holdings: Vec<proto::Holding>,
    ) -> Self {
        let channel = channel(data_dir, scheduler, name).await;
        let (out, queue) = mpsc::channel(64);
        let label = |(key, value): &(&str, &str)| proto::Label { key: (*key).into(), value: (*value).into() };
        let hello = proto::Hello {
            protocol_min: pondhawk_proto::PROTOCOL_MIN,
            protocol_max: pondhawk_proto::PROTOCOL_MAX,
            name: name.into(),
            quic_address: "10.1.2.3:65010".into(),
            labels: labels.iter().map(label).collect(),
            seed: name.starts_with("seed"),
            quic_endpoints: 2,
        };
        let node = Self { out, told: Arc::default() };
        node.say(Body::Hello(hello)).await;
        node.say(Body::Inventory(proto::Inventory { holdings, last: true })).await;
        let mut client = SchedulerClient::new(channel);
        let mut incoming = client.session(ReceiverStream::new(queue)).await.unwrap().into_inner();
        let (weak, told) = (node.out.downgrade(), Arc::clone(&node.told));
        tokio::spawn(async move {
            let mut leases = BTreeMap::new();
            // Far more often than a lease may be silent.
            let mut moves = tokio::time::interval(Duration::from_millis(500));
            loop {
                let message = tokio::select! {
                    message = incoming.message() => message,
                    _ = moves.tick() => Ok(Some(proto::SchedulerMessage { body: None })),
                };
                let (Ok(Some(message)), Some(out)) = (message, weak.upgrade()) else { return };
                let answer = match message.body {
                    Some(Message::Lease(lease)) => {
                        leases.insert(lease.id, lease.task);
                        continue;
                    }
                    Some(Message::LeaseEnd(end)) => {
                        leases.remove(&end.id);
                        continue;
                    }
                    Some(Message::Preheat(preheat)) => {
                        told.lock().unwrap().preheats.push((preheat.task, preheat.pin));
                        continue;
                    }
                    Some(Message::Ping(ping)) => Body::Pong(proto::Pong { nonce: ping.nonce }),
                    None => Body::Progress(alive(&leases, &told)),
                    Some(_) => continue,
                };
                let _ = out.send(proto::PeerMessage { body: Some(answer) }).await;
            }
        });
        node
    }

    pub(crate) async fn want(&self, task: u8, mib: u64, can_fetch: bool) {
        let origin_host = "cdn-lfs.example".into();
        let (task, len) = (name(task), mib * MIB);
        self.told.lock().unwrap().wants.insert(task.clone(), len);
        // Kind 1: the SHA-256 of the content.
        let made_of = [vec![1], task.to_vec()].concat().into();
        self.say(Body::Want(proto::Want { task, len, origin_host, can_fetch, name: made_of, ..Default::default() }))
            .await;
    }

    /// Holds pieces of 1 MiB; `fetched` of them, the last ones, come from the origin.
    pub(crate) async fn hold(&self, task: u8, mib: u64, first: u32, count: u32, fetched: u32) {
        let digests =
            proto::DigestRun { first: first + count - fetched, digests: vec![7; 32 * fetched as usize].into() };
        let progress = proto::TaskProgress {
            task: name(task),
            len: mib * MIB,
            added: Some(proto::PieceSet { runs: vec![first, count] }),
            digests: vec![digests],
            ..Default::default()
        };
        let load = self.told.lock().unwrap().load.clone();
        self.say(Body::Progress(proto::Progress { tasks: vec![progress], ..load })).await;
    }

    /// What it has done since its start, in MiB: from the origin, from others, to clients.
    pub(crate) async fn moved(&self, origin: u64, peers: u64, clients: u64) {
        let totals = proto::Totals {
            uptime_ms: 1_000,
            from_origin_bytes: origin * MIB,
            from_peers_bytes: peers * MIB,
            to_clients_bytes: clients * MIB,
            to_peers_bytes: peers * MIB,
            requests: 10,
            hits: 6,
            joined: 1,
            misses: 2,
        };
        let load =
            proto::Progress { upload_rate: peers * MIB / 2, uploads: 3, totals: Some(totals), ..Default::default() };
        self.told.lock().unwrap().load = load.clone();
        self.say(Body::Progress(load)).await;
    }

    /// Tasks that it was told to hold since the last call, and whether it is to keep them.
    pub(crate) fn preheats(&self) -> Vec<(u8, bool)> {
        let told = std::mem::take(&mut self.told.lock().unwrap().preheats);
        told.iter().map(|(task, pin)| (task[0], *pin)).collect()
    }

    pub(crate) async fn blame(&self, peer: &str, task: u8) {
        let kind = proto::blame::Kind::WrongPiece.into();
        self.say(Body::Blame(proto::Blame { peer: peer.into(), task: name(task), piece: 0, kind })).await;
    }

    async fn say(&self, body: Body) {
        self.out.send(proto::PeerMessage { body: Some(body) }).await.unwrap();
    }
}

/// Every lease goes on, though slowly.
fn alive(leases: &BTreeMap<u64, bytes::Bytes>, told: &Mutex<Told>) -> proto::Progress {
    let told = told.lock().unwrap();
    let moving = |(id, task): (&u64, &bytes::Bytes)| {
        let (task, len) = (task.clone(), *told.wants.get(task)?);
        Some(proto::TaskProgress { task, len, alive: vec![*id], ..Default::default() })
    };
    proto::Progress { tasks: leases.iter().filter_map(moving).collect(), ..told.load.clone() }
}

/// A whole task that a node holds from the start.
pub(crate) fn holding(task: u8, mib: u64) -> proto::Holding {
    proto::Holding { task: name(task), len: mib * MIB, complete: true, have: None }
}

fn name(task: u8) -> bytes::Bytes {
    vec![task; 32].into()
}

pub(crate) async fn channel(data_dir: &Path, scheduler: SocketAddr, name: &str) -> Channel {
    let authority = Authority::open(data_dir).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let request = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
    let signed = authority.sign(name, request.der(), OffsetDateTime::now_utc()).unwrap();
    let chain: String = signed.chain.iter().map(pem).collect();
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(pem(authority.ca())))
        .identity(Identity::from_pem(chain, key.serialize_pem()))
        .domain_name(SCHEDULER_NAME);
    let endpoint = Endpoint::from_shared(format!("https://{scheduler}")).unwrap().tls_config(tls).unwrap();
    endpoint.connect().await.unwrap()
}

fn pem(certificate: &CertificateDer<'_>) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(certificate);
    format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
}
