//! The control thread: signals, the admin port, the interception's heartbeat and its names.

use std::{
    collections::BTreeMap,
    io::IsTerminal as _,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tokio::signal::unix::{Signal, SignalKind, signal};
use url::Url;

use super::{
    Node, NodeError,
    reload::{Source, reload},
};
use crate::{
    admin::{
        Admin, AdminAccess, AdminSocket, Control, Interception, Preheat, PreheatRefusal, PreheatWanted, Removal,
        Status, StoreStatus, Task,
    },
    config::InterceptMode,
    fetch::{Brought, Terms},
    http::destination::Destination,
    intercept::{
        Interceptor,
        reach::{REACH_PERIOD, ReachReport},
        resolver,
    },
    limits,
    preheat::Wanted,
    store::{TaskInfo, Verdict},
    swarm::{OriginRequest, exchange::Scope},
    task::TaskId,
};

/// Between the last heartbeat and the last accept: connects that were already redirected are still taken.
const LAST_ACCEPTS: Duration = Duration::from_millis(100);

/// Threads for what blocks of the admin port and a reload. The look-ups of names have threads beside them, as the resolver can
/// keep each for half a minute while DNS does not answer.
const ADMIN_THREADS: usize = 4;

/// Runs until a signal asks for the end, and has stopped the interception by then.
pub(super) fn run(node: &Arc<Node>, source: &Arc<Source>) -> Result<(), NodeError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .max_blocking_threads(ADMIN_THREADS + resolver::LOOK_UP_THREADS)
        .thread_name("control")
        .enable_all()
        .build()
        .map_err(|source| NodeError::System { what: "runtime", source })?;
    let result = runtime.block_on(control(node, source));
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

async fn control(node: &Arc<Node>, source: &Arc<Source>) -> Result<(), NodeError> {
    let system = |source| NodeError::System { what: "signal handler", source };
    let mut terminate = signal(SignalKind::terminate()).map_err(system)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system)?;
    let hangup = signal(SignalKind::hangup()).map_err(system)?;
    let admin = match node.config.listen.admin.0 {
        Some(address) => Some(Admin::bind(address).await?),
        None => None,
    };
    let socket = bind_admin_socket(node)?;
    admin.iter().for_each(|admin| node.origin.own().record(admin.address()));
    first_beat(node).await;
    announce(node, admin.as_ref());
    if let Some(cluster) = &node.cluster {
        cluster.start(node);
    }
    if let Some(admin) = admin {
        tokio::spawn(admin.serve(Arc::clone(&node.metrics), Arc::clone(node) as Arc<dyn Control>));
    }
    if let Some(socket) = socket {
        tokio::spawn(socket.serve(Arc::clone(&node.metrics), Arc::clone(node) as Arc<dyn Control>));
    }
    if let Ok(interceptor) = &node.interceptor {
        let names = node.tls.suffixes().iter().map(str::to_owned).collect();
        let allow_private = node.config.origin.allow_private;
        let (shared, watched) = (Arc::clone(node), Arc::clone(node));
        let (learning, watching) = (Arc::clone(interceptor), Arc::clone(interceptor));
        tokio::spawn(async move {
            resolver::keep_learning(learning, names, &shared.served, allow_private, shared.draining()).await;
        });
        tokio::spawn(async move { watch_reach(&watched, &watching).await });
    }
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = beat(node) => {}
        () = hangups(node, source, hangup) => {}
    }
    tracing::info!(connections = node.connections.open(), "draining");
    if let Ok(interceptor) = &node.interceptor {
        interceptor.silence();
    }
    tokio::time::sleep(LAST_ACCEPTS).await;
    Ok(())
}

/// Opens the Unix socket for changes. Where the configuration does not ask for a place, a file system without sockets, or a path
/// that is too long, must not keep the node from serving: it warns and accepts no changes.
fn bind_admin_socket(node: &Node) -> Result<Option<AdminSocket>, NodeError> {
    let Some(path) = node.config.admin_socket() else { return Ok(None) };
    let rights = &node.config.admin;
    let access = AdminAccess { users: rights.users.clone(), groups: rights.groups.clone() };
    match AdminSocket::bind(&path, access) {
        Ok(socket) => {
            // Set once: this is the only place.
            let _ = node.admin_socket.set(path);
            Ok(Some(socket))
        }
        Err(error) if rights.socket.is_some() => Err(error.into()),
        Err(error) => {
            tracing::warn!(%error, "no changes are accepted (ls and status work): set admin.socket to another path");
            Ok(None)
        }
    }
}

/// Reloads at each SIGHUP. Ends where the signal says that the terminal is gone which the node was started from.
async fn hangups(node: &Arc<Node>, source: &Arc<Source>, mut hangup: Signal) {
    let mut now = node.config.clone();
    while hangup.recv().await.is_some() {
        if std::io::stdin().is_terminal() {
            return;
        }
        let (node, source, last) = (Arc::clone(node), Arc::clone(source), now.clone());
        // Not here, where the heartbeat is.
        let reloaded = tokio::task::spawn_blocking(move || reload(&node, &source, last)).await;
        now = reloaded.unwrap_or(now);
    }
}

/// Whoever reads that the node is up may rely on it: connections are caught from then on.
async fn first_beat(node: &Node) {
    let deadline = Instant::now() + limits::SHARD_START;
    while !node.pulses.all_within(limits::SHARD_SILENCE) && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    if node.pulses.all_within(limits::SHARD_SILENCE) {
        node.interceptor.iter().for_each(|interceptor| interceptor.beat());
    }
}

/// Beats for as long as every shard shows signs of life and there is room for connections: connections to a node that hangs, or
/// that has nearly as many as it may, go directly.
async fn beat(node: &Node) {
    let (mut hung, mut crowded) = (false, false);
    loop {
        tokio::time::sleep(limits::BEAT_EVERY).await;
        let alive = node.pulses.all_within(limits::SHARD_SILENCE);
        let full = node.connections.is_crowded();
        if alive {
            node.interceptor.iter().for_each(|it| if full { it.pause() } else { it.beat() });
        }
        if crowded != full {
            crowded = full;
            report_crowd(node, full);
        }
        if hung == alive {
            hung = !alive;
            if hung {
                tracing::warn!("a shard does not answer: connections go directly until it does");
            } else {
                tracing::info!("every shard answers");
            }
        }
    }
}

fn report_crowd(node: &Node, crowded: bool) {
    let open = node.connections.open();
    if crowded {
        tracing::warn!(
            open,
            "nearly as many connections are open as limits.connections allows: new ones are not intercepted until places are \
             free; raise limits.connections if that is usual"
        );
    } else {
        tracing::info!(open, "places for connections are free again");
    }
}

/// Looks for network namespaces that cannot reach the intercept port, and reports each once.
async fn watch_reach(node: &Node, interceptor: &Interceptor) {
    let mut report = ReachReport::default();
    loop {
        tokio::time::sleep(REACH_PERIOD).await;
        let failing = interceptor.unreachable();
        node.unreachable.store(failing.len(), Ordering::Relaxed);
        let port = node.bound.intercept.unwrap_or_default();
        let change = report.update(failing);
        for netns in change.lost {
            tracing::warn!(
                netns,
                port,
                "intercepted connections of a network namespace do not arrive at this node, so its connections go direct: let \
                 pods reach this TCP port of the node (host firewall, NetworkPolicy, service mesh)"
            );
        }
        for netns in change.recovered {
            tracing::info!(netns, "connections of the network namespace arrive again, or it makes no more");
        }
    }
}

fn announce(node: &Node, admin: Option<&Admin>) {
    let status = node.status();
    tracing::info!(
        version = status.version,
        shards = status.shards,
        proxy = ?status.proxy,
        admin = ?admin.map(Admin::address),
        admin_socket = status.admin_socket,
        intercept = ?node.bound.intercept,
        cgroup = ?status.interception.cgroup,
        store = status.store.dir,
        quota = status.store.quota,
        kernel = ?status.kernel,
        "node up"
    );
}

impl Control for Node {
    fn tasks(&self) -> Vec<Task> {
        let brought = |task: TaskInfo| (self.tasks.brought(&task.id), task);
        self.store.list().into_iter().map(brought).map(|(brought, info)| task(info, brought)).collect()
    }

    fn remove(&self, id: &TaskId) -> Removal {
        match self.store.list().into_iter().find(|task| task.id == *id) {
            None => Removal::Unknown,
            Some(task) if task.in_use => Removal::InUse,
            Some(task) if task.pinned => Removal::Pinned,
            Some(_) if self.store.remove(id) => Removal::Removed,
            Some(_) => Removal::Unknown,
        }
    }

    fn pin(&self, id: &TaskId, pinned: bool) -> Result<bool, String> {
        // On a thread that may block, of a runtime that goes on.
        let pinned = tokio::runtime::Handle::current().block_on(self.store.pin(id, pinned));
        pinned.map_err(|error| error.to_string())
    }

    fn preheat(&self, wanted: PreheatWanted) -> Result<u64, PreheatRefusal> {
        if self.is_draining() {
            return Err(PreheatRefusal::Full("the node is draining".to_owned()));
        }
        let url = Url::parse(&wanted.url).map_err(|error| PreheatRefusal::Wrong(error.to_string()))?;
        Destination::of(&url).map_err(|error| PreheatRefusal::Wrong(error.to_string()))?;
        let label = crate::task::id::label(&url);
        let treatment = self.front.treat(url);
        if !treatment.store {
            let host = treatment.url.host_str().unwrap_or_default();
            let why = format!("{host} is not one of the hosts in intercept.hosts, and no rule keeps its files");
            return Err(PreheatRefusal::NotServed(why));
        }
        let headers = wanted.headers.into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value.into_bytes()));
        let terms = Terms::of(&treatment);
        let request = OriginRequest::new(treatment.url, headers.collect());
        let full = || PreheatRefusal::Full(format!("{} preheats wait already", limits::PREHEATS));
        let scope = wanted.nodes.map(|nodes| Scope {
            seeds: nodes.seeds,
            labels: nodes.labels.into_iter().collect(),
            count: nodes.count,
        });
        self.preheats.offer(label, Wanted::Url { request, terms, scope }, wanted.pin).ok_or_else(full)
    }

    fn preheats(&self) -> Vec<Preheat> {
        self.preheats.list()
    }

    fn socket(&self) -> Option<String> {
        self.admin_socket.get().map(|path| path.display().to_string())
    }

    fn status(&self) -> Status {
        let usage = self.store.usage();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs(),
            shards: self.config.shard_count(),
            unready: self.unready(),
            degraded: self.degraded(),
            connections: self.connections.open() as u64,
            proxy: self.bound.proxy,
            admin_socket: self.socket(),
            store: StoreStatus {
                dir: self.config.data_dir.join("store").display().to_string(),
                tasks: usage.tasks as u64,
                bytes: usage.reserved,
                quota: usage.quota,
            },
            totals: self.metrics.totals(),
            preheats: self.preheats.counts(),
            swarm: self.cluster.as_ref().map(|cluster| cluster.report()),
            interception: self.interception(),
            kernel: self.kernel(),
        }
    }

    fn unready(&self) -> Vec<String> {
        let mut why = Vec::new();
        if self.is_draining() {
            why.push("draining".to_owned());
        }
        if !self.pulses.all_within(limits::SHARD_SILENCE) {
            why.push("a shard does not answer".to_owned());
        }
        why
    }

    fn degraded(&self) -> Vec<String> {
        let mut why = Vec::new();
        if self.connections.is_crowded() {
            let open = self.connections.open();
            why.push(format!("{open} connections are open, nearly limits.connections: new ones are not intercepted"));
        }
        let (unreachable, port) = (self.unreachable.load(Ordering::Relaxed), self.bound.intercept.unwrap_or_default());
        if unreachable > 0 {
            why.push(format!(
                "from {unreachable} network namespaces intercepted connections do not arrive, so theirs go direct: let pods \
                 reach TCP port {port} of this node"
            ));
        }
        why
    }
}

impl Node {
    fn interception(&self) -> Interception {
        let settings = &self.config.intercept;
        let mode = match settings.mode {
            InterceptMode::Dns => "dns",
            InterceptMode::All => "all",
        };
        let (on, why_off, decisions) = match &self.interceptor {
            Ok(interceptor) => (true, None, interceptor.counters()),
            Err(why) => (false, Some(why.clone()), Vec::new()),
        };
        let root = || crate::intercept::bypass::cgroup2_mount();
        let cgroup = settings.cgroup.clone().or_else(root).filter(|_| on);
        Interception {
            on,
            why_off,
            mode: mode.to_owned(),
            cgroup: cgroup.map(|path| path.display().to_string()),
            port: self.bound.intercept,
            paused: on && self.connections.is_crowded(),
            unreachable: self.unreachable.load(Ordering::Relaxed) as u64,
            decisions: decisions.into_iter().map(|(name, count)| (name.to_owned(), count)).collect(),
        }
    }

    fn kernel(&self) -> BTreeMap<String, String> {
        let yes = |there: bool| if there { "there" } else { "missing" }.to_owned();
        [
            ("plain replies", "sendfile, cold stretches by registered buffers".to_owned()),
            ("TLS replies", "one read, one encryption, one send".to_owned()),
            ("ring", if self.features.coop_taskrun { "COOP_TASKRUN" } else { "default" }.to_owned()),
            ("SEND_ZC", yes(self.features.send_zc)),
        ]
        .map(|(name, text)| (name.to_owned(), text))
        .into()
    }
}

fn task(info: TaskInfo, brought: Brought) -> Task {
    let layout = crate::task::Layout::for_len(info.len);
    let pieces = layout.map_or(0, crate::task::Layout::pieces);
    let piece_len = layout.map_or(1, |layout| u64::from(layout.piece_len()));
    let verdict = match info.verdict {
        Verdict::NotNeeded => "not_needed",
        Verdict::Pending => "pending",
        Verdict::Verified => "verified",
        Verdict::Mismatch => "mismatch",
        Verdict::Unreadable => "unreadable",
    };
    Task {
        id: info.id.to_string(),
        label: info.label,
        bytes: info.len,
        held_bytes: info.held,
        pieces,
        held_pieces: u32::try_from(info.held.div_ceil(piece_len)).unwrap_or(pieces),
        verdict: verdict.to_owned(),
        in_use: info.in_use,
        pinned: info.pinned,
        origin_bytes: brought.origin,
        peer_bytes: brought.peers,
        created_unix: info.created_unix,
        used_unix: info.last_used_ms / 1000,
    }
}
