//! The schedulers of the cluster: what they share, and that the loss of one is nobody's loss.

use anyhow::{Context as _, Result, ensure};

use super::cluster::GATEWAY;
use super::host::Daemon;
use super::{CDN, HUB, Lab, MORE, metric, metric_at, wait, wait_for};

pub(super) const REPLICAS: usize = 2;
pub(super) const SEEDS: usize = 1;
/// The node, and the seeds.
const NODES: f64 = 1.0 + SEEDS as f64;
const PROGRAM: &str = "/usr/bin/pondhawk-scheduler";

impl Lab {
    /// Answers pods and the node with the schedulers' present addresses, and the Hub's: there is no cluster DNS.
    pub(super) fn resolve(&mut self) -> Result<()> {
        let mut names = self.program("pondhawk-hub");
        names.args(["--dns", &format!("{GATEWAY}:53"), "--dns-record", &format!("{CDN}={HUB}")]);
        for index in 0..REPLICAS {
            let name = format!("pondhawk-scheduler-{index}.pondhawk-scheduler.pondhawk.svc.cluster.local");
            names.arg("--dns-record").arg(format!("{name}={}", self.address(index)?));
        }
        // Only one has the port.
        drop(self.names.take());
        let names = Daemon::start("dns", &mut names, &self.folder)?;
        wait_for(&names, "dns ready")?;
        self.names = Some(names);
        Ok(())
    }

    /// All have one root, and a token that is renewed by one is everybody's.
    pub(super) fn share(&self) -> Result<()> {
        println!("==> the schedulers share their state");
        let roots = (0..REPLICAS).map(|index| self.ask(index, &["ca"])).collect::<Result<Vec<_>>>()?;
        ensure!(roots.iter().all(|root| *root == roots[0]), "the schedulers have different roots: {roots:?}");
        let before = self.ask(1, &["page-token"])?;
        let renewed = self.ask(0, &["page-token", "--rotate"])?;
        ensure!(renewed != before, "the page's token was not renewed");
        wait("the other's page token", || Ok(self.ask(1, &["page-token"])? == renewed))?;
        for index in 0..REPLICAS {
            wait(&format!("all nodes' sessions with scheduler {index}"), || {
                Ok(self.told(index, "peers_connected").is_ok_and(|nodes| nodes == NODES))
            })?;
        }
        Ok(())
    }

    /// A seed has by itself what others want: so many bytes, all from the node.
    pub(super) fn seeded(&self, mebibytes: f64) -> Result<()> {
        let address = ["-n", "pondhawk", "get", "pod", "pondhawk-seed-0", "-o", "jsonpath={.status.podIP}"];
        let metrics = format!("http://{}:65002/metrics", self.cluster.kubectl(&address)?);
        let from = |source: &str| metric_at(&metrics, &format!("pondhawk_source_bytes_total{{source=\"{source}\"}}"));
        wait("the seed's copy", || Ok(from("peers")? >= mebibytes * 1024.0 * 1024.0))?;
        ensure!(from("origin")? == 0.0, "the seed went to the origin");
        Ok(())
    }

    /// Kills the scheduler of a download that is under way.
    pub(super) fn lose(&mut self, sha256: &str) -> Result<()> {
        println!("==> a scheduler is lost while a pod downloads");
        let before = metric("pondhawk_source_bytes_total{source=\"origin\"}")?;
        self.begin("third", true, MORE)?;
        let begun = || Ok(metric("pondhawk_source_bytes_total{source=\"origin\"}")? > before + 16e6);
        wait("a part of the file", begun)?;
        let leads = |index: &usize| self.told(*index, "tasks_wanted").is_ok_and(|tasks| tasks >= 1.0);
        let lost = (0..REPLICAS).find(leads).context("no scheduler knows of the download")?;
        let (name, address) = (pod(lost), self.address(lost)?);
        println!("    scheduler {lost} leads it, and is killed");
        self.cluster.kubectl(&["-n", "pondhawk", "delete", "pod", &name, "--grace-period=0", "--force"])?;
        let far = metric("pondhawk_source_bytes_total{source=\"origin\"}")? - before;
        ensure!(far < 220e6, "the download was over before the scheduler was lost: {far} bytes");
        let other = (lost + 1) % REPLICAS;
        wait("the other leads it", || Ok(self.told(other, "tasks_wanted")? >= 1.0))?;
        let third = self.end("third")?;
        ensure!(third.contains(sha256), "the third pod's file is not the hub's: {third}");
        let cost = metric("pondhawk_source_bytes_total{source=\"origin\"}")? - before;
        println!("    {:.1} MB from the origin for a file of 251.7 MB", cost / 1e6);
        ensure!(cost < 1.5 * 251.7e6, "the file was begun anew");
        self.seeded(48.0 + 240.0)?;
        wait("another pod in its place", || Ok(self.address(lost).is_ok_and(|new| !new.is_empty() && new != address)))?;
        self.resolve()?;
        wait("all nodes' sessions with it", || Ok(self.told(lost, "peers_connected").is_ok_and(|nodes| nodes == NODES)))
    }

    /// The address of a scheduler's pod; "" while it has none.
    fn address(&self, index: usize) -> Result<String> {
        self.cluster.kubectl(&["-n", "pondhawk", "get", "pod", &pod(index), "-o", "jsonpath={.status.podIP}"])
    }

    /// The value of a series of a scheduler's.
    fn told(&self, index: usize, series: &str) -> Result<f64> {
        let url = format!("http://{}:65101/metrics", self.address(index)?);
        metric_at(&url, &format!("pondhawk_scheduler_{series} "))
    }

    /// What the scheduler's program says in its pod.
    fn ask(&self, index: usize, words: &[&str]) -> Result<String> {
        let name = pod(index);
        let in_pod = ["-n", "pondhawk", "exec", &name, "--", PROGRAM].into_iter();
        self.cluster
            .kubectl(&in_pod.chain(words.iter().copied()).chain(["--data-dir=/data/scheduler"]).collect::<Vec<_>>())
    }
}

fn pod(index: usize) -> String {
    format!("pondhawk-scheduler-{index}")
}
