//! Ten thousand small files: straight from the origin, for the first time through a node, and from its store.

use anyhow::{Result, ensure};

use super::{
    Context, Metric, Need, Report, Scenario,
    bed::{Bed, Load, Played, Server},
    say,
};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "many-small",
    summary: "10,000 files of 1 to 100 KiB, each once by 16 clients: straight, cold and from the store",
    needs: &[
        Need::Root,
        Need::Program("ip"),
        Need::Program("curl"),
        Need::Binary("pondhawk"),
        Need::Binary("pondhawk-hub"),
        Need::Binary("pondhawk-bench"),
    ],
    run,
};

const CLIENTS: usize = 16;
const ROUNDS: usize = 3;

fn run(context: &Context) -> Result<Report> {
    let count: u64 = context.pick(10_000, 200);
    // Sizes in an order that is the same each time and rises nowhere for long.
    let offers: Vec<String> =
        (0..count).map(|n| format!("owner/data/part-{n}.bin:{}:{n}", ((n * 7919) % 100 + 1) << 10)).collect();
    let offers: Vec<&str> = offers.iter().map(String::as_str).collect();
    let bed = Bed::new(context, &context.target, &offers, &["--large-from", "0"])?;
    let urls: Vec<String> = bed.cluster().hub().urls()?;
    ensure!(urls.len() as u64 == count, "the hub offers {} files, not {count}", urls.len());
    let load = Load::default().with("--clients", &CLIENTS).with("--requests", &count).with("--timeout", &120);
    let load = load.flag("--in-turn");
    let mut rounds: [Vec<Played>; 3] = Default::default();
    for _ in 0..context.rounds(ROUNDS) {
        bed.forget()?;
        for (into, server) in rounds.iter_mut().zip([Server::Direct, Server::NodeCaught, Server::NodeCaught]) {
            let played = bed.play_urls(server, &urls, &load)?;
            say(format!("{server:?}: {:.0} files/s, p99 {:.1} ms", rate(&played), played.p99));
            into.push(played);
        }
    }
    let mut report = Report::new(format!(
        "{count} files of 1 to 100 KiB over TLS, each once, by {CLIENTS} clients; baseline: the same straight from the hub."
    ));
    report.chart = "Files a second".to_owned();
    let of = |played: &[Played]| played.iter().map(rate).collect::<Vec<f64>>();
    let [direct, cold, hit] = rounds.each_ref().map(|played| of(played));
    for (name, label, rates) in
        [("direct", "straight", &direct), ("cold", "cold", &cold), ("hit", "from the store", &hit)]
    {
        let mut metric = Metric::timed("files/s", rates);
        if name != "direct" {
            metric = metric.beside(rates, &direct);
        }
        report.bars.push((label.to_owned(), metric.value, format!("{:.0} files/s", metric.value)));
        report.add(format!("files_per_s_{name}"), metric);
    }
    let peak: Vec<f64> = rounds[2].iter().map(|played| played.rss_peak).collect();
    report.add("rss_peak", Metric::counted("MiB", &peak));
    Ok(report)
}

fn rate(played: &Played) -> f64 {
    played.done as f64 / played.seconds
}
