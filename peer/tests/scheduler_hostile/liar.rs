//! A scheduler that nodes accept, with a certificate of the cluster's CA, and that sends what a test chooses.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use pondhawk_bench::lab::wait_until;
use pondhawk_proto::v1 as proto;
use pondhawk_scheduler::authority::Authority;
use proto::{
    PeerMessage, SchedulerMessage, peer_message::Body as PeerBody, scheduler_message::Body,
    scheduler_server::SchedulerServer,
};
use rustls::{RootCertStore, ServerConfig, crypto::aws_lc_rs, server::WebPkiClientVerifier, version::TLS13};
use time::OffsetDateTime;
use tokio::{net::TcpListener, runtime::Runtime, sync::mpsc, sync::watch};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Between an accepted connection and the server.
const BUFFER: usize = 64 << 10;

/// What the scheduler does in each session.
#[derive(Clone)]
pub(crate) struct Lie {
    pub(crate) name: &'static str,
    /// None: the session has no Welcome.
    pub(crate) welcome: Option<proto::Welcome>,
    /// Sent after Welcome.
    pub(crate) opening: fn() -> Vec<Body>,
    /// Sent for each Want.
    pub(crate) answer: fn(&proto::Want) -> Vec<Body>,
    /// Whether the session ends after the answer.
    pub(crate) ends: bool,
}

/// The scheduler, until it is dropped.
pub(crate) struct Liar {
    pub(crate) address: SocketAddr,
    lie: watch::Sender<Lie>,
    sessions: Arc<AtomicU64>,
    wants: Arc<AtomicU64>,
    runtime: Option<Runtime>,
}

impl Liar {
    /// Serves with the CA in `dir`.
    pub(crate) fn start(dir: &Path, lie: Lie) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let authority = Arc::new(Authority::open(dir).unwrap());
        let acceptor = TlsAcceptor::from(Arc::new(server_config(&authority)));
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let (lie, lies) = watch::channel(lie);
        let sessions = Arc::new(AtomicU64::new(0));
        let wants = Arc::new(AtomicU64::new(0));
        let service = Service { authority, lies, sessions: Arc::clone(&sessions), wants: Arc::clone(&wants) };
        runtime.spawn(serve(listener, acceptor, service));
        Self { address, lie, sessions, wants, runtime: Some(runtime) }
    }

    /// Ends all sessions; those that begin from now on get this lie. Waits for the first one.
    pub(crate) fn tell(&self, lie: Lie, deadline: Duration) {
        let before = self.sessions.load(Ordering::SeqCst);
        let name = lie.name;
        self.lie.send_replace(lie);
        let came = || (self.sessions.load(Ordering::SeqCst) > before).then_some(());
        wait_until(deadline, came).unwrap_or_else(|| panic!("{name}: the node has no session any more"));
    }
}

impl Liar {
    /// Wants that have come so far, in all sessions.
    pub(crate) fn wants(&self) -> u64 {
        self.wants.load(Ordering::SeqCst)
    }

    /// Ends all sessions and gives the port up.
    pub(crate) fn stop(&mut self) {
        self.runtime.take().into_iter().for_each(|runtime| runtime.shutdown_timeout(Duration::from_secs(5)));
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.stop();
    }
}

fn server_config(authority: &Authority) -> ServerConfig {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let (signed, key) = authority.own(OffsetDateTime::now_utc()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(authority.ca().clone()).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier.allow_unauthenticated().build().unwrap())
        .with_single_cert(signed.chain, key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// tonic knows how to serve an in-memory stream, and not this version of a TLS stream: each connection is copied to one.
async fn serve(listener: TcpListener, acceptor: TlsAcceptor, service: Service) {
    let (ready, connections) = mpsc::channel(8);
    tokio::spawn(async move {
        loop {
            let Ok((tcp, _)) = listener.accept().await else { return };
            let (acceptor, ready) = (acceptor.clone(), ready.clone());
            tokio::spawn(async move {
                let Ok(mut tls) = acceptor.accept(tcp).await else { return };
                let (mut near, far) = tokio::io::duplex(BUFFER);
                if ready.send(std::io::Result::Ok(far)).await.is_ok() {
                    let _ = tokio::io::copy_bidirectional(&mut tls, &mut near).await;
                }
            });
        }
    });
    let server = SchedulerServer::new(service).max_encoding_message_size(usize::MAX);
    let serving = tonic::transport::Server::builder().add_service(server);
    serving.serve_with_incoming(ReceiverStream::new(connections)).await.unwrap();
}

struct Service {
    authority: Arc<Authority>,
    lies: watch::Receiver<Lie>,
    sessions: Arc<AtomicU64>,
    wants: Arc<AtomicU64>,
}

#[tonic::async_trait]
impl proto::scheduler_server::Scheduler for Service {
    async fn join(&self, request: Request<proto::JoinRequest>) -> Result<Response<proto::JoinResponse>, Status> {
        let request = request.into_inner();
        let signed = self.authority.sign(&request.name, &request.csr, OffsetDateTime::now_utc());
        let signed = signed.map_err(|error| Status::invalid_argument(error.to_string()))?;
        Ok(Response::new(proto::JoinResponse {
            chain: signed.chain.iter().map(|der| der.to_vec().into()).collect(),
            not_after_unix: signed.not_after,
            protocol: 1,
            ..Default::default()
        }))
    }

    type SessionStream = ReceiverStream<Result<SchedulerMessage, Status>>;

    async fn session(&self, request: Request<Streaming<PeerMessage>>) -> Result<Response<Self::SessionStream>, Status> {
        let (send, messages) = mpsc::channel(16);
        let mut lies = self.lies.clone();
        let lie = lies.borrow_and_update().clone();
        self.sessions.fetch_add(1, Ordering::SeqCst);
        let wants = Arc::clone(&self.wants);
        let incoming = request.into_inner();
        tokio::spawn(async move {
            tokio::select! {
                () = speak(lie, incoming, send, &wants) => {}
                _ = lies.changed() => {}
            }
        });
        Ok(Response::new(ReceiverStream::new(messages)))
    }
}

/// One session, until either side ends it.
async fn speak(
    lie: Lie,
    mut incoming: Streaming<PeerMessage>,
    send: mpsc::Sender<Result<SchedulerMessage, Status>>,
    wants: &AtomicU64,
) {
    let welcome = lie.welcome.map(Body::Welcome);
    let opening = if welcome.is_some() { (lie.opening)() } else { Vec::new() };
    for body in welcome.into_iter().chain(opening) {
        if send.send(Ok(SchedulerMessage { body: Some(body) })).await.is_err() {
            return;
        }
    }
    while let Ok(Some(message)) = incoming.message().await {
        let Some(PeerBody::Want(want)) = message.body else { continue };
        wants.fetch_add(1, Ordering::SeqCst);
        for body in (lie.answer)(&want) {
            if send.send(Ok(SchedulerMessage { body: Some(body) })).await.is_err() {
                return;
            }
        }
        if lie.ends {
            return;
        }
    }
}
