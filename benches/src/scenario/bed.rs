//! What several scenarios stand on: one node that catches connections, a hub, nginx beside the node, and loads played on them.

use std::{
    fmt::Display,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

use super::Context;
use crate::lab::{
    Cgroup, Daemon, binary,
    cluster::{Cluster, Link, Node, NodePlan, Plan},
    descendants, wait_until,
};

/// Where nginx listens, without TLS and with it, in the node's namespace.
const NGINX: [&str; 2] = ["127.0.0.1:8081", "127.0.0.1:8443"];
/// Where the node takes proxy requests there.
pub(super) const PROXY: &str = "127.0.0.1:65001";
const START: Duration = Duration::from_secs(20);
/// A load that is not through by then hangs.
const DEADLINE: Duration = Duration::from_secs(300);
const FORGET: Duration = Duration::from_secs(20);

/// What answers a load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Server {
    /// nginx, without TLS.
    Nginx,
    /// nginx, with TLS.
    NginxTls,
    /// The node's proxy port.
    NodeProxy,
    /// The node, which catches the connection to the CDN.
    NodeCaught,
    /// The CDN, from a client that is not caught.
    Direct,
}

/// A load, in the words of `pondhawk-bench load`.
#[derive(Clone, Debug, Default)]
pub(super) struct Load {
    arguments: Vec<String>,
}

/// What came of one.
#[derive(Clone, Debug, Default)]
pub(super) struct Played {
    /// Bytes of bodies, in units of 10^9 a second.
    pub(super) speed: f64,
    /// Whole seconds of it.
    pub(super) seconds: f64,
    /// Operations done.
    pub(super) done: u64,
    /// CPU time of the server's processes by bytes of bodies, seconds by 10^9 bytes; that of the hub is not measured.
    pub(super) cpu_a_gigabyte: f64,
    /// The server's largest resident size, in MiB.
    pub(super) rss_peak: f64,
    /// Median time to the first byte, in ms.
    pub(super) first_byte: f64,
    /// 99th percentile of the time to the last byte, in ms.
    pub(super) p99: f64,
}

/// See the module. Everything is gone when it is dropped.
pub(super) struct Bed<'a> {
    // Dropped in this order: processes before what they run in.
    nginx: Option<Nginx>,
    /// Clients in it are not caught.
    apart: Cgroup,
    cluster: Cluster,
    folder: TempDir,
    context: &'a Context,
}

struct Nginx {
    daemon: Daemon,
    ca: PathBuf,
}

impl Load {
    /// So many clients, each with one request after the other, for a time.
    pub(super) fn clients(clients: usize, time: Duration) -> Self {
        Self::default().with("--clients", &clients).with("--seconds", &time.as_secs_f64())
    }

    /// So many operations, by one client.
    pub(super) fn once() -> Self {
        Self::default().with("--clients", &1).with("--requests", &1)
    }

    /// Another argument without a value.
    pub(super) fn flag(mut self, name: &str) -> Self {
        self.arguments.push(name.to_owned());
        self
    }

    /// Another argument and its value.
    pub(super) fn with(mut self, name: &str, value: &dyn Display) -> Self {
        self.arguments.extend([name.to_owned(), value.to_string()]);
        self
    }
}

/// A hub that offers these (`owner/name/path:size:seed`) with these further arguments, and a node that keeps its data here; no link
/// is shaped. `intercept`: whether the node catches connections.
pub(super) fn one_node(data_in: &Path, files: &[&str], hub: &[&str], intercept: bool) -> Result<Cluster> {
    let plan = Plan {
        nodes: 1,
        pondhawk: binary("pondhawk")?,
        folder: data_in.to_owned(),
        files,
        hub,
        hub_link: Link::default(),
        node_link: Link::default(),
        scheduler: None,
        node: NodePlan { intercept, more: "store:\n  keep_free: 64MiB\n".to_owned(), ..NodePlan::default() },
    };
    Cluster::start(&plan).context("the node cannot be started")
}

/// Has a node drop what it holds. What is in use a moment after its client's end is dropped when it is not.
pub(super) fn forget(node: &Node) -> Result<()> {
    let empty = || {
        node.drop_tasks().ok()?;
        node.holds_nothing().ok()?.then_some(())
    };
    wait_until(FORGET, empty).with_context(|| format!("{} does not drop what it holds", node.name()))
}

impl<'a> Bed<'a> {
    /// See [`one_node`]; the node catches connections.
    pub(super) fn new(context: &'a Context, data_in: &Path, files: &[&str], hub: &[&str]) -> Result<Self> {
        let cluster = one_node(data_in, files, hub, true)?;
        let folder = tempfile::Builder::new().prefix("bench-").tempdir_in(&context.data_in)?;
        Ok(Self { nginx: None, apart: Cgroup::new("apart")?, cluster, folder, context })
    }

    pub(super) fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    pub(super) fn node(&self) -> &Node {
        &self.cluster.nodes()[0]
    }

    /// Starts nginx, with a copy of the hub's object under the name of its last part.
    pub(super) fn start_nginx(&mut self, label: &str) -> Result<()> {
        let copy = self.folder.path().join(last_part(label));
        let mut curl = self.node().host().netns().command("curl");
        curl.args(["--silent", "--show-error", "--fail", "--cacert"]).arg(self.cluster.hub().ca());
        curl.arg("--output").arg(&copy).arg(self.cluster.url(label)?).stdin(Stdio::null());
        ensure!(curl.status()?.success(), "the file for nginx cannot be copied from the hub");
        self.nginx = Some(Nginx::start(self.node(), self.folder.path())?);
        Ok(())
    }

    /// Has the node drop what it holds.
    pub(super) fn forget(&self) -> Result<()> {
        forget(self.node())
    }

    /// Plays a load on two servers in turn, in so many rounds.
    pub(super) fn beside(
        &self,
        rounds: usize,
        servers: [Server; 2],
        label: &str,
        load: &Load,
    ) -> Result<[Vec<Played>; 2]> {
        let mut played = [Vec::new(), Vec::new()];
        for round in 0..rounds {
            // Whoever is first meets another machine than whoever is second.
            for side in if round % 2 == 0 { [0, 1] } else { [1, 0] } {
                played[side].push(self.play(servers[side], label, load)?);
            }
        }
        Ok(played)
    }

    /// Plays a load of one object on a server.
    pub(super) fn play(&self, server: Server, label: &str, load: &Load) -> Result<Played> {
        let url = match server {
            Server::Nginx => format!("http://{}/{}", NGINX[0], last_part(label)),
            Server::NginxTls => format!("https://localhost:8443/{}", last_part(label)),
            // In absolute form the node fetches it by TLS all the same.
            Server::NodeProxy => self.cluster.url(label)?.replacen("https://", "http://", 1),
            Server::NodeCaught | Server::Direct => self.cluster.url(label)?,
        };
        self.play_urls(server, &[url], load)
    }

    /// Plays a load of several.
    pub(super) fn play_urls(&self, server: Server, urls: &[String], load: &Load) -> Result<Played> {
        self.context.go_on()?;
        let (list, json) = (self.folder.path().join("urls"), self.folder.path().join("outcome.json"));
        fs::write(&list, urls.join("\n"))?;
        let mut command = self.node().host().netns().command(binary("pondhawk-bench")?);
        command.arg("load").arg("--urls-from").arg(&list).arg("--json").arg(&json).args(&load.arguments);
        let pids = self.arrange(server, &mut command)?;
        command.args(pids.iter().flat_map(|pid| ["--pid".to_owned(), pid.to_string()]));
        let group = match server {
            Server::NodeCaught => self.node().clients().context("the node catches nothing")?,
            _ => &self.apart,
        };
        run(&mut group.wrap(&command), self.context, &self.folder.path().join("load.log"))?;
        let outcome: Value = serde_json::from_str(&fs::read_to_string(&json)?)?;
        Played::read(&outcome)
    }

    /// The client's way to the server, and the processes that are measured.
    fn arrange(&self, server: Server, command: &mut Command) -> Result<Vec<u32>> {
        let node = || self.node().pid().map(|pid| vec![pid]).context("the node has ended");
        Ok(match (server, &self.nginx) {
            (Server::Nginx | Server::NginxTls, Some(nginx)) => {
                command.arg("--ca").arg(&nginx.ca);
                nginx.pids()
            }
            (Server::Nginx | Server::NginxTls, None) => bail!("nginx was not started"),
            (Server::NodeProxy, _) => {
                command.args(["--proxy", PROXY]);
                node()?
            }
            (Server::NodeCaught, _) => {
                command.arg("--ca").arg(self.node().data_dir().join("ca/bundle.pem"));
                node()?
            }
            (Server::Direct, _) => {
                command.arg("--ca").arg(self.cluster.hub().ca());
                Vec::new()
            }
        })
    }
}

impl Played {
    fn read(outcome: &Value) -> Result<Self> {
        let number = |value: &Value| value.as_f64().unwrap_or_default();
        let (seconds, bytes) = (number(&outcome["seconds"]), number(&outcome["bytes"]));
        ensure!(number(&outcome["failed"]) == 0.0, "operations failed: {}", outcome["errors"]);
        ensure!(seconds > 0.0 && bytes > 0.0, "nothing was downloaded");
        Ok(Self {
            speed: bytes / seconds / 1e9,
            seconds,
            done: outcome["completed"].as_u64().unwrap_or_default(),
            cpu_a_gigabyte: number(&outcome["process"]["cpu_seconds"]) / (bytes / 1e9),
            rss_peak: number(&outcome["process"]["rss_peak"]) / f64::from(1 << 20),
            first_byte: number(&outcome["first_byte"]["p50_us"]) / 1e3,
            p99: number(&outcome["whole"]["p99_us"]) / 1e3,
        })
    }
}

impl Nginx {
    /// Serves a folder, with as many workers as there are processors and the cipher that the node prefers.
    fn start(node: &Node, folder: &Path) -> Result<Self> {
        let (ca, key, config) = (folder.join("nginx.pem"), folder.join("nginx.key"), folder.join("nginx.conf"));
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
        fs::write(&ca, made.cert.pem())?;
        fs::write(&key, made.signing_key.serialize_pem())?;
        fs::write(&config, configuration(folder))?;
        let mut command = node.host().netns().command("nginx");
        command.arg("-e").arg(folder.join("nginx.log")).arg("-c").arg(&config).stdin(Stdio::null());
        let mut daemon = Daemon::spawn("nginx", &mut command, &folder.join("nginx.out"))?;
        for address in NGINX {
            let address: SocketAddr = address.parse().expect("a constant");
            daemon.wait_for_port(address.port(), START)?;
        }
        Ok(Self { daemon, ca })
    }

    /// The master and its workers.
    fn pids(&self) -> Vec<u32> {
        let master = self.daemon.pid();
        std::iter::once(master).chain(descendants(master)).collect()
    }
}

fn configuration(folder: &Path) -> String {
    let [plain, tls] = NGINX;
    let dir = folder.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|what| format!("  {what}_temp_path {dir}/nginx-tmp;\n"))
        .collect();
    format!(
        "daemon off;\nuser root;\nworker_processes auto;\nworker_rlimit_nofile 65536;\npid {dir}/nginx.pid;\n\
         events {{ worker_connections 16384; }}\n\
         http {{\n  access_log off;\n  sendfile on;\n  tcp_nopush on;\n  keepalive_requests 1000000;\n  keepalive_timeout 600;\n\
         {temporary}  default_type application/octet-stream;\n\
         server {{\n    listen {plain} backlog=4096;\n    listen {tls} ssl backlog=4096;\n    server_name localhost;\n    root {dir};\n\
         ssl_certificate {dir}/nginx.pem;\n    ssl_certificate_key {dir}/nginx.key;\n    ssl_protocols TLSv1.3;\n\
         ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;\n  }}\n}}\n"
    )
}

fn last_part(label: &str) -> &str {
    label.rsplit('/').next().unwrap_or(label)
}

/// Runs a load to its end.
fn run(command: &mut Command, context: &Context, log: &Path) -> Result<()> {
    let mut load = Daemon::spawn("pondhawk-bench load", command.stdin(Stdio::null()), log)?;
    let mut status = None;
    let ended = wait_until(DEADLINE, || {
        if context.go_on().is_err() {
            return Some(());
        }
        status = load.exited();
        status.map(drop)
    });
    context.go_on()?;
    ended.with_context(|| format!("the load is not through after {DEADLINE:?}"))?;
    ensure!(status.is_some_and(|status| status.success()), "the load failed:\n{}", load.tail());
    Ok(())
}
