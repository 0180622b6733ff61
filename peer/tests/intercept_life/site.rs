//! A hub, a node that can be ended and started again, and clients in two cgroups: one trusts the node's CA, one does not.

use std::{
    cell::Cell,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use aws_lc_rs::digest::{SHA256, digest};
use pondhawk_bench::{
    clients::{Client, Place, Recipe, Wanted},
    lab::{Cgroup, Daemon, HubProcess, Lab, Netns, root_or_skip, wait_until},
    stage::NodeStatus,
};

const REPO: &str = "owner/model";
const FILE: &str = "model.bin";
const SIZE: u64 = 8 << 20;
const ADMIN: &str = "http://127.0.0.1:65002";
const INTERCEPT_PORT: u16 = 65003;
/// For everything that takes a second on an idle machine.
pub(crate) const SOON: Duration = Duration::from_secs(30);
/// One client, in seconds.
const CLIENT: &str = "60";

/// What differs between tests.
pub(crate) struct Setting {
    pub(crate) mode: &'static str,
    pub(crate) bypass_for: &'static str,
    pub(crate) hub: &'static [&'static str],
    /// Further top-level sections of the configuration.
    pub(crate) more: &'static str,
}

impl Default for Setting {
    fn default() -> Self {
        Self { mode: "dns", bypass_for: "120s", hub: &[], more: "" }
    }
}

/// Whom a client trusts beside the origin's own CA.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trust {
    Node,
    OriginOnly,
}

pub(crate) struct Site {
    // Dropped in this order: processes before what they run in, groups before their parent.
    node: Option<Daemon>,
    hub: HubProcess,
    pub(crate) trusting: Cgroup,
    pub(crate) stranger: Cgroup,
    clients: Cgroup,
    lab: Lab,
    folder: tempfile::TempDir,
    setting: Setting,
    serial: Cell<u32>,
    pub(crate) wanted: Wanted,
    _turn: MutexGuard<'static, ()>,
}

/// The labs share two cores and the node's ports are fixed: one at a time.
static TURN: Mutex<()> = Mutex::new(());

/// Runs a test on a site whose node catches connections; says so where it cannot run.
pub(crate) fn on_site(test: &str, setting: Setting, run: impl FnOnce(&mut Site)) {
    if root_or_skip(test) {
        let mut site = Site::open(setting);
        site.start_node();
        run(&mut site);
    }
}

/// Whether these clients are there.
///
/// # Panics
/// If not, where PONDHAWK_TEST_REQUIRE_ALL is 1.
pub(crate) fn installed(test: &str, clients: &[Client]) -> bool {
    let missing: Vec<String> = clients.iter().filter_map(|client| client.missing(&target_dir())).collect();
    let required = std::env::var("PONDHAWK_TEST_REQUIRE_ALL").is_ok_and(|value| value == "1");
    assert!(missing.is_empty() || !required, "{test}: {}", missing.join("; "));
    if !missing.is_empty() {
        eprintln!("left out: {test}: {}", missing.join("; "));
    }
    missing.is_empty()
}

impl Site {
    fn open(setting: Setting) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let lab = Lab::new().unwrap();
        let file = format!("{REPO}/{FILE}:{SIZE}:7");
        let arguments = [&["--file", file.as_str()], setting.hub].concat();
        let hub = HubProcess::start(lab.hub(), &arguments).unwrap();
        lab.node().netns.set_nameserver(Some(lab.hub().v4.into())).unwrap();
        let (sha256, _) = hub.object(&format!("{REPO}/{FILE}")).unwrap().unwrap();
        let clients = Cgroup::new("life").unwrap();
        Self {
            node: None,
            trusting: clients.child("trusting").unwrap(),
            stranger: clients.child("stranger").unwrap(),
            wanted: Wanted { repo: REPO.to_owned(), file: FILE.to_owned(), sha256, size: SIZE },
            folder: tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap(),
            serial: Cell::new(0),
            hub,
            clients,
            lab,
            setting,
            _turn: turn,
        }
    }

    /// Starts a node, and waits until a connection has been caught.
    pub(crate) fn start_node(&mut self) {
        let config = self.folder.path().join("pondhawk.yaml");
        fs::write(&config, self.configuration()).unwrap();
        let mut command = self.lab.node().netns.command(env!("CARGO_BIN_EXE_pondhawk"));
        command.arg("up").arg("--config").arg(&config);
        let log = self.folder.path().join("pondhawk.log");
        self.node
            .insert(Daemon::spawn("pondhawk", &mut command, &log).unwrap())
            .wait_for_port(INTERCEPT_PORT, SOON)
            .unwrap();
        wait_until(SOON, || self.catches().then_some(())).expect("the node catches connections");
    }

    fn configuration(&self) -> String {
        let Setting { mode, bypass_for, more, .. } = self.setting;
        let (v4, v6) = (self.lab.node().v4, self.lab.node().v6);
        format!(
            "data_dir: {data}\nlog: {{level: debug}}\n\
             intercept:\n  enabled: on\n  cgroup: {cgroup}\n  mode: {mode}\n  node_address_v4: {v4}\n  node_address_v6: \"{v6}\"\n  \
             bypass_for: {bypass_for}\n  heartbeat_max_silence: 1s\n\
             origin:\n  extra_cas: [{ca}]\n  allow_private: true\n\
             store:\n  keep_free: 64MiB\n{more}",
            data = self.folder.path().join("data").display(),
            cgroup = self.clients.path().display(),
            ca = self.hub.ca().display(),
        )
    }

    pub(crate) fn node(&mut self) -> &mut Daemon {
        self.node.as_mut().unwrap()
    }

    pub(crate) fn node_pid(&self) -> u32 {
        self.node.as_ref().unwrap().pid()
    }

    pub(crate) fn hub(&self) -> &HubProcess {
        &self.hub
    }

    pub(crate) fn lab(&self) -> &Lab {
        &self.lab
    }

    pub(crate) fn host(&self) -> &Netns {
        &self.lab.node().netns
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("pondhawk.log")).unwrap()
    }

    pub(crate) fn status(&self) -> NodeStatus {
        serde_json::from_str(&self.host().curl(&[&format!("{ADMIN}/v1/status")]).unwrap()).unwrap()
    }

    /// Requests that the node has had.
    pub(crate) fn requests(&self) -> u64 {
        self.status().totals.requests
    }

    /// A counter of the BPF programs.
    pub(crate) fn decisions(&self, name: &str) -> u64 {
        self.status().interception.decisions[name]
    }

    /// One series of the node's metrics, by all that stands before its value.
    pub(crate) fn metric(&self, series: &str) -> u64 {
        let text = self.host().curl(&[&format!("{ADMIN}/metrics")]).unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {series} in\n{text}")).parse().unwrap()
    }

    pub(crate) fn passed(&self, reason: &str) -> u64 {
        self.metric(&format!("pondhawk_passthrough_connections_total{{reason=\"{reason}\"}}"))
    }

    /// Whether a trusting client's request comes to the node. False too while there is none.
    pub(crate) fn catches(&self) -> bool {
        let asked = || self.host().curl(&[&format!("{ADMIN}/v1/status")]).ok();
        let requests = |text: String| serde_json::from_str::<NodeStatus>(&text).unwrap().totals.requests;
        let Some(before) = asked().map(requests) else { return false };
        let url = "https://cdn-lfs.huggingface.co/";
        let bundle = self.bundle(Trust::Node);
        let words = ["curl", "-sS", "-o", "/dev/null", "--max-time", "5", "--cacert", bundle.to_str().unwrap(), url];
        self.run(&self.trusting, self.host(), &words);
        asked().map(requests).is_some_and(|after| after > before)
    }

    /// A signed URL of the file at the CDN.
    pub(crate) fn url(&self) -> String {
        self.hub.object(&format!("{REPO}/{FILE}")).unwrap().unwrap().1
    }

    /// Downloads the file from the CDN with curl: the error, or whether the bytes are right.
    pub(crate) fn curl(&self, who: &Cgroup, from: &Netns, trust: Trust) -> Result<(), String> {
        let file = self.fresh("file");
        let bundle = self.bundle(trust);
        let [file, bundle] = [&file, &bundle].map(|path| path.to_str().unwrap());
        let done = self.run(who, from, &["curl", "-fsS", "-o", file, "--cacert", bundle, &self.url()]);
        if !done.status.success() {
            return Err(format!("{}: {}", done.status, String::from_utf8_lossy(&done.stderr)));
        }
        assert_eq!(sha256(Path::new(file)), self.wanted.sha256);
        Ok(())
    }

    /// As [`curl`](Self::curl), insisting on success; how many requests came to the node.
    pub(crate) fn caught(&self, who: &Cgroup, from: &Netns, trust: Trust) -> u64 {
        let before = self.requests();
        self.curl(who, from, trust).unwrap();
        self.requests() - before
    }

    /// Runs a command in the cgroup and the namespace, with an empty environment.
    pub(crate) fn run(&self, who: &Cgroup, from: &Netns, words: &[&str]) -> Output {
        self.command(who, from, words).output().unwrap()
    }

    pub(crate) fn command(&self, who: &Cgroup, from: &Netns, words: &[&str]) -> Command {
        let mut inner = from.command("timeout");
        inner.args(["-k5", CLIENT]).args(words);
        let mut command = who.wrap(&inner);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// How this client would download the file, trusting so.
    pub(crate) fn recipe(&self, client: Client, trust: Trust) -> Recipe {
        let dir = self.fresh("client");
        fs::create_dir(&dir).unwrap();
        client.recipe(&self.wanted, &Place { target: target_dir(), dir, bundle: self.bundle(trust) })
    }

    /// Runs a recipe; the error is what it wrote.
    pub(crate) fn download(&self, recipe: &Recipe, who: &Cgroup) -> Result<(), String> {
        let mut inner = self.host().command("nice");
        inner.arg("-n0");
        recipe.append_to(&mut inner);
        let done = who.wrap(&inner).current_dir(&recipe.dir).stdin(Stdio::null()).output().unwrap();
        if !done.status.success() {
            let both = [done.stdout, done.stderr].concat();
            return Err(format!("{}: {}", done.status, String::from_utf8_lossy(&both)));
        }
        assert_eq!(sha256(&recipe.downloaded(&done.stdout).unwrap()), self.wanted.sha256);
        Ok(())
    }

    /// Further address of the hub's host, on which nothing listens yet.
    pub(crate) fn second_address(&self) -> SocketAddr {
        self.lab.hub().netns.ip("addr replace 10.77.0.77/24 dev eth0").unwrap();
        "10.77.0.77:443".parse().unwrap()
    }

    pub(crate) fn bundle(&self, trust: Trust) -> PathBuf {
        let mut text = fs::read_to_string(self.hub.ca()).unwrap();
        let name = match trust {
            Trust::Node => {
                text.push_str(&fs::read_to_string(self.folder.path().join("data/ca/bundle.pem")).unwrap());
                "trusts-node.pem"
            }
            Trust::OriginOnly => "trusts-origin.pem",
        };
        let path = self.folder.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    pub(crate) fn fresh(&self, name: &str) -> PathBuf {
        self.serial.set(self.serial.get() + 1);
        self.folder.path().join(format!("{name}-{}", self.serial.get()))
    }
}

pub(crate) fn sha256(path: &Path) -> String {
    digest(&SHA256, &fs::read(path).unwrap()).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn target_dir() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("cargo nests it").to_owned()
}
