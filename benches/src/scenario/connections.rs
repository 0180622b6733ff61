//! Many idle connections and some busy ones, on a node and on nginx.

use std::time::Duration;

use anyhow::Result;

use super::{
    Context, Metric, Need, Report, Scenario,
    bed::{Bed, Load, Played, Server},
    say,
};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "connections",
    summary: "10,000 idle connections and 256 busy ones that ask for random MiB: throughput, latency and memory beside nginx",
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
const BUSY: usize = 256;
const ROUNDS: usize = 3;

type Figure = fn(&Played) -> f64;

fn run(context: &Context) -> Result<Report> {
    let size: u64 = context.pick(512 << 20, 32 << 20);
    let idle = context.pick(10_000, 100);
    let time = context.pick(Duration::from_secs(5), Duration::from_secs(1));
    let offer = format!("{LABEL}:{size}:1");
    let mut bed = Bed::new(context, &context.data_in, &[&offer], &[])?;
    bed.start_nginx(LABEL)?;
    bed.play(Server::NodeProxy, LABEL, &Load::once())?;
    let load = Load::clients(BUSY, time).with("--range", &"1MiB").with("--idle", &idle);
    let [ours, theirs] = bed.beside(context.rounds(ROUNDS), [Server::NodeProxy, Server::Nginx], LABEL, &load)?;
    for (who, played) in [("pondhawk", &ours), ("nginx", &theirs)] {
        for one in played {
            say(format!("{who}: {:.2} GB/s, p99 {:.1} ms, {:.0} MiB", one.speed, one.p99, one.rss_peak));
        }
    }
    let mut report = Report::new(format!(
        "{idle} connections that are kept open without a request and {BUSY} clients that ask for random MiB of a file from the page cache, \
         without TLS; baseline: nginx, in turn with ours."
    ));
    report.chart = "GB/s".to_owned();
    let figures: [(&str, &str, Figure); 4] = [
        ("gb_per_s", "GB/s", |played| played.speed),
        ("p99", "ms", |played| played.p99),
        ("cpu_s_per_gb", "CPU-s/GB", |played| played.cpu_a_gigabyte),
        ("rss_peak", "MiB", |played| played.rss_peak),
    ];
    for (name, unit, figure) in figures {
        let of = |played: &[Played]| played.iter().map(figure).collect::<Vec<f64>>();
        let (own, other) = (of(&ours), of(&theirs));
        let metric = Metric::timed(unit, &own).beside(&own, &other);
        if name == "gb_per_s" {
            for (who, value) in [("pondhawk", metric.value), ("nginx", metric.baseline.unwrap_or_default())] {
                report.bars.push((who.to_owned(), value, format!("{value:.2} GB/s")));
            }
        }
        report.add(name, metric);
    }
    Ok(report)
}
