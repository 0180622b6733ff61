//! Wiring: build, run and drain a node.

mod build;
mod cluster;
mod control;
mod reload;

use std::{
    cell::RefCell,
    path::PathBuf,
    rc::Rc,
    sync::{Arc, Barrier, OnceLock, atomic::AtomicUsize, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use pondhawk_scheduler::trace::Exporter;
use tokio::sync::watch;

use crate::{
    authorize::{Authorizer, PublicRuleError},
    config::Config,
    connections::{ClientKey, Connections},
    fetch::Tasks,
    http::{
        connection, mirror,
        route::Arrival,
        rules::{Front, FrontError},
        transport::Transport,
        tunnel::Distrusting,
        users::{Users, UsersError},
    },
    intercept::{DestinationProofs, InterceptError, Interceptor, ServedHosts, Trust, Warnings, listener, local},
    limits,
    metrics::{Metrics, Way},
    preheat::{self, Preheats},
    replaceable::{Replaceable, TooOften},
    shard::{Pulses, Shard},
    store::{Store, StoreError},
    swarm::{Origin, TrustError, upstream::UpstreamError},
    task::id::Rules,
    tls::{Authority, AuthorityError, NameError, Suffixes},
    trace::{self, Tracer},
    uring::{
        Listener, Pool, Socket,
        probe::{self, Features, ProbeError},
    },
};

pub(crate) use build::backoff;
pub use cluster::{Cluster, SCHEDULER_DIR};
pub use reload::Source;

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The kernel has no usable io_uring.
    #[error(transparent)]
    Ring(#[from] ProbeError),
    /// A port cannot be opened.
    #[error("{what} cannot listen on {address}: {source}")]
    Listen {
        /// Which way in.
        what: &'static str,
        /// Where.
        address: std::net::SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The Unix socket cannot be opened.
    #[error("listen.unix: {path}: {source}")]
    ListenUnix {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The configured hosts.
    #[error("intercept.hosts: {0}")]
    Hosts(#[from] NameError),
    /// The node's certificate authority.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The TLS configuration.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The origins' certificate authorities.
    #[error("origin.extra_cas: {0}")]
    Trust(#[from] TrustError),
    /// The proxy by which origins are reached.
    #[error("origin.proxy: {0}")]
    Upstream(#[from] UpstreamError),
    /// The file of its name and password.
    #[error("origin.proxy_login: {file}: {source}")]
    LoginFile {
        /// Which.
        file: String,
        /// Why not.
        source: std::io::Error,
    },
    /// Query parameters to leave out.
    #[error("filter.drop_params: {0}")]
    Filter(#[from] crate::task::filter::PatternError),
    /// The rules of the front.
    #[error("{key}: {0}", key = .0.key())]
    Front(#[from] FrontError),
    /// The file of the proxy's users.
    #[error("proxy.users: {file}: {source}")]
    UsersFile {
        /// Which.
        file: String,
        /// Why not.
        source: std::io::Error,
    },
    /// What is in it.
    #[error("proxy.users: {0}")]
    Users(#[from] UsersError),
    /// The exemptions from authorisation.
    #[error("authorize.public: {0}")]
    Public(#[from] PublicRuleError),
    /// Interception is demanded and not possible.
    #[error("intercept.enabled is on: {0}")]
    Intercept(#[from] InterceptError),
    /// This node's own scheduler.
    #[error("scheduler: {0}")]
    Scheduler(#[from] pondhawk_scheduler::service::SchedulerError),
    /// No name for this node.
    #[error("the host name {0:?} makes no name for this node: set swarm.name")]
    Name(String),
    /// Traces.
    #[error("tracing.endpoint: {0}")]
    Trace(#[from] pondhawk_scheduler::trace::TraceError),
    /// A setting was changed too often.
    #[error(transparent)]
    TooOften(#[from] TooOften),
    /// The admin port.
    #[error(transparent)]
    Admin(#[from] crate::admin::AdminError),
    /// A thread or a runtime.
    #[error("the system gives no {what}: {source}")]
    System {
        /// What was asked for.
        what: &'static str,
        /// Why not.
        source: std::io::Error,
    },
}

/// What all shards share.
pub struct Node {
    /// Every setting.
    pub config: Config,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Where it says what requests spend their time on.
    pub tracer: Tracer,
    /// Pieces on disk.
    pub store: Arc<Store>,
    /// The client of origins.
    pub origin: Arc<Origin>,
    /// Who may have what.
    pub authorizer: Authorizer,
    /// What makes two URLs the same task.
    pub rules: Rules,
    /// What is served and kept, and what may be reached through this node.
    pub front: Replaceable<Front>,
    /// Who may use the proxy; none: anybody.
    pub users: Option<Users>,
    /// What the Hub said of late to clients of the mirror.
    pub mirrored: mirror::Memory,
    /// Clients of the proxy that do not trust the node.
    pub distrusting: Distrusting,
    /// Downloads under way.
    pub tasks: Tasks,
    /// Files to fetch before anybody reads them.
    pub preheats: Preheats,
    /// Other nodes; none where nothing is shared.
    pub cluster: Option<Arc<Cluster>>,
    /// The TLS side of intercepted connections.
    pub tls: Tls,
    /// The way in by eBPF, where it is on; else why not.
    pub interceptor: Result<Arc<Interceptor>, String>,
    /// Which intercepted clients trust the node.
    pub trust: Trust,
    /// Which destinations connections may be passed on to.
    pub proofs: DestinationProofs,
    /// Hosts that were asked for lately.
    pub served: ServedHosts,
    /// When clients last caused which warning.
    pub warnings: Warnings,
    /// How many network namespaces cannot reach the intercept port.
    pub unreachable: AtomicUsize,
    /// Clients' connections.
    pub connections: Arc<Connections>,
    /// Intercepted connections beyond those, which are passed on.
    pub reserve: Arc<Connections>,
    /// Whether the shards are alive.
    pub pulses: Pulses,
    /// What the kernel can do.
    pub features: Features,
    bound: build::Bound,
    /// Where changes are accepted; empty until the socket is bound, and where it is off.
    admin_socket: OnceLock<PathBuf>,
    started: Instant,
    drain: watch::Sender<bool>,
}

/// The node's certificate authority and what terminates TLS with it.
pub struct Tls {
    authority: Arc<Authority>,
    /// Shared by all connections, so that sessions resume on any shard.
    pub config: Arc<rustls::ServerConfig>,
}

impl Tls {
    /// The hosts that this node serves.
    pub fn suffixes(&self) -> &Suffixes {
        self.authority.suffixes()
    }
}

/// Runs a node until SIGTERM or SIGINT, then drains it. At SIGHUP it reads its configuration again from `source`.
///
/// # Errors
/// [`NodeError`], all of them before the first client is served.
pub fn run(config: Config, source: Source) -> Result<(), NodeError> {
    let features = probe::probe()?;
    let (tracer, exporter) =
        trace::of_node(&config.tracing, cluster::node_name(config.swarm.name.as_deref())?.as_str())?;
    let (node, shares) = build::build(config, features, tracer)?;
    let shards = start_shards(&node, shares)?;
    let result = control::run(&node, &Arc::new(source));
    node.drain.send_replace(true);
    for shard in shards {
        // A panic aborts the process, so a shard always joins.
        let _ = shard.join();
    }
    node.store.close();
    exporter.into_iter().for_each(Exporter::finish);
    tracing::info!("drained");
    result
}

impl Node {
    /// Whether the node takes no new work.
    pub fn is_draining(&self) -> bool {
        *self.drain.borrow()
    }

    /// Waits until the node drains.
    pub async fn draining(&self) {
        // The sender lives in `self`.
        let _ = self.drain.subscribe().wait_for(|draining| *draining).await;
    }
}

/// What a shard needs to start together with the others.
struct Start {
    /// Tells whether it has its ring.
    made: mpsc::Sender<std::io::Result<()>>,
    /// Opens when all have: buffers are registered from the same locked memory, and a shard does without them.
    gate: Arc<Barrier>,
}

fn start_shards(node: &Arc<Node>, shares: Vec<build::Share>) -> Result<Vec<JoinHandle<()>>, NodeError> {
    let count = shares.len();
    let gate = Arc::new(Barrier::new(count + 1));
    let (made, rings) = mpsc::channel();
    let start = |(index, share): (usize, build::Share)| {
        let node = Arc::clone(node);
        let start = Start { made: made.clone(), gate: Arc::clone(&gate) };
        let named = thread::Builder::new().name(format!("shard-{index}"));
        named.spawn(move || run_shard(node, index, share, &start))
    };
    let started: Result<_, _> = shares.into_iter().enumerate().map(start).collect();
    let started = started.map_err(|source| NodeError::System { what: "thread", source })?;
    rings.iter().take(count).collect::<std::io::Result<()>>().map_err(ProbeError::Ring)?;
    gate.wait();
    Ok(started)
}

fn run_shard(node: Arc<Node>, index: usize, share: build::Share, start: &Start) {
    let ring = probe::ring_builder(node.features);
    let mut builder = tokio_uring::builder();
    builder.entries(limits::RING_ENTRIES).uring_builder(&ring);
    let (runtime, made) = match tokio_uring::Runtime::new(&builder) {
        Ok(runtime) => (Some(runtime), Ok(())),
        Err(error) => (None, Err(error)),
    };
    // Whoever started the shards listens until all have spoken.
    let _ = start.made.send(made);
    let Some(runtime) = runtime else { return };
    start.gate.wait();
    runtime.block_on(serve(node, index, share));
}

async fn serve(node: Arc<Node>, index: usize, share: build::Share) {
    let settings = &node.config.limits;
    let most = settings.buffers_per_shard(node.config.shard_count());
    let pool = Pool::new(limits::REGISTERED_BUFFERS, most, settings.buffer_size.as_usize());
    let shard = Rc::new(Shard { node: Arc::clone(&node), pool, links: RefCell::default() });
    tokio_uring::spawn(Rc::clone(&shard).pulse(index));
    if let Some(cluster) = &node.cluster {
        tokio_uring::spawn(Arc::clone(cluster).serve(Rc::clone(&shard), index));
    }
    for _ in 0..limits::PREHEATS_A_SHARD {
        tokio_uring::spawn(preheat::work(Rc::clone(&shard)));
    }
    for listener in share.proxy {
        tokio_uring::spawn(accept(Rc::clone(&shard), listener, Way::Proxy));
    }
    for listener in share.unix {
        tokio_uring::spawn(accept(Rc::clone(&shard), listener, Way::Proxy));
    }
    for listener in share.intercept {
        tokio_uring::spawn(accept(Rc::clone(&shard), listener, Way::Intercept));
    }
    node.draining().await;
    drained(&node).await;
}

/// Waits for the connections to end, and no longer than the setting says.
async fn drained(node: &Node) {
    let deadline = Instant::now() + node.config.drain.get();
    while node.connections.open() > 0 && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn accept(shard: Rc<Shard>, listener: Listener, way: Way) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shard.node.draining() => return,
        };
        match accepted {
            Ok(socket) => take(&shard, socket, way),
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(limits::ACCEPT_PAUSE).await;
            }
        }
    }
}

fn take(shard: &Rc<Shard>, socket: Socket, way: Way) {
    let shard = Rc::clone(shard);
    if let (Ok(interceptor), Way::Intercept) = (&shard.node.interceptor, way) {
        let interceptor = Arc::clone(interceptor);
        // Whose place it takes is known only once its flow is.
        tokio_uring::spawn(listener::intercepted(shard, interceptor, socket));
        return;
    }
    let Ok(place) = shard.node.connections.admit(client_key(&socket)) else {
        shard.node.metrics.connection_refused();
        return;
    };
    let counted = shard.node.metrics.connection(way);
    tokio_uring::spawn(async move {
        if socket.is_unix() {
            local::local(shard, socket).await;
        } else {
            let stall = shard.node.config.limits.send_stall.get();
            let transport = Transport::plain(socket, shard.pool.clone(), stall);
            connection::serve(shard, transport, Arrival::Proxy, || {}).await;
        }
        drop((counted, place));
    });
}

/// Whose share of the connections one to the proxy port or the Unix socket counts against.
fn client_key(socket: &Socket) -> ClientKey {
    if !socket.is_unix() {
        return ClientKey::of_peer(socket.peer_addr().ip());
    }
    // A peer in a user namespace that has no id here is one like all such.
    let uid = rustix::net::sockopt::socket_peercred(socket).map_or(u32::MAX, |peer| peer.uid.as_raw());
    ClientKey::User(uid)
}
