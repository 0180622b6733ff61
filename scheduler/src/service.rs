//! The scheduler as peers reach it: TLS, the two calls, and one task that owns the cluster.

mod actor;
mod counts;
pub(crate) mod hear;
mod look;
mod rpc;
mod shares;
mod tell;
#[cfg(test)]
mod tests;
pub(crate) mod tls;
mod waits;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pondhawk_proto::v1::scheduler_server::SchedulerServer;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;

pub use counts::{ENDS, SessionCounts};
pub use look::Viewer;
pub use tls::TlsError;
pub(crate) use tls::unix_now;

use crate::authority::{Authority, AuthorityError};
use crate::cluster;
use crate::hosts::Suffixes;
use crate::registry::PeerRegistry;
use crate::trace::Tracer;
use crate::trust::{TrustError, TrustRoot};
use actor::Input;
use rpc::Rpc;
use tls::Own;

/// For connections to end once every session was told to.
const STOP: Duration = Duration::from_secs(2);
/// HTTP/2 pings find connections that died without a word, and those that never open a stream.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// What can be set.
#[derive(Clone, Debug)]
pub struct Options {
    /// How the cluster decides. Its seed is chosen anew at every start.
    pub cluster: cluster::Options,
    /// Between two reports of a peer.
    pub progress: Duration,
    /// Between two pings; a side that hears nothing for three of them ends the session.
    pub ping: Duration,
    /// What the cluster's nodes may intercept: the trust root is constrained to it when it is made.
    pub hosts: Suffixes,
    /// Where it says how long traced wishes wait.
    pub tracer: Tracer,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cluster: cluster::Options::default(),
            progress: Duration::from_millis(100),
            ping: Duration::from_secs(2),
            hosts: Suffixes::hub(),
            tracer: Tracer::default(),
        }
    }
}

/// The scheduler as it stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Peers with a session.
    pub sessions: usize,
    /// Peers known, also those that have just left.
    pub peers: usize,
    /// Tasks known.
    pub tasks: usize,
    /// Leases under way.
    pub leases: usize,
    /// What nodes have moved since the start, as far as they say.
    pub moved: cluster::Totals,
}

/// Why there is no scheduler.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the documentation")]
pub enum SchedulerError {
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error(transparent)]
    Trust(#[from] TrustError),
    #[error("cannot set TLS up: {0}")]
    Tls(#[from] TlsError),
    #[error("cannot use the listener: {0}")]
    Listener(#[source] io::Error),
    #[error("the server failed: {0}")]
    Server(#[from] tonic::transport::Error),
}

/// A scheduler with its state; [`Scheduler::serve`] opens its port.
pub struct Scheduler {
    authority: Arc<Authority>,
    trust: Arc<TrustRoot>,
    registry: Arc<PeerRegistry>,
    own: Arc<Own>,
    options: Options,
    status: watch::Sender<Status>,
    /// Set while it serves.
    inputs: watch::Sender<Option<mpsc::WeakSender<Input>>>,
    counts: Arc<SessionCounts>,
}

impl Scheduler {
    /// Loads the state in `dir`, creating it first where there is none. Blocking.
    pub fn open(dir: &Path, options: Options) -> Result<Self, SchedulerError> {
        let authority = Arc::new(Authority::open(dir)?);
        let trust = Arc::new(TrustRoot::open(dir, &options.hosts)?);
        let registry = Arc::new(PeerRegistry::open(dir)?);
        let own = Own::new(Arc::clone(&authority))?;
        Ok(Self {
            authority,
            trust,
            registry,
            own,
            options,
            status: watch::Sender::default(),
            inputs: watch::Sender::new(None),
            counts: Arc::default(),
        })
    }

    /// A join token good for `ttl`, for any number of nodes.
    pub fn token(&self, ttl: Duration) -> Result<String, AuthorityError> {
        self.authority.token(unix_now(), ttl)
    }

    /// The CA and what it signs.
    pub fn authority(&self) -> &Arc<Authority> {
        &self.authority
    }

    /// The root that clients trust.
    pub fn trust(&self) -> &Arc<TrustRoot> {
        &self.trust
    }

    /// Who owns which name, and who is denied.
    pub fn registry(&self) -> &Arc<PeerRegistry> {
        &self.registry
    }

    /// A way to look into it, for as long as it is there.
    pub fn viewer(&self) -> Viewer {
        let (inputs, status) = (self.inputs.subscribe(), self.status.subscribe());
        let (sessions, tracer) = (Arc::clone(&self.counts), self.options.tracer.clone());
        Viewer { inputs, status, sessions, tracer, own: Arc::clone(&self.own) }
    }

    /// At most a tick (50 ms) old.
    pub fn status(&self) -> Status {
        *self.status.borrow()
    }

    /// Serves peers until `shutdown` is ready, on an ordinary tokio runtime. The cluster's memory begins empty; sessions
    /// are ended cleanly at the end.
    pub async fn serve(
        &self,
        listener: TcpListener,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<(), SchedulerError> {
        let address = listener.local_addr().map_err(SchedulerError::Listener)?;
        let config = tls::server_config(self.authority.ca(), Arc::clone(&self.own))?;
        let options = cluster::Options { seed: random(), ..self.options.cluster.clone() };
        let (inputs, status) = actor::start(options, self.options.tracer.clone());
        self.inputs.send_replace(Some(inputs.downgrade()));
        let (conns, incoming) = tls::backlog();
        let helpers = [
            tokio::spawn(tls::accept(listener, config, conns)),
            tokio::spawn(Arc::clone(&self.own).renew()),
            tokio::spawn(forward(status, self.status.clone())),
            tokio::spawn(Arc::clone(&self.registry).run()),
        ];
        let _helpers = Helpers(helpers);
        let (stop, stopping) = oneshot::channel::<()>();
        let server = self.server(inputs.clone()).serve_with_incoming_shutdown(ReceiverStream::new(incoming), async {
            drop(stopping.await);
        });
        tracing::info!(%address, "scheduler up");
        let mut server = std::pin::pin!(server);
        tokio::select! {
            ended = &mut server => return Ok(ended?),
            () = shutdown => {}
        }
        end_sessions(&inputs).await;
        drop(stop);
        // Those that do not end by themselves are cut.
        timeout(STOP, server).await.unwrap_or(Ok(()))?;
        tracing::info!(%address, "scheduler down");
        Ok(())
    }

    fn server(&self, inputs: mpsc::Sender<Input>) -> tonic::transport::server::Router {
        let (authority, trust) = (Arc::clone(&self.authority), Arc::clone(&self.trust));
        let rpc = Rpc {
            authority,
            trust,
            registry: Arc::clone(&self.registry),
            inputs,
            options: self.options.clone(),
            epoch: random(),
            counts: Arc::clone(&self.counts),
        };
        let service = SchedulerServer::new(rpc)
            .max_decoding_message_size(pondhawk_proto::MAX_MESSAGE)
            .max_encoding_message_size(pondhawk_proto::MAX_MESSAGE);
        Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE))
            .max_concurrent_streams(4)
            .add_service(service)
    }
}

/// Tasks that end with the server.
struct Helpers([tokio::task::JoinHandle<()>; 4]);

impl Drop for Helpers {
    fn drop(&mut self) {
        self.0.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

async fn end_sessions(inputs: &mpsc::Sender<Input>) {
    let (stopped, done) = oneshot::channel();
    if inputs.send(Input::Stop(stopped)).await.is_ok() {
        drop(timeout(STOP, done).await);
    }
}

async fn forward(mut from: watch::Receiver<Status>, to: watch::Sender<Status>) {
    while from.changed().await.is_ok() {
        to.send_replace(*from.borrow_and_update());
    }
}

pub(crate) fn random() -> u64 {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).expect("the kernel has random bytes");
    u64::from_ne_bytes(bytes)
}
