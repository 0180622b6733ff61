//! Plays a cluster of many peers in virtual time and prints what came out against the fluid bound.
//!
//! `pondhawk-sim --scenario crowd-100k`; a result that is not good ends it with status 1, and `--seed` replays it. Run with
//! --release: the largest scenario takes minutes and some gigabytes of memory.

use std::process::ExitCode;

use clap::Parser;
use pondhawk_bench::sim::{Scenario, run};

#[derive(Debug, Parser)]
struct Arguments {
    /// What to play; without it, all but the largest.
    #[arg(long, value_parser = known)]
    scenario: Option<String>,
    /// Replays a run.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Plays this many seeds, from --seed on.
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// This many peers instead of the scenario's own.
    #[arg(long, value_parser = clap::value_parser!(u32).range(2..=1_000_000))]
    peers: Option<u32>,
    /// A line of JSON for each run.
    #[arg(long)]
    json: bool,
}

fn known(name: &str) -> Result<String, String> {
    let known = Scenario::NAMES.contains(&name);
    known.then(|| name.to_owned()).ok_or_else(|| format!("one of {}", Scenario::NAMES.join(", ")))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let small =
        || Scenario::NAMES.iter().filter(|name| **name != "crowd-100k").map(|name| (*name).to_owned()).collect();
    let names: Vec<String> = arguments.scenario.clone().map_or_else(small, |name| vec![name]);
    let mut good = true;
    for name in names {
        for seed in arguments.seed..arguments.seed + arguments.seeds {
            good &= play(&name, seed, &arguments);
        }
    }
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn play(name: &str, seed: u64, arguments: &Arguments) -> bool {
    let Some(scenario) = Scenario::named(name, arguments.peers) else { return false };
    let report = run(&Scenario { seed, ..scenario });
    if arguments.json {
        println!("{}", serde_json::to_string(&report).expect("a report is plain data"));
    } else {
        println!("{report}");
        println!("  memory of this program at the most: {} MiB", peak() >> 20);
    }
    report.is_good()
}

/// VmHWM of proc(5), in bytes; 0 where there is none.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).map_or(0, |kib| kib << 10)
}
