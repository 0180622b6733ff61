//! A cluster under real clients and random faults for minutes or hours: `cargo xtask soak`.
//!
//! Four nodes and three schedulers run in network namespaces, each node with a small disk of its own. On every node one client after
//! the other downloads, by interception, proxy or mirror, while faults drawn from a seed hit nodes (SIGKILL and restart, SIGSTOP, link
//! down, disk full), schedulers (the same, but for the disk) and the origin (503, cuts, resets, stalls, wrong bytes, 403, answers that
//! ignore the range or tell no length). The same seed draws the same downloads and the same faults; how many of them happen depends
//! on the machine.
//!
//! # What is a violation
//! The promise is that a node is never worse than its absence. For downloads that means:
//! - A client that reports success has the right bytes. The one exception: the origin was sending a wrong byte of this very file while
//!   the client's node was away or had no room to check it, so that the client got what it would have got alone.
//! - A failed try needs an excuse. Faults of other nodes, of schedulers, and a full disk excuse nothing. The node's own death, freeze or
//!   unplugged link excuses a try that it overlaps; for a client that is intercepted only if the node stopped during the try or
//!   within three seconds before it, because afterwards the client must reach the origin past the node. A fault of the origin
//!   excuses a try only if the same client fails under the same fault alone, which is tried at once at a second hub that no
//!   node is in front of. A wrong byte of the origin excuses a try, since a client alone would take the wrong byte.
//! - After an excused failure the client tries again, and the next failure needs an excuse of its own. When the minute is over and all
//!   faults have ended, every client that has not got its file must get it.
//!
//! After each minute all faults end, the clients under way finish, and then there must be: every process alive that was not killed
//! on purpose; no panic and no unexpected ERROR line in any log; each node's descriptors, memory and store accounted for
//! ([`check`]); no namespace beyond those of the cluster. After the last minute everything is removed, and nothing of it may be left.
//!
//! # What is not covered
//! Steps of the clock: CLOCK_REALTIME has no namespace, and the machine's own clock is not touched. Power loss, which has a test of its
//! own (`peer/tests/power_loss.rs`).

mod attempt;
mod check;
mod lanes;
mod report;
pub mod schedule;
mod trouble;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

pub use self::report::{MinuteReport, NodeFigures, SoakReport};
use self::{
    attempt::{ClientSite, ControlSite, Judgement, judge},
    check::Checks,
    schedule::{DownloadPlan, Downloads, FILES, NODES, NodeFaults, OriginFaults, SCHEDULERS, SchedulerFaults},
    trouble::TroubleLog,
};
use crate::{
    clients::{Client, Wanted},
    lab::{
        Cgroup, Disk, LabError,
        cluster::{Cluster, Joining, Link, Node, NodePlan, Plan},
    },
    stage::StageError,
};

/// Size of each node's disk: less than all files together, so that tasks are evicted.
const DISK: u64 = 192 << 20;
/// How long faults and downloads go on before a check.
const MINUTE: Duration = Duration::from_secs(60);
/// Tries of one download; more means that it makes no progress.
const MAX_TRIES: u32 = 30;
/// A download that takes longer is printed, as a hint at something that waits for a deadline.
const SLOW: Duration = Duration::from_secs(30);
/// Time between two tries of a client.
const RETRY_PAUSE: Duration = Duration::from_millis(300);
/// Violations that are printed and kept; the others are only counted.
const MAX_VIOLATIONS: usize = 100;
/// What the origin gives in all, so that downloads last long enough for something to happen in their middle.
const HUB_ARGUMENTS: [&str; 4] = ["--limit-total", "48MiB", "--xet", "owner/xet:256:160"];

/// What to run.
#[derive(Clone, Debug)]
pub struct SoakOptions {
    /// The `pondhawk` binary.
    pub pondhawk: PathBuf,
    /// Cargo's target directory: the Python clients are in it, and the run's files go there while it lasts.
    pub target: PathBuf,
    /// How many minutes.
    pub minutes: u64,
    /// Of everything that is drawn.
    pub seed: u64,
}

/// Why a soak could not be run; violations are no errors but part of the report.
#[derive(Debug, thiserror::Error)]
pub enum SoakError {
    /// The lab.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// A client could not be run.
    #[error(transparent)]
    Stage(#[from] StageError),
    /// A file of the run.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A client is not installed.
    #[error("{0}")]
    Missing(String),
}

/// Runs a soak, and prints a line after each minute. Needs root.
///
/// # Errors
/// When the lab cannot be set up or used. Everything is removed in that case too.
pub fn run(options: &SoakOptions, interrupted: &AtomicBool) -> Result<SoakReport, SoakError> {
    if let Some(missing) = Client::ALL.iter().find_map(|client| client.missing(&options.target)) {
        return Err(SoakError::Missing(missing));
    }
    let soak = Soak::start(options, interrupted)?;
    let mut report = SoakReport::new(options.seed);
    let mut lanes = Lanes::new(options.seed);
    for minute in 1..=options.minutes {
        if interrupted.load(Ordering::Relaxed) {
            break;
        }
        let result = soak.minute(minute, &mut lanes)?;
        println!("{result}");
        report.minutes.push(result);
    }
    report.interrupted = interrupted.load(Ordering::Relaxed);
    soak.finish(&mut report);
    Ok(report)
}

/// A running cluster with all that belongs to it.
struct Soak<'a> {
    // Dropped in this order: what runs before what it runs on.
    site: ClientSite,
    control: ControlSite,
    cluster: Cluster,
    disks: Vec<Disk>,
    folder: TempDir,
    logs: PathBuf,
    joining: Joining,
    troubles: TroubleLog,
    checks: Checks,
    violations: Mutex<Vec<String>>,
    counts: Counts,
    interrupted: &'a AtomicBool,
}

/// Sums of the minute.
#[derive(Debug, Default)]
struct Counts {
    downloads: AtomicU64,
    bytes: AtomicU64,
    excused: AtomicU64,
    faults: AtomicU64,
    violations: AtomicU64,
}

/// The streams of the run, which go on from minute to minute.
struct Lanes {
    downloads: Vec<Downloads>,
    nodes: NodeFaults,
    schedulers: SchedulerFaults,
    origin: OriginFaults,
}

impl Lanes {
    fn new(seed: u64) -> Self {
        Self {
            downloads: (0..NODES).map(|node| Downloads::new(seed, node)).collect(),
            nodes: NodeFaults::new(seed),
            schedulers: SchedulerFaults::new(seed),
            origin: OriginFaults::new(seed),
        }
    }
}

impl<'a> Soak<'a> {
    fn start(options: &SoakOptions, interrupted: &'a AtomicBool) -> Result<Self, SoakError> {
        let wrong = |source| SoakError::File { path: options.target.clone(), source };
        let folder = tempfile::Builder::new().prefix("soak-").tempdir_in(&options.target).map_err(wrong)?;
        let offers: Vec<String> =
            (FILES.iter().zip(7..)).map(|(file, seed)| format!("{}:{}:{seed}", file.label(), file.size)).collect();
        let offers: Vec<&str> = offers.iter().map(String::as_str).collect();
        let plan = plan(options, folder.path(), &offers);
        let mut cluster = Cluster::open(&plan)?;
        for _ in 1..SCHEDULERS {
            cluster.add_replica()?;
        }
        let disks = mount_disks(&cluster)?;
        let control = control(&mut cluster, folder.path(), &offers)?;
        let joining = cluster.joining()?;
        for node in cluster.nodes() {
            node.start(&joining)?;
        }
        cluster.nodes().iter().try_for_each(Node::wait_joined)?;
        let site = site(options, &cluster, folder.path())?;
        let checks = Checks::begin(&cluster);
        Ok(Self {
            site,
            control,
            cluster,
            disks,
            logs: options.target.join("soak-logs").join(options.seed.to_string()),
            folder,
            joining,
            troubles: TroubleLog::default(),
            checks,
            violations: Mutex::default(),
            counts: Counts::default(),
            interrupted,
        })
    }

    /// Downloads and faults for a minute, then the check.
    fn minute(&self, number: u64, lanes: &mut Lanes) -> Result<MinuteReport, SoakError> {
        let begun = Instant::now();
        let over = AtomicBool::new(false);
        let ended = || over.load(Ordering::Relaxed) || self.interrupted.load(Ordering::Relaxed);
        let Lanes { downloads, nodes, schedulers, origin } = lanes;
        let results: Vec<Result<(), SoakError>> = thread::scope(|scope| {
            let mut running: Vec<_> = (0..NODES)
                .zip(downloads)
                .map(|(node, plans)| scope.spawn(move || self.download_until(node, plans, &ended)))
                .collect();
            running.push(scope.spawn(move || self.break_nodes(nodes, &ended)));
            running.push(scope.spawn(move || self.break_schedulers(schedulers, &ended)));
            running.push(scope.spawn(move || self.break_origin(origin, &ended)));
            while begun.elapsed() < MINUTE && !ended() {
                pause(Duration::from_millis(50));
            }
            over.store(true, Ordering::Relaxed);
            running
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        });
        results.into_iter().collect::<Result<(), _>>()?;
        self.cluster.hub().clear_faults()?;
        let (figures, found) = self.checks.check(&self.cluster, &self.troubles, self.interrupted);
        found.into_iter().for_each(|violation| self.note_violation(&violation));
        let sum = |count: &AtomicU64| count.swap(0, Ordering::Relaxed);
        Ok(MinuteReport {
            number,
            seconds: begun.elapsed().as_secs_f64(),
            downloads: sum(&self.counts.downloads),
            bytes: sum(&self.counts.bytes),
            faults: sum(&self.counts.faults),
            excused: sum(&self.counts.excused),
            violations: sum(&self.counts.violations),
            nodes: figures,
        })
    }

    /// One download after the other on this node.
    fn download_until(
        &self,
        node: usize,
        plans: &mut Downloads,
        ended: &(impl Fn() -> bool + Sync),
    ) -> Result<(), SoakError> {
        for plan in plans {
            self.download(node, &plan)?;
            if plan.drop_after {
                // It may be dead or frozen at this moment.
                let _ = self.cluster.nodes()[node].drop_tasks();
            }
            if ended() {
                break;
            }
        }
        Ok(())
    }

    /// Until the client has the file.
    fn download(&self, node: usize, plan: &DownloadPlan) -> Result<(), SoakError> {
        let mut plan = *plan;
        for _ in 0..MAX_TRIES {
            let attempt = self.site.attempt(&self.cluster, node, &plan, self.interrupted)?;
            let judgement = judge(&attempt, node, &plan, &self.site, &self.control, &self.troubles, self.interrupted)?;
            let took = attempt.span.end - attempt.span.start;
            match judgement {
                Judgement::Right { bytes } => {
                    if took > SLOW {
                        let (client, route, file) = (plan.client.name(), plan.route.name(), FILES[plan.file].label());
                        eprintln!("  node-{node}: slow: {client} by {route} took {took:.0?} for {file}");
                    }
                    self.counts.downloads.fetch_add(1, Ordering::Relaxed);
                    self.counts.bytes.fetch_add(bytes, Ordering::Relaxed);
                    return Ok(());
                }
                Judgement::Interrupted => return Ok(()),
                Judgement::Violation(what) => {
                    self.note_violation(&format!("node-{node}: {what}"));
                    return Ok(());
                }
                Judgement::Excused { why, whole_next } => {
                    self.counts.excused.fetch_add(1, Ordering::Relaxed);
                    eprintln!("  node-{node}: excused: {why}");
                    if whole_next {
                        plan.client = Client::Curl;
                    }
                }
            }
            pause(RETRY_PAUSE);
        }
        let file = FILES[plan.file].label();
        self.note_violation(&format!("node-{node}: {} got {file} in none of {MAX_TRIES} tries", plan.client.name()));
        Ok(())
    }

    fn note_violation(&self, what: &str) {
        self.counts.violations.fetch_add(1, Ordering::Relaxed);
        eprintln!("  VIOLATION: {what}");
        let mut all = self.violations.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() < MAX_VIOLATIONS {
            all.push(what.to_owned());
        }
    }

    /// Ends everything, looks for what is left of it, and keeps the logs where there was a violation.
    fn finish(self, report: &mut SoakReport) {
        let folder = self.folder.path().to_owned();
        let mut violations = self.violations.into_inner().unwrap_or_else(PoisonError::into_inner);
        if !violations.is_empty() {
            match keep_logs(&self.cluster, &self.logs) {
                Ok(()) => report.logs = Some(self.logs),
                Err(error) => eprintln!("the logs could not be kept: {error}"),
            }
        }
        drop((self.site, self.control, self.cluster, self.disks, self.folder));
        violations.extend(check::leftovers(&folder));
        report.violations = violations;
    }
}

fn plan<'a>(options: &SoakOptions, folder: &Path, offers: &'a [&'a str]) -> Plan<'a> {
    Plan {
        nodes: NODES,
        pondhawk: options.pondhawk.clone(),
        folder: folder.to_owned(),
        files: offers,
        hub: &HUB_ARGUMENTS,
        hub_link: Link::default(),
        node_link: Link { rate: Some(1_000_000_000), mtu: None },
        scheduler: Some(&[]),
        node: NodePlan {
            intercept: true,
            more: "store:\n  keep_free: 8MiB\n  quota: 80%\n".to_owned(),
            ..NodePlan::default()
        },
    }
}

fn mount_disks(cluster: &Cluster) -> Result<Vec<Disk>, LabError> {
    let disk = |node: &Node| {
        let mount = node.data_dir();
        Disk::new(&mount.with_file_name("disk.img"), &mount, DISK, None)
    };
    cluster.nodes().iter().map(disk).collect()
}

fn control(cluster: &mut Cluster, folder: &Path, offers: &[&str]) -> Result<ControlSite, SoakError> {
    let files = offers.iter().flat_map(|&offer| ["--file", offer]);
    // Without the limit: what counts is whether the client succeeds, not how long it takes.
    let arguments: Vec<&str> = HUB_ARGUMENTS[2..].iter().copied().chain(files).collect();
    let (hub, host) = cluster.add_hub(&arguments)?;
    let bundle = folder.join("control.pem");
    fs::copy(hub.ca(), &bundle).map_err(|source| SoakError::File { path: bundle.clone(), source })?;
    Ok(ControlSite { hub: Mutex::new(hub), host, bundle })
}

fn site(options: &SoakOptions, cluster: &Cluster, folder: &Path) -> Result<ClientSite, SoakError> {
    let bundles: Vec<PathBuf> = cluster.nodes().iter().map(|node| cluster.trusted(node)).collect::<Result<_, _>>()?;
    let wanted = FILES.iter().map(|file| -> Result<Wanted, LabError> {
        let sha256 = cluster.sha256(&file.label())?;
        Ok(Wanted { repo: file.repo.to_owned(), file: file.path.to_owned(), sha256, size: file.size })
    });
    Ok(ClientSite {
        target: options.target.clone(),
        folder: folder.to_owned(),
        group: Cgroup::new("told")?,
        bundles,
        wanted: wanted.collect::<Result<_, _>>()?,
    })
}

fn keep_logs(cluster: &Cluster, logs: &Path) -> io::Result<()> {
    fs::create_dir_all(logs)?;
    for node in cluster.nodes() {
        fs::copy(node.log_path(), logs.join(format!("{}.log", node.name())))?;
    }
    for (number, scheduler) in cluster.schedulers().enumerate() {
        fs::copy(scheduler.log_path(), logs.join(format!("scheduler-{number}.log")))?;
    }
    Ok(())
}

fn pause(time: Duration) {
    crate::lab::wait_until(time, || None::<()>);
}
