//! The demo step by step, told as it happens.

use std::{sync::atomic::AtomicBool, thread};

use anyhow::{Context as _, Result, ensure};
use pondhawk_bench::{
    clients::{Client, Place, Recipe, Wanted},
    lab::{
        cluster::{Account, Cluster, Link, Node, NodePlan, Plan},
        run,
    },
    stage::{Download, run_client},
};

use crate::{
    Arguments,
    report::{Report, Run, size},
};

const REPO: &str = "pondhawk/demo-model";
const FILE: &str = "model.safetensors";
const CDN: &str = "cdn-lfs.huggingface.co";
const NODES: usize = 3;
/// Of every link, in bits a second.
const RATE: u64 = 1_000_000_000;
/// The newest one for the crowd; the last on another HTTP stack for the second download.
const FIRST: Client = Client::Hub2;
const SECOND: Client = Client::Hub036;

/// Plays the whole demo and gives its numbers.
pub(crate) fn tell(arguments: &Arguments, interrupted: &AtomicBool) -> Result<Report> {
    for client in [FIRST, SECOND] {
        if let Some(missing) = client.missing(&arguments.target) {
            anyhow::bail!(missing);
        }
    }
    let cluster = set_up(arguments)?;
    let label = format!("{REPO}/{FILE}");
    let sha256 = cluster.sha256(&label)?;
    let wanted = Wanted { repo: REPO.to_owned(), file: FILE.to_owned(), sha256, size: arguments.size };
    let play = Play { cluster: &cluster, arguments, wanted: &wanted, interrupted };
    play.names()?;
    let mut runs = play.crowd()?;
    runs.push(play.second()?);
    let origin_bytes = cluster.hub().stats()?.object(&label).body_bytes;
    let report = Report { file_bytes: wanted.size, origin_bytes, runs, nodes: NODES as u32 };
    println!("\nThe outcome\n{report}");
    Ok(report)
}

fn set_up(arguments: &Arguments) -> Result<Cluster> {
    let file = format!("{REPO}/{FILE}:{}:1", arguments.size);
    println!("A cluster in network namespaces: a Hub of our own, a scheduler, {NODES} nodes, links of 1 Gbit/s");
    let link = Link { rate: Some(RATE), mtu: None };
    let plan = Plan {
        nodes: NODES,
        pondhawk: arguments.pondhawk.clone(),
        folder: arguments.target.clone(),
        files: &[&file],
        hub: &[],
        hub_link: link,
        node_link: link,
        scheduler: Some(&[]),
        node: NodePlan { intercept: true, more: "store:\n  keep_free: 64MiB\n".to_owned(), ..NodePlan::default() },
    };
    let cluster = Cluster::start(&plan).context("the cluster cannot be started")?;
    println!("  {REPO} offers {FILE}, {}; the Hub plays huggingface.co and the CDN {CDN}", size(arguments.size));
    println!("  every node: pondhawk up --config pondhawk.yaml, for the first one with");
    let (node, joining) = (&cluster.nodes()[0], cluster.joining()?);
    node.configuration(&joining).lines().for_each(|line| println!("  | {line}"));
    println!("  its eBPF programs are attached to a cgroup of its clients; it has joined with a token");
    Ok(cluster)
}

struct Play<'a> {
    cluster: &'a Cluster,
    arguments: &'a Arguments,
    wanted: &'a Wanted,
    interrupted: &'a AtomicBool,
}

impl Play<'_> {
    /// Who resolved what: the clients' names lead to the CDN, not to a node.
    fn names(&self) -> Result<()> {
        let (machine, hub) = (self.cluster.nodes()[0].host().netns(), self.cluster.hub_address());
        let resolved = run(machine.command("getent").args(["ahostsv4", CDN]))?;
        let address = resolved.split_whitespace().next().unwrap_or_default();
        println!("  on a node's machine DNS says that {CDN} is {address}");
        ensure!(address == hub.to_string(), "DNS must name the origin, and says {address}");
        Ok(())
    }

    /// The same file on every node at once.
    fn crowd(&self) -> Result<Vec<Run>> {
        println!(
            "\n{} downloads {REPO}/{FILE} on all {NODES} nodes at once, each into a cache of its own",
            FIRST.name()
        );
        let nodes = self.cluster.nodes();
        let recipes = nodes.iter().map(|node| self.recipe(FIRST, node)).collect::<Result<Vec<_>>>()?;
        environment(&recipes[0])?;
        let clients = nodes.iter().zip(&recipes);
        let runs: Vec<Result<Run>> = thread::scope(|scope| {
            let clients: Vec<_> =
                clients.map(|(node, recipe)| scope.spawn(move || self.download(FIRST, recipe, node))).collect();
            clients.into_iter().map(|client| client.join().expect("no client thread panics")).collect()
        });
        let mut runs = runs.into_iter().collect::<Result<Vec<_>>>()?;
        // What a node sent to others after its own client was done belongs to the crowd, too.
        for (run, node) in runs.iter_mut().zip(nodes) {
            run.to_peers = node.account()?.to_peers;
        }
        runs.iter().for_each(tell_run);
        Ok(runs)
    }

    /// Once more on the first node.
    fn second(&self) -> Result<Run> {
        let node = &self.cluster.nodes()[0];
        println!("\n{} downloads it on {} once more, into a cache of its own", SECOND.name(), node.name());
        let recipe = self.recipe(SECOND, node)?;
        environment(&recipe)?;
        let run = self.download(SECOND, &recipe, node)?;
        tell_run(&run);
        ensure!(run.hits > 0, "the second download was no hit");
        Ok(run)
    }

    fn recipe(&self, client: Client, node: &Node) -> Result<Recipe> {
        let dir = tempfile::Builder::new().prefix("client-").tempdir_in(self.cluster.folder())?.keep();
        let bundle = self.cluster.trusted(node)?;
        Ok(client.recipe(self.wanted, &Place { target: self.arguments.target.clone(), dir, bundle }))
    }

    fn download(&self, client: Client, recipe: &Recipe, node: &Node) -> Result<Run> {
        let before = node.account()?;
        let group = node.clients().context("the nodes of the demo catch connections")?;
        let download = run_client(client, recipe, node.host().netns(), group, self.interrupted)?;
        let after = node.account()?;
        ensure!(after.requests > before.requests, "{} was not asked: the connection was not caught", node.name());
        Ok(self.run_of(client, node, &download, &before, &after))
    }

    fn run_of(&self, client: Client, node: &Node, download: &Download, before: &Account, after: &Account) -> Run {
        let from_origin = after.origin_bytes - before.origin_bytes;
        let from_peers = after.from_peers - before.from_peers;
        Run {
            client: client.name().to_owned(),
            node: node.name().to_owned(),
            seconds: download.seconds,
            from_origin,
            from_peers,
            from_store: self.wanted.size.saturating_sub(from_origin + from_peers),
            to_peers: after.to_peers - before.to_peers,
            hits: after.hits - before.hits,
            sha256_ok: download.sha256 == self.wanted.sha256,
        }
    }
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

fn tell_run(run: &Run) {
    let verdict = if run.sha256_ok { "right" } else { "WRONG" };
    println!(
        "  on {} done in {:.2} s, SHA-256 {verdict}; {} from the origin, {} from other nodes, {} to other nodes",
        run.node,
        run.seconds,
        size(run.from_origin),
        size(run.from_peers),
        size(run.to_peers),
    );
}
