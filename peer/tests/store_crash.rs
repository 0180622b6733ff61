//! A process that stores pieces through its ring is killed at random points: what it reported is there afterwards, and
//! nothing that counts is wrong.

#![expect(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::{
    collections::BTreeSet,
    env,
    io::{BufRead, BufReader, Write},
    os::unix::{fs::FileExt, process::ExitStatusExt},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use pondhawk::{
    store::{About, Held, Keeping, Options, Store, StoreError, TaskMeta},
    task::{Layout, TaskId},
    uring::Pool,
};

const NAME: &str = "what_a_killed_process_reported_is_held_and_what_is_held_is_right";
const DIR: &str = "PONDHAWK_TEST_CRASH_DIR";
const ROUND: &str = "PONDHAWK_TEST_CRASH_ROUND";
const KILLS: u64 = 400;
/// From the child's first breath, through its recovery, to well into its work.
const LONGEST_LIFE: Duration = Duration::from_millis(60);
const TASKS: u64 = 4;
const CHUNK: usize = 128 << 10;
const OPTIONS: Options = Options { quota: 1 << 30, keep_free: 0 };

#[test]
fn what_a_killed_process_reported_is_held_and_what_is_held_is_right() {
    if let Ok(dir) = env::var(DIR) {
        store_pieces_until_killed(Path::new(&dir), env::var(ROUND).unwrap().parse().unwrap());
    }
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random(7);
    let mut model = Model::default();
    for round in 0..KILLS {
        let life = Duration::from_micros(random.below(LONGEST_LIFE.as_micros() as u64));
        model.note(&reports_before_kill(dir.path(), round, life));
        tokio_uring::start(model.check(dir.path(), round, &mut random));
    }
    eprintln!("{KILLS} kills: {} pieces reported, {} tasks found in their middle", model.reported, model.partial);
    // Otherwise no kill hit anything worth hitting.
    assert!(model.reported > KILLS / 10 && model.partial > KILLS / 10);
}

/// What a child said before it died of SIGKILL.
fn reports_before_kill(dir: &Path, round: u64, life: Duration) -> Vec<Report> {
    let mut child = spawn(dir, round);
    let born = Instant::now();
    let out = BufReader::new(child.stdout.take().unwrap());
    let reports = std::thread::scope(|scope| {
        let reader =
            scope.spawn(|| out.lines().map_while(Result::ok).filter_map(|line| Report::parse(&line)).collect());
        while born.elapsed() < life {
            std::thread::park_timeout(life.saturating_sub(born.elapsed()));
        }
        child.kill().unwrap();
        reader.join().unwrap()
    });
    let status = child.wait().unwrap();
    assert_eq!(status.signal(), Some(9), "round {round}: the child ended by itself: {status}");
    reports
}

fn spawn(dir: &Path, round: u64) -> Child {
    Command::new(env::current_exe().unwrap())
        .args(["--exact", NAME, "--nocapture"])
        .env(DIR, dir)
        .env(ROUND, round.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// A line of the child.
enum Report {
    Held { task: u64, piece: u32 },
    Removing { task: u64 },
}

impl Report {
    /// One write, so that it reaches the pipe whole or not at all.
    fn say(&self) {
        let line = match self {
            Self::Held { task, piece } => format!("\nheld {task} {piece} .\n"),
            Self::Removing { task } => format!("\nremoving {task} .\n"),
        };
        let mut out = std::io::stdout();
        out.write_all(line.as_bytes()).and_then(|()| out.flush()).unwrap();
    }

    /// Anything else is the test harness speaking.
    fn parse(line: &str) -> Option<Self> {
        let words: Vec<_> = line.split(' ').collect();
        match words[..] {
            ["held", task, piece, "."] => Some(Self::Held { task: task.parse().ok()?, piece: piece.parse().ok()? }),
            ["removing", task, "."] => Some(Self::Removing { task: task.parse().ok()? }),
            _ => None,
        }
    }
}

/// The child: stores what is missing in an order of its own, removes a task that is complete, and never returns.
fn store_pieces_until_killed(dir: &Path, round: u64) -> ! {
    tokio_uring::start(async {
        let store = Store::open(dir, OPTIONS).unwrap();
        let pool = Pool::new(4, 4, CHUNK);
        let mut random = Random(round);
        loop {
            let task = random.below(TASKS);
            let held = store.create(meta(task)).await.unwrap();
            held.checked().await;
            let missing: Vec<_> = (0..held.bitmap().len()).filter(|&piece| !held.bitmap().get(piece)).collect();
            if missing.is_empty() {
                Report::Removing { task }.say();
                store.remove(&id(task));
                continue;
            }
            let piece = missing[random.below(missing.len() as u64) as usize];
            add(&held, &pool, task, piece).await.unwrap();
            Report::Held { task, piece }.say();
        }
    })
}

async fn add(held: &Held, pool: &Pool, task: u64, piece: u32) -> Result<(), StoreError> {
    let bytes = content(task, piece);
    for (n, chunk) in bytes.chunks(CHUNK).enumerate() {
        let mut buf = pool.lease().await;
        buf[..chunk.len()].copy_from_slice(chunk);
        held.write(piece, (n * CHUNK) as u32, buf, chunk.len()).await.0?;
    }
    held.commit(piece, blake3::hash(&bytes)).await
}

/// What must be held, by task.
#[derive(Default)]
struct Model {
    held: [BTreeSet<u32>; TASKS as usize],
    reported: u64,
    partial: u64,
}

impl Model {
    fn note(&mut self, reports: &[Report]) {
        for report in reports {
            match *report {
                // From now on it may be there or not.
                Report::Removing { task } => self.held[task as usize].clear(),
                Report::Held { task, piece } => {
                    self.held[task as usize].insert(piece);
                    self.reported += 1;
                }
            }
        }
    }

    /// Every reported piece is held, and every held one is right. Leaves the store stopped, cleanly or not.
    async fn check(&mut self, dir: &Path, round: u64, random: &mut Random) {
        let store = Store::open(dir, OPTIONS).unwrap();
        for task in 0..TASKS {
            let Some(held) = store.get(&id(task)) else {
                assert!(self.held[task as usize].is_empty(), "round {round}: task {task} is gone");
                continue;
            };
            tokio::time::timeout(Duration::from_secs(60), held.checked()).await.expect("the check ends");
            self.compare(&held, task, round);
        }
        if random.below(4) == 0 {
            store.close();
        }
    }

    fn compare(&mut self, held: &Arc<Held>, task: u64, round: u64) {
        for piece in 0..held.bitmap().len() {
            if !held.bitmap().get(piece) {
                assert!(
                    !self.held[task as usize].contains(&piece),
                    "round {round}: piece {piece} of task {task} is lost"
                );
                continue;
            }
            let expected = content(task, piece);
            let mut found = vec![0; expected.len()];
            held.file().read_exact_at(&mut found, held.meta.layout.bytes_of(piece).start).unwrap();
            assert!(found == expected, "round {round}: piece {piece} of task {task} is wrong");
            self.held[task as usize].insert(piece);
        }
        self.partial += u64::from(!held.bitmap().is_full() && held.bitmap().count() > 0);
    }
}

fn id(task: u64) -> TaskId {
    TaskId([task as u8; 32])
}

/// Tasks of 1 to 4 pieces, the last one short.
fn meta(task: u64) -> TaskMeta {
    TaskMeta {
        id: id(task),
        layout: Layout::for_len((task << 20) + 1 + task * 100_000).unwrap(),
        proof: None,
        about: About { label: "host/path".into(), ..About::default() },
        keeping: Keeping::default(),
        created_unix: 0,
    }
}

fn content(task: u64, piece: u32) -> Vec<u8> {
    let bytes = meta(task).layout.bytes_of(piece);
    let mut out = vec![0; (bytes.end - bytes.start) as usize];
    blake3::Hasher::new_keyed(&[task as u8; 32]).update(&piece.to_le_bytes()).finalize_xof().fill(&mut out);
    out
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
