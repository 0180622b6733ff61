//! A whole node loses power again and again, at a random moment of its downloads: it comes up each time, serves no wrong byte, and its
//! clients get their files.
//!
//! The model: the process is killed, and then every page of the tasks' files, which the node syncs only when it stops in order, is lost
//! with a chance of its own: it reads as zeros, as a block does that was reserved and never written. Whole files lose their length
//! or their name. The index is left as the kill found it: redb syncs each commit, so that what a commit promised is never lost;
//! that pages of an unfinished commit are lost in part is what redb's own tests are about. Sectors that hold anything other than old or
//! new content are not modelled.

#![expect(clippy::unwrap_used, reason = "a panic is how a test reports")]

#[allow(dead_code, reason = "other tests use the rest")]
#[path = "node/stage.rs"]
mod stage;

use std::{
    fs,
    io::Write as _,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use pondhawk_bench::{
    hub::{Content, PlainRules},
    lab::wait_until,
};
use stage::{CDN, File, Stage, read_answer, request};

/// Set to another number of power losses.
const POINTS: &str = "PONDHAWK_POWER_POINTS";
/// Set to the seed of a run that failed.
const SEED: &str = "PONDHAWK_POWER_SEED";
/// Enough for each kind of loss many times; 1,000 take some minutes.
const USUAL_POINTS: u64 = 60;
const PAGE: usize = 4096;
const MIB: u64 = 1 << 20;
/// From the start of the downloads to the loss, at most: they take as long.
const LONGEST_LIFE: Duration = Duration::from_millis(150);

#[test]
fn a_node_that_loses_power_at_any_moment_comes_up_and_serves_every_file_right() {
    let number = |name: &str, usual| std::env::var(name).map_or(usual, |text| text.parse().unwrap());
    let (points, seed) = (number(POINTS, USUAL_POINTS), number(SEED, 5));
    eprintln!("{SEED}={seed}");
    let mut random = Random(seed);
    let mut stage = Stage::open(&[]);
    let files = offer(&stage);
    let mut lost = Loss::default();
    for point in 0..points {
        let unclean = live(&mut stage, &files, &mut random, point);
        if unclean {
            lost.add(&lose_power(&stage.node.dir.path().join("data/store/tasks"), &mut random));
        }
        stage.node.restart(&stage.hub, &[]);
        let (file, url) = &files[random.below(files.len() as u64) as usize];
        let answer = stage.node.get(&url(&stage), &[]);
        let right = answer.body == file.bytes(0, file.len);
        assert!(
            answer.status == 200 && answer.complete && right,
            "point {point}: {} of {}: status {}, {} bytes, right: {right}\n{}",
            file.label,
            file.len,
            answer.status,
            answer.body.len(),
            stage.node.log()
        );
        fs::remove_file(stage.node.dir.path().join("node-0.log")).unwrap_or_default();
    }
    eprintln!("{points} points: {lost:?}");
    assert!(lost.pages > points && lost.kept > points, "{lost:?}");
}

/// A way to a fresh URL of a file.
type Address = Box<dyn Fn(&Stage) -> String>;

/// Files under a hash, and one under an ETag alone.
fn offer(stage: &Stage) -> Vec<(File, Address)> {
    let mut files: Vec<(File, Address)> = Vec::new();
    for (seed, len) in [(1, 3 * MIB + 7), (2, MIB), (3, 5 * MIB), (4, 2 * MIB + 4095)] {
        let file = stage.file(&format!("power-{seed}"), len, seed);
        let named = file.clone();
        files.push((file, Box::new(move |stage| stage.url(&named))));
    }
    let rules = PlainRules { etag: Some("strong".into()), ..PlainRules::default() };
    stage.hub.add_plain("power", Content::seeded(4 * MIB, 9), rules).unwrap();
    let plain = File { label: "plain/power".into(), len: 4 * MIB, seed: 9 };
    files.push((plain, Box::new(|_| format!("https://{CDN}/plain/power"))));
    files
}

/// Downloads until the power fails, or until the node is stopped in order. Whether it failed.
fn live(stage: &mut Stage, files: &[(File, Address)], random: &mut Random, point: u64) -> bool {
    let life = Duration::from_micros(random.below(LONGEST_LIFE.as_micros() as u64));
    let clients: Vec<_> = (0..2)
        .map(|_| {
            let (file, url) = &files[random.below(files.len() as u64) as usize];
            let (file, mut connection) = (file.clone(), stage.node.connect());
            connection.write_all(&request("GET", &url(stage), &[], b"")).unwrap();
            (file, thread::spawn(move || read_answer(&mut connection, false)))
        })
        .collect();
    wait_until(life, || None::<()>);
    let unclean = random.below(10) > 0;
    if unclean {
        stage.node.daemon.kill().unwrap();
    } else {
        stage.node.daemon.terminate(Duration::from_secs(60)).unwrap();
    }
    for (file, client) in clients {
        let answer = client.join().unwrap();
        let right = answer.body == file.bytes(0, answer.body.len() as u64);
        assert!(right || answer.status != 200, "point {point}: wrong bytes of {}", file.label);
    }
    unclean
}

/// What was taken and what was left.
#[derive(Debug, Default)]
struct Loss {
    pages: u64,
    kept: u64,
    lengths: u64,
    names: u64,
}

impl Loss {
    fn add(&mut self, other: &Self) {
        self.pages += other.pages;
        self.kept += other.kept;
        self.lengths += other.lengths;
        self.names += other.names;
    }
}

fn lose_power(tasks: &Path, random: &mut Random) -> Loss {
    let mut loss = Loss::default();
    let folders = fs::read_dir(tasks).unwrap().map(|folder| folder.unwrap().path());
    let mut files: Vec<PathBuf> =
        folders.flat_map(|folder| fs::read_dir(folder).unwrap().map(|file| file.unwrap().path())).collect();
    // In an order that depends on the seed alone.
    files.sort();
    for path in files {
        match random.below(40) {
            0 => {
                fs::remove_file(&path).unwrap();
                loss.names += 1;
            }
            1 => {
                let file = fs::File::options().write(true).open(&path).unwrap();
                file.set_len(random.below(file.metadata().unwrap().len() + 1)).unwrap();
                loss.lengths += 1;
            }
            _ => lose_pages(&path, random, &mut loss),
        }
    }
    loss
}

fn lose_pages(path: &Path, random: &mut Random, loss: &mut Loss) {
    let file = fs::File::options().write(true).open(path).unwrap();
    let len = file.metadata().unwrap().len();
    // From nothing to everything, since the kernel writes pages back in the order of their age as a rule.
    let percent = [0, 1, 20, 60, 100][random.below(5) as usize];
    for at in (0..len).step_by(PAGE) {
        if random.below(100) < percent {
            let n = usize::try_from(len - at).unwrap().min(PAGE);
            file.write_all_at(&[0; PAGE][..n], at).unwrap();
            loss.pages += 1;
        } else {
            loss.kept += 1;
        }
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}
