//! A whole node on disks that are full, lose their inodes, become read-only or give nothing back: its clients get every file, as they
//! would without the node.
//!
//! The disks are ext4 images on loop devices, mounted in a mount namespace of the test's own: each test runs itself again in one.

#![expect(clippy::unwrap_used, reason = "a panic is how a test reports")]

#[allow(dead_code, reason = "other tests use the rest")]
#[path = "node/stage.rs"]
mod stage;

use std::{
    fs,
    io::Write as _,
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use pondhawk_bench::{
    hub::{Hub, HubOptions, Rates},
    lab::{Disk, root_or_skip, wait_until},
};
use rustix::fs::{Advice, fadvise};
use stage::{Answer, File, Node, Stage, read_answer, request};

const MIB: u64 = 1 << 20;
/// Set in the process that is in the mount namespace.
const INSIDE: &str = "PONDHAWK_TEST_INSIDE_MOUNTS";
/// Longer than anything here may take.
const DEADLINE: Duration = Duration::from_secs(30);

/// Runs the test in a mount namespace; false in the process that only waits for that.
fn inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    if !root_or_skip(test) {
        return false;
    }
    let mut again = Command::new("unshare");
    again.args(["--mount", "--propagation", "private"]).arg(std::env::current_exe().unwrap());
    let status = again.args(["--exact", test, "--nocapture"]).env(INSIDE, "1").status().unwrap();
    assert!(status.success(), "{test}: {status}");
    false
}

/// A node whose data is on a disk of its own. Dropped in this order.
struct Site {
    stage: Stage,
    disk: Disk,
    _folder: tempfile::TempDir,
}

impl Site {
    fn open(bytes: u64, inodes: Option<u32>) -> Self {
        let hub = Hub::start(HubOptions { cdn_port: Some(443), ..HubOptions::default() }).unwrap();
        let (folder, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let disk = Disk::new(&folder.path().join("disk.img"), &dir.path().join("data"), bytes, inodes).unwrap();
        let node = Node::start(&hub, dir, &["origin.retries=2"]);
        Self { stage: Stage { hub, node }, disk, _folder: folder }
    }

    /// Downloads the file slowly, and does `meanwhile` when a part of it is there.
    fn get_while(&self, file: &File, meanwhile: impl FnOnce()) -> Answer {
        let hub = &self.stage.hub;
        hub.limits().set(Rates { connection: None, total: Some(8 * MIB) });
        let mut connection = self.stage.node.connect();
        connection.write_all(&request("GET", &self.stage.url(file), &[], b"")).unwrap();
        let reader = thread::spawn(move || read_answer(&mut connection, false));
        wait_until(DEADLINE, || (self.stage.ratio(file) > 0.3).then_some(())).unwrap();
        meanwhile();
        hub.limits().set(Rates::default());
        reader.join().unwrap()
    }

    fn assert_right(&self, file: &File, answer: &Answer) {
        let right = answer.body == file.bytes(0, file.len);
        let gist = (answer.status, answer.complete, answer.body.len(), right);
        assert_eq!(gist, (200, true, usize::try_from(file.len).unwrap(), true), "{}", self.stage.node.log());
    }

    /// The files of the tasks.
    fn data_files(&self) -> Vec<PathBuf> {
        let tasks = fs::read_dir(self.disk.mount().join("store/tasks")).unwrap();
        let files = tasks.flat_map(|folder| fs::read_dir(folder.unwrap().path()).unwrap());
        files
            .map(|file| file.unwrap().path())
            .filter(|path| path.extension().is_some_and(|end| end == "data"))
            .collect()
    }

    /// Takes the tasks' bytes out of memory, so that the next read comes from the disk.
    fn forget_pages(&self) {
        for path in self.data_files() {
            let file = fs::File::open(path).unwrap();
            file.sync_all().unwrap();
            fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        }
    }
}

#[test]
fn a_disk_that_becomes_read_only_under_a_download_cuts_no_reply() {
    if !inside("a_disk_that_becomes_read_only_under_a_download_cuts_no_reply") {
        return;
    }
    let site = Site::open(256 * MIB, None);
    let file = site.stage.file("read-only", 24 * MIB + 5, 1);
    let answer = site.get_while(&file, || site.disk.break_file_system().unwrap());
    site.assert_right(&file, &answer);
    // And so is what follows: the same file, part of which is held, and one that cannot be stored.
    site.assert_right(&file, &site.stage.get(&file));
    let other = site.stage.file("other", 3 * MIB, 2);
    site.assert_right(&other, &site.stage.get(&other));
}

#[test]
fn a_stored_file_that_the_disk_does_not_give_back_comes_from_the_origin() {
    if !inside("a_stored_file_that_the_disk_does_not_give_back_comes_from_the_origin") {
        return;
    }
    let site = Site::open(256 * MIB, None);
    let file = site.stage.file("unreadable", 24 * MIB + 5, 3);
    site.assert_right(&file, &site.stage.get(&file));
    site.forget_pages();
    site.disk.cut_device(2 * MIB).unwrap();
    site.assert_right(&file, &site.stage.get(&file));
    assert!(site.stage.ratio(&file) > 1.5, "the disk gave the file back: the test tests nothing");
    // A range, for which clients that were given part of a wrong file would be refused.
    let part = site.stage.node.get(&site.stage.url(&file), &["Range: bytes=5000000-9999999"]);
    assert!(part.status == 206 && part.complete && part.body == file.bytes(5_000_000, 5_000_000), "{}", part.status);
}

#[test]
fn a_disk_that_fills_up_under_a_download_cuts_no_reply() {
    if !inside("a_disk_that_fills_up_under_a_download_cuts_no_reply") {
        return;
    }
    let site = Site::open(96 * MIB, None);
    let file = site.stage.file("filled", 24 * MIB + 5, 4);
    let others: Vec<File> = (0..24).map(|n| site.stage.file(&format!("more-{n}"), MIB, 50 + n)).collect();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let answer = site.get_while(&file, || {
            scope.spawn(|| site.disk.fill(DEADLINE, || over.load(Ordering::Relaxed)).unwrap());
            // With the disk full all along: their records and files find no room.
            for other in &others {
                site.assert_right(other, &site.stage.get(other));
            }
        });
        site.assert_right(&file, &answer);
        over.store(true, Ordering::Relaxed);
    });
    let stored = || {
        let before = site.stage.ratio(&others[0]);
        site.assert_right(&others[0], &site.stage.get(&others[0]));
        // The question for consent costs a byte.
        (site.stage.ratio(&others[0]) < before + 0.01).then_some(())
    };
    wait_until(DEADLINE, stored).expect("with room again, files are stored again");
}

#[test]
fn a_disk_without_inodes_costs_no_client_its_file_and_idle_tasks_give_theirs() {
    if !inside("a_disk_without_inodes_costs_no_client_its_file_and_idle_tasks_give_theirs") {
        return;
    }
    let site = Site::open(128 * MIB, Some(256));
    let old: Vec<File> = (0..4).map(|n| site.stage.file(&format!("old-{n}"), 2 * MIB, 20 + n)).collect();
    old.iter().for_each(|file| site.assert_right(file, &site.stage.get(file)));
    site.disk.use_inodes(0).unwrap();
    let new = site.stage.file("new", 3 * MIB, 30);
    for _ in 0..2 {
        site.assert_right(&new, &site.stage.get(&new));
    }
    assert!(site.stage.ratio(&new) < 1.5, "an idle task was evicted for its inodes: {}", site.stage.node.log());
}

#[test]
fn a_node_starts_on_a_disk_that_is_full_and_serves() {
    if !inside("a_node_starts_on_a_disk_that_is_full_and_serves") {
        return;
    }
    let mut site = Site::open(96 * MIB, None);
    let file = site.stage.file("before", 8 * MIB, 40);
    site.assert_right(&file, &site.stage.get(&file));
    site.stage.node.daemon.kill().unwrap();
    site.disk.fill_up().unwrap();
    site.stage.node.restart(&site.stage.hub, &["origin.retries=2"]);
    site.assert_right(&file, &site.stage.get(&file));
    let after = site.stage.file("after", 5 * MIB, 41);
    site.assert_right(&after, &site.stage.get(&after));
}
