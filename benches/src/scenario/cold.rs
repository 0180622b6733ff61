//! A download that nobody has had before, through a node, beside the same client straight to the origin.

use std::fs::File;

use anyhow::Result;

use super::{
    Context, Metric, Need, Report, Scenario, Target,
    bed::{Bed, Load, Played, Server},
    say,
};
use crate::{crowd::warm_memory, hub::Rates};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "cold",
    summary: "a first download through a node beside the same one straight from the origin: 50 MB/s a connection, and unlimited",
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

const LABEL: &str = "owner/model/model.bin";
/// Of the limited origin, on each connection, in bytes a second.
const LIMIT: u64 = 50_000_000;
const ROUNDS: usize = 5;
const LIMITED_ROUNDS: usize = 3;

fn run(context: &Context) -> Result<Report> {
    let size: u64 = context.pick(1 << 30, 32 << 20);
    let offer = format!("{LABEL}:{size}:1");
    let keep = size.to_string();
    let bed = Bed::new(context, &context.target, &[&offer], &["--keep-in-memory", &keep])?;
    let mut report = Report::new(format!(
        "{} MiB by one client over TLS, on a node that holds nothing and keeps its data on this machine's disk; baseline: the same client \
         straight to the hub, in turn with ours. Client, hub and node share the processors. CPU time is the node's.",
        size >> 20,
    ));
    report.chart = "GB/s".to_owned();
    // What both meet for the first time does not count.
    pair(context, &bed, size)?;
    let rounds: Vec<_> = (0..context.rounds(ROUNDS)).map(|_| pair(context, &bed, size)).collect::<Result<_>>()?;
    add(&mut report, "unlimited", &rounds, Target::RatioAtLeast(0.9));
    let cost: Vec<f64> = rounds.iter().map(|(ours, _)| ours.cpu_a_gigabyte).collect();
    report.add("cpu_s_per_gb_unlimited", Metric::timed("CPU-s/GB", &cost).wanted(Target::AtMost(1.3)));
    let later: Vec<f64> = rounds.iter().map(|(ours, theirs)| ours.first_byte - theirs.first_byte).collect();
    report.add("first_byte_later", Metric::timed("ms", &later).wanted(Target::AtMost(20.0)));
    bed.cluster().hub().set_limits(Rates { connection: Some(LIMIT), ..Rates::default() })?;
    let rounds: Vec<_> =
        (0..context.rounds(LIMITED_ROUNDS)).map(|_| pair(context, &bed, size)).collect::<Result<_>>()?;
    add(&mut report, "limited", &rounds, Target::RatioAtLeast(10.0));
    Ok(report)
}

/// A cold download and a straight one.
fn pair(context: &Context, bed: &Bed<'_>, size: u64) -> Result<(Played, Played)> {
    let theirs = bed.play(Server::Direct, LABEL, &Load::once())?;
    bed.forget()?;
    let warm: File = warm_memory(&context.data_in, size)?;
    drop(warm);
    let ours = bed.play(Server::NodeCaught, LABEL, &Load::once())?;
    say(format!("{:.2} GB/s at {:.2} CPU-s/GB, straight {:.2} GB/s", ours.speed, ours.cpu_a_gigabyte, theirs.speed));
    Ok((ours, theirs))
}

fn add(report: &mut Report, name: &str, rounds: &[(Played, Played)], target: Target) {
    let ours: Vec<f64> = rounds.iter().map(|(ours, _)| ours.speed).collect();
    let theirs: Vec<f64> = rounds.iter().map(|(_, theirs)| theirs.speed).collect();
    let metric = Metric::timed("GB/s", &ours).beside(&ours, &theirs).wanted(target);
    for (who, value) in [("through pondhawk", metric.value), ("straight", metric.baseline.unwrap_or_default())] {
        report.bars.push((format!("{who}, {name}"), value, format!("{value:.2} GB/s")));
    }
    report.add(format!("gb_per_s_{name}"), metric);
}
