//! A link between two peers, verified and from store to store, beside bare quinn from memory to memory and beside iroh-blobs.

use std::{path::Path, process::Stdio, time::Duration};

use anyhow::{Context as _, Result, bail};

use super::{Context, Metric, Need, Report, Scenario, Target, say};
use crate::{
    lab::{Daemon, clean_command, sweep, wait_until},
    transfer::{Transfer, load},
};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "peer-link",
    summary: "peer to peer over QUIC, verified, store to store, beside bare quinn from memory to memory (and iroh-blobs with --rivals)",
    needs: &[Need::Root, Need::Program("ip"), Need::Wire],
    run,
};

const MTUS: [u16; 2] = [1500, 9000];
/// A GiB a round takes seconds; a bench that is not through by then hangs.
const DEADLINE: Duration = Duration::from_secs(1200);

fn run(context: &Context) -> Result<Report> {
    let mib: u64 = context.pick(1024, 64);
    let wire = context.wire.as_deref().context("no wire bench")?;
    say("ours and bare quinn in turn");
    let mut transfers = bench(context, wire, mib)?;
    let mut report = Report::new(format!(
        "{mib} MiB over a veth pair, one core a side; baseline: bare quinn from memory to memory at the same MTU, in turn with ours.",
    ));
    match &context.rival {
        Some(rival) => {
            say("iroh-blobs");
            transfers.extend(bench(context, rival, mib)?);
        }
        None => {
            report.notes.push("iroh-blobs is left out: `cargo xtask bench --rivals peer-link` builds it.".to_owned());
        }
    }
    report.chart = "GB/s".to_owned();
    for mtu in MTUS {
        add(&mut report, mtu, &transfers)?;
    }
    let [plain, jumbo] = MTUS.map(|mtu| speeds(&transfers, "ours", mtu));
    let gain = Metric::timed("GB/s", &jumbo);
    report.add("gb_per_s_jumbo", gain.clone().wanted(Target::AtLeast(1.3)));
    report.add("jumbo_gain", gain.beside(&jumbo, &plain).wanted(Target::RatioAtLeast(1.5)));
    Ok(report)
}

fn add(report: &mut Report, mtu: u16, transfers: &[Transfer]) -> Result<()> {
    let sides = ["ours", "bare", "iroh"].map(|who| (who, speeds(transfers, who, mtu)));
    let [(_, ours), (_, bare), (_, iroh)] = &sides;
    if ours.is_empty() || bare.is_empty() {
        bail!("the wire bench measured nothing at MTU {mtu}");
    }
    for (who, speeds) in sides.iter().filter(|(_, speeds)| !speeds.is_empty()) {
        let speed = Metric::timed("GB/s", speeds).value;
        report.bars.push((format!("{who}, MTU {mtu}"), speed, format!("{speed:.2} GB/s")));
    }
    let speed = Metric::timed("GB/s", ours);
    report.add(format!("gb_per_s_{mtu}"), speed.clone().beside(ours, bare).wanted(Target::RatioAtLeast(0.85)));
    if !iroh.is_empty() {
        report.add(format!("gb_per_s_{mtu}_iroh"), speed.beside(ours, iroh).wanted(Target::RatioAtLeast(2.0)));
    }
    let [ours, bare] = ["ours", "bare"].map(|who| figures(transfers, who, mtu, Transfer::cpu_a_gigabyte));
    report.add(format!("cpu_s_per_gb_{mtu}"), Metric::timed("CPU-s/GB", &ours).beside(&ours, &bare));
    Ok(())
}

fn speeds(transfers: &[Transfer], who: &str, mtu: u16) -> Vec<f64> {
    figures(transfers, who, mtu, Transfer::speed)
}

fn figures(transfers: &[Transfer], who: &str, mtu: u16, figure: fn(&Transfer) -> f64) -> Vec<f64> {
    transfers.iter().filter(|transfer| transfer.who == who && transfer.mtu == mtu).map(figure).collect()
}

/// Runs a bench to its end; what it measured.
fn bench(context: &Context, program: &Path, mib: u64) -> Result<Vec<Transfer>> {
    let folder = tempfile::Builder::new().prefix("link-").tempdir_in(&context.data_in)?;
    let json = folder.path().join("transfers.json");
    let mut command = clean_command(program);
    command.args(["--mib", &mib.to_string(), "--rounds", &context.rounds(5).to_string()]).stdin(Stdio::null());
    command.arg("--dir").arg(folder.path()).arg("--json").arg(&json);
    command.args(MTUS.iter().flat_map(|mtu| ["--mtu".to_owned(), mtu.to_string()]));
    let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut bench = Daemon::spawn(&name, &mut command, &folder.path().join("log"))?;
    let ended = wait_until(DEADLINE, || (context.go_on().is_err() || !bench.is_running()).then_some(()));
    if let Err(error) = context.go_on() {
        bench.kill()?;
        // Its namespaces, which it has had no time to remove.
        sweep();
        return Err(error);
    }
    ended.with_context(|| format!("{name} is not through after {DEADLINE:?}"))?;
    load(&json).with_context(|| format!("{name} wrote no figures; the end of its log:\n{}", bench.tail()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_of_both_sides_are_paired_in_the_order_of_their_measurement() {
        let transfer = |who: &str, mtu, seconds| Transfer {
            who: who.to_owned(),
            mtu,
            bytes: 1_000_000_000,
            seconds,
            seed_cpu: 0.5,
            leech_cpu: 0.5,
        };
        let transfers: Vec<Transfer> = (1..=3)
            .flat_map(|n| [transfer("bare", 1500, f64::from(n)), transfer("ours", 1500, f64::from(n) * 1.25)])
            .collect();
        let mut report = Report::new("");
        add(&mut report, 1500, &transfers).unwrap();
        let (name, speed) = &mut report.metrics[0];
        assert_eq!((name.as_str(), speed.ratio, speed.baseline), ("gb_per_s_1500", Some(0.8), Some(0.5)));
        speed.judge(false);
        assert_eq!(speed.met, Some(false), "a slow machine slows both: the paired ratio does not stray");
        assert!(add(&mut report, 9000, &transfers).is_err());
    }
}
