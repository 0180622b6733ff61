//! What interception costs connections that are not ours: time of `connect()` with and without the programs attached, and BPF time a run.
//!
//! The programs are attached to a cgroup made for the clients of this scenario; the clients without them run in another one.

mod bpf;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use self::bpf::{Accounting, Ran};
use super::{Context, Metric, Need, Report, Scenario, Target, bed::one_node, say};
use crate::lab::{
    Cgroup, Daemon, binary,
    cluster::{Cluster, Host, Node},
    run as output_of,
};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "intercept",
    summary: "connections that are not ours: connect() with and without the BPF programs attached, and BPF time a run",
    needs: &[
        Need::Root,
        Need::Program("ip"),
        Need::Program("curl"),
        Need::Binary("pondhawk"),
        Need::Binary("pondhawk-hub"),
        Need::Binary("pondhawk-connects"),
    ],
    run,
};

const ROUNDS: usize = 9;
/// To the port that is looked at, where the address is none of the CDN's; and to one that is not.
const PORTS: [(u16, &str); 2] = [(443, "443"), (80, "80")];

fn run(context: &Context) -> Result<Report> {
    let stage = Stage::open(context)?;
    let rounds = context.rounds(ROUNDS);
    let mut report = Report::new(
        "connect() from a node's namespace to another host that is not the CDN, one connection after the other. Baseline: the same from a \
         cgroup without the programs, in turn.",
    );
    report.chart = "Microseconds of connect(), median".to_owned();
    for (port, name) in PORTS {
        let (mut with, mut without) = (Vec::new(), Vec::new());
        // The first round does not count.
        for number in 0..=rounds {
            context.go_on()?;
            // Each goes first as often as the other: the first one meets colder caches.
            let mut groups = [(stage.caught()?, &mut with), (&stage.apart, &mut without)];
            if number % 2 == 1 {
                groups.reverse();
            }
            for (group, runs) in groups {
                let took = stage.connect(group, port)?;
                if number > 0 {
                    runs.push(took);
                }
            }
        }
        let metric = Metric::timed("us", &with).beside(&with, &without).wanted(Target::NoDifference);
        for (label, value) in [("with", metric.value), ("without", metric.baseline.unwrap_or_default())] {
            report.bars.push((format!("port {name}, {label}"), value, format!("{value:.1} us")));
        }
        report.add(format!("connect_us_port_{name}"), metric);
    }
    add_bpf(&mut report, context, &stage)?;
    Ok(report)
}

fn add_bpf(report: &mut Report, context: &Context, stage: &Stage) -> Result<()> {
    say("BPF time by the kernel's own accounting");
    let accounting = Accounting::switch_on()?;
    for (port, name) in PORTS {
        let (mut program, mut all) = (Vec::new(), Vec::new());
        for _ in 0..context.rounds(ROUNDS) {
            context.go_on()?;
            let before = Ran::of(stage.pid()?)?;
            stage.connect(stage.caught()?, port)?;
            let ran = Ran::of(stage.pid()?)?.since(&before);
            ensure!(
                ran.connects >= stage.count as u64,
                "the programs ran {} times for {} connections",
                ran.connects,
                stage.count
            );
            program.push(ran.connect_ns as f64 / ran.connects as f64);
            all.push(ran.all_ns as f64 / stage.count as f64);
        }
        report.add(
            format!("bpf_ns_per_connect_port_{name}"),
            Metric::timed("ns", &program).wanted(Target::AtMost(250.0)),
        );
        report.add(format!("bpf_ns_all_programs_port_{name}"), Metric::timed("ns", &all));
    }
    drop(accounting);
    report.notes.push(
        "BPF time is that of the connect program a run; of all programs (connect, socket operations, packets received) a connection. The \
         kernel's accounting is in it."
            .to_owned(),
    );
    Ok(())
}

struct Stage {
    // Dropped in this order: processes before what they run in.
    _accept: Vec<Daemon>,
    /// Clients in it are not caught.
    apart: Cgroup,
    cluster: Cluster,
    server: Host,
    count: usize,
}

impl Stage {
    fn open(context: &Context) -> Result<Self> {
        let mut cluster = one_node(&context.data_in, &["owner/model/tiny.bin:1MiB:1"], &[], true)?;
        let server = cluster.add_pod()?;
        let mut accept = Vec::new();
        for (port, name) in PORTS {
            let mut command = server.netns().command(binary("pondhawk-connects")?);
            command.args(["accept", &format!("{}:{port}", server.v4())]);
            let log = cluster.folder().join(format!("accept-{name}.log"));
            let mut daemon = Daemon::spawn("pondhawk-connects", &mut command, &log)?;
            daemon.wait_for_port(port, Duration::from_secs(10))?;
            accept.push(daemon);
        }
        Ok(Self { _accept: accept, apart: Cgroup::new("apart")?, cluster, server, count: context.pick(10_000, 500) })
    }

    fn node(&self) -> &Node {
        &self.cluster.nodes()[0]
    }

    fn caught(&self) -> Result<&Cgroup> {
        self.node().clients().context("the node of this plan catches connections")
    }

    fn pid(&self) -> Result<u32> {
        self.node().pid().context("the node has ended")
    }

    /// Microseconds that `connect` took in the median, of a process in this group on the node's machine.
    fn connect(&self, group: &Cgroup, port: u16) -> Result<f64> {
        let mut command = self.node().host().netns().command(binary("pondhawk-connects")?);
        command.args(["open", &format!("{}:{port}", self.server.v4()), "--count", &self.count.to_string()]);
        let said: Value = serde_json::from_str(&output_of(&mut group.wrap(&command))?)?;
        Ok(said["median_ns"].as_f64().context("pondhawk-connects says no median")? / 1000.0)
    }
}
