//! What every end-to-end run is played on: a hub, a node that catches its neighbours' connections, and real clients.
//!
//! Clients run in a cgroup of the stage's own, to which the node attaches: no other process of the machine is touched. Everything
//! ends and is removed with the [`Stage`].

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use aws_lc_rs::digest;
use serde::Deserialize;
use tempfile::TempDir;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    clients::{Client, Place, Recipe, Wanted},
    lab::{Cgroup, Daemon, HubProcess, Lab, LabError, Netns, wait_until},
};

/// The node's ports in its namespace: the defaults.
const ADMIN: &str = "127.0.0.1:65002";
const INTERCEPT_PORT: u16 = 65003;
/// A node starts within a second; a busy machine may take longer.
const START: Duration = Duration::from_secs(30);
/// Longer than the deadline that a client's own wrapper keeps.
const CLIENT: Duration = Duration::from_secs(150);

/// How a stage is set.
#[derive(Clone, Debug)]
pub struct Setting<'a> {
    /// Cargo's target directory: the Python clients are in it, and the stage's files go there while it stands.
    pub target: PathBuf,
    /// What the hub offers, as `owner/name/path:size:seed`.
    pub files: &'a [&'a str],
    /// Further arguments of `pondhawk-hub`.
    pub hub: &'a [&'a str],
    /// Becomes true when the run is to end early; whatever is waited for then fails.
    pub interrupted: Arc<AtomicBool>,
}

/// A hub, perhaps a node, and room for clients.
#[derive(Debug)]
pub struct Stage {
    // Dropped in this order: processes before what they run in.
    node: Option<Daemon>,
    hub: HubProcess,
    clients: Cgroup,
    lab: Lab,
    folder: TempDir,
    target: PathBuf,
    interrupted: Arc<AtomicBool>,
}

/// Why something on the stage went wrong.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The lab.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// The stage's own files.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The hub has no such file.
    #[error("the hub does not offer {0}")]
    NotOffered(String),
    /// The node does not come up.
    #[error("the node is not ready: {why}; the end of its log:\n{tail}")]
    NotReady {
        /// What is missing.
        why: String,
        /// Of its log.
        tail: String,
    },
    /// A client failed.
    #[error("{client} ended with {status}:\n{output}")]
    Client {
        /// Which.
        client: &'static str,
        /// How it ended.
        status: String,
        /// All that it wrote.
        output: String,
    },
    /// Somebody wants it to end.
    #[error("interrupted")]
    Interrupted,
}

/// What a client brought home.
#[derive(Clone, Debug)]
pub struct Download {
    /// The file.
    pub path: PathBuf,
    /// Of the file, in hexadecimal.
    pub sha256: String,
    /// From the start to the end of the client's process.
    pub seconds: f64,
    /// What the client wrote.
    pub output: String,
}

/// What a node says of itself (`pondhawk status --json`).
#[derive(Clone, Debug, Default, Deserialize)]
pub struct NodeStatus {
    /// Sums since its start.
    pub totals: Totals,
    /// The way in.
    pub interception: Interception,
}

/// Sums since a node's start.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Totals {
    /// Requests of clients.
    pub requests: u64,
    /// Of them answered from the store.
    pub hits: u64,
    /// Of them answered from a download that another one had started.
    pub joined: u64,
    /// Of them for which a download was started.
    pub misses: u64,
    /// Bytes from origins.
    pub origin_bytes: u64,
    /// Bytes read from the store.
    pub store_bytes: u64,
    /// Bytes to clients.
    pub client_bytes: u64,
}

/// Whether and how connections are caught.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Interception {
    /// Whether they are.
    pub on: bool,
    /// If not, why.
    pub why_off: Option<String>,
    /// Decisions of the BPF programs.
    pub decisions: std::collections::BTreeMap<String, u64>,
}

impl Stage {
    /// Builds the network and starts the hub. Needs root, and `pondhawk-hub` built beside the running executable.
    pub fn open(setting: &Setting<'_>) -> Result<Self, StageError> {
        let wrong = |source| StageError::File { path: setting.target.clone(), source };
        let folder = tempfile::Builder::new().prefix("stage-").tempdir_in(&setting.target).map_err(wrong)?;
        let lab = Lab::new()?;
        let mut arguments = setting.hub.to_vec();
        arguments.extend(setting.files.iter().flat_map(|&file| ["--file", file]));
        let hub = HubProcess::start(lab.hub(), &arguments)?;
        lab.node().netns.set_nameserver(Some(lab.hub().v4.into()))?;
        Ok(Self {
            node: None,
            hub,
            clients: Cgroup::new("clients")?,
            lab,
            folder,
            target: setting.target.clone(),
            interrupted: Arc::clone(&setting.interrupted),
        })
    }

    /// Starts a node that catches the clients' connections, and waits until it does. `more` is added to its configuration, as
    /// top-level sections of YAML that [`Stage::configuration`] does not have.
    pub fn start_node(&mut self, pondhawk: &Path, more: &str) -> Result<(), StageError> {
        let config = self.folder.path().join("pondhawk.yaml");
        self.write(&config, &format!("{}{more}", self.configuration()))?;
        let mut command = self.lab.node().netns.command(pondhawk);
        command.arg("up").arg("--config").arg(&config);
        let node = Daemon::spawn("pondhawk", &mut command, &self.folder.path().join("pondhawk.log"))?;
        self.node.insert(node).wait_for_port(INTERCEPT_PORT, START)?;
        let caught = wait_until(START, || self.node_status().ok().filter(|status| status.interception.on));
        if caught.is_some() {
            return Ok(());
        }
        let status = self.node_status().map(|status| status.interception.why_off.unwrap_or_default());
        let why = status.unwrap_or_else(|error| error.to_string());
        Err(StageError::NotReady { why, tail: self.node.as_ref().map(Daemon::tail).unwrap_or_default() })
    }

    /// The sections of the node's configuration that the stage decides.
    pub fn configuration(&self) -> String {
        let (data, clients, ca) = (self.data_dir(), self.clients.path().display(), self.hub.ca());
        let (v4, v6) = (self.lab.node().v4, self.lab.node().v6);
        format!(
            "data_dir: {data}\n\
             intercept:\n  enabled: on\n  cgroup: {clients}\n  mode: dns\n  node_address_v4: {v4}\n  node_address_v6: \"{v6}\"\n\
             origin:\n  extra_cas: [{ca}]\n  allow_private: true\n\
             store:\n  keep_free: 64MiB\n",
            data = data.display(),
            ca = ca.display(),
        )
    }

    /// Ends the node: `kill -9`, or politely.
    pub fn stop_node(&mut self, politely: bool) -> Result<(), StageError> {
        if let Some(mut node) = self.node.take() {
            if politely {
                node.terminate(START)?
            } else {
                node.kill()?
            };
        }
        Ok(())
    }

    /// The node's process, where one runs.
    pub fn node(&mut self) -> Option<&mut Daemon> {
        self.node.as_mut()
    }

    /// The hub: faults, limits, counters.
    pub fn hub(&self) -> &HubProcess {
        &self.hub
    }

    /// The hosts.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// The cgroup whose processes are caught.
    pub fn clients(&self) -> &Cgroup {
        &self.clients
    }

    /// The node's data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// A file that the hub offers, `owner/name` and path apart.
    pub fn wanted(&self, repo: &str, file: &str, size: u64) -> Result<Wanted, StageError> {
        let label = format!("{repo}/{file}");
        let (sha256, _) = self.hub.object(&label)?.ok_or(StageError::NotOffered(label))?;
        Ok(Wanted { repo: repo.to_owned(), file: file.to_owned(), sha256, size })
    }

    /// Bytes of the file that the hub has sent since its start.
    pub fn origin_bytes(&self, wanted: &Wanted) -> Result<u64, StageError> {
        Ok(self.hub.stats()?.object(&format!("{}/{}", wanted.repo, wanted.file)).body_bytes)
    }

    /// What the node says of itself.
    pub fn node_status(&self) -> Result<NodeStatus, StageError> {
        let text = self.lab.node().netns.curl(&[&format!("http://{ADMIN}/v1/status")])?;
        Ok(serde_json::from_str(&text).map_err(LabError::from)?)
    }

    /// How this client would download the file, into a folder of its own.
    pub fn recipe(&self, client: Client, wanted: &Wanted) -> Result<Recipe, StageError> {
        let wrong = |source| StageError::File { path: self.folder.path().to_owned(), source };
        let dir = tempfile::Builder::new().prefix("client-").tempdir_in(self.folder.path()).map_err(wrong)?.keep();
        let place = Place { target: self.target.clone(), dir, bundle: self.bundle()? };
        Ok(client.recipe(wanted, &place))
    }

    /// Runs a client in this namespace, in the cgroup whose connections are caught, and looks at what it downloaded.
    pub fn download(&self, client: Client, recipe: &Recipe, from: &Netns) -> Result<Download, StageError> {
        run_client(client, recipe, from, &self.clients, &self.interrupted)
    }

    /// What clients trust: the system's roots with the node's CA (`pondhawk ca env` names that file), and the hub's, which stands for
    /// the public ones here.
    fn bundle(&self) -> Result<PathBuf, StageError> {
        let read = |path: PathBuf| fs::read_to_string(&path).map_err(|source| StageError::File { path, source });
        let mut text = read(self.hub.ca())?;
        if self.node.is_some() {
            text.push_str(&read(self.data_dir().join("ca/bundle.pem"))?);
        }
        let path = self.folder.path().join("trusted.pem");
        self.write(&path, &text)?;
        Ok(path)
    }

    fn write(&self, path: &Path, text: &str) -> Result<(), StageError> {
        fs::write(path, text).map_err(|source| StageError::File { path: path.to_owned(), source })
    }
}

/// Waits for SIGINT or SIGTERM. What looks at `interrupted` then ends at its next wait, and takes down what it has set up.
pub async fn watch_signals(interrupted: Arc<AtomicBool>) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        result = tokio::signal::ctrl_c() => result?,
        _ = terminate.recv() => {}
    }
    interrupted.store(true, Ordering::Relaxed);
    eprintln!("stopping, and cleaning up");
    Ok(())
}

/// Runs a client in this namespace and cgroup, and looks at what it downloaded; ends early when `interrupted` becomes true.
pub fn run_client(
    client: Client,
    recipe: &Recipe,
    from: &Netns,
    group: &Cgroup,
    interrupted: &AtomicBool,
) -> Result<Download, StageError> {
    let mut command = from.command("nice");
    command.arg("-n0");
    recipe.append_to(&mut command);
    let mut command = group.wrap(&command);
    let (out, err) = (recipe.dir.join("stdout"), recipe.dir.join("stderr"));
    let create = |path: &Path| File::create(path).map_err(|source| StageError::File { path: path.to_owned(), source });
    command.current_dir(&recipe.dir).stdin(Stdio::null()).stdout(create(&out)?).stderr(create(&err)?);
    let started = Instant::now();
    let status = finish(&mut command, interrupted)?;
    let seconds = started.elapsed().as_secs_f64();
    let stdout = fs::read(&out).unwrap_or_default();
    let both = [stdout.clone(), fs::read(&err).unwrap_or_default()].concat();
    let output = String::from_utf8_lossy(&both).into_owned();
    let failed = |status: String| StageError::Client { client: client.name(), status, output: output.clone() };
    if !status.success() {
        return Err(failed(status.to_string()));
    }
    let path = recipe.downloaded(&stdout).ok_or_else(|| failed("no path".to_owned()))?;
    let sha256 = sha256(&path).map_err(|source| StageError::File { path: path.clone(), source })?;
    Ok(Download { path, sha256, seconds, output })
}

fn finish(command: &mut Command, interrupted: &AtomicBool) -> Result<ExitStatus, StageError> {
    let words = format!("{command:?}");
    let failed = |output: String| LabError::Command { command: words.clone(), output };
    let mut child = command.spawn().map_err(|error| failed(error.to_string()))?;
    let ended = wait_until(CLIENT, || {
        let interrupted = interrupted.load(Ordering::Relaxed).then_some(Err(StageError::Interrupted));
        interrupted.or_else(|| child.try_wait().ok().flatten().map(Ok))
    });
    ended.unwrap_or_else(|| {
        // The cgroup ends what may be left of it with the stage.
        let _ = child.kill();
        Err(failed(format!("still runs after {CLIENT:?}")).into())
    })
}

pub(crate) fn sha256(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut context = digest::Context::new(&digest::SHA256);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => context.update(&buffer[..n]),
        }
    }
    Ok(context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
}
