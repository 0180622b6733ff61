//! A flash crowd of 2, 4 and 8 nodes against the fluid bound.

use anyhow::{Result, ensure};

use super::{Context, Metric, Need, Report, Scenario, Target, say};
use crate::crowd::{self, Run, Setting};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "flash-crowd",
    summary: "2, 4 and 8 nodes want one file at once: time against the fluid bound, files that leave the origin",
    needs: &[
        Need::Root,
        Need::Program("ip"),
        Need::Program("tc"),
        Need::Program("curl"),
        Need::Binary("pondhawk"),
        Need::Binary("pondhawk-hub"),
        Need::Binary("pondhawk-scheduler"),
    ],
    run,
};

/// Of every link, the origin's too, in bits a second.
const RATE: u64 = 1_000_000_000;
const ROUNDS: usize = 3;

fn run(context: &Context) -> Result<Report> {
    let size: u64 = context.pick(1 << 30, 32 << 20);
    let sizes: &[usize] = context.pick(&[2, 4, 8], &[2]);
    let setting = Setting::new(size, RATE, context.data_in.clone());
    let mut report = Report::new(format!(
        "One file of {} MiB, a client a node, all at once; every link, the origin's too, is shaped to 1 Gbit/s. Baseline: the fluid bound, \
         which nothing that sends each byte over these links beats.",
        size >> 20
    ));
    report.chart = "Time of the last client as a multiple of the fluid bound".to_owned();
    for &nodes in sizes {
        let mut runs = Vec::new();
        for _ in 0..context.rounds(ROUNDS) {
            context.go_on()?;
            let run = crowd::play(&setting, nodes)?;
            ensure!(run.wrong_clients == 0, "{} clients did not get the right bytes", run.wrong_clients);
            say(format!("{nodes} nodes: {:.2} s, {:.3} files from the origin", run.makespan, run.origin_copies()));
            runs.push(run);
        }
        add(&mut report, nodes, &runs);
    }
    Ok(report)
}

fn add(report: &mut Report, nodes: usize, runs: &[Run]) {
    let of = |figure: fn(&Run) -> f64| runs.iter().map(figure).collect::<Vec<f64>>();
    let seconds = of(|run| run.makespan);
    let time = Metric::timed("s", &seconds).against(runs[0].bound).wanted(Target::RatioAtMost(1.15));
    let ratio = time.ratio.unwrap_or_default();
    report.bars.push((format!("{nodes} nodes"), ratio, format!("{ratio:.3}x, {:.2} s", time.value)));
    report.add(format!("seconds_{nodes}_nodes"), time);
    let copies = Metric::counted("files", &of(Run::origin_copies)).wanted(Target::AtMost(1.02));
    report.add(format!("origin_copies_{nodes}_nodes"), copies);
    report.add(format!("cpu_seconds_{nodes}_nodes"), Metric::timed("CPU-s", &of(Run::cpu_seconds)));
}
