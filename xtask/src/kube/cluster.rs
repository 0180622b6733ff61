//! One node's Kubernetes: etcd, API server, controllers, scheduler, containerd and kubelet, on a bridge of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::build::Programs;
use super::host::{self, Daemon};
use super::wait;
use crate::shell;

/// The bridge, and the machine's address on it: gateway and name server of the pods.
const BRIDGE: &str = "ph-kube";
pub(super) const GATEWAY: &str = "10.244.77.1";
/// The Hub-shaped origin's address on the bridge.
const ORIGIN: &str = "10.244.77.2";
/// The Service `kubernetes`: there is no kube-proxy, so the API server itself listens there.
const API: &str = "10.96.77.1";
const SERVICES: &str = "10.96.77.0/24";
const TOKEN: &str = "lab-admin";

/// A cluster that ends with this.
pub(super) struct Cluster {
    folder: PathBuf,
    cgroup: PathBuf,
    // In the order in which they are ended.
    kubelet: Option<Daemon>,
    control: Vec<Daemon>,
    containerd: Option<Daemon>,
}

impl Cluster {
    /// Starts everything below `folder/run` and waits for the node to be ready.
    pub(super) fn start(folder: &Path, programs: &Programs) -> Result<Self> {
        let run = folder.join("run");
        host::sweep(&run);
        if run.exists() {
            fs::remove_dir_all(&run).context("the last run's files cannot be removed")?;
        }
        fs::create_dir_all(&run).with_context(|| format!("cannot create {}", run.display()))?;
        let cgroup = unified()?.join("kubepods");
        let mut cluster =
            Self { folder: folder.to_owned(), cgroup, kubelet: None, control: Vec::new(), containerd: None };
        // The chart mounts it before the first pod is in it.
        fs::create_dir_all(&cluster.cgroup).context("cannot make the pods' cgroup")?;
        bridge()?;
        cluster.control(programs)?;
        cluster.containerd(programs)?;
        cluster.kubelet(programs)?;
        Ok(cluster)
    }

    /// The pods' control group.
    pub(super) fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// Runs kubectl; returns what it printed.
    pub(super) fn kubectl(&self, words: &[&str]) -> Result<String> {
        shell::output(Command::new("kubectl").arg("--kubeconfig").arg(self.run("kubeconfig")).args(words))
    }

    /// Loads an image archive.
    pub(super) fn import(&self, archive: &Path) -> Result<()> {
        shell::run(self.ctr().args(["images", "import"]).arg(archive))
    }

    /// What pods and their events say, for a run that failed.
    pub(super) fn story(&self) -> String {
        let pods = self.kubectl(&["get", "pods", "-A", "-o", "wide"]);
        let events = self.kubectl(&["get", "events", "-A", "--sort-by=.lastTimestamp"]);
        let node = self.kubectl(&["-n", "pondhawk", "logs", "daemonset/pondhawk", "--tail=40"]);
        let schedulers = "--selector=app.kubernetes.io/component=scheduler";
        let schedulers = self.kubectl(&["-n", "pondhawk", "logs", schedulers, "--prefix", "--tail=40"]);
        [pods, events, node, schedulers].map(|part| part.unwrap_or_else(|error| format!("{error:#}"))).join("\n")
    }

    fn run(&self, name: &str) -> PathBuf {
        self.folder.join("run").join(name)
    }

    fn ctr(&self) -> Command {
        let mut ctr = Command::new("ctr");
        ctr.arg("--address").arg(self.run("containerd.sock")).args(["--namespace", "k8s.io"]);
        ctr
    }

    fn write(&self, name: &str, text: &str) -> Result<String> {
        let path = self.run(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path.to_string_lossy().into_owned())
    }

    fn daemon(&self, name: &str, command: &mut Command, words: &[String]) -> Result<Daemon> {
        Daemon::start(name, command.args(words), &self.folder)
    }

    fn control(&mut self, programs: &Programs) -> Result<()> {
        let etcd = self.daemon("etcd", &mut Command::new("etcd"), &self.etcd_words())?;
        self.control.push(etcd);
        let key = self.run("account.key");
        shell::output(Command::new("openssl").args(["genrsa", "-out"]).arg(&key).arg("2048"))?;
        let words = self.api_server_words()?;
        let api_server = self.daemon("apiserver", &mut programs.command("kube-apiserver"), &words)?;
        self.control.push(api_server);
        let config = self.write("kubeconfig", &kubeconfig())?;
        wait("the API server", || Ok(self.kubectl(&["get", "--raw", "/readyz"]).is_ok()))?;
        let config = format!("--kubeconfig={config}");
        let shared = ["--leader-elect=false", "--port=0", "--secure-port=0", &config];
        let root = format!("--root-ca-file={}/apiserver.crt", self.run("certificates").display());
        let mut words = words_of(&shared);
        words.extend([root, format!("--service-account-private-key-file={}", key.display())]);
        let controllers = self.daemon("controllers", &mut programs.command("kube-controller-manager"), &words)?;
        let scheduler = self.daemon("scheduler", &mut programs.command("kube-scheduler"), &words_of(&shared))?;
        self.control.extend([controllers, scheduler]);
        Ok(())
    }

    fn etcd_words(&self) -> Vec<String> {
        let data = self.run("etcd").to_string_lossy().into_owned();
        let (clients, peers) = ("http://127.0.0.1:23790", "http://127.0.0.1:23800");
        words_of(&[
            &format!("--data-dir={data}"),
            &format!("--listen-client-urls={clients}"),
            &format!("--advertise-client-urls={clients}"),
            &format!("--listen-peer-urls={peers}"),
            &format!("--initial-advertise-peer-urls={peers}"),
            &format!("--initial-cluster=default={peers}"),
        ])
    }

    fn api_server_words(&self) -> Result<Vec<String>> {
        let key = self.run("account.key").to_string_lossy().into_owned();
        let tokens = self.write("tokens.csv", &format!("{TOKEN},admin,admin,system:masters\n"))?;
        Ok(words_of(&[
            "--etcd-servers=http://127.0.0.1:23790",
            &format!("--bind-address={API}"),
            &format!("--advertise-address={API}"),
            "--secure-port=443",
            &format!("--service-cluster-ip-range={SERVICES}"),
            &format!("--cert-dir={}", self.run("certificates").display()),
            &format!("--token-auth-file={tokens}"),
            "--authorization-mode=RBAC",
            "--service-account-issuer=https://kubernetes.default.svc",
            &format!("--service-account-key-file={key}"),
            &format!("--service-account-signing-key-file={key}"),
            "--allow-privileged=true",
            // Webhooks are asked at their pods' addresses.
            "--enable-aggregator-routing=true",
            "--kubelet-preferred-address-types=InternalIP",
        ]))
    }

    fn containerd(&mut self, programs: &Programs) -> Result<()> {
        let plugins = self.run("cni");
        fs::create_dir_all(&plugins).context("cannot create a folder for CNI")?;
        self.write("cni/10-bridge.conf", &network())?;
        let config = format!(
            "version = 2\nroot = {root:?}\nstate = {state:?}\n[grpc]\naddress = {socket:?}\n\
             [plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"localhost/pause:1\"\nrestrict_oom_score_adj = true\n\
             disable_apparmor = true\nnetns_mounts_under_state_dir = true\n\
             [plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"/usr/lib/cni\"\nconf_dir = {plugins:?}\n",
            root = self.run("containerd"),
            state = self.run("state"),
            socket = self.run("containerd.sock"),
        );
        let config = self.write("containerd.toml", &config)?;
        let words = words_of(&["--config", &config]);
        let containerd = self.daemon("containerd", &mut Command::new("containerd"), &words)?;
        self.containerd = Some(containerd);
        wait("containerd", || Ok(shell::output(self.ctr().arg("version")).is_ok()))?;
        let archive = self.run("pause.tar");
        pause(&self.run("pause"), &programs.pause(), &archive)?;
        self.import(&archive)
    }

    fn kubelet(&mut self, programs: &Programs) -> Result<()> {
        let resolver = self.write("resolv.conf", &format!("nameserver {GATEWAY}\n"))?;
        let words = words_of(&[
            &format!("--kubeconfig={}", self.run("kubeconfig").display()),
            &format!("--root-dir={}", self.run("kubelet").display()),
            &format!("--cert-dir={}", self.run("kubelet-certificates").display()),
            "--container-runtime=remote",
            &format!("--container-runtime-endpoint=unix://{}", self.run("containerd.sock").display()),
            "--hostname-override=lab",
            &format!("--node-ip={GATEWAY}"),
            &format!("--cluster-dns={GATEWAY}"),
            "--cluster-domain=cluster.local",
            &format!("--resolv-conf={resolver}"),
            "--fail-swap-on=false",
            "--cgroup-driver=cgroupfs",
            "--make-iptables-util-chains=false",
            "--oom-score-adj=0",
            "--eviction-hard=",
            "--sync-frequency=10s",
        ]);
        let kubelet = self.daemon("kubelet", &mut programs.command("kubelet"), &words)?;
        self.kubelet = Some(kubelet);
        wait("the node", || Ok(self.kubectl(&["get", "node", "lab"]).is_ok()))?;
        self.kubectl(&["wait", "node/lab", "--for=condition=Ready", "--timeout=240s"])?;
        wait("the default service account", || Ok(self.kubectl(&["get", "serviceaccount", "default"]).is_ok()))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = self.kubectl(&["delete", "pods", "--all", "-A", "--grace-period=0", "--force", "--wait=false"]);
        drop(self.kubelet.take());
        if let Ok(tasks) = shell::output(self.ctr().args(["tasks", "list", "-q"])) {
            for task in tasks.lines() {
                let _ = self.ctr().args(["tasks", "delete", "--force", task]).stderr(Stdio::null()).status();
            }
        }
        drop(self.containerd.take());
        self.control.drain(..).rev().for_each(drop);
        host::sweep(&self.folder.join("run"));
        let _ = Command::new("ip").args(["link", "delete", BRIDGE]).stderr(Stdio::null()).status();
        for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            host::remove_cgroup(&hierarchy.path().join("kubepods"));
            host::remove_cgroup(&hierarchy.path().join("k8s.io"));
        }
        host::remove_cgroup(&self.cgroup);
    }
}

fn words_of(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// Where cgroup2 is mounted.
fn unified() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read the mounts")?;
    let point =
        mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|fields| fields.get(2) == Some(&"cgroup2"));
    match point {
        Some(fields) => Ok(fields[1].into()),
        None => bail!("no cgroup2 is mounted"),
    }
}

fn bridge() -> Result<()> {
    let ip = |words: &str| shell::output(Command::new("ip").args(words.split(' ')));
    // A run that was killed leaves it.
    let _ = ip(&format!("link delete {BRIDGE}"));
    ip(&format!("link add {BRIDGE} type bridge"))?;
    for address in [format!("{GATEWAY}/24"), format!("{ORIGIN}/24"), format!("{API}/32")] {
        ip(&format!("address add {address} dev {BRIDGE}"))?;
    }
    ip(&format!("link set {BRIDGE} up")).map(drop)
}

/// Pods on the bridge, which is also their way to the machine's own addresses; they reach nothing else.
fn network() -> String {
    let range = serde_json::json!({ "subnet": "10.244.77.0/24", "rangeStart": "10.244.77.10", "gateway": GATEWAY });
    let addresses =
        serde_json::json!({ "type": "host-local", "ranges": [[range]], "routes": [{ "dst": "0.0.0.0/0" }] });
    let bridge = serde_json::json!({ "cniVersion": "0.4.0", "name": "lab", "type": "bridge", "bridge": BRIDGE,
        "isGateway": false, "ipMasq": false, "ipam": addresses });
    bridge.to_string()
}

fn kubeconfig() -> String {
    let cluster = serde_json::json!({ "server": format!("https://{API}:443"), "insecure-skip-tls-verify": true });
    let context = serde_json::json!({ "cluster": "lab", "user": "admin" });
    serde_json::json!({ "apiVersion": "v1", "kind": "Config", "current-context": "lab",
        "clusters": [{ "name": "lab", "cluster": cluster }], "users": [{ "name": "admin", "user": { "token": TOKEN } }],
        "contexts": [{ "name": "lab", "context": context }] })
    .to_string()
}

/// The image of a pod's first container: one program that waits.
fn pause(folder: &Path, program: &Path, archive: &Path) -> Result<()> {
    fs::create_dir_all(folder).context("cannot create a folder for the pause image")?;
    fs::copy(program, folder.join("pause")).context("no pause program")?;
    fs::write(folder.join("Containerfile"), "FROM scratch\nCOPY pause /pause\nENTRYPOINT [\"/pause\"]\n")
        .context("cannot write the pause image's recipe")?;
    let mut build = Command::new("podman");
    build.args(["build", "--quiet", "--network=none", "--pull=never", "--tag=localhost/pause:1", "--file"]);
    shell::run(build.arg(folder.join("Containerfile")).arg(folder))?;
    shell::run(
        Command::new("podman")
            .args(["save", "--quiet", "--format=docker-archive", "--output"])
            .arg(archive)
            .arg("localhost/pause:1"),
    )
}
