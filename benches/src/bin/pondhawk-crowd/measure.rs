//! One run: a cluster, a crowd, and what it took.

use std::{
    fs::File,
    io::Write as _,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use pondhawk_bench::lab::{
    binary,
    cluster::{Cluster, Fetched, Link, NodePlan, Plan, Way},
};

use crate::{
    Arguments,
    report::{NodeRun, Run, bound},
};

const LABEL: &str = "owner/model/model.bin";
/// A crowd that takes longer hangs.
const DEADLINE: Duration = Duration::from_secs(600);

/// Plays a crowd on this many nodes.
pub(crate) fn crowd(arguments: &Arguments, nodes: usize) -> Result<Run> {
    let cluster = build(arguments, nodes)?;
    let sha256 = cluster.sha256(LABEL)?;
    let warm = if arguments.no_warm_up { None } else { Some(warm_up(arguments, nodes)?) };
    let cpu_before = cpu(&cluster);
    drop(warm);
    let (makespan, clients) = at_once(&cluster, arguments.trace)?;
    let cpu_after = cpu(&cluster);
    let accounts = cluster.nodes().iter().map(|node| Ok(node.account()?)).collect::<Result<Vec<_>>>()?;
    let origin_bytes = cluster.hub().stats()?.object(LABEL).body_bytes;
    let used = cpu_after.into_iter().zip(cpu_before).map(|(after, before)| after - before);
    let each = clients.iter().zip(accounts).zip(used);
    let each = each.map(|((client, moved), cpu_seconds)| NodeRun { seconds: client.seconds, cpu_seconds, moved });
    let each: Vec<NodeRun> = each.collect();
    let counted = clients.iter().filter(|client| !client.ok || client.bytes != arguments.size).count();
    let hashed = checked(&cluster)?.iter().filter(|client| !client.ok || client.sha256 != sha256).count();
    Ok(Run {
        nodes,
        file_bytes: arguments.size,
        makespan,
        bound: bound(arguments.size, nodes, &rates(arguments, nodes)),
        origin_bytes,
        wrong_clients: counted.max(hashed),
        each,
    })
}

fn build(arguments: &Arguments, nodes: usize) -> Result<Cluster> {
    let offer = format!("{LABEL}:{}:1", arguments.size);
    let keep = arguments.size.to_string();
    let limit = arguments.origin_per_connection.map(|limit| limit.to_string());
    let mut hub = vec!["--keep-in-memory", &keep];
    hub.extend(limit.iter().flat_map(|limit| ["--limit-connection", limit]));
    let link = |rate: u64| Link { rate: (rate > 0).then_some(rate), mtu: arguments.mtu };
    let more = "store:\n  keep_free: 64MiB\n".to_owned();
    let connections = arguments.origin_connections.map(|n| format!("connections_per_host: {n}"));
    let plan = Plan {
        nodes,
        pondhawk: binary("pondhawk")?,
        folder: arguments.data_in.clone(),
        files: &[&offer],
        hub: &hub,
        hub_link: link(arguments.origin_rate.unwrap_or(arguments.rate)),
        node_link: link(arguments.rate),
        scheduler: (!arguments.alone).then_some(&[]),
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
    let fetch =
        |node: &pondhawk_bench::lab::cluster::Node| Ok(node.fetch(&cluster.url(LABEL)?, Way::Proxy, DEADLINE)?);
    cluster.nodes().iter().map(fetch).collect()
}

fn cpu(cluster: &Cluster) -> Vec<f64> {
    cluster.nodes().iter().map(|node| node.usage().map_or(0.0, |usage| usage.cpu_seconds)).collect()
}

/// Bytes a second that the origin can send at most, and a node take and give.
fn rates(arguments: &Arguments, nodes: usize) -> [f64; 2] {
    // What tbf lets through of TCP over Ethernet, measured: 944 of 1000 Mbit/s.
    let goodput = |bits: u64| if bits == 0 { f64::INFINITY } else { bits as f64 * 0.944 / 8.0 };
    let connections = f64::from(arguments.origin_connections.unwrap_or(16)) * nodes as f64;
    let paced = arguments.origin_per_connection.map_or(f64::INFINITY, |rate| rate as f64 * connections);
    [goodput(arguments.origin_rate.unwrap_or(arguments.rate)).min(paced), goodput(arguments.rate)]
}

/// As much memory as the run will fill, written and held until the clients start.
///
/// In a virtual machine the first write into memory that the host has not backed yet costs six times the next one, and a guest that
/// reports its free pages loses them again within a second. What the nodes reserve when their downloads start has to be in use until
/// then, or the run measures the host.
fn warm_up(arguments: &Arguments, nodes: usize) -> Result<File> {
    let mut file: File = tempfile::tempfile_in(&arguments.data_in).context("--data-in is not writable")?;
    let chunk = vec![1; 1 << 20];
    for _ in 0..(nodes as u64 * arguments.size) >> 20 {
        file.write_all(&chunk).context("--data-in has not room enough for all nodes")?;
    }
    Ok(file)
}
