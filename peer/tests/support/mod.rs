//! Setting the stage for end-to-end tests: who can run here, a hub, a node, and clients in their own cgroup.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
};

use pondhawk_bench::{
    clients::{Client, Wanted},
    hub::Stats,
    lab::{Netns, root_or_skip},
    stage::{Download, Setting, Stage},
};

/// With this variable set to 1 a test that cannot run here fails, rather than being left out.
const REQUIRE_ALL: &str = "PONDHAWK_TEST_REQUIRE_ALL";
/// Every stage offers one file under this name.
const REPO: &str = "owner/model";
const FILE: &str = "model.bin";

/// Whether clients reach the hub through a node or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Through {
    /// A node catches their connections.
    Node,
    /// There is none: shows that a client works with this hub at all.
    Nothing,
}

/// A stage with one file, for one test at a time.
pub(crate) struct Site {
    /// Hub, node, clients' cgroup and hosts.
    pub(crate) stage: Stage,
    /// The file.
    pub(crate) wanted: Wanted,
    _turn: MutexGuard<'static, ()>,
}

/// Whether a test that needs root, and these clients, can run here; says what is missing.
///
/// # Panics
/// If something is missing and PONDHAWK_TEST_REQUIRE_ALL is 1.
pub(crate) fn can_run(test: &str, clients: &[Client]) -> bool {
    let missing: Vec<String> = clients.iter().filter_map(|client| client.missing(&target_dir())).collect();
    if missing.is_empty() {
        return root_or_skip(test);
    }
    let required = std::env::var(REQUIRE_ALL).is_ok_and(|value| value == "1");
    assert!(!required, "{test}, which {REQUIRE_ALL}=1 forbids to leave out: {}", missing.join("; "));
    eprintln!("left out: {test}: {}", missing.join("; "));
    false
}

/// GETs of xorbs, and bytes of them that the hub sent.
pub(crate) fn xorbs(stats: &Stats) -> (u64, u64) {
    let xorbs = stats.objects.iter().filter(|(label, _)| label.starts_with("xorb/"));
    xorbs.fold((0, 0), |(gets, bytes), (_, xorb)| (gets + xorb.all_gets(), bytes + xorb.body_bytes))
}

impl Site {
    /// A hub that offers a file of this size, and a node in front of it or none.
    #[allow(dead_code, reason = "not every test that shares this module needs it")]
    pub(crate) fn open(through: Through, size: u64) -> Self {
        Self::open_hub(through, size, &[])
    }

    /// The same, with further arguments of `pondhawk-hub`.
    pub(crate) fn open_hub(through: Through, size: u64, hub: &[&str]) -> Self {
        Self::make(through, size, hub, "")
    }

    /// The same with a node, and further top-level sections of its configuration.
    #[allow(dead_code, reason = "not every test that shares this module needs it")]
    pub(crate) fn open_node(size: u64, hub: &[&str], more: &str) -> Self {
        Self::make(Through::Node, size, hub, more)
    }

    fn make(through: Through, size: u64, hub: &[&str], more: &str) -> Self {
        // A test that failed before has cleaned up as well.
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let file = format!("{REPO}/{FILE}:{size}:7");
        let setting =
            Setting { target: target_dir(), files: &[&file], hub, interrupted: Arc::new(AtomicBool::new(false)) };
        let mut stage = Stage::open(&setting).unwrap();
        if through == Through::Node {
            stage.start_node(Path::new(env!("CARGO_BIN_EXE_pondhawk")), more).unwrap();
        }
        let wanted = stage.wanted(REPO, FILE, size).unwrap();
        Self { stage, wanted, _turn: turn }
    }

    /// Downloads the file with this client on this host, and insists on the right bytes.
    pub(crate) fn download(&self, client: Client, from: &Netns) -> Download {
        let recipe = self.stage.recipe(client, &self.wanted).unwrap();
        // As a message and not as a value: what a client says when it fails is many lines long.
        let download = self.stage.download(client, &recipe, from).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(download.sha256, self.wanted.sha256, "{} got other bytes:\n{}", client.name(), download.output);
        download
    }

    /// Requests of the node, by way in and outcome as its metrics spell them.
    pub(crate) fn requests(&self, way: &str, outcome: &str) -> u64 {
        let metrics = self.stage.lab().node().netns.curl(&["http://127.0.0.1:65002/metrics"]).unwrap();
        let series = format!("pondhawk_requests_total{{way=\"{way}\",outcome=\"{outcome}\"}} ");
        let value = metrics.lines().find_map(|line| line.strip_prefix(&series));
        value.unwrap_or_else(|| panic!("no {series} in {metrics}")).parse().unwrap()
    }

    /// What the node wrote.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.stage.data_dir().with_file_name("pondhawk.log")).unwrap_or_default()
    }

    /// What the hub sent of the file since its start, as a multiple of its size.
    #[allow(dead_code, reason = "not every test that shares this module needs it")]
    pub(crate) fn origin_ratio(&self) -> f64 {
        self.stage.origin_bytes(&self.wanted).unwrap() as f64 / self.wanted.size as f64
    }
}

/// Stages compete for the two cores of a small machine, and time-outs of real clients are part of what is tested: one at a time.
static TURN: Mutex<()> = Mutex::new(());

/// Cargo's target directory: above the one for the temporary files of integration tests.
pub(crate) fn target_dir() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("cargo nests it").to_owned()
}
