//! The scheduler's core: events a second, bytes a peer at a task, and how both grow with the cluster.

use anyhow::Result;

use super::{Context, Metric, Report, Scenario, Target, say};
use crate::events::{self, Load, Taken};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "scheduler",
    summary: "the scheduler's core on one core: events a second, bytes a peer-task, growth from 1,000 to 100,000 peers",
    needs: &[],
    run,
};

const ROUNDS: usize = 5;
/// A task each 400 peers, as many as a busy cluster's models.
const PEERS_A_TASK: u32 = 400;
/// A model of a few GiB.
const PIECES: u32 = 1_000;

fn run(context: &Context) -> Result<Report> {
    let sizes: [(&str, u32); 3] = context
        .pick([("1k", 1_000), ("10k", 10_000), ("100k", 100_000)], [("1k", 1_000), ("2k", 2_000), ("4k", 4_000)]);
    let mut report = Report::new(format!(
        "The core alone, in memory, no network: each peer wants one task of {PIECES} pieces and reports ten times; a task for {PEERS_A_TASK} \
         peers. Baseline: the same with 1,000 peers.",
    ));
    report.chart = "Events a second on one core".to_owned();
    let mut runs: Vec<Vec<Taken>> = vec![Vec::new(); sizes.len()];
    // The first round, which meets memory that nothing has used yet, does not count.
    for number in 0..=context.rounds(ROUNDS) {
        for ((_, peers), runs) in sizes.iter().zip(&mut runs) {
            context.go_on()?;
            let taken = events::run(&Load { peers: *peers, tasks: (peers / PEERS_A_TASK).max(1), pieces: PIECES });
            say(format!("{peers} peers: {:.0} events/s, {} directives", taken.events_a_second(), taken.directives));
            if number > 0 {
                runs.push(taken);
            }
        }
    }
    let speeds: Vec<Vec<f64>> = runs.iter().map(|runs| runs.iter().map(Taken::events_a_second).collect()).collect();
    for (((name, peers), runs), speed) in sizes.iter().zip(&runs).zip(&speeds) {
        let metric = Metric::timed("events/s", speed).wanted(Target::AtLeast(100_000.0));
        report.bars.push((format!("{peers} peers"), metric.value, format!("{:.0} events/s", metric.value)));
        let metric = if *name == sizes[0].0 { metric } else { metric.beside(speed, &speeds[0]) };
        report.add(format!("events_per_s_{name}_peers"), metric);
        let bytes: Vec<f64> = runs.iter().map(|taken| taken.bytes_a_peer_task).collect();
        report.add(
            format!("bytes_per_peer_task_{name}_peers"),
            Metric::counted("B", &bytes).wanted(Target::AtMost(300.0)),
        );
    }
    Ok(report)
}
