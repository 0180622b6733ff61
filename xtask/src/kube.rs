//! `cargo xtask kube`: the Helm chart on a real Kubernetes node made of this machine, with a pod that changed nothing, and two
//! schedulers of which one is lost.
//!
//! API server, controllers, scheduler and kubelet are built once from Debian's source package; containerd runs the image of
//! `cargo xtask image`. The node's programs are attached to the pods' cgroup alone, so that nothing else on the machine is caught, and
//! what kubelet changes of the machine is put back.

mod build;
mod cluster;
mod host;
mod schedulers;

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::chart;
use crate::setup::{self, Part};
use crate::shell;
use cluster::Cluster;
use host::Daemon;
use schedulers::{REPLICAS, SEEDS};

/// Where the Hub-shaped origin is, for pods and the node.
const HUB: &str = "10.244.77.2";
/// The CDN's name that the hub's URLs have.
const CDN: &str = "cdn-lfs.huggingface.co";
const WEIGHTS: &str = "weights.bin";
/// Long enough on its way for a scheduler to be lost meanwhile.
const MORE: &str = "more.bin";
const FILES: [&str; 2] = ["lab/model/weights.bin:48MiB:7", "lab/model/more.bin:240MiB:8"];
/// Of the origin, bytes a second.
const RATE: &str = "16MiB";
/// For anything that a loaded machine does here.
const LONG: Duration = Duration::from_secs(300);
/// Where the node says how it is, from the machine itself.
const METRICS: &str = "http://127.0.0.1:65002/metrics";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only build Kubernetes, into target/kube.
    #[arg(long)]
    build: bool,
    /// An image archive instead of a new one, as `cargo xtask image --save` writes it.
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(shell::is_root(), "a node needs root: cgroups, mounts, a bridge");
    setup::prepare(&[Part::Build, Part::Chart, Part::Kube])?;
    let root = shell::root()?;
    let folder = shell::target_dir(&root).join("kube");
    let programs = build::kubernetes(&folder)?;
    if args.build {
        return Ok(());
    }
    let archive = match &args.image {
        Some(archive) => archive.clone(),
        None => {
            let archive = folder.join("pondhawk.tar");
            shell::run(shell::cargo(&root).args(["xtask", "image", "--save"]).arg(&archive))?;
            archive
        }
    };
    let (_settings, logs) = (host::Settings::save()?, host::PodLogs::before());
    let cluster = Cluster::start(&folder, &programs)?;
    cluster.import(&archive)?;
    let mut lab = Lab { root, cluster, folder, hub: None, names: None };
    let played = lab.play();
    if let Err(error) = &played {
        println!("  {error:#}\n{}", lab.cluster.story());
    }
    // Its daemons end first.
    drop(lab);
    played.and_then(|()| logs.remove_new())
}

struct Lab {
    root: PathBuf,
    cluster: Cluster,
    folder: PathBuf,
    hub: Option<Daemon>,
    names: Option<Daemon>,
}

impl Lab {
    fn play(&mut self) -> Result<()> {
        let log = self.start_hub()?;
        let weights = sha256(&log, WEIGHTS)?;
        self.install()?;
        self.share()?;
        println!("==> an unmodified client whose pod asks for trust by a label");
        let first = self.client("first", true)?;
        ensure!(first.contains(&weights), "the first pod's file is not the hub's: {first}");
        ensure!(first.contains("issuer Pondhawk"), "the connection was not caught, or not trusted: {first}");
        let (asked, misses) = (metric("pondhawk_source_bytes_total{source=\"origin\"}")?, intercepted("miss")?);
        ensure!(misses >= 1.0, "no caught request was a miss");
        println!("==> another pod: from the store");
        let second = self.client("second", true)?;
        ensure!(second.contains(&weights), "the second pod's file is not the hub's: {second}");
        ensure!(intercepted("hit")? >= 1.0, "no caught request was a hit");
        let again = metric("pondhawk_source_bytes_total{source=\"origin\"}")?;
        ensure!(again - asked < 1e6, "the second download cost the origin {} bytes", again - asked);
        self.seeded(48.0)?;
        self.lose(&sha256(&log, MORE)?)?;
        println!("==> a pod that does not ask is not changed");
        let plain = self.client("plain", false)?;
        ensure!(plain.contains("SSL_CERT_FILE None"), "a pod without the label was changed: {plain}");
        println!("==> without the DaemonSet connections are direct, and no program is left");
        ensure!(self.programs()? > 0, "no BPF program was attached in the first place");
        self.cluster.kubectl(&["-n", "pondhawk", "delete", "daemonset", "pondhawk", "--wait", "--timeout=120s"])?;
        wait("the node's end", || Ok(metric("pondhawk_build_info").is_err()))?;
        ensure!(self.programs()? == 0, "BPF programs are left behind");
        let direct = self.client("direct", true)?;
        ensure!(direct.contains("issuer unknown"), "the connection did not go to the hub itself: {direct}");
        println!("==> all of it worked");
        Ok(())
    }

    /// Starts the origin; returns its log, which names the files' SHA-256.
    fn start_hub(&mut self) -> Result<String> {
        let data = self.data();
        std::fs::create_dir_all(&data).with_context(|| format!("cannot create {}", data.display()))?;
        let mut hub = self.program("pondhawk-hub");
        hub.args(["--listen", &format!("{HUB}:443"), "--plain", &format!("{HUB}:80"), "--limit-total", RATE]);
        hub.args(FILES.iter().flat_map(|file| ["--file", file])).arg("--ca-out").arg(data.join("hub-ca.pem"));
        let hub = Daemon::start("hub", &mut hub, &self.folder)?;
        let log = wait_for(&hub, "hub ready")?;
        self.hub = Some(hub);
        Ok(log)
    }

    fn install(&mut self) -> Result<()> {
        println!("==> the chart");
        let values = self.folder.join("values.yaml");
        std::fs::write(&values, self.values()).context("cannot write the values")?;
        let rendered = self.folder.join("chart.yaml");
        std::fs::write(&rendered, as_of_1_20(&chart::rendered(&self.root, &values)?))
            .context("cannot write the chart")?;
        let rendered = rendered.to_string_lossy().into_owned();
        self.cluster.kubectl(&["create", "namespace", "pondhawk"])?;
        self.cluster.kubectl(&["-n", "pondhawk", "apply", "-f", &rendered])?;
        let scheduler = ["-n", "pondhawk", "rollout", "status", "statefulset/pondhawk-scheduler", "--timeout=240s"];
        self.cluster.kubectl(&scheduler)?;
        self.resolve()?;
        self.cluster.kubectl(&["-n", "pondhawk", "rollout", "status", "daemonset/pondhawk", "--timeout=240s"])?;
        wait("a session with the scheduler", || Ok(metric("pondhawk_swarm_session").is_ok_and(|up| up == 1.0)))?;
        wait("the webhook's CA", || {
            let ca = "jsonpath={.webhooks[0].clientConfig.caBundle}";
            Ok(!self
                .cluster
                .kubectl(&["get", "mutatingwebhookconfiguration", "pondhawk-webhook", "-o", ca])?
                .is_empty())
        })
    }

    fn values(&self) -> String {
        format!(
            "image: {{tag: \"{}\", pullPolicy: Never}}\n\
             node:\n\
             \x20 cgroupPath: {}\n\
             \x20 dataPath: {}\n\
             \x20 config: {{store: {{quota: 2GiB}}, origin: {{allow_private: true, extra_cas: [/data/hub-ca.pem]}}}}\n\
             scheduler: {{replicas: {REPLICAS}, persistence: {{enabled: false}}}}\n\
             seeds: {{replicas: {SEEDS}, persistence: {{enabled: false}}, resources: {{requests: {{cpu: 100m}}}}}}\n\
             monitoring: {{enabled: true}}\n\
             webhook: {{enabled: true}}\n\
             networkPolicy: {{enabled: false}}\n",
            env!("CARGO_PKG_VERSION"),
            self.cluster.cgroup().display(),
            self.data().display(),
        )
    }

    /// Runs a pod with this machine's Python to its end; returns what it said.
    fn client(&self, name: &str, asks: bool) -> Result<String> {
        self.begin(name, asks, WEIGHTS)?;
        self.end(name)
    }

    /// Makes a pod that downloads a file.
    fn begin(&self, name: &str, asks: bool, file: &str) -> Result<()> {
        let manifest = self.pod(name, asks, file)?;
        let path = self.folder.join(format!("{name}.json"));
        std::fs::write(&path, manifest.to_string()).context("cannot write a pod")?;
        self.cluster.kubectl(&["create", "-f", &path.to_string_lossy()]).map(drop)
    }

    fn end(&self, name: &str) -> Result<String> {
        let phase = ["get", "pod", name, "-o", "jsonpath={.status.phase}"];
        let ended = |phase: &str| matches!(phase, "Succeeded" | "Failed");
        wait(&format!("pod {name}"), || Ok(ended(&self.cluster.kubectl(&phase)?)))?;
        let said = self.cluster.kubectl(&["logs", name])?;
        println!("    {}", said.trim().replace('\n', "\n    "));
        Ok(said)
    }

    fn pod(&self, name: &str, asks: bool, file: &str) -> Result<serde_json::Value> {
        let venv = shell::target_dir(&self.root).join("clients/hf-2").canonicalize().context("no huggingface_hub")?;
        let python = venv.join("bin/python");
        let base = shell::output(Command::new(&python).args(["-c", "import sys; print(sys.base_prefix)"]))?;
        let paths = ["/usr", "/lib", "/lib64"].map(PathBuf::from).into_iter().chain([venv, base.trim().into()]);
        let (mut volumes, mut mounts) = (Vec::new(), Vec::new());
        for (index, path) in paths.enumerate() {
            let volume = format!("host-{index}");
            volumes.push(serde_json::json!({ "name": volume, "hostPath": { "path": path } }));
            mounts.push(serde_json::json!({ "name": volume, "mountPath": path, "readOnly": true }));
        }
        volumes.push(serde_json::json!({ "name": "tmp", "emptyDir": {} }));
        mounts.push(serde_json::json!({ "name": "tmp", "mountPath": "/tmp" }));
        let labels = if asks { serde_json::json!({ "pondhawk/trust": "enabled" }) } else { serde_json::json!({}) };
        Ok(serde_json::json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "labels": labels },
            "spec": { "restartPolicy": "Never", "volumes": volumes, "containers": [{
                "name": "client", "image": format!("localhost/pondhawk:{}", env!("CARGO_PKG_VERSION")),
                "imagePullPolicy": "Never", "command": [python, "-c", include_str!("kube/client.py"), CDN, file],
                "env": [{ "name": "HF_ENDPOINT", "value": format!("http://{HUB}") }, { "name": "HOME", "value": "/tmp" },
                    { "name": "HF_HUB_DISABLE_XET", "value": "1" }],
                "volumeMounts": mounts,
            }] },
        }))
    }

    /// How many BPF programs are attached to the pods' cgroup.
    fn programs(&self) -> Result<usize> {
        let shown = shell::output(Command::new("bpftool").args(["cgroup", "show"]).arg(self.cluster.cgroup()))?;
        Ok(shown.lines().skip(1).filter(|line| !line.trim().is_empty()).count())
    }

    /// What the node keeps of its pod: the store and its CA.
    fn data(&self) -> PathBuf {
        self.folder.join("run/data")
    }

    fn program(&self, name: &str) -> Command {
        Command::new(shell::target_dir(&self.root).join("static").join(target()).join("release").join(name))
    }
}

fn target() -> String {
    format!("{}-unknown-linux-gnu", std::env::consts::ARCH)
}

/// Without what came into Kubernetes after the version that is run here.
fn as_of_1_20(objects: &str) -> String {
    let newer = |object: &&str| object.contains("\nkind: PodDisruptionBudget\n");
    objects.split("\n---\n").filter(|object| !newer(object)).collect::<Vec<_>>().join("\n---\n")
}

/// As a client says it of the file that the hub's log names.
fn sha256(log: &str, name: &str) -> Result<String> {
    let line = log.lines().find(|line| line.ends_with(name)).with_context(|| format!("the hub has no {name}"))?;
    Ok(format!("sha256 {}", line.split_whitespace().next().unwrap_or_default()))
}

/// The value of a series of the node's.
fn metric(series: &str) -> Result<f64> {
    metric_at(METRICS, series)
}

fn metric_at(url: &str, series: &str) -> Result<f64> {
    let text = shell::output(Command::new("curl").args(["-sSf", "--max-time", "5", url]))?;
    let line = text.lines().find(|line| line.starts_with(series)).with_context(|| format!("no {series}"))?;
    line.rsplit(' ').next().and_then(|value| value.parse().ok()).with_context(|| format!("{line} has no value"))
}

fn intercepted(outcome: &str) -> Result<f64> {
    metric(&format!("pondhawk_requests_total{{way=\"intercept\",outcome=\"{outcome}\"}}"))
}

/// Asks every half second until it is so.
fn wait(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let started = Instant::now();
    while !is_so()? {
        if started.elapsed() > LONG {
            bail!("{what}: not within {LONG:?}");
        }
        std::thread::park_timeout(Duration::from_millis(500));
    }
    println!("    {what}: after {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}

/// Waits for these words in a daemon's log; returns the log.
fn wait_for(daemon: &Daemon, words: &str) -> Result<String> {
    wait(words, || Ok(daemon.log().contains(words)))?;
    Ok(daemon.log())
}
