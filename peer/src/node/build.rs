//! A node from its configuration: ports, store, trust, interception, in the order in which mistakes are cheapest.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock, atomic::AtomicUsize},
    time::Instant,
};

use tokio::sync::watch;

use super::{Cluster, Node, NodeError, Tls};
use crate::{
    authorize::{AuthorizeOptions, Authorizer},
    config::{self, Config, InterceptMode, Switch},
    connections::Connections,
    fetch::Tasks,
    http::{mirror, rules::Front, tunnel::Distrusting, users::Users},
    intercept::{self, DestinationProofs, InterceptError, Interceptor, ServedHosts, Trust, Warnings},
    metrics::{Metrics, Scraped, StoreGauges},
    preheat::Preheats,
    replaceable::Replaceable,
    shard::Pulses,
    store::{self, Store},
    swarm::{
        Origin, OriginOptions,
        own::{self, OwnSockets},
        retry::Backoff,
        upstream::Upstream,
    },
    task::{Filter, Rules},
    tls::{Authority, LeafCache, Suffixes, server_config},
    trace::Tracer,
    uring::{Listener, probe::Features},
};

/// One shard's listeners.
#[derive(Default)]
pub(super) struct Share {
    pub(super) proxy: Vec<Listener>,
    pub(super) unix: Vec<Listener>,
    pub(super) intercept: Vec<Listener>,
}

/// Where the node listens in the end.
#[derive(Clone, Copy, Default)]
pub(super) struct Bound {
    pub(super) proxy: Option<SocketAddr>,
    pub(super) intercept: Option<u16>,
}

pub(super) fn build(config: Config, features: Features, tracer: Tracer) -> Result<(Arc<Node>, Vec<Share>), NodeError> {
    raise_limits();
    let suffixes = Suffixes::new(&config.intercept.hosts)?;
    let authority = Arc::new(Authority::open(&config.data_dir, &suffixes)?);
    let bundle = authority.write_bundle(&config.data_dir)?;
    tracing::debug!(path = %bundle.path.display(), "certificate bundle for clients");
    let store = open_store(&config)?;
    let cluster = Cluster::build(&config, &authority, &tracer)?.map(Arc::new);
    let (mut shares, mut bound) = bind_proxy(&config)?;
    bind_unix(&config, &mut shares)?;
    let interceptor = start_interception(&config, &mut shares, &mut bound)?;
    let metrics = Metrics::new();
    let origin = Origin::new(origin_options(&config, interceptor.is_ok(), &metrics)?)?;
    own_addresses(&config, &bound).for_each(|address| origin.own().record(address));
    let tls = Tls { config: server_config(Arc::new(LeafCache::new(Arc::clone(&authority))))?, authority };
    let rules = Rules {
        content_hosts: suffixes.iter().map(str::to_owned).collect(),
        filter: Filter::default().and(&config.filter.drop_params)?,
        ..Rules::default()
    };
    let front = Replaceable::new(Front::new(&config)?);
    let users = config.proxy.users.as_deref().map(read_users).transpose()?;
    scrape(&metrics, &store, interceptor.as_ref().ok(), cluster.as_ref(), &tracer);
    let node = Node {
        authorizer: Authorizer::new(authorize_options(&config)?),
        connections: Arc::new(Connections::new(config.limits.connections as usize)),
        reserve: Arc::new(Connections::reserve(config.limits.connections as usize)),
        proofs: DestinationProofs::default(),
        served: ServedHosts::default(),
        warnings: Warnings::default(),
        unreachable: AtomicUsize::new(0),
        pulses: Pulses::new(shares.len()),
        trust: Trust::default(),
        tasks: Tasks::new(config.limits.downloads as usize),
        front,
        users,
        mirrored: mirror::Memory::default(),
        distrusting: Distrusting::default(),
        preheats: Preheats::default(),
        origin: Arc::new(origin),
        cluster,
        admin_socket: OnceLock::new(),
        started: Instant::now(),
        drain: watch::Sender::new(false),
        config,
        metrics,
        tracer,
        store,
        rules,
        tls,
        interceptor,
        features,
        bound,
    };
    Ok((Arc::new(node), shares))
}

fn read_users(file: &Path) -> Result<Users, NodeError> {
    let failed = |source| NodeError::UsersFile { file: file.display().to_string(), source };
    Ok(Users::parse(&std::fs::read_to_string(file).map_err(failed)?)?)
}

/// The soft limit of descriptors is for programs that use select(2). Rings and buffers are locked memory, and so are BPF maps
/// before Linux 5.11.
fn raise_limits() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let unlimited = Rlimit { current: None, maximum: None };
    for (resource, first) in [(Resource::Nofile, None), (Resource::Memlock, Some(unlimited))] {
        let hard = getrlimit(resource).maximum;
        let limits = first.into_iter().chain([Rlimit { current: hard, maximum: hard }]);
        if !limits.map(|limit| setrlimit(resource, limit)).any(|set| set.is_ok()) {
            tracing::debug!(?resource, "the limit stays as it is");
        }
    }
}

fn open_store(config: &Config) -> Result<Arc<Store>, NodeError> {
    let dir = store_dir(config);
    let system = |source| NodeError::System { what: "folder for the store", source };
    std::fs::create_dir_all(&dir).map_err(system)?;
    Ok(Store::open(&dir, store_options(config)?)?)
}

fn store_dir(config: &Config) -> PathBuf {
    config.data_dir.join("store")
}

/// How large the store, which is there, may become.
pub(super) fn store_options(config: &Config) -> Result<store::Options, NodeError> {
    let dir = store_dir(config);
    let system = |source| NodeError::System { what: "size of the store's file system", source };
    let space = rustix::fs::statvfs(&dir).map_err(|error| system(error.into()))?;
    let (total, free) = (space.f_blocks * space.f_frsize, space.f_bavail * space.f_frsize);
    let settings = &config.store;
    let quota = settings.quota.resolve(total, free, allocated(&dir), settings.keep_free);
    Ok(store::Options { quota, keep_free: settings.keep_free.0 })
}

/// Bytes that the store's files take now, so that they are not counted against it twice.
fn allocated(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let mut bytes = 0;
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(data) if data.is_dir() => dirs.push(entry.path()),
                Ok(data) => bytes += data.blocks() * 512,
                Err(_) => {}
            }
        }
    }
    bytes
}

fn bind_proxy(config: &Config) -> Result<(Vec<Share>, Bound), NodeError> {
    let mut shares: Vec<Share> = (0..config.shard_count()).map(|_| Share::default()).collect();
    let Some(mut address) = config.listen.proxy.0 else { return Ok((shares, Bound::default())) };
    for share in &mut shares {
        let listener = listen("the proxy", address)?;
        // Port 0: the first shard's choice is everyone's.
        address = listener.local_addr().unwrap_or(address);
        share.proxy.push(listener);
    }
    Ok((shares, Bound { proxy: Some(address), intercept: None }))
}

fn bind_unix(config: &Config, shares: &mut [Share]) -> Result<(), NodeError> {
    let Some(path) = &config.listen.unix.0 else { return Ok(()) };
    let wrong = |source| NodeError::ListenUnix { path: path.clone(), source };
    let listener = Listener::bind_unix(path).map_err(wrong)?;
    shares.iter_mut().for_each(|share| share.unix.push(listener.clone()));
    Ok(())
}

fn listen(what: &'static str, address: SocketAddr) -> Result<Listener, NodeError> {
    Listener::bind(address).map_err(|source| NodeError::Listen { what, address, source })
}

/// Opens the intercept port on every address and attaches the programs; with `auto`, says why it cannot.
fn start_interception(
    config: &Config,
    shares: &mut [Share],
    bound: &mut Bound,
) -> Result<Result<Arc<Interceptor>, String>, NodeError> {
    let settings = &config.intercept;
    if settings.enabled == Switch::Off {
        return Ok(Err("intercept.enabled is off".to_owned()));
    }
    let mut address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, config.listen.intercept_port));
    for share in shares.iter_mut() {
        let listener = listen("interception", address)?;
        address = listener.local_addr().unwrap_or(address);
        share.intercept.push(listener);
        // A machine without IPv6 has no IPv6 connections to catch.
        share.intercept.extend(Listener::bind((Ipv6Addr::UNSPECIFIED, address.port()).into()).ok());
    }
    match Interceptor::attach(&intercept_options(config, address.port())) {
        Ok(interceptor) => {
            bound.intercept = Some(address.port());
            Ok(Ok(Arc::new(interceptor)))
        }
        Err(error) if settings.enabled == Switch::On => Err(NodeError::Intercept(error)),
        Err(error) => {
            shares.iter_mut().for_each(|share| share.intercept.clear());
            tracing::warn!("connections are not intercepted: {}", chain(&error));
            Ok(Err(chain(&error)))
        }
    }
}

fn intercept_options(config: &Config, port: u16) -> intercept::Options {
    let settings = &config.intercept;
    intercept::Options {
        allow_private: config.origin.allow_private,
        cgroup: settings.cgroup.clone(),
        mode: match settings.mode {
            InterceptMode::Dns => intercept::Mode::Dns,
            InterceptMode::All => intercept::Mode::All,
        },
        port,
        mark: settings.mark.0,
        suffixes: settings
            .hosts
            .iter()
            .map(|host| host.trim_start_matches("*.").trim_matches('.').to_owned())
            .collect(),
        node_v4: settings.node_address_v4.or_else(|| match facing_address(Ipv4Addr::new(192, 0, 2, 1).into()) {
            Some(IpAddr::V4(address)) => Some(address),
            _ => None,
        }),
        node_v6: settings.node_address_v6.or_else(|| match facing_address("2001:db8::1".parse().ok()?) {
            Some(IpAddr::V6(address)) => Some(address),
            _ => None,
        }),
        max_silence: settings.heartbeat_max_silence.get(),
    }
}

/// The node's own address on the way to `toward`. Connecting a UDP socket sends nothing.
fn facing_address(toward: IpAddr) -> Option<IpAddr> {
    let any = match toward {
        IpAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect((toward, 9)).ok()?;
    socket.local_addr().ok().map(|address| address.ip())
}

fn chain(error: &InterceptError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

fn origin_options(config: &Config, intercepting: bool, metrics: &Arc<Metrics>) -> Result<OriginOptions, NodeError> {
    let settings = &config.origin;
    Ok(OriginOptions {
        mark: Some(config.intercept.mark.0).filter(|mark| *mark != 0),
        mark_required: intercepting,
        extra_cas: settings.extra_cas.clone(),
        allow_private: settings.allow_private,
        overrides: settings.overrides.iter().map(|(place, address)| (place.clone(), *address)).collect(),
        own: Arc::new(OwnSockets::of_this_host()),
        via: Some(own::pseudonym()),
        proxy: upstream(settings)?,
        connections_per_host: usize::from(settings.connections_per_host),
        rate: settings.rate.0,
        connect_timeout: settings.connect_timeout.get(),
        head_timeout: settings.head_timeout.get(),
        idle_timeout: settings.stall_timeout.get(),
        max_redirects: usize::from(settings.redirects),
        metrics: Arc::clone(metrics),
        ..OriginOptions::default()
    })
}

/// The proxy by which origins are reached, with its credentials.
fn upstream(settings: &config::Origin) -> Result<Option<Upstream>, NodeError> {
    let Some(url) = &settings.proxy else { return Ok(None) };
    let proxy = Upstream::new(url)?.without(&settings.no_proxy);
    let Some(file) = &settings.proxy_login else { return Ok(Some(proxy)) };
    let failed = |source| NodeError::LoginFile { file: file.display().to_string(), source };
    let text = std::fs::read_to_string(file).map_err(failed)?;
    let with_login = proxy.with_login(text.trim_end_matches(['\r', '\n']));
    with_login.map(Some).map_err(|error| failed(std::io::Error::new(std::io::ErrorKind::InvalidData, error)))
}

/// What the configuration says of authorisation.
pub(super) fn authorize_options(config: &Config) -> Result<AuthorizeOptions, NodeError> {
    let settings = &config.authorize;
    let public: Result<Vec<_>, _> = settings.public.iter().map(|rule| rule.parse()).collect();
    Ok(AuthorizeOptions {
        remember: settings.cap.get(),
        public: public?,
        serve_when_origin_down: settings.serve_when_origin_down,
        ..AuthorizeOptions::default()
    })
}

/// Where this process listens, but for the admin port, which is opened later.
fn own_addresses(config: &Config, bound: &Bound) -> impl Iterator<Item = SocketAddr> {
    let settings = &config.scheduler;
    let scheduler = [settings.listen.0, settings.page.0].into_iter().filter(|_| settings.join.is_none());
    let any = |port: u16| [(Ipv4Addr::UNSPECIFIED, port).into(), (Ipv6Addr::UNSPECIFIED, port).into()];
    bound.proxy.into_iter().chain(bound.intercept.into_iter().flat_map(any)).chain(scheduler.flatten())
}

/// How a download bears failures.
pub(crate) fn backoff(config: &Config) -> Backoff {
    let settings = &config.origin;
    Backoff { base: settings.retry_backoff.get(), cap: settings.retry_max.get(), attempts: settings.retries }
}

fn scrape(
    metrics: &Arc<Metrics>,
    store: &Arc<Store>,
    interceptor: Option<&Arc<Interceptor>>,
    cluster: Option<&Arc<Cluster>>,
    tracer: &Tracer,
) {
    let tracer = tracer.clone();
    let (store, interceptor, cluster) = (Arc::clone(store), interceptor.cloned(), cluster.cloned());
    metrics.set_scraped(Scraped {
        store: Box::new(move || {
            let usage = store.usage();
            StoreGauges {
                tasks: usage.tasks as u64,
                bytes: usage.reserved,
                quota: usage.quota,
                evictions: usage.evictions,
            }
        }),
        decisions: Box::new(move || interceptor.as_ref().map_or_else(Vec::new, |it| it.counters())),
        traces: Box::new(move || tracer.counts().unwrap_or_default()),
        swarm: Box::new(move || cluster.as_ref().map(|cluster| cluster.gauges())),
    });
}
