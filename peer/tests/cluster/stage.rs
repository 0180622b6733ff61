//! A cluster for one test at a time, and crowds of clients that believe nothing: they hash what they get.

use std::{
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use pondhawk_bench::lab::{
    cluster::{Account, Cluster, Fetched, Joining, Link, Node, NodePlan, Plan, Way},
    wait_until,
};

pub(crate) const MIB: u64 = 1 << 20;
/// Longer than any download here may take.
pub(crate) const CLIENT: Duration = Duration::from_secs(60);

/// Clusters compete for the two cores of a small machine: one at a time.
static TURN: Mutex<()> = Mutex::new(());

/// A file that the hub offers.
#[derive(Clone, Debug)]
pub(crate) struct File {
    pub(crate) label: String,
    pub(crate) size: u64,
    pub(crate) sha256: String,
}

/// A cluster, and what its hub offers.
pub(crate) struct Stage {
    pub(crate) cluster: Cluster,
    /// The first one.
    pub(crate) file: File,
    pub(crate) files: Vec<File>,
    _turn: MutexGuard<'static, ()>,
}

/// What a test asks for.
#[derive(Clone, Debug)]
pub(crate) struct Scene<'a> {
    pub(crate) nodes: usize,
    pub(crate) size: u64,
    /// How many files of that size the hub offers.
    pub(crate) files: usize,
    /// The hub's link, in bits a second.
    pub(crate) hub_rate: Option<u64>,
    /// Arguments of the hub.
    pub(crate) hub: &'a [&'a str],
    /// Arguments of the scheduler, where there is to be one.
    pub(crate) scheduler: Option<&'a [&'a str]>,
    pub(crate) node: NodePlan,
}

impl Default for Scene<'_> {
    fn default() -> Self {
        Self {
            nodes: 2,
            size: 32 * MIB,
            files: 1,
            hub_rate: None,
            hub: &[],
            scheduler: Some(&[]),
            node: NodePlan::default(),
        }
    }
}

impl Stage {
    /// Everything up; where there is a scheduler, the nodes have joined.
    pub(crate) fn start(scene: &Scene<'_>) -> Self {
        Self::make(scene, Cluster::start)
    }

    /// Hub and scheduler up, no node yet.
    pub(crate) fn open(scene: &Scene<'_>) -> Self {
        Self::make(scene, Cluster::open)
    }

    fn make(scene: &Scene<'_>, make: impl FnOnce(&Plan<'_>) -> Result<Cluster, pondhawk_bench::lab::LabError>) -> Self {
        // A test that failed before has cleaned up as well.
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let labels: Vec<String> = (0..scene.files).map(|number| format!("owner/model/{number}.bin")).collect();
        let offers: Vec<String> =
            labels.iter().zip(7..).map(|(label, seed)| format!("{label}:{}:{seed}", scene.size)).collect();
        let offers: Vec<&str> = offers.iter().map(String::as_str).collect();
        let mut node = scene.node.clone();
        node.more.push_str("store:\n  keep_free: 64MiB\n");
        let plan = Plan {
            nodes: scene.nodes,
            pondhawk: PathBuf::from(env!("CARGO_BIN_EXE_pondhawk")),
            folder: Path::new(env!("CARGO_TARGET_TMPDIR")).to_owned(),
            files: &offers,
            hub: scene.hub,
            hub_link: Link { rate: scene.hub_rate, mtu: None },
            node_link: Link { rate: Some(1_000_000_000), mtu: None },
            scheduler: scene.scheduler,
            node,
        };
        let cluster = make(&plan).unwrap_or_else(|error| panic!("{error}"));
        let file =
            |label: &String| File { label: label.clone(), size: scene.size, sha256: cluster.sha256(label).unwrap() };
        let files: Vec<File> = labels.iter().map(file).collect();
        Self { file: files[0].clone(), files, cluster, _turn: turn }
    }

    pub(crate) fn node(&self, number: usize) -> &Node {
        &self.cluster.nodes()[number]
    }

    /// One client on this node.
    pub(crate) fn fetch(&self, node: usize) -> Fetched {
        self.fetch_of(&self.file, node)
    }

    /// The same, of this file.
    pub(crate) fn fetch_of(&self, file: &File, node: usize) -> Fetched {
        let url = self.cluster.url(&file.label).unwrap();
        self.node(node).fetch(&url, Way::Proxy, CLIENT).unwrap()
    }

    /// A client on each of these nodes, all at once, while `meanwhile` happens; in the order of the nodes.
    pub(crate) fn crowd(&self, nodes: &[usize], meanwhile: impl FnOnce()) -> Vec<Fetched> {
        let urls: Vec<_> = nodes.iter().map(|_| self.cluster.url(&self.file.label).unwrap()).collect();
        let clients = nodes.iter().zip(&urls);
        let clients: Vec<_> =
            clients.map(|(&node, url)| self.node(node).start_fetch(url, Way::Proxy, CLIENT).unwrap()).collect();
        thread::scope(|scope| {
            let waiting: Vec<_> = clients.into_iter().map(|client| scope.spawn(|| client.finish().unwrap())).collect();
            meanwhile();
            let all: Vec<Fetched> = waiting.into_iter().map(|client| client.join().unwrap()).collect();
            for (node, fetched) in nodes.iter().zip(&all) {
                eprintln!("client of node {node}: {:.1} s, {}", fetched.seconds, fetched.said);
            }
            all
        })
    }

    /// Waits until the hub has sent this much of the file.
    pub(crate) fn wait_for_origin_bytes(&self, bytes: u64) {
        let sent = || self.cluster.hub().stats().unwrap().object(&self.file.label).body_bytes;
        wait_until(CLIENT, || (sent() >= bytes).then_some(())).expect("the download gets under way");
    }

    /// What the hub sent of the file since its start, in files.
    pub(crate) fn origin_ratio(&self) -> f64 {
        self.cluster.origin_ratio(&self.file.label, self.file.size).unwrap()
    }

    pub(crate) fn joining(&self) -> Joining {
        self.cluster.joining().unwrap()
    }

    pub(crate) fn account(&self, node: usize) -> Account {
        self.node(node).account().unwrap()
    }

    /// Insists that a client has the first file.
    pub(crate) fn assert_right(&self, fetched: &Fetched, who: &str) {
        self.assert_has(&self.file, fetched, who);
    }

    /// Insists that a client has this file.
    pub(crate) fn assert_has(&self, file: &File, fetched: &Fetched, who: &str) {
        assert!(
            fetched.ok && fetched.sha256 == file.sha256,
            "{who}: {} of {} bytes, {}; nodes: {:#?}",
            fetched.bytes,
            file.size,
            fetched.said,
            self.cluster.accounts()
        );
    }
}
