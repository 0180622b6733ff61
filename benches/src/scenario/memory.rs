//! Resident memory of a node: idle, while it downloads files of several sizes, and with several clients.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use super::{
    Context, Metric, Need, Report, Scenario, Target,
    bed::{PROXY, one_node},
    say,
};
use crate::lab::{
    binary,
    cluster::{Cluster, Node},
    reset_peak, wait_until,
};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "memory",
    summary: "resident memory of a node: idle, by file size (1, 4, 16 GiB) and by clients at once (1 to 256)",
    needs: &[
        Need::Root,
        Need::Program("ip"),
        Need::Program("curl"),
        Need::Binary("pondhawk-bench"),
        Need::Binary("pondhawk"),
        Need::Binary("pondhawk-hub"),
    ],
    run,
};

const IDLE: Target = Target::AtMost(30.0);
const BUSY: Target = Target::AtMost(128.0);
const ROUNDS: usize = 3;
/// The file that many clients fetch.
const SHARED: u64 = 256 << 20;
/// Seconds.
const TIMEOUT: &str = "600";

fn run(context: &Context) -> Result<Report> {
    let mut report = Report::new(
        "Resident size of the process of one node, a default configuration; busy: its peak while clients download through the proxy port, cold \
         for file sizes, from the store for numbers of clients. Nothing is shaped.",
    );
    report.chart = "MiB resident".to_owned();
    let wanted = context.pick(&[("1gib", 1 << 30), ("4gib", 4 << 30), ("16gib", 16 << 30)][..], &[("64mib", 64 << 20)]);
    let mut idle = Vec::new();
    for &(name, size) in wanted {
        if place(context, size).is_none() {
            report.notes.push(format!("{name} is left out: there is no room for it"));
            continue;
        }
        let runs = each_round(context, &mut idle, size, |node, url| peak_of(node, url, 1))?;
        add(&mut report, format!("rss_{name}"), &runs);
    }
    for &(name, clients) in context.pick(&[("1", 1), ("16", 16), ("256", 256)][..], &[("1", 1), ("8", 8)]) {
        let shared = context.pick(SHARED, 16 << 20);
        let runs = each_round(context, &mut idle, shared, |node, url| {
            peak_of(node, url, 1)?;
            peak_of(node, url, clients)
        })?;
        add(&mut report, format!("rss_{name}_clients"), &runs);
    }
    let metric = Metric::counted("MiB", &idle).wanted(IDLE);
    report.bars.insert(0, ("idle".to_owned(), metric.value, format!("{:.1} MiB", metric.value)));
    report.metrics.insert(0, ("rss_idle".to_owned(), metric));
    Ok(report)
}

fn add(report: &mut Report, name: String, runs: &[f64]) {
    let metric = Metric::counted("MiB", runs).wanted(BUSY);
    let label = name.trim_start_matches("rss_").replace('_', " ");
    report.bars.push((label, metric.value, format!("{:.1} MiB", metric.value)));
    report.add(name, metric);
}

/// Measures in each round on a node of its own, since memory that was once used is not always given back.
fn each_round(
    context: &Context,
    idle: &mut Vec<f64>,
    size: u64,
    measure: impl Fn(&Node, &str) -> Result<f64>,
) -> Result<Vec<f64>> {
    let mut peaks = Vec::new();
    for _ in 0..context.rounds(ROUNDS) {
        context.go_on()?;
        let cluster = cluster(context, size)?;
        let node = &cluster.nodes()[0];
        // What starting took has been given back or not by then.
        wait_until(Duration::from_secs(2), || context.go_on().err());
        idle.push(mib(node.usage().context("the node has ended")?.rss));
        let peak = measure(node, &cluster.url(LABEL)?)?;
        say(format!("{} MiB file: {:.1} MiB idle, {peak:.1} MiB at most", size >> 20, idle.last().unwrap_or(&0.0)));
        peaks.push(peak);
    }
    Ok(peaks)
}

const LABEL: &str = "owner/model/model.bin";

fn cluster(context: &Context, size: u64) -> Result<Cluster> {
    let offer = format!("{LABEL}:{size}:1");
    one_node(place(context, size).context("no room for the file")?, &[&offer], &[], false)
}

/// The largest resident size while so many clients download this at once, in MiB.
fn peak_of(node: &Node, url: &str, clients: usize) -> Result<f64> {
    reset_peak(node.pid().context("the node has ended")?)?;
    let clients = clients.to_string();
    let mut load = node.host().netns().command(binary("pondhawk-bench")?);
    load.args(["load", "--proxy", PROXY, "--clients", &clients, "--requests", &clients, "--timeout", TIMEOUT]);
    // In absolute form the node fetches it by TLS all the same.
    let output = load.arg(url.replacen("https://", "http://", 1)).stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success() && !said.contains("failed"), "a client failed: {said}");
    Ok(mib(node.usage().context("the node has ended")?.rss_peak))
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// The first folder of the two that has room for a file twice, since a tmpfs takes the memory that others need, too.
fn place(context: &Context, size: u64) -> Option<&Path> {
    let free = |folder: &Path| rustix::fs::statvfs(folder).map_or(0, |fs| fs.f_bavail * fs.f_frsize);
    [&context.data_in, &context.target].into_iter().map(PathBuf::as_path).find(|folder| free(folder) >= 2 * size)
}
