//! Several nodes that share: each in a namespace with a link of its own, one hub, one scheduler.
//!
//! Everything takes `&self`, so that clients run on some threads while another kills, freezes and cuts. Dropping the
//! [`Cluster`] ends every process and removes every namespace, cgroup and file of it, also in a panic.

mod account;
mod crowd;
mod memory;
mod network;
mod node;
mod scheduler;

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::Duration,
};

use tempfile::TempDir;

use self::network::Network;
pub use self::{
    account::Account,
    crowd::{Fetched, Way},
    memory::found_in_memory,
    network::{Host, Link},
    node::{Joining, Node, NodePlan, PROXY_PORT},
    scheduler::SchedulerProcess,
};
use super::{HubProcess, LabError, topology};

/// Where on the switch's network they are: 10.77.0.x.
const HUB: u8 = 2;
const SECOND_HUB: u8 = 3;
const SCHEDULER: u8 = 4;
const FIRST_NODE: u8 = 20;
const FIRST_POD: u8 = 220;
/// A debug build on a busy machine takes seconds for what it otherwise does at once.
const START: Duration = Duration::from_secs(40);

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub struct Plan<'a> {
    /// How many nodes, at most 200.
    pub nodes: usize,
    /// The `pondhawk` binary.
    pub pondhawk: PathBuf,
    /// An existing folder; the nodes' data goes below it while the cluster stands. A tmpfs takes the disk out of a measurement.
    pub folder: PathBuf,
    /// What the hub offers, as `owner/name/path:size:seed`.
    pub files: &'a [&'a str],
    /// Further arguments of `pondhawk-hub`, such as `--limit-connection 50000000`.
    pub hub: &'a [&'a str],
    /// The hub's link.
    pub hub_link: Link,
    /// Every node's link.
    pub node_link: Link,
    /// Further arguments of `pondhawk-scheduler up`, to which the nodes are told to go; none: there is no scheduler.
    pub scheduler: Option<&'a [&'a str]>,
    /// What every node is like.
    pub node: NodePlan,
}

/// Running nodes, their hub and their scheduler.
#[derive(Debug)]
pub struct Cluster {
    // Dropped in this order: processes before what they run in.
    nodes: Vec<Node>,
    scheduler: Option<SchedulerProcess>,
    /// Others of the same CA.
    replicas: Vec<SchedulerProcess>,
    hub: HubProcess,
    network: Network,
    pods: u8,
    folder: TempDir,
}

impl Cluster {
    /// Builds the network and starts the hub and the scheduler, but no node yet. Needs root, and `pondhawk-hub` and
    /// `pondhawk-scheduler` built beside the running executable.
    pub fn open(plan: &Plan<'_>) -> Result<Self, LabError> {
        topology::sweep_once();
        let folder = tempfile::Builder::new().prefix("cluster-").tempdir_in(&plan.folder);
        let folder = folder.map_err(|source| LabError::file(&plan.folder, source))?;
        let mut network = Network::new()?;
        let hub = start_hub(&mut network, plan)?;
        let scheduler = match plan.scheduler {
            Some(arguments) => {
                let host = network.add("sched", SCHEDULER, Link::default())?;
                Some(SchedulerProcess::start(host, folder.path(), arguments)?)
            }
            None => None,
        };
        let mut cluster = Self { nodes: Vec::new(), scheduler, replicas: Vec::new(), hub, network, pods: 0, folder };
        for number in 0..plan.nodes {
            let node = cluster.add_node(number, plan)?;
            cluster.nodes.push(node);
        }
        Ok(cluster)
    }

    /// The same, with every node up and, where there is a scheduler, joined.
    pub fn start(plan: &Plan<'_>) -> Result<Self, LabError> {
        let cluster = Self::open(plan)?;
        let joining = cluster.joining()?;
        for node in &cluster.nodes {
            node.spawn(&joining)?;
        }
        for node in &cluster.nodes {
            node.wait_ready()?;
        }
        if cluster.scheduler.is_some() {
            for node in &cluster.nodes {
                node.wait_joined()?;
            }
        }
        Ok(cluster)
    }

    /// How a node gets into this cluster: with a fresh token; without a scheduler, by itself.
    pub fn joining(&self) -> Result<Joining, LabError> {
        match &self.scheduler {
            None => Ok(Joining::Alone),
            Some(scheduler) => {
                let schedulers = self.schedulers().map(SchedulerProcess::address).collect();
                Ok(Joining::To { schedulers, token: Some(scheduler.token("24h")?) })
            }
        }
    }

    /// Adds one more scheduler with the CA of the first, for nodes that are not up yet.
    pub fn add_replica(&mut self) -> Result<(), LabError> {
        let number = u8::try_from(self.replicas.len()).expect("a handful");
        let host = self.network.add("sched", SCHEDULER + 1 + number, Link::default())?;
        let folder = self.folder.path().join(format!("replica-{number}"));
        self.replicas.push(SchedulerProcess::replica(host, &folder, self.scheduler())?);
        Ok(())
    }

    /// The schedulers beside the first.
    pub fn replicas(&self) -> &[SchedulerProcess] {
        &self.replicas
    }

    /// The nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The hub: faults, limits, counters.
    pub fn hub(&self) -> &HubProcess {
        &self.hub
    }

    /// A further machine, on which nothing runs: a pod for [`Node::fetch_from`].
    ///
    /// # Panics
    /// After 35 of them.
    pub fn add_pod(&mut self) -> Result<Host, LabError> {
        let number = FIRST_POD.checked_add(self.pods).expect("a cluster has room for 35 pods");
        let host = self.network.add("pod", number, Link::default())?;
        host.netns().set_nameserver(Some(self.hub_address().into()))?;
        self.pods += 1;
        Ok(host)
    }

    /// Where the hub is.
    pub fn hub_address(&self) -> Ipv4Addr {
        self.network.v4(HUB)
    }

    /// The scheduler.
    ///
    /// # Panics
    /// If the plan had none.
    pub fn scheduler(&self) -> &SchedulerProcess {
        self.scheduler.as_ref().expect("the plan has a scheduler")
    }

    /// Where the cluster's files are: a folder a node, `node-0` and so on, with its log `node.log`; the scheduler's is `scheduler`.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Unplugs a node's cable: packets are lost both ways, addresses and routes stay.
    pub fn cut(&self, node: usize) -> Result<(), LabError> {
        self.network.set_link(self.nodes[node].host(), false)
    }

    /// Plugs it in again; it carries within a second or two.
    pub fn heal(&self, node: usize) -> Result<(), LabError> {
        self.network.set_link(self.nodes[node].host(), true)
    }

    /// Unplugs or plugs in the scheduler's cable.
    ///
    /// # Panics
    /// If the plan had none.
    pub fn set_scheduler_link(&self, up: bool) -> Result<(), LabError> {
        self.network.set_link(self.scheduler().host(), up)
    }

    /// All schedulers, the first one first.
    pub fn schedulers(&self) -> impl Iterator<Item = &SchedulerProcess> {
        self.scheduler.iter().chain(&self.replicas)
    }

    /// Unplugs or plugs in the cable of any machine.
    pub fn set_link(&self, host: &Host, up: bool) -> Result<(), LabError> {
        self.network.set_link(host, up)
    }

    /// Starts one more hub, and adds a machine that resolves the Hub's names to this one instead of the cluster's. No node asks
    /// it: it shows what a client gets alone. `arguments` are those of `pondhawk-hub`. Once only.
    pub fn add_hub(&mut self, arguments: &[&str]) -> Result<(HubProcess, Host), LabError> {
        let host = self.network.add("hub", SECOND_HUB, Link::default())?;
        let hub = HubProcess::start(&host.attachment, arguments)?;
        let pod = self.add_pod()?;
        pod.netns().set_nameserver(Some(host.v4().into()))?;
        Ok((hub, pod))
    }

    /// What the nodes have moved, one for each that answers.
    pub fn accounts(&self) -> Vec<Account> {
        self.nodes.iter().filter_map(|node| node.account().ok()).collect()
    }

    /// Bytes of this object that the hub has sent, as a multiple of its size.
    pub fn origin_ratio(&self, label: &str, size: u64) -> Result<f64, LabError> {
        Ok(self.hub.stats()?.object(label).body_bytes as f64 / size as f64)
    }

    /// SHA-256 of an object that the hub offers, in hexadecimal.
    pub fn sha256(&self, label: &str) -> Result<String, LabError> {
        Ok(self.object(label)?.0)
    }

    /// A fresh signed URL of it.
    pub fn url(&self, label: &str) -> Result<String, LabError> {
        Ok(self.object(label)?.1)
    }

    /// A file with what clients of this node's trust: the system's roots with the node's certificate authority, and the hub's,
    /// which stands for the public ones here.
    pub fn trusted(&self, node: &Node) -> Result<PathBuf, LabError> {
        let read = |path: PathBuf| fs::read_to_string(&path).map_err(|source| LabError::file(&path, source));
        let text = read(self.hub.ca())? + &read(node.data_dir().join("ca/bundle.pem"))?;
        let path = self.folder.path().join(node.name()).join("trusted.pem");
        fs::write(&path, text).map_err(|source| LabError::file(&path, source))?;
        Ok(path)
    }

    fn object(&self, label: &str) -> Result<(String, String), LabError> {
        let found = self.hub.object(label)?;
        found.ok_or_else(|| LabError::Command { command: "pondhawk-hub".into(), output: format!("no object {label}") })
    }

    fn add_node(&mut self, number: usize, plan: &Plan<'_>) -> Result<Node, LabError> {
        let place = u8::try_from(number).ok().map(|number| FIRST_NODE.saturating_add(number));
        let place = place.filter(|place| *place < FIRST_POD).expect("a cluster has at most 200 nodes");
        let host = self.network.add("node", place, plan.node_link)?;
        host.netns().set_nameserver(Some(self.network.v4(HUB).into()))?;
        Node::new(number, host, plan, self.folder.path(), &self.hub.ca())
    }
}

fn start_hub(network: &mut Network, plan: &Plan<'_>) -> Result<HubProcess, LabError> {
    let host = network.add("hub", HUB, plan.hub_link)?;
    let mut arguments = plan.hub.to_vec();
    arguments.extend(plan.files.iter().flat_map(|&file| ["--file", file]));
    HubProcess::start(&host.attachment, &arguments)
}
