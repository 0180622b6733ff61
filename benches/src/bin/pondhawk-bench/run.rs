//! Scenarios one after the other: a table of each, then JSON and the page of all.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{Context as _, Result};
use pondhawk_bench::{
    scenario::{self, Context, Machine, Outcome, Scenario},
    stage::watch_signals,
};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Scenarios by name, or `all`.
    #[arg(value_name = "NAME", required = true, value_parser = selection)]
    names: Vec<Selection>,
    /// Write the figures to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a page with charts to this file.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Small files and few rounds: whether it works, not how fast it is.
    #[arg(long)]
    quick: bool,
    /// Cargo's target directory, where `cargo xtask setup` put the Python clients.
    #[arg(long, value_name = "DIR", default_value = "target")]
    target: PathBuf,
    /// Where nodes keep their data while they run. A tmpfs takes the disk out of the measurement.
    #[arg(long, value_name = "DIR", default_value = "/dev/shm")]
    data_in: PathBuf,
    /// The built wire bench of the peer (`cargo bench -p pondhawk --bench wire --no-run` says where it is).
    #[arg(long, value_name = "FILE")]
    wire: Option<PathBuf>,
    /// The built `rival-iroh`, to measure beside ours.
    #[arg(long, value_name = "FILE")]
    rival: Option<PathBuf>,
}

#[derive(Clone, Copy)]
enum Selection {
    All,
    One(&'static Scenario),
}

fn selection(name: &str) -> Result<Selection, String> {
    if name == "all" {
        return Ok(Selection::All);
    }
    let found = scenario::ALL.iter().find(|scenario| scenario.name == name);
    found.map(Selection::One).ok_or_else(|| {
        let names: Vec<&str> = scenario::ALL.iter().map(|scenario| scenario.name).collect();
        format!("there are {} and all", names.join(", "))
    })
}

pub(crate) fn list() {
    for scenario in scenario::ALL {
        let needs: Vec<String> = scenario.needs.iter().map(ToString::to_string).collect();
        println!("{:<12} {}", scenario.name, scenario.summary);
        println!("{:<12} needs: {}", "", if needs.is_empty() { "nothing".to_owned() } else { needs.join(", ") });
    }
}

/// Fails when a scenario could not run to its end; a target that is missed is a result.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.spawn(watch_signals(Arc::clone(&interrupted)));
    // Clients run in folders of their own.
    let absolute = |path: &Path| std::path::absolute(path).with_context(|| format!("{} is no path", path.display()));
    let context = Context {
        target: absolute(&arguments.target)?,
        data_in: absolute(&arguments.data_in)?,
        quick: arguments.quick,
        wire: arguments.wire.clone(),
        rival: arguments.rival.clone(),
        interrupted: Arc::clone(&interrupted),
    };
    let machine = Machine::look(&context.target);
    for (name, value) in &machine.facts {
        println!("{name:<16} {value}");
    }
    let mut outcomes = Vec::new();
    for scenario in selected(&arguments.names) {
        if interrupted.load(Ordering::Relaxed) {
            break;
        }
        eprintln!("==> {}", scenario.name);
        let outcome = scenario::play(scenario, &context);
        println!("\n{outcome}");
        outcomes.push(outcome);
    }
    if let Some(path) = &arguments.json {
        write(path, &scenario::json(&outcomes)?)?;
    }
    if let Some(path) = &arguments.html {
        write(path, &scenario::page(&machine, &outcomes))?;
    }
    Ok(verdict(&outcomes, interrupted.load(Ordering::Relaxed)))
}

/// In the order of the list, each once.
fn selected(names: &[Selection]) -> impl Iterator<Item = &'static Scenario> {
    scenario::ALL.iter().filter(|scenario| {
        names.iter().any(|selection| match selection {
            Selection::All => true,
            Selection::One(one) => one.name == scenario.name,
        })
    })
}

fn verdict(outcomes: &[Outcome], interrupted: bool) -> ExitCode {
    let failed = outcomes.iter().filter(|outcome| outcome.report.is_err());
    let failed: Vec<&str> = failed.map(|outcome| outcome.scenario.name).collect();
    if !failed.is_empty() {
        eprintln!("failed: {}", failed.join(", "));
    }
    if interrupted || !failed.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    println!("wrote {}", path.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_selects_one_scenario_and_all_selects_each_once() {
        let names = ["scheduler", "all"].map(|name| selection(name).unwrap_or(Selection::All));
        assert_eq!(selected(&names).count(), scenario::ALL.len());
        assert_eq!(selected(&names[..1]).map(|scenario| scenario.name).collect::<Vec<_>>(), ["scheduler"]);
        assert!(selection("nonsense").is_err_and(|error| error.contains("flash-crowd")));
    }
}
