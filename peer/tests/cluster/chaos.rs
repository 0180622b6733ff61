//! Failures at random, from a seed, while every node's client downloads one file after the other.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use pondhawk_bench::{
    hub::{Fault, FaultKind},
    lab::{
        cluster::{Joining, Way},
        wait_until,
    },
};

use super::stage::{CLIENT, File, Stage};

/// Set to the seed of a run that failed, to play it again.
const SEED: &str = "PONDHAWK_CHAOS_SEED";

/// Set to a number of seconds for a longer run.
const SECONDS: &str = "PONDHAWK_CHAOS_SECONDS";

/// How long things are broken.
pub(crate) fn time() -> Duration {
    let given = std::env::var(SECONDS).ok().map(|text| text.parse().expect("a number of seconds"));
    Duration::from_secs(given.unwrap_or(20))
}

/// The seed of this run; printed, and so shown when the test fails.
pub(crate) fn seed() -> u64 {
    let given = std::env::var(SEED).ok().map(|text| text.parse().expect("a seed is a number"));
    let seed = given.unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64);
    eprintln!("{SEED}={seed}");
    seed
}

/// Breaks things for as long as `time`, then mends everything and lets every node have every file. Panics when a client has
/// other bytes than the hub's, or fails though nothing happened to its own node.
pub(crate) fn rage(stage: &Stage, seed: u64, time: Duration) {
    let troubles = stage.cluster.nodes().iter().map(|_| Trouble::default()).collect();
    let arena = Arena { stage, troubles, over: AtomicBool::new(false), downloads: AtomicU64::new(0) };
    thread::scope(|scope| {
        for node in 0..arena.troubles.len() {
            scope.spawn({
                let arena = &arena;
                move || arena.download_on(node, Random(seed.wrapping_add(node as u64 + 1)))
            });
        }
        let nodes = scope.spawn(|| arena.break_nodes(Random(seed), time));
        let others = scope.spawn(|| arena.break_others(Random(!seed), time));
        // Before a panic is handed on the clients must know that it is over: the scope waits for them.
        let ended = [nodes.join(), others.join()];
        arena.over.store(true, Ordering::Relaxed);
        ended.into_iter().for_each(|outcome| outcome.unwrap());
    });
    stage.cluster.hub().clear_faults().unwrap();
    let (downloads, origin) = (arena.downloads.into_inner(), stage.cluster.hub().stats().unwrap().body_bytes);
    eprintln!("{downloads} downloads, {:.1} files from the origin", origin as f64 / stage.file.size as f64);
    stage.cluster.nodes().iter().for_each(|node| node.wait_joined().unwrap());
    for file in &stage.files {
        for number in 0..stage.cluster.nodes().len() {
            stage.assert_has(file, &stage.fetch_of(file, number), "afterwards, a client");
        }
    }
}

struct Arena<'a> {
    stage: &'a Stage,
    troubles: Vec<Trouble>,
    over: AtomicBool,
    downloads: AtomicU64,
}

/// Counts the beginnings and the ends of what happens to a node: odd while something does.
#[derive(Default)]
struct Trouble(AtomicU64);

impl Trouble {
    fn turn(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    fn seen(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

impl Arena<'_> {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// One file after the other; now and then the node drops what it has, so that there is always something to fetch.
    fn download_on(&self, number: usize, mut random: Random) {
        // Each begins elsewhere: some find a file with the others, some share its first download.
        for file in self.stage.files.iter().cycle().skip(number / 2) {
            if self.is_over() {
                return;
            }
            self.download(number, file);
            if random.below(3) == 0 {
                // It may be dead or frozen just now.
                let _ = self.stage.node(number).drop_tasks();
            }
        }
    }

    /// Until the client has it: as a user would, it tries again when its node was in trouble.
    fn download(&self, number: usize, file: &File) {
        let (node, trouble) = (self.stage.node(number), &self.troubles[number]);
        while !self.is_over() {
            let before = trouble.seen();
            let url = self.stage.cluster.url(&file.label).unwrap();
            let fetched = node.fetch(&url, Way::Proxy, CLIENT).unwrap();
            if fetched.ok {
                self.downloads.fetch_add(1, Ordering::Relaxed);
                return self.stage.assert_has(file, &fetched, node.name());
            }
            let excused = before % 2 == 1 || trouble.seen() != before;
            assert!(excused, "{} was left in peace, and its client has: {fetched:?}", node.name());
            rest(Duration::from_millis(200));
        }
    }

    fn break_nodes(&self, mut random: Random, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            let number = random.below(self.troubles.len() as u64) as usize;
            let (kind, lasts) = (random.below(3), Duration::from_millis(random.below(2500)));
            eprintln!(
                "{} is {} for {lasts:?}",
                self.stage.node(number).name(),
                ["killed", "frozen", "cut off"][kind as usize]
            );
            self.troubles[number].turn();
            self.break_node(number, kind, lasts);
            self.troubles[number].turn();
            rest(Duration::from_millis(random.below(1200)));
        }
    }

    fn break_node(&self, number: usize, kind: u64, lasts: Duration) {
        let (cluster, node) = (&self.stage.cluster, self.stage.node(number));
        match kind {
            0 => {
                node.kill().unwrap();
                rest(lasts);
                // It has its certificate: no token is needed any more.
                let schedulers = vec![cluster.scheduler().address()];
                node.start(&Joining::To { schedulers, token: None }).unwrap();
            }
            1 => {
                node.freeze().unwrap();
                rest(lasts);
                node.thaw().unwrap();
            }
            _ => {
                cluster.cut(number).unwrap();
                rest(lasts);
                cluster.heal(number).unwrap();
            }
        }
    }

    fn break_others(&self, mut random: Random, time: Duration) {
        let end = Instant::now() + time;
        let (cluster, scheduler) = (&self.stage.cluster, self.stage.cluster.scheduler());
        while Instant::now() < end {
            rest(Duration::from_millis(random.below(2500)));
            let (kind, lasts) = (random.below(4), Duration::from_millis(random.below(2500)));
            eprintln!(
                "{} for {lasts:?}",
                ["scheduler killed", "scheduler frozen", "scheduler cut off", "origin errs"][kind as usize]
            );
            match kind {
                0 => {
                    scheduler.kill().unwrap();
                    rest(lasts);
                    scheduler.restart().unwrap();
                }
                1 => {
                    scheduler.freeze().unwrap();
                    rest(lasts);
                    scheduler.thaw().unwrap();
                }
                2 => {
                    cluster.set_scheduler_link(false).unwrap();
                    rest(lasts);
                    cluster.set_scheduler_link(true).unwrap();
                }
                _ => [FaultKind::Cut { after: 300_000 }, FaultKind::Status503 { retry_after: None }]
                    .into_iter()
                    .for_each(|kind| cluster.hub().add_fault(&Fault::new(kind).min_bytes(2).times(1)).unwrap()),
            }
        }
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): one number of state, so that a seed is a whole run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

fn rest(time: Duration) {
    wait_until(time, || None::<()>);
}
