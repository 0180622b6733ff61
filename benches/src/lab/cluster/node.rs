//! `pondhawk up` in a namespace of its own.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde_json::Value;

use super::{Account, Plan, START, network::Host};
use crate::lab::{Cgroup, Daemon, LabError, Usage, wait_until};

/// The ports of the node in its namespace: the defaults.
pub const PROXY_PORT: u16 = 65001;
const ADMIN: &str = "127.0.0.1:65002";
/// Requests of one curl.
const AT_ONCE: usize = 500;

/// What a node of the cluster is like.
#[derive(Clone, Debug, Default)]
pub struct NodePlan {
    /// Whether it catches the connections of [`Node::clients`].
    pub intercept: bool,
    /// `log.level`; empty: info.
    pub log_level: String,
    /// Further top-level sections of its configuration, in YAML; not `data_dir`, `log`, `intercept`, `origin`, `scheduler`.
    pub more: String,
    /// Further keys of the section `origin`, each as `key: value`.
    pub origin: Vec<String>,
    /// Further keys of the section `swarm`, each as `key: value`.
    pub swarm: Vec<String>,
}

/// How a node finds the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Joining {
    /// Not at all: its configuration names no scheduler.
    Alone,
    /// At these schedulers.
    To {
        /// Where they are.
        schedulers: Vec<SocketAddr>,
        /// A file with a token; none: the node is given none.
        token: Option<PathBuf>,
    },
}

/// A node, whether it runs or not.
#[derive(Debug)]
pub struct Node {
    daemon: Mutex<Option<Daemon>>,
    clients: Option<Cgroup>,
    name: String,
    host: Host,
    folder: PathBuf,
    pondhawk: PathBuf,
    plan: NodePlan,
    mtu: u32,
    hub_ca: PathBuf,
}

impl Node {
    pub(super) fn new(
        number: usize,
        host: Host,
        plan: &Plan<'_>,
        folder: &Path,
        hub_ca: &Path,
    ) -> Result<Self, LabError> {
        let name = format!("node-{number}");
        let folder = folder.join(&name);
        fs::create_dir_all(&folder).map_err(|source| LabError::file(&folder, source))?;
        Ok(Self {
            daemon: Mutex::new(None),
            clients: plan.node.intercept.then(|| Cgroup::new("clients")).transpose()?,
            name,
            host,
            folder,
            pondhawk: plan.pondhawk.clone(),
            plan: plan.node.clone(),
            mtu: plan.node_link.mtu.unwrap_or(1500),
            hub_ca: hub_ca.to_owned(),
        })
    }

    /// Starts it and waits until it serves clients.
    pub fn start(&self, joining: &Joining) -> Result<(), LabError> {
        self.spawn(joining)?;
        self.wait_ready()
    }

    /// Starts it.
    pub fn spawn(&self, joining: &Joining) -> Result<(), LabError> {
        let config = self.folder.join("pondhawk.yaml");
        fs::write(&config, self.configuration(joining)).map_err(|source| LabError::file(&config, source))?;
        let mut command = self.host.netns().command(&self.pondhawk);
        command.arg("up").arg("--config").arg(&config);
        *self.daemon() = Some(Daemon::spawn(&self.name, &mut command, &self.log_path())?);
        Ok(())
    }

    /// Waits until it serves clients; where it is meant to catch connections, until it does.
    pub fn wait_ready(&self) -> Result<(), LabError> {
        self.with_daemon(|daemon| daemon.wait_for_port(PROXY_PORT, START))?;
        if self.clients.is_none() {
            return Ok(());
        }
        let caught = |status: Value| status["interception"]["on"].as_bool().filter(|on| *on);
        self.wait_for_status("interception", START, caught).map(drop)
    }

    /// Waits until it has a session with the scheduler.
    pub fn wait_joined(&self) -> Result<(), LabError> {
        self.wait_for_status("session with the scheduler", START, |status| Account::of(&status).joined.then_some(()))
    }

    /// Polls its status until `wanted` finds something in it.
    pub fn wait_for_status<T>(
        &self,
        what: &str,
        deadline: Duration,
        mut wanted: impl FnMut(Value) -> Option<T>,
    ) -> Result<T, LabError> {
        let found = wait_until(deadline, || self.status().ok().and_then(&mut wanted));
        found.ok_or_else(|| self.error(&format!("no {what} within {deadline:?}")))
    }

    /// SIGKILL; nothing where it does not run.
    pub fn kill(&self) -> Result<(), LabError> {
        match self.daemon().take() {
            Some(mut daemon) => daemon.kill().map(drop),
            None => Ok(()),
        }
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(&self) -> Result<(), LabError> {
        match self.daemon().take() {
            Some(mut daemon) => daemon.terminate(START).map(drop),
            None => Ok(()),
        }
    }

    /// SIGSTOP.
    pub fn freeze(&self) -> Result<(), LabError> {
        self.with_daemon(|daemon| daemon.freeze())
    }

    /// SIGCONT.
    pub fn thaw(&self) -> Result<(), LabError> {
        self.with_daemon(|daemon| daemon.thaw())
    }

    /// What `pondhawk status --json` prints.
    pub fn status(&self) -> Result<Value, LabError> {
        let text = self.host.netns().curl(&["--max-time", "4", &format!("http://{ADMIN}/v1/status")])?;
        Ok(serde_json::from_str(&text)?)
    }

    /// What it has moved.
    pub fn account(&self) -> Result<Account, LabError> {
        self.status().map(|status| Account::of(&status))
    }

    /// The metrics page.
    pub fn metrics(&self) -> Result<String, LabError> {
        self.host.netns().curl(&["--max-time", "4", &format!("http://{ADMIN}/metrics")])
    }

    /// Asks it to drop all that it holds, as `pondhawk rm` does; what is in use stays.
    pub fn drop_tasks(&self) -> Result<(), LabError> {
        let tasks = self.tasks()?;
        let socket = self.data_dir().join("admin.sock").display().to_string();
        let ids = tasks.iter().filter_map(|task| task["id"].as_str());
        let urls: Vec<String> = ids.map(|id| format!("http://{ADMIN}/v1/tasks/{id}")).collect();
        for some in urls.chunks(AT_ONCE) {
            let fixed = ["--max-time", "4", "--unix-socket", &socket, "--request", "DELETE"];
            let words: Vec<&str> = fixed.into_iter().chain(some.iter().map(String::as_str)).collect();
            // 409 for one that is in use.
            let _ = self.host.netns().curl(&words);
        }
        Ok(())
    }

    /// Whether it knows of no task at all.
    pub fn holds_nothing(&self) -> Result<bool, LabError> {
        self.tasks().map(|tasks| tasks.is_empty())
    }

    /// CPU time and memory of its process so far.
    pub fn usage(&self) -> Option<Usage> {
        self.daemon().as_ref().and_then(Daemon::usage)
    }

    /// Its process; none: it does not run.
    pub fn pid(&self) -> Option<u32> {
        self.daemon().as_ref().map(Daemon::pid)
    }

    /// Whether its process is there.
    pub fn is_running(&self) -> bool {
        self.daemon().as_mut().is_some_and(Daemon::is_running)
    }

    /// All that it has logged in all its lives.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    /// `node-0` and so on: also its name in the cluster.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its machine.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The cgroup whose connections it catches; none: it catches none.
    pub fn clients(&self) -> Option<&Cgroup> {
        self.clients.as_ref()
    }

    /// Its `data_dir`.
    pub fn data_dir(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// The whole configuration file.
    pub fn configuration(&self, joining: &Joining) -> String {
        let level = if self.plan.log_level.is_empty() { "info" } else { &self.plan.log_level };
        format!(
            "data_dir: {}\nlog:\n  level: {level}\n{}origin:\n  extra_cas: [{}]\n  allow_private: true\n{}{}{}",
            self.data_dir().display(),
            self.intercept_section(),
            self.hub_ca.display(),
            indented(&self.plan.origin),
            self.sharing_sections(joining),
            self.plan.more,
        )
    }

    fn intercept_section(&self) -> String {
        let Some(clients) = &self.clients else { return "intercept:\n  enabled: off\n".to_owned() };
        let (v4, v6) = (self.host.attachment.v4, self.host.attachment.v6);
        format!(
            "intercept:\n  enabled: on\n  cgroup: {}\n  mode: dns\n  node_address_v4: {v4}\n  node_address_v6: \"{v6}\"\n",
            clients.path().display()
        )
    }

    fn sharing_sections(&self, joining: &Joining) -> String {
        let Joining::To { schedulers, token } = joining else { return String::new() };
        let address = schedulers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let token = token.as_ref().map(|path| format!("  token: {}\n", path.display())).unwrap_or_default();
        format!(
            "swarm:\n  name: {}\n  link_mtu: {}\n{}scheduler:\n  join: \"{address}\"\n{token}",
            self.name,
            self.mtu,
            indented(&self.plan.swarm),
        )
    }

    /// What `pondhawk ls --json` prints.
    pub fn tasks(&self) -> Result<Vec<Value>, LabError> {
        let text = self.host.netns().curl(&["--max-time", "4", &format!("http://{ADMIN}/v1/tasks")])?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Where it logs.
    pub fn log_path(&self) -> PathBuf {
        self.folder.join("node.log")
    }

    fn daemon(&self) -> MutexGuard<'_, Option<Daemon>> {
        self.daemon.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with_daemon<T>(&self, act: impl FnOnce(&mut Daemon) -> Result<T, LabError>) -> Result<T, LabError> {
        let mut daemon = self.daemon();
        match daemon.as_mut() {
            Some(daemon) => act(daemon),
            None => {
                Err(LabError::Daemon { name: self.name.clone(), what: "does not run".to_owned(), tail: String::new() })
            }
        }
    }

    fn error(&self, what: &str) -> LabError {
        let tail = self.daemon().as_ref().map(Daemon::tail).unwrap_or_default();
        LabError::Daemon { name: self.name.clone(), what: what.to_owned(), tail }
    }
}

fn indented(lines: &[String]) -> String {
    lines.iter().map(|line| format!("  {line}\n")).collect()
}
