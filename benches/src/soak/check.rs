//! What must hold after each minute, when nothing is broken and no client is at work.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read as _, Seek as _, SeekFrom},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde_json::Value;

use super::{NodeFigures, trouble::TroubleLog};
use crate::lab::{
    cluster::{Cluster, Node},
    run, usage, wait_until,
};

/// Time for connections to close, removed files to be unlinked, sessions to be up again.
const SETTLE: Duration = Duration::from_secs(30);
/// Resident memory of a node, in bytes, at most; a debug build of it.
const MAX_RSS: u64 = 384 << 20;
/// Descriptors beyond those of an idle node and two for each task: connections that are kept to the origin and to other nodes.
const SPARE_DESCRIPTORS: usize = 64;
/// What a task's two files may take on the disk beyond their cost: blocks of the file system's own trees.
const TREE_BYTES: u64 = 64 << 10;
/// What lies in a store's folder, by DESIGN.md of the store.
const STORE_NAMES: [&str; 5] = ["index.redb", "lock", "tasks", "trash", "version"];

/// What is remembered from one check to the next.
#[derive(Debug)]
pub(super) struct Checks {
    /// Where the next look at each log begins.
    read: Mutex<BTreeMap<PathBuf, u64>>,
    /// Descriptors of each node before its first client.
    idle: Vec<usize>,
    /// Namespaces of the run.
    namespaces: usize,
}

impl Checks {
    pub(super) fn begin(cluster: &Cluster) -> Self {
        let idle = cluster.nodes().iter().map(|node| node.pid().map_or(0, descriptors)).collect();
        Self { read: Mutex::default(), idle, namespaces: namespaces().len() }
    }

    /// Figures by node, and what is wrong.
    pub(super) fn check(
        &self,
        cluster: &Cluster,
        troubles: &TroubleLog,
        interrupted: &AtomicBool,
    ) -> (Vec<NodeFigures>, Vec<String>) {
        if interrupted.load(Ordering::Relaxed) {
            return (Vec::new(), Vec::new());
        }
        let mut found = Vec::new();
        let mut figures = Vec::new();
        for (number, node) in cluster.nodes().iter().enumerate() {
            let last = wait_until(SETTLE, || self.node(number, node).ok());
            match last.map_or_else(|| self.node(number, node), Ok) {
                Ok(good) => figures.push(good),
                Err(problems) => found.extend(problems.into_iter().map(|what| format!("{}: {what}", node.name()))),
            }
            found.extend(wrong_files(node).into_iter().map(|what| format!("{}: {what}", node.name())));
            let (full, corrupt) = troubles.had(number);
            found.extend(self.log(&node.log_path(), &expected_errors(full, corrupt)));
        }
        for scheduler in cluster.schedulers() {
            if !scheduler.is_running() {
                found.push(format!("the scheduler at {} has ended by itself", scheduler.address()));
            }
            found.extend(self.log(&scheduler.log_path(), &[]));
        }
        let namespaces = namespaces();
        if namespaces.len() != self.namespaces {
            found.push(format!("{} namespaces instead of {}: {namespaces:?}", namespaces.len(), self.namespaces));
        }
        (figures, found)
    }

    /// One look at a node; it may be all right a moment later.
    fn node(&self, number: usize, node: &Node) -> Result<NodeFigures, Vec<String>> {
        if !node.is_running() {
            return Err(vec!["has ended by itself".to_owned()]);
        }
        let failed = |what: &dyn std::fmt::Display| vec![what.to_string()];
        let status = node.status().map_err(|error| failed(&error))?;
        let tasks = node.tasks().map_err(|error| failed(&error))?;
        let pid = node.pid().ok_or_else(|| failed(&"has no process"))?;
        let figures = NodeFigures {
            rss: usage(pid).map_or(0, |usage| usage.rss),
            descriptors: descriptors(pid),
            tasks: tasks.len(),
            store_bytes: status["store"]["bytes"].as_u64().unwrap_or(0),
        };
        let mut problems = Vec::new();
        let unready = status["unready"].as_array().is_none_or(|reasons| !reasons.is_empty());
        if unready || status["swarm"]["session"] != "up" || status["interception"]["on"] != true {
            let (unready, swarm, on) = (&status["unready"], &status["swarm"]["session"], &status["interception"]);
            problems.push(format!("is not in order: unready {unready}, session {swarm}, interception {on}"));
        }
        let most = self.idle[number] + 2 * tasks.len() + SPARE_DESCRIPTORS;
        if figures.descriptors > most {
            problems.push(format!("has {} descriptors, expected at most {most}", figures.descriptors));
        }
        if figures.rss > MAX_RSS {
            problems.push(format!("has {} bytes resident, expected at most {MAX_RSS}", figures.rss));
        }
        let quota = status["store"]["quota"].as_u64().unwrap_or(0);
        if figures.store_bytes > quota {
            problems.push(format!("its store has {} bytes, and a quota of {quota}", figures.store_bytes));
        }
        let store = node.data_dir().join("store");
        match store_differences(&store, &tasks, figures.store_bytes) {
            Ok(differences) => problems.extend(differences),
            Err(error) => problems.push(format!("{}: {error}", store.display())),
        }
        if problems.is_empty() { Ok(figures) } else { Err(problems) }
    }

    /// Panics, and errors that are not `expected`, in what a log has got since the last look.
    fn log(&self, path: &Path, expected: &[&str]) -> Vec<String> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let from = read.entry(path.to_owned()).or_default();
        let text = match text_from(path, *from) {
            Ok(text) => text,
            Err(error) => return vec![format!("{}: {error}", path.display())],
        };
        *from += text.len() as u64;
        let bad = |line: &&str| {
            line.contains("panicked at") || line.contains("ERROR") && !expected.iter().any(|text| line.contains(text))
        };
        String::from_utf8_lossy(&text).lines().filter(bad).map(|line| format!("{}: {line}", path.display())).collect()
    }
}

/// Errors that a node may log when its disk has been full, or the origin has sent wrong bytes.
fn expected_errors(full: bool, corrupt: bool) -> Vec<&'static str> {
    let full = full.then_some("the store's index cannot be written");
    let corrupt = corrupt.then_some("the bytes are not those of the hash in the name");
    full.into_iter().chain(corrupt).collect()
}

/// How the files of a store differ from what the node says that it holds.
fn store_differences(store: &Path, tasks: &[Value], counted: u64) -> io::Result<Vec<String>> {
    let mut problems = Vec::new();
    for entry in fs::read_dir(store)? {
        let name = entry?.file_name();
        if !STORE_NAMES.iter().any(|known| *known == name) {
            problems.push(format!("{} lies in the store", name.display()));
        }
    }
    let trash = fs::read_dir(store.join("trash"))?.count();
    if trash > 0 {
        problems.push(format!("{trash} files in the trash"));
    }
    let mut files = BTreeMap::new();
    for folder in fs::read_dir(store.join("tasks"))? {
        for file in fs::read_dir(folder?.path())? {
            let file = file?;
            files.insert(file.file_name().to_string_lossy().into_owned(), file.metadata()?);
        }
    }
    let on_disk: u64 = files.values().map(|file| file.blocks() * 512).sum();
    let most = counted + tasks.len() as u64 * TREE_BYTES;
    if on_disk > most {
        problems.push(format!("its tasks take {on_disk} bytes of the disk, and {counted} are counted"));
    }
    for task in tasks {
        let (id, len) = (task["id"].as_str().unwrap_or_default(), task["bytes"].as_u64());
        match files.remove(&format!("{id}.data")) {
            Some(data) if Some(data.len()) == len => {}
            other => {
                let found = other.map(|file| file.len());
                problems.push(format!("task {id} of {len:?} bytes has a file of {found:?}"));
            }
        }
        if files.remove(&format!("{id}.pieces")).is_none() {
            problems.push(format!("task {id} has no table of pieces"));
        }
    }
    problems.extend(files.keys().map(|name| format!("{name} belongs to no task")));
    Ok(problems)
}

/// Files in the store that the node calls verified, and whose bytes do not have the hash in their name.
fn wrong_files(node: &Node) -> Vec<String> {
    let mut wrong = Vec::new();
    for task in node.tasks().unwrap_or_default() {
        let (id, label) = (task["id"].as_str().unwrap_or_default(), task["label"].as_str().unwrap_or_default());
        let name = label.rsplit('/').next().unwrap_or_default();
        if task["verdict"] != "verified" || name.len() != 64 || !label.contains("/repos/") {
            continue;
        }
        let path = node.data_dir().join("store/tasks").join(&id[..2]).join(format!("{id}.data"));
        match crate::stage::sha256(&path) {
            Ok(sha256) if sha256 == name => {}
            Ok(sha256) => wrong.push(format!("WRONG BYTES: {label} is held as verified, and has SHA-256 {sha256}")),
            // Evicted a moment ago.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => wrong.push(format!("{}: {error}", path.display())),
        }
    }
    wrong
}

/// What is left of a run that had this folder, after everything was dropped.
pub(super) fn leftovers(folder: &Path) -> Vec<String> {
    let mut left: Vec<String> = namespaces().into_iter().map(|name| format!("namespace {name} is left")).collect();
    if folder.exists() {
        left.push(format!("{} is left", folder.display()));
    }
    let text = |path: &Path| fs::read_to_string(path).unwrap_or_default();
    let mounted = text(Path::new("/proc/self/mounts"));
    let below = folder.to_string_lossy();
    left.extend(mounted.lines().filter(|line| line.contains(&*below)).map(|line| format!("mount {line} is left")));
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if command.contains(&*below) {
            left.push(format!("process {} is left: {command}", entry.file_name().display()));
        }
    }
    left
}

/// The lab's namespaces of this process.
fn namespaces() -> Vec<String> {
    let listed = run(crate::lab::clean_command("ip").args(["netns", "list"])).unwrap_or_default();
    let own = format!("-{}-", std::process::id());
    let names = listed.lines().filter_map(|line| line.split_whitespace().next());
    names.filter(|name| name.contains(&own)).map(str::to_owned).collect()
}

fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

fn text_from(path: &Path, from: u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(from))?;
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Vec<Value>) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("tasks/ab")).unwrap();
        fs::create_dir_all(dir.path().join("trash")).unwrap();
        fs::write(dir.path().join("tasks/ab/abc.data"), [1; 5000]).unwrap();
        fs::write(dir.path().join("tasks/ab/abc.pieces"), [1; 128]).unwrap();
        (dir, vec![serde_json::json!({ "id": "abc", "bytes": 5000 })])
    }

    #[test]
    fn a_store_whose_files_are_its_tasks_has_no_differences() {
        let (dir, tasks) = store();
        assert_eq!(store_differences(dir.path(), &tasks, 12_288).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn a_file_too_many_a_missing_one_and_a_short_one_are_found() {
        let (dir, tasks) = store();
        fs::write(dir.path().join("tasks/ab/abd.data"), "x").unwrap();
        fs::write(dir.path().join("left.tmp"), "x").unwrap();
        fs::write(dir.path().join("trash/1.data"), "x").unwrap();
        assert_eq!(store_differences(dir.path(), &tasks, 1 << 20).unwrap().len(), 3);
        fs::write(dir.path().join("tasks/ab/abc.data"), "x").unwrap();
        fs::remove_file(dir.path().join("tasks/ab/abc.pieces")).unwrap();
        assert_eq!(store_differences(dir.path(), &tasks, 1 << 20).unwrap().len(), 5);
    }

    #[test]
    fn an_error_is_found_once_and_only_where_it_is_not_expected() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.log");
        fs::write(&path, " INFO fine\nERROR the store's index cannot be written\nERROR other\n").unwrap();
        let checks = Checks { read: Mutex::default(), idle: Vec::new(), namespaces: 0 };
        assert_eq!(checks.log(&path, &expected_errors(true, false)).len(), 1);
        assert_eq!(checks.log(&path, &[]).len(), 0);
    }
}
