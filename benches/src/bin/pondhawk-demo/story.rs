//! The demo step by step, told as it happens.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context as _, Result, ensure};
use pondhawk_bench::clients::{Client, Recipe, Wanted};
use pondhawk_bench::lab::run;
use pondhawk_bench::stage::{NodeStatus, Setting, Stage};

use crate::Arguments;
use crate::report::{Report, Run, size};

const REPO: &str = "pondhawk/demo-model";
const FILE: &str = "model.safetensors";
const CDN: &str = "cdn-lfs.huggingface.co";
/// The newest one first; the other is the last on another HTTP stack.
const CLIENTS: [Client; 2] = [Client::Hub2, Client::Hub036];

/// Plays the whole demo and gives its numbers.
pub(crate) fn tell(arguments: &Arguments, interrupted: &Arc<AtomicBool>) -> Result<Report> {
    for client in CLIENTS {
        if let Some(missing) = client.missing(&arguments.target) {
            anyhow::bail!(missing);
        }
    }
    let mut stage = set_up(arguments, interrupted)?;
    let wanted = stage.wanted(REPO, FILE, arguments.size)?;
    names(&stage)?;
    start_node(&mut stage, arguments)?;
    let mut runs = Vec::new();
    for client in CLIENTS {
        runs.push(download(&stage, client, &wanted)?);
    }
    let report = Report { file_bytes: wanted.size, origin_bytes: stage.origin_bytes(&wanted)?, runs, nodes: 1 };
    println!("\nThe outcome\n{report}");
    Ok(report)
}

fn set_up(arguments: &Arguments, interrupted: &Arc<AtomicBool>) -> Result<Stage> {
    let file = format!("{REPO}/{FILE}:{}:1", arguments.size);
    println!("A Hub of our own, in a network namespace");
    let setting =
        Setting { target: arguments.target.clone(), files: &[&file], hub: &[], interrupted: Arc::clone(interrupted) };
    let stage = Stage::open(&setting).context("the stage cannot be set")?;
    println!("  {REPO} offers {FILE}, {}; it plays huggingface.co and the CDN {CDN}", size(arguments.size));
    Ok(stage)
}

/// Who resolved what: the client's names lead to the CDN, not to the node.
fn names(stage: &Stage) -> Result<()> {
    let lab = stage.lab();
    let resolved = run(lab.node().netns.command("getent").args(["ahostsv4", CDN]))?;
    let address = resolved.split_whitespace().next().unwrap_or_default();
    println!("  a client's machine, in another: DNS says that {CDN} is {address}");
    ensure!(address == lab.hub().v4.to_string(), "DNS must name the origin, and says {address}");
    Ok(())
}

fn start_node(stage: &mut Stage, arguments: &Arguments) -> Result<()> {
    println!("\nA node on the client's machine: pondhawk up --config pondhawk.yaml");
    stage.start_node(&arguments.pondhawk, "")?;
    for line in stage.configuration().lines() {
        println!("  | {line}");
    }
    println!("  its eBPF programs are attached to {}", stage.clients().path().display());
    Ok(())
}

fn download(stage: &Stage, client: Client, wanted: &Wanted) -> Result<Run> {
    println!("\n{} downloads {REPO}/{FILE}, into a cache of its own", client.name());
    let recipe = stage.recipe(client, wanted)?;
    environment(&recipe)?;
    let (before, sent_before) = (stage.node_status()?, stage.origin_bytes(wanted)?);
    let download = stage.download(client, &recipe, &stage.lab().node().netns)?;
    let (after, sent_after) = (stage.node_status()?, stage.origin_bytes(wanted)?);
    let from_origin = sent_after - sent_before;
    let from_node = after.totals.client_bytes - before.totals.client_bytes;
    let run = Run {
        client: client.name().to_owned(),
        seconds: download.seconds,
        from_origin,
        from_peers: 0,
        from_store: from_node.saturating_sub(from_origin).min(wanted.size),
        sha256_ok: download.sha256 == wanted.sha256,
    };
    tell_run(&run, &before, &after);
    ensure!(after.totals.requests > before.totals.requests, "the node was not asked: the connection was not caught");
    Ok(run)
}

/// Shows the client's environment, and makes sure that it names no proxy.
fn environment(recipe: &Recipe) -> Result<()> {
    let hints = recipe.hints();
    ensure!(hints.is_empty(), "the client's environment names a proxy or an endpoint: {}", hints.join(", "));
    let names: Vec<&str> = recipe.env.iter().map(|(name, _)| *name).collect();
    println!("  its whole environment: {}", names.join(" "));
    println!(
        "  no proxy, no endpoint in it; the certificate variables name the node's CA, and our Hub's that stands for the public ones"
    );
    Ok(())
}

fn tell_run(run: &Run, before: &NodeStatus, after: &NodeStatus) {
    let verdict = if run.sha256_ok { "right" } else { "WRONG" };
    println!("  done in {:.2} s, SHA-256 {verdict}", run.seconds);
    for (decision, count) in &after.interception.decisions {
        let new = count - before.interception.decisions.get(decision).copied().unwrap_or(0).min(*count);
        if new > 0 {
            println!("  eBPF, connections {decision}: {new}");
        }
    }
    let (t0, t1) = (&before.totals, &after.totals);
    println!(
        "  the node: {} requests, {} hits, {} misses; {} from the origin, {} to the client",
        t1.requests - t0.requests,
        t1.hits - t0.hits,
        t1.misses - t0.misses,
        size(t1.origin_bytes - t0.origin_bytes),
        size(t1.client_bytes - t0.client_bytes),
    );
    println!("  the origin, by its own count: {} sent", size(run.from_origin));
}
