//! One try of one client, and the judgement on it.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError, atomic::AtomicBool},
    time::Instant,
};

use super::{
    SoakError,
    schedule::{ClientRoute, DownloadPlan, FILES, OriginFault, Storage},
    trouble::{Span, TroubleLog},
};
use crate::{
    clients::{Client, Place, Recipe, Wanted},
    hub::Fault,
    lab::{
        Cgroup, HubProcess,
        cluster::{Cluster, Host, PROXY_PORT},
    },
    stage::{Download, StageError, run_client},
};

/// Who runs clients, and where.
#[derive(Debug)]
pub(super) struct ClientSite {
    /// Cargo's target directory, below which the Python clients are.
    pub(super) target: PathBuf,
    /// For the clients' files.
    pub(super) folder: PathBuf,
    /// For clients that no node catches.
    pub(super) group: Cgroup,
    /// By node: what its clients trust.
    pub(super) bundles: Vec<PathBuf>,
    /// By file: what the hub offers.
    pub(super) wanted: Vec<Wanted>,
}

/// A hub of its own, at which a client alone shows what a fault of the origin does to it.
#[derive(Debug)]
pub(super) struct ControlSite {
    pub(super) hub: Mutex<HubProcess>,
    pub(super) host: Host,
    pub(super) bundle: PathBuf,
}

/// A try and its times.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) span: Span,
    pub(super) outcome: Result<Download, StageError>,
}

/// What a try came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Judgement {
    /// The right bytes.
    Right {
        /// How many.
        bytes: u64,
    },
    /// A failure that the client would have had without the node too, or that the death of its node explains. Another try follows.
    Excused {
        /// By what.
        why: String,
        /// The file's bytes were wrong at the origin: ranges of it are refused for a while, so the next try takes it whole.
        whole_next: bool,
    },
    /// A defect.
    Violation(String),
    /// The run ends early.
    Interrupted,
}

impl ClientSite {
    /// Runs the client once.
    pub(super) fn attempt(
        &self,
        cluster: &Cluster,
        node: usize,
        plan: &DownloadPlan,
        interrupted: &AtomicBool,
    ) -> Result<Attempt, SoakError> {
        let node = (node, &cluster.nodes()[node]);
        let mut recipe = self.recipe(plan.client, plan.file, &self.bundles[node.0])?;
        direct(&mut recipe, plan.route);
        let caught = node.1.clients().filter(|_| plan.route == ClientRoute::Intercept);
        let group = caught.unwrap_or(&self.group);
        Ok(run_once(plan.client, &recipe, node.1.host(), group, interrupted))
    }

    fn recipe(&self, client: Client, file: usize, bundle: &Path) -> Result<Recipe, SoakError> {
        let made = tempfile::Builder::new().prefix("client-").tempdir_in(&self.folder);
        let dir = made.map_err(|source| SoakError::File { path: self.folder.clone(), source })?.keep();
        let place = Place { target: self.target.clone(), dir, bundle: bundle.to_owned() };
        Ok(client.recipe(&self.wanted[file], &place))
    }
}

impl ControlSite {
    /// Whether the client alone, under this fault, gets the right file.
    fn succeeds(
        &self,
        site: &ClientSite,
        plan: &DownloadPlan,
        fault: &OriginFault,
        interrupted: &AtomicBool,
    ) -> Result<bool, SoakError> {
        let hub = self.hub.lock().unwrap_or_else(PoisonError::into_inner);
        // `wget -c` sends two requests one after the other, and the fault may have hit the second one.
        let times = if plan.client == Client::Wget { 2 } else { 1 };
        hub.add_fault(&armed(fault, plan.file).times(times))?;
        let recipe = site.recipe(plan.client, plan.file, &self.bundle)?;
        let attempt = run_once(plan.client, &recipe, &self.host, &site.group, interrupted);
        hub.clear_faults()?;
        Ok(attempt.outcome.is_ok_and(|download| download.sha256 == site.wanted[plan.file].sha256))
    }
}

/// A fault of the origin as its hub takes it: once, and not at questions for a single byte.
pub(super) fn armed(fault: &OriginFault, file: usize) -> Fault {
    let plain = Fault::new(fault.kind.clone()).times(1).min_bytes(2);
    let only = fault.file.or((FILES[file].storage != Storage::Xet).then_some(file)).map(|file| FILES[file].label());
    Fault { object: only, ..plain }
}

/// Judges a try by the rules of the module `soak`.
pub(super) fn judge(
    attempt: &Attempt,
    node: usize,
    plan: &DownloadPlan,
    site: &ClientSite,
    control: &ControlSite,
    troubles: &TroubleLog,
    interrupted: &AtomicBool,
) -> Result<Judgement, SoakError> {
    let wanted = &site.wanted[plan.file];
    let origin = troubles.origin_faults(plan.file, attempt.span);
    let is_corrupt = |fault: &OriginFault| fault.kind.corrupts();
    let what = format!("{} by {} of {}/{}", plan.client.name(), plan.route.name(), wanted.repo, wanted.file);
    let error = match &attempt.outcome {
        Ok(download) if download.sha256 == wanted.sha256 => return Ok(Judgement::Right { bytes: wanted.size }),
        Ok(download) => {
            let unchecked = troubles.was_passed_through(node, attempt.span);
            if unchecked && origin.iter().any(is_corrupt) {
                let why = "the origin's wrong byte was passed through".to_owned();
                return Ok(Judgement::Excused { why, whole_next: true });
            }
            let (sha256, output) = (&download.sha256, tail(&download.output));
            return Ok(Judgement::Violation(format!("WRONG BYTES: {what}: SHA-256 {sha256}: {output}")));
        }
        Err(StageError::Interrupted) => return Ok(Judgement::Interrupted),
        Err(error) => error.to_string(),
    };
    if let Some(fault) = troubles.excuse(node, plan.route == ClientRoute::Intercept, attempt.span) {
        let why = format!("{what} failed as its node had this fault: {fault:?}");
        return Ok(Judgement::Excused { why, whole_next: false });
    }
    for fault in &origin {
        if is_corrupt(fault) || !control.succeeds(site, plan, fault, interrupted)? {
            let why = format!("{what} failed, as it does alone under {:?}", fault.kind);
            return Ok(Judgement::Excused { why, whole_next: is_corrupt(fault) });
        }
    }
    let took = attempt.span.end - attempt.span.start;
    Ok(Judgement::Violation(format!(
        "{what} failed after {took:.1?}; faults of the origin: {origin:?}; {}",
        tail(&error)
    )))
}

fn run_once(client: Client, recipe: &Recipe, host: &Host, group: &Cgroup, interrupted: &AtomicBool) -> Attempt {
    let start = Instant::now();
    let outcome = run_client(client, recipe, host.netns(), group, interrupted);
    let span = Span { start, end: Instant::now() };
    if let Err(error) = fs::remove_dir_all(&recipe.dir) {
        eprintln!("{}: {error}", recipe.dir.display());
    }
    Attempt { span, outcome }
}

/// Turns a client to the node.
fn direct(recipe: &mut Recipe, route: ClientRoute) {
    let node = format!("http://127.0.0.1:{PROXY_PORT}");
    match route {
        ClientRoute::Intercept => {}
        ClientRoute::Proxy => {
            recipe.env.extend([("HTTPS_PROXY", OsString::from(&node)), ("https_proxy", OsString::from(&node))]);
        }
        ClientRoute::Mirror => {
            recipe.env.push(("HF_ENDPOINT", OsString::from(&node)));
            let turned = |word: &OsString| match word.to_str() {
                Some(text) => text.replace("https://huggingface.co", &node).into(),
                None => word.clone(),
            };
            recipe.words = recipe.words.iter().map(turned).collect();
        }
    }
}

/// The end of what a client wrote, in one line.
fn tail(output: &str) -> String {
    let lines: Vec<&str> = output.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(6)..].join(" | ")
}
