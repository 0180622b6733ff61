//! What a node holds already, served to a client on its machine, beside nginx with the same bytes.

use std::time::Duration;

use anyhow::Result;

use super::{
    Context, Metric, Need, Report, Scenario, Target,
    bed::{Bed, Load, Played, Server},
    say,
};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "local-hit",
    summary: "a file from the own node's store, plain and TLS, 1 and 8 streams, beside nginx: throughput and CPU time",
    needs: &[
        Need::Root,
        Need::Program("ip"),
        Need::Program("curl"),
        Need::Program("nginx"),
        Need::Binary("pondhawk"),
        Need::Binary("pondhawk-hub"),
        Need::Binary("pondhawk-bench"),
    ],
    run,
};

const LABEL: &str = "owner/model/model.bin";
const ROUNDS: usize = 5;

struct Kind {
    name: &'static str,
    ours: Server,
    theirs: Server,
    /// Of the ratio of throughput, and of that of CPU time a gigabyte.
    targets: [f64; 2],
}

const KINDS: [Kind; 2] = [
    Kind { name: "plain", ours: Server::NodeProxy, theirs: Server::Nginx, targets: [1.2, 1.0] },
    Kind { name: "tls", ours: Server::NodeCaught, theirs: Server::NginxTls, targets: [1.5, 0.45] },
];

fn run(context: &Context) -> Result<Report> {
    let size: u64 = context.pick(512 << 20, 32 << 20);
    let time = context.pick(Duration::from_secs(3), Duration::from_millis(500));
    let offer = format!("{LABEL}:{size}:1");
    let mut bed = Bed::new(context, &context.data_in, &[&offer], &[])?;
    bed.start_nginx(LABEL)?;
    // The download that the hits are of, and a first look at the file by all.
    for kind in &KINDS {
        bed.play(kind.ours, LABEL, &Load::once())?;
        bed.play(kind.theirs, LABEL, &Load::once())?;
    }
    let mut report = Report::new(format!(
        "{} MiB from the page cache over loopback, again and again, by `pondhawk-bench load`; baseline: nginx with a worker a processor, \
         sendfile, the same cipher (AES-128-GCM), in turn with ours. CPU time is the server's.",
        size >> 20
    ));
    report.chart = "GB/s".to_owned();
    for kind in &KINDS {
        for streams in [1, 8] {
            let load = Load::clients(streams, time);
            let [ours, theirs] = bed.beside(context.rounds(ROUNDS), [kind.ours, kind.theirs], LABEL, &load)?;
            say(format!("{}, {streams} streams: {} against {}", kind.name, told(&ours), told(&theirs)));
            add(&mut report, kind, streams, &ours, &theirs);
        }
    }
    Ok(report)
}

fn add(report: &mut Report, kind: &Kind, streams: usize, ours: &[Played], theirs: &[Played]) {
    let of = |played: &[Played], figure: fn(&Played) -> f64| played.iter().map(figure).collect::<Vec<f64>>();
    let figures = |figure: fn(&Played) -> f64| (of(ours, figure), of(theirs, figure));
    let [fast, cheap] = kind.targets;
    let name = format!("{}_{streams}", kind.name);
    let (speed, theirs) = figures(|played| played.speed);
    let metric = Metric::timed("GB/s", &speed).beside(&speed, &theirs).wanted(Target::RatioAtLeast(fast));
    for (who, value) in [("pondhawk", metric.value), ("nginx", metric.baseline.unwrap_or_default())] {
        report.bars.push((format!("{who}, {}, {streams} streams", kind.name), value, format!("{value:.2} GB/s")));
    }
    report.add(format!("gb_per_s_{name}"), metric);
    let (cost, theirs) = figures(|played| played.cpu_a_gigabyte);
    let metric = Metric::timed("CPU-s/GB", &cost).beside(&cost, &theirs).wanted(Target::RatioAtMost(cheap));
    report.add(format!("cpu_s_per_gb_{name}"), metric);
}

fn told(played: &[Played]) -> String {
    let each: Vec<String> = played.iter().map(|one| format!("{:.2}", one.speed)).collect();
    format!("{} GB/s", each.join(", "))
}
