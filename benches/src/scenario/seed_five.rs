//! The five ways to a model that the field compares: straight from the Hub, cold through a node, from another node, from the own node,
//! and from the client's own cache. With the real huggingface_hub.

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

use super::{Context, Metric, Need, Report, Scenario, Target, bed::forget, say};
use crate::{
    clients::{Client, Place, Recipe, Wanted},
    lab::{
        Cgroup, binary,
        cluster::{Cluster, Link, Node, NodePlan, Plan},
    },
    stage::run_client,
};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "seed-five",
    summary: "huggingface_hub straight to the Hub, cold, from another node, from its own node, and from its own cache",
    needs: &[
        Need::Root,
        Need::Program("ip"),
        Need::Program("tc"),
        Need::Program("curl"),
        Need::Binary("pondhawk"),
        Need::Binary("pondhawk-hub"),
        Need::Binary("pondhawk-scheduler"),
        Need::Client(CLIENT),
    ],
    run,
};

const CLIENT: Client = Client::Hub2;
const REPO: &str = "pondhawk/bench-model";
const FILE: &str = "model.safetensors";
/// Of every link, in bits a second, as in the demo.
const RATE: u64 = 1_000_000_000;
const NODES: usize = 3;
const ROUNDS: usize = 5;

/// Seconds of the five ways in one round, and files that left the origin for the middle three.
struct Round {
    direct: f64,
    cold: f64,
    remote: f64,
    local: f64,
    cache: f64,
    copies: f64,
}

fn run(context: &Context) -> Result<Report> {
    let size: u64 = context.pick(512 << 20, 32 << 20);
    let stage = Stage::open(context, size)?;
    let mut rounds = Vec::new();
    // The first one, which meets memory that nothing has used yet, does not count.
    for number in 0..=context.rounds(ROUNDS) {
        let round = stage.round()?;
        say(format!(
            "round {number}: direct {:.2} s, cold {:.2} s, other node {:.2} s, own node {:.2} s, own cache {:.2} s",
            round.direct, round.cold, round.remote, round.local, round.cache
        ));
        if number > 0 {
            rounds.push(round);
        }
    }
    Ok(report(size, &rounds))
}

fn report(size: u64, rounds: &[Round]) -> Report {
    let mut report = Report::new(format!(
        "Seconds of the process of {}, {} MiB, on {NODES} nodes in namespaces; baseline: the same client without pondhawk. Every link, \
         the Hub's too, is shaped to 1 Gbit/s.",
        CLIENT.name(),
        size >> 20
    ));
    let of = |way: fn(&Round) -> f64| rounds.iter().map(way).collect::<Vec<f64>>();
    let direct = of(|round| round.direct);
    report.add("direct_seconds", Metric::timed("s", &direct));
    let ways: [(&str, &str, Vec<f64>); 4] = [
        ("cold_seconds", "cold, through pondhawk", of(|round| round.cold)),
        ("remote_hit_seconds", "hit on another node", of(|round| round.remote)),
        ("local_hit_seconds", "hit on the own node", of(|round| round.local)),
        ("hub_cache_seconds", "huggingface_hub's own cache", of(|round| round.cache)),
    ];
    report.chart = "Seconds as a multiple of the download straight from the Hub".to_owned();
    let straight = Metric::timed("s", &direct).value;
    report.bars.push(("straight from the Hub".to_owned(), 1.0, format!("1.00x, {straight:.2} s")));
    for (name, label, seconds) in ways {
        let metric = Metric::timed("s", &seconds).beside(&seconds, &direct);
        let ratio = metric.ratio.unwrap_or_default();
        report.bars.push((label.to_owned(), ratio, format!("{ratio:.2}x, {:.2} s", metric.value)));
        report.add(name, metric);
    }
    let copies = Metric::counted("files", &of(|round| round.copies)).wanted(Target::AtMost(1.02));
    report.add("origin_copies", copies);
    report.notes.push("Each includes the start of Python, which the own cache shows alone.".to_owned());
    report
}

struct Stage<'a> {
    // Dropped in this order: the group's processes are in the cluster's namespaces.
    /// Clients in it are not caught.
    apart: Cgroup,
    cluster: Cluster,
    wanted: Wanted,
    context: &'a Context,
}

impl<'a> Stage<'a> {
    fn open(context: &'a Context, size: u64) -> Result<Self> {
        let (offer, keep) = (format!("{REPO}/{FILE}:{size}:1"), size.to_string());
        let link = Link { rate: Some(RATE), mtu: None };
        let plan = Plan {
            nodes: NODES,
            pondhawk: binary("pondhawk")?,
            folder: context.data_in.clone(),
            files: &[&offer],
            hub: &["--keep-in-memory", &keep],
            hub_link: link,
            node_link: link,
            scheduler: Some(&[]),
            node: NodePlan { intercept: true, more: "store:\n  keep_free: 64MiB\n".to_owned(), ..NodePlan::default() },
        };
        let cluster = Cluster::start(&plan).context("the cluster cannot be started")?;
        let sha256 = cluster.sha256(&label())?;
        let wanted = Wanted { repo: REPO.to_owned(), file: FILE.to_owned(), sha256, size };
        Ok(Self { apart: Cgroup::new("apart")?, cluster, wanted, context })
    }

    /// All five ways in turn, from nodes that hold nothing.
    fn round(&self) -> Result<Round> {
        self.cluster.nodes().iter().try_for_each(forget)?;
        let [first, second, ..] = self.cluster.nodes() else { anyhow::bail!("the plan has three nodes") };
        let direct = self.download(first, &self.apart, &self.home(first)?)?;
        self.cluster.hub().reset_stats()?;
        let cold = self.download(first, group(first)?, &self.home(first)?)?;
        let remote = self.download(second, group(second)?, &self.home(second)?)?;
        let home = self.home(second)?;
        let local = self.download(second, group(second)?, &home)?;
        let copies = self.cluster.origin_ratio(&label(), self.wanted.size)?;
        let cache = self.download(second, group(second)?, &home)?;
        Ok(Round { direct, cold, remote, local, cache, copies })
    }

    /// Seconds of one client's process, which got the right bytes.
    fn download(&self, node: &Node, group: &Cgroup, home: &Home) -> Result<f64> {
        let download = run_client(CLIENT, &home.recipe, node.host().netns(), group, &self.context.interrupted)?;
        ensure!(download.sha256 == self.wanted.sha256, "the client on {} got wrong bytes", node.name());
        Ok(download.seconds)
    }

    fn home(&self, node: &Node) -> Result<Home> {
        let folder = tempfile::Builder::new().prefix("client-").tempdir_in(self.cluster.folder())?;
        let bundle = self.cluster.trusted(node)?;
        let place = Place { target: self.context.target.clone(), dir: folder.path().to_owned(), bundle };
        Ok(Home { recipe: CLIENT.recipe(&self.wanted, &place), _folder: folder })
    }
}

/// A client's folder, which is gone with it, and what to run there.
struct Home {
    recipe: Recipe,
    _folder: TempDir,
}

fn group(node: &Node) -> Result<&Cgroup> {
    node.clients().context("the nodes of this plan catch connections")
}

fn label() -> String {
    format!("{REPO}/{FILE}")
}
