//! A flash crowd: nodes in namespaces with shaped links want one file at once; how long the last one took against the fluid bound, and
//! how often each byte left the origin.

mod report;

use std::{
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

pub use self::report::{NodeRun, Run, bound};
use crate::lab::{
    binary,
    cluster::{Cluster, Fetched, Link, Node, NodePlan, Plan, Way},
};

const LABEL: &str = "owner/model/model.bin";
/// A crowd that takes longer hangs.
const DEADLINE: Duration = Duration::from_secs(600);

/// What a crowd downloads, and over what.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Every node's link in bits a second and direction; 0: unshaped.
    pub rate: u64,
    /// The origin's link, likewise.
    pub origin_rate: u64,
    /// Largest packet on the links in bytes; none: 1500.
    pub mtu: Option<u32>,
    /// Bytes of the file.
    pub size: u64,
    /// What the origin sends on each connection, in bytes a second; none: as much as goes.
    pub origin_per_connection: Option<u64>,
    /// Connections of a node to the origin (`origin.connections_per_host`); none: the node's default.
    pub origin_connections: Option<u16>,
    /// Without a scheduler, so that every node downloads for itself.
    pub alone: bool,
    /// Where the nodes keep their data while they run. A tmpfs takes the disk out of the measurement.
    pub data_in: PathBuf,
    /// Whether to write, and drop when the clients start, as much memory as the run will use.
    pub warm_up: bool,
    /// Whether to print each second what left the origin and what each node has. It costs a process a node each time.
    pub trace: bool,
}

impl Setting {
    /// A file of so many bytes over links of this rate, the origin's as well, with a scheduler and a warm-up.
    pub fn new(size: u64, rate: u64, data_in: PathBuf) -> Self {
        Self {
            rate,
            origin_rate: rate,
            mtu: None,
            size,
            origin_per_connection: None,
            origin_connections: None,
            alone: false,
            data_in,
            warm_up: true,
            trace: false,
        }
    }
}

/// Plays a crowd on this many nodes. Needs root, and `pondhawk`, `pondhawk-hub` and `pondhawk-scheduler` beside the running executable.
/// Clients that got wrong bytes are no error: the run counts them.
pub fn play(setting: &Setting, nodes: usize) -> Result<Run> {
    let cluster = build(setting, nodes)?;
    let sha256 = cluster.sha256(LABEL)?;
    let warm = match setting.warm_up {
        true => Some(warm_memory(&setting.data_in, nodes as u64 * setting.size)?),
        false => None,
    };
    let cpu_before = cpu(&cluster);
    drop(warm);
    let (makespan, clients) = at_once(&cluster, setting.trace)?;
    let cpu_after = cpu(&cluster);
    let accounts = cluster.nodes().iter().map(|node| Ok(node.account()?)).collect::<Result<Vec<_>>>()?;
    let origin_bytes = cluster.hub().stats()?.object(LABEL).body_bytes;
    let used = cpu_after.into_iter().zip(cpu_before).map(|(after, before)| after - before);
    let each = clients.iter().zip(accounts).zip(used);
    let each = each.map(|((client, moved), cpu_seconds)| NodeRun { seconds: client.seconds, cpu_seconds, moved });
    let each: Vec<NodeRun> = each.collect();
    let counted = clients.iter().filter(|client| !client.ok || client.bytes != setting.size).count();
    let hashed = checked(&cluster)?.iter().filter(|client| !client.ok || client.sha256 != sha256).count();
    Ok(Run {
        nodes,
        file_bytes: setting.size,
        makespan,
        bound: bound(setting.size, nodes, &rates(setting, nodes)),
        origin_bytes,
        wrong_clients: counted.max(hashed),
        each,
    })
}

fn build(setting: &Setting, nodes: usize) -> Result<Cluster> {
    let offer = format!("{LABEL}:{}:1", setting.size);
    let keep = setting.size.to_string();
    let limit = setting.origin_per_connection.map(|limit| limit.to_string());
    let mut hub = vec!["--keep-in-memory", &keep];
    hub.extend(limit.iter().flat_map(|limit| ["--limit-connection", limit]));
    let link = |rate: u64| Link { rate: (rate > 0).then_some(rate), mtu: setting.mtu };
    let more = "store:\n  keep_free: 64MiB\n".to_owned();
    let connections = setting.origin_connections.map(|n| format!("connections_per_host: {n}"));
    let plan = Plan {
        nodes,
        pondhawk: binary("pondhawk")?,
        folder: setting.data_in.clone(),
        files: &[&offer],
        hub: &hub,
        hub_link: link(setting.origin_rate),
        node_link: link(setting.rate),
        scheduler: (!setting.alone).then_some(&[]),
        node: NodePlan { more, origin: connections.into_iter().collect(), ..NodePlan::default() },
    };
    Cluster::start(&plan).context("the cluster cannot be started")
}

/// One client a node, all at once; how long until the last one has the file.
fn at_once(cluster: &Cluster, trace: bool) -> Result<(f64, Vec<Fetched>)> {
    let urls = cluster.nodes().iter().map(|_| Ok(cluster.url(LABEL)?)).collect::<Result<Vec<_>>>()?;
    let started = Instant::now();
    let clients = cluster.nodes().iter().zip(&urls);
    let clients: Vec<_> = clients.map(|(node, url)| node.start_fetch(url, Way::ProxyCounted, DEADLINE)).collect();
    // Each on a thread of its own, so that each one's end is seen when it comes.
    let done = AtomicBool::new(false);
    let (makespan, ended): (f64, Vec<_>) = thread::scope(|scope| {
        let tracer = trace.then(|| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    print_progress(cluster, started);
                    thread::park_timeout(Duration::from_secs(1));
                }
            })
        });
        let waiting: Vec<_> = clients.into_iter().map(|client| scope.spawn(|| client?.finish())).collect();
        let ended = waiting.into_iter().map(|client| client.join().expect("no client thread panics")).collect();
        let makespan = started.elapsed().as_secs_f64();
        done.store(true, Ordering::Relaxed);
        tracer.iter().for_each(|tracer| tracer.thread().unpark());
        (makespan, ended)
    });
    Ok((makespan, ended.into_iter().collect::<Result<_, _>>()?))
}

/// What left the origin and what each node has by now, MiB; a line a second. A node that does not answer is left out.
fn print_progress(cluster: &Cluster, started: Instant) {
    let mib = |bytes: u64| bytes >> 20;
    let origin = cluster.hub().stats().map_or(0, |stats| stats.object(LABEL).body_bytes);
    let accounts = cluster.nodes().iter().filter_map(|node| node.account().ok());
    let have: Vec<_> = accounts.map(|moved| mib(moved.origin_bytes + moved.from_peers)).collect();
    eprintln!("{:6.2} s  origin {:5}  nodes {have:5?}", started.elapsed().as_secs_f64(), mib(origin));
}

/// Every node's file once more, hashed.
fn checked(cluster: &Cluster) -> Result<Vec<Fetched>> {
    let fetch = |node: &Node| Ok(node.fetch(&cluster.url(LABEL)?, Way::Proxy, DEADLINE)?);
    cluster.nodes().iter().map(fetch).collect()
}

fn cpu(cluster: &Cluster) -> Vec<f64> {
    cluster.nodes().iter().map(|node| node.usage().map_or(0.0, |usage| usage.cpu_seconds)).collect()
}

/// Bytes a second that the origin can send at most, and a node take and give.
fn rates(setting: &Setting, nodes: usize) -> [f64; 2] {
    // What tbf lets through of TCP over Ethernet, measured: 944 of 1000 Mbit/s.
    let goodput = |bits: u64| if bits == 0 { f64::INFINITY } else { bits as f64 * 0.944 / 8.0 };
    let connections = f64::from(setting.origin_connections.unwrap_or(16)) * nodes as f64;
    let paced = setting.origin_per_connection.map_or(f64::INFINITY, |rate| rate as f64 * connections);
    [goodput(setting.origin_rate).min(paced), goodput(setting.rate)]
}

/// A file in this folder of so much memory, to be dropped when something else is about to fill as much.
///
/// In a virtual machine the first write into memory that the host has not backed yet costs six times the next one, and a guest that
/// reports its free pages loses them again within a second. What the nodes reserve when their downloads start has to be in use until
/// then, or the run measures the host.
pub fn warm_memory(folder: &Path, size: u64) -> Result<File> {
    let mut file: File = tempfile::tempfile_in(folder).context("the folder for the nodes' data is not writable")?;
    let chunk = vec![1; 1 << 20];
    for _ in 0..size >> 20 {
        file.write_all(&chunk).context("the folder for the nodes' data has not room enough for all of them")?;
    }
    Ok(file)
}
