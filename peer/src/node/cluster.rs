//! The node's part in a cluster: its name, its session with a scheduler (perhaps its own), its QUIC endpoints.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    rc::Rc,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use pondhawk_scheduler::{
    page::{Options as PageOptions, Page},
    service::{Options as SchedulerOptions, Scheduler, SchedulerError},
};
use tokio::sync::watch;

use super::{Node, NodeError};
use crate::{
    admin::{LinkReport, SwarmReport},
    config::Config,
    limits,
    metrics::SwarmGauges,
    preheat::Wanted,
    shard::Shard,
    store::About,
    swarm::{
        exchange::Exchange,
        identity::{self, Token},
        session::{self, SessionOptions, SwarmStatus},
    },
    tls::{Authority, Suffixes},
    trace::Tracer,
    wire::{Endpoint, Identity, LinkStatus, Links, Options, PeerId, Uploads, rate::Bucket},
};

/// Where the embedded scheduler keeps its CA and its secret, below the data directory.
pub const SCHEDULER_DIR: &str = "scheduler";
/// A node joins its own scheduler with this; it needs it only until it has its certificate.
const OWN_TOKEN_TTL: Duration = Duration::from_secs(3600);
/// Between two tries to open a QUIC port that is taken.
const REBIND: Duration = Duration::from_secs(5);
/// Between two looks at the links, for whoever asks how the node is.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What all shards and the control thread share of the swarm.
pub struct Cluster {
    /// Where downloads and the session meet.
    pub exchange: Arc<Exchange>,
    /// This node's name.
    pub name: PeerId,
    /// The pieces that all shards together send.
    pub uploads: Arc<Uploads>,
    /// How fast all downloads together fetch from other nodes.
    pub pace: Arc<Mutex<Bucket>>,
    identity: watch::Sender<Option<Arc<Identity>>>,
    /// Of the session with each scheduler.
    status: Vec<Arc<SwarmStatus>>,
    links: Mutex<Vec<Vec<LinkStatus>>>,
    own: Mutex<Option<OwnScheduler>>,
    /// To join.
    schedulers: Vec<String>,
    token: Option<Token>,
    /// Of the interception, for the cluster's root to sign.
    authority: Arc<Authority>,
}

struct OwnScheduler {
    scheduler: Arc<Scheduler>,
    listener: TcpListener,
    address: SocketAddr,
    page: Option<(Page, TcpListener)>,
}

impl Cluster {
    /// What the configuration makes of it; `None` where nothing is to be shared.
    pub(super) fn build(
        config: &Config,
        authority: &Arc<Authority>,
        tracer: &Tracer,
    ) -> Result<Option<Self>, NodeError> {
        let settings = &config.scheduler;
        if config.swarm.listen.0.is_none() || settings.join.is_none() && settings.listen.0.is_none() {
            return Ok(None);
        }
        let own = match (&settings.join, settings.listen.0) {
            (None, Some(address)) => Some(own_scheduler(config, address, authority.suffixes(), tracer)?),
            _ => None,
        };
        let (schedulers, token) = match (&settings.join, &own) {
            (Some(_), _) => {
                let places = settings.places().into_iter().map(str::to_owned).collect();
                (places, settings.token.clone().map(Token::File))
            }
            (None, Some(own)) => {
                let (join, token) = own.joined();
                (vec![join], Some(token))
            }
            (None, None) => return Ok(None),
        };
        let exchange = Arc::new(Exchange::new(&schedulers));
        Ok(Some(Self {
            uploads: Uploads::new(Arc::clone(&exchange), u32::from(config.swarm.uploads), config.swarm.upload_rate.0),
            pace: Arc::new(Mutex::new(Bucket::new(config.swarm.download_rate.0))),
            exchange,
            name: node_name(config.swarm.name.as_deref())?,
            identity: watch::Sender::new(None),
            status: schedulers.iter().map(|scheduler| Arc::new(SwarmStatus::new(scheduler))).collect(),
            links: Mutex::new(vec![Vec::new(); config.shard_count()]),
            own: Mutex::new(own),
            schedulers,
            token,
            authority: Arc::clone(authority),
        }))
    }

    /// Runs the scheduler of this node, if it is its own, and the session with it. On the control thread's runtime.
    pub(super) fn start(self: &Arc<Self>, node: &Arc<Node>) {
        let own = self.own.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(own) = own {
            let node = Arc::clone(node);
            tokio::spawn(async move {
                let served = async {
                    if let Some((page, listener)) = own.page {
                        listener.set_nonblocking(true)?;
                        tokio::spawn(page.serve(tokio::net::TcpListener::from_std(listener)?));
                    }
                    own.listener.set_nonblocking(true)?;
                    let listener = tokio::net::TcpListener::from_std(own.listener)?;
                    own.scheduler.serve(listener, node.draining()).await.map_err(std::io::Error::other)
                };
                if let Err(error) = served.await {
                    tracing::error!(%error, "this node's scheduler ended: nothing is shared until a restart");
                }
            });
        }
        tokio::spawn(take_wishes(Arc::clone(&self.exchange), Arc::clone(node)));
        self.exchange.count(node.started, Arc::clone(&node.metrics));
        let options = self.session_options(&node.config);
        let (exchange, store, status) = (Arc::clone(&self.exchange), Arc::clone(&node.store), self.status.clone());
        let (identity, stop) = (self.identity.clone(), Arc::clone(node));
        tokio::spawn(async move { session::run(options, exchange, store, identity, status, stop.draining()).await });
    }

    fn session_options(&self, config: &Config) -> SessionOptions {
        let swarm = &config.swarm;
        let listen = swarm.listen.0.unwrap_or_else(|| (Ipv4Addr::UNSPECIFIED, 0).into());
        let ip = swarm.address.unwrap_or_else(|| listen.ip());
        SessionOptions {
            schedulers: self.schedulers.clone(),
            name: self.name.clone(),
            quic_address: SocketAddr::new(ip, listen.port()),
            quic_endpoints: u16::try_from(config.shard_count()).unwrap_or(u16::MAX),
            labels: swarm.labels.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
            seed: swarm.seed,
            data_dir: config.data_dir.clone(),
            token: self.token.clone(),
            authority: Some(Arc::clone(&self.authority)),
        }
    }

    pub(super) fn report(&self) -> SwarmReport {
        let error = self.status.iter().find_map(|status| status.snapshot().error().map(str::to_owned));
        let links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        let link = |link: &LinkStatus| LinkReport {
            peer: link.peer.to_string(),
            address: link.address,
            bytes: link.bytes,
            rate: link.rate,
        };
        SwarmReport {
            name: self.name.to_string(),
            scheduler: self.schedulers.join(", "),
            session: self.exchange.standing().to_string(),
            error,
            uploads: self.exchange.uploads.load(std::sync::atomic::Ordering::Relaxed),
            sent_bytes: self.exchange.sent(),
            links: links.iter().flatten().map(link).collect(),
        }
    }

    /// The same in numbers.
    pub(super) fn gauges(&self) -> SwarmGauges {
        let sessions: Vec<_> = self.status.iter().map(|status| status.snapshot()).collect();
        let certificate = sessions.iter().find_map(|session| session.certificate_until_unix);
        let links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        SwarmGauges {
            session: sessions.iter().any(|session| session.connected),
            certificate_until_unix: certificate.unwrap_or(0),
            links: links.iter().map(Vec::len).sum::<usize>() as u64,
            uploads: self.exchange.uploads.load(std::sync::atomic::Ordering::Relaxed).into(),
            sent_bytes: self.exchange.sent(),
        }
    }

    /// One shard's endpoint: as soon as the node has its certificate, and renewed with it.
    pub(super) async fn serve(self: Arc<Self>, shard: Rc<Shard>, index: usize) {
        let mut identities = self.identity.subscribe();
        let Some((endpoint, links)) = self.bind(&shard, index, &mut identities).await else { return };
        shard.links.replace(Some(Rc::clone(&links)));
        let library = Arc::clone(&shard.node.store);
        tokio_uring::spawn(Rc::clone(&endpoint).serve(library, Arc::clone(&self.uploads), shard.node.tracer.clone()));
        loop {
            tokio::select! {
                changed = identities.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(LOOK_EVERY) => self.look(index, &links),
            }
            let renewed = identities.borrow_and_update().clone();
            if let Some(Err(error)) = renewed.map(|identity| endpoint.renew(&identity)) {
                tracing::error!(%error, "the renewed certificate is not usable");
            }
        }
    }

    async fn bind(
        &self,
        shard: &Shard,
        index: usize,
        identities: &mut watch::Receiver<Option<Arc<Identity>>>,
    ) -> Option<(Rc<Endpoint>, Rc<Links>)> {
        let config = &shard.node.config;
        let mut listen = config.swarm.listen.0?;
        listen.set_port(listen.port().checked_add(u16::try_from(index).ok()?)?);
        let options = Options { listen, link_mtu: config.swarm.link_mtu, shard: u16::try_from(index).ok()? };
        loop {
            let identity = identities.wait_for(Option::is_some).await.ok()?.clone()?;
            match Endpoint::bind(&identity, options) {
                Ok(endpoint) => {
                    let endpoint = Rc::new(endpoint.with_denials(Arc::clone(&self.exchange.denials)));
                    let links = Links::new(Rc::clone(&endpoint));
                    return Some((endpoint, links));
                }
                Err(error) => tracing::error!(%error, "nothing is shared until the QUIC port can be opened"),
            }
            tokio::time::sleep(REBIND).await;
        }
    }

    fn look(&self, index: usize, links: &Links) {
        let mut all = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shard) = all.get_mut(index) {
            *shard = links.snapshot();
        }
    }
}

/// Queues what the scheduler wishes this node to hold.
async fn take_wishes(exchange: Arc<Exchange>, node: Arc<Node>) {
    loop {
        let wish = tokio::select! {
            wish = exchange.wished() => wish,
            () = node.draining() => return,
        };
        let (task, pin) = (wish.task, wish.pin);
        let label = About::untold(&wish.host).label;
        if node.preheats.offer(label, Wanted::Wish(wish), pin).is_none() {
            tracing::warn!(%task, "not preheated for the cluster: too many wait already");
        }
    }
}

fn own_scheduler(
    config: &Config,
    address: SocketAddr,
    hosts: &Suffixes,
    tracer: &Tracer,
) -> Result<OwnScheduler, NodeError> {
    let options = SchedulerOptions { hosts: hosts.clone(), tracer: tracer.clone(), ..SchedulerOptions::default() };
    let scheduler = Arc::new(Scheduler::open(&config.data_dir.join(SCHEDULER_DIR), options)?);
    // A node whose key was removed makes another one, and it is not refused its own name by its own scheduler.
    if !identity::has_key(&config.data_dir) {
        let name = node_name(config.swarm.name.as_deref())?;
        scheduler.registry().release(name.as_str()).map_err(SchedulerError::from)?;
    }
    let bind = |what, address| TcpListener::bind(address).map_err(|source| NodeError::Listen { what, address, source });
    let listener = bind("this node's scheduler", address)?;
    let page = match config.scheduler.page.0 {
        Some(address) => {
            let page = Page::open(&config.data_dir.join(SCHEDULER_DIR), scheduler.viewer(), PageOptions::default());
            Some((page.map_err(SchedulerError::from)?, bind("the scheduler's page", address)?))
        }
        None => None,
    };
    Ok(OwnScheduler { scheduler, listener, address, page })
}

impl OwnScheduler {
    /// Where and how this node joins it.
    fn joined(&self) -> (String, Token) {
        let ip = if self.address.ip().is_unspecified() { Ipv4Addr::LOCALHOST.into() } else { self.address.ip() };
        let scheduler = Arc::clone(&self.scheduler);
        let token = Token::Own(Arc::new(move || scheduler.token(OWN_TOKEN_TTL).ok()));
        (SocketAddr::new(ip, self.address.port()).to_string(), token)
    }
}

/// The configured name, or the host's made fit: lower case, and '-' for what a name cannot have.
pub(super) fn node_name(configured: Option<&str>) -> Result<PeerId, NodeError> {
    let host = || rustix::system::uname().nodename().to_string_lossy().to_lowercase();
    let name = configured.map_or_else(host, str::to_owned);
    let fit = |c: char| if c.is_ascii_lowercase() || c.is_ascii_digit() || c == '.' { c } else { '-' };
    let name: String = name.chars().map(fit).take(limits::NAME_LEN).collect();
    PeerId::new(name.trim_matches(['-', '.'])).map_err(|_| NodeError::Name(name))
}
