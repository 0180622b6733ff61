//! A node whose scheduler lies: its clients get their files nevertheless, and it stays within its bounds.

#![expect(clippy::unwrap_used, reason = "a panic is how a test reports")]

#[path = "scheduler_hostile/liar.rs"]
mod liar;
#[allow(dead_code, reason = "other tests use the rest")]
#[path = "node/stage.rs"]
mod stage;

use std::{
    fs,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use liar::{Liar, Lie};
use pondhawk_bench::lab::wait_until;
use pondhawk_proto::v1 as proto;
use pondhawk_scheduler::{
    authority::Authority,
    service::{Options, Scheduler},
};
use proto::scheduler_message::Body;
use stage::Stage;

/// Only a node that does not recover reaches it.
const DEADLINE: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;
const LEN: u64 = 3 * MIB + 5;
/// What a lie may cost beyond what the node takes for its work.
const MAX_RSS: u64 = 64 << 20;
const MAX_DESCRIPTORS: usize = 200;

/// A Welcome that an honest scheduler could send.
const WELCOME: proto::Welcome = proto::Welcome { protocol: 1, progress_ms: 50, ping_ms: 60_000, epoch: 7 };

/// A scheduler that keeps its session and says nothing.
const SILENCE: Lie =
    Lie { name: "silence", welcome: Some(WELCOME), opening: Vec::new, answer: |_| Vec::new(), ends: false };

/// A node that has joined the scheduler of the test.
struct Victim {
    stage: Stage,
    liar: Liar,
    ca: tempfile::TempDir,
    rss: u64,
    descriptors: usize,
}

impl Victim {
    /// `port`: the first of those that the node's endpoints take; each test has its own.
    fn start(port: u16) -> Self {
        let ca = tempfile::tempdir().unwrap();
        let liar = Liar::start(ca.path(), SILENCE);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let token = Authority::open(ca.path()).unwrap().token(now, Duration::from_secs(3600)).unwrap();
        let token_path = ca.path().join("join.token");
        fs::write(&token_path, token).unwrap();
        let stage = Stage::open(&[
            &format!("scheduler.join={}", liar.address),
            &format!("scheduler.token={}", token_path.display()),
            "swarm.name=victim",
            &format!("swarm.listen=127.0.0.1:{port}"),
        ]);
        let mut victim = Self { stage, liar, ca, rss: 0, descriptors: 0 };
        victim.liar.tell(SILENCE, DEADLINE);
        // The first download brings what every later one finds: connections, buffers, the store's own files.
        victim.fetch("before", 1);
        (victim.rss, victim.descriptors) = victim.usage();
        victim
    }

    /// Whether a session with the scheduler stands.
    fn session(&self) -> Option<()> {
        (self.stage.node.metric("pondhawk_swarm_session") == 1).then_some(())
    }

    fn usage(&self) -> (u64, usize) {
        let daemon = &self.stage.node.daemon;
        let descriptors = fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count();
        (daemon.usage().expect("the node runs").rss, descriptors)
    }

    /// A client downloads a file that the node does not have.
    fn fetch(&self, name: &str, seed: u64) {
        let file = self.stage.file(&name.replace(' ', "-"), LEN, seed);
        let answer = self.stage.get(&file);
        assert_eq!((answer.status, answer.complete), (200, true), "{name}: {} bytes", answer.body.len());
        assert!(answer.body == file.bytes(0, LEN), "{name}: other bytes");
    }

    /// Each lie in turn, with a download under it and a look at the node after it.
    fn endures(mut self, lies: &[Lie]) {
        for (lie, seed) in lies.iter().zip(100..) {
            self.liar.tell(lie.clone(), DEADLINE);
            // Some of these sessions never stand, or not for long.
            let led = wait_until(Duration::from_secs(2), || self.session()).is_some();
            let before = self.liar.wants();
            self.fetch(lie.name, seed);
            assert!(!led || self.liar.wants() > before, "{}: the download was never led", lie.name);
            assert!(self.stage.node.daemon.is_running(), "{}: {}", lie.name, self.stage.node.daemon.tail());
            let (rss, descriptors) = self.usage();
            eprintln!("{}: {} MiB, {descriptors} descriptors", lie.name, rss >> 20);
            assert!(rss <= self.rss + MAX_RSS, "{}: {} MiB, and {} before", lie.name, rss >> 20, self.rss >> 20);
            assert!(descriptors <= self.descriptors + MAX_DESCRIPTORS, "{}: {descriptors} descriptors", lie.name);
        }
        self.works_with_an_honest_scheduler();
        let log = self.stage.node.log();
        assert!(!log.contains("panicked"), "{log}");
    }

    /// The liar is gone, and a real scheduler of the same cluster has its port.
    fn works_with_an_honest_scheduler(&mut self) {
        let (address, ca) = (self.liar.address, self.ca.path().to_owned());
        self.liar.stop();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let scheduler = Arc::new(Scheduler::open(&ca, Options::default()).unwrap());
        let bound = wait_until(DEADLINE, || runtime.block_on(tokio::net::TcpListener::bind(address)).ok());
        let listener = bound.expect("the port is free");
        let serving = Arc::clone(&scheduler);
        runtime.spawn(async move { serving.serve(listener, std::future::pending()).await });
        wait_until(DEADLINE, || self.session())
            .unwrap_or_else(|| panic!("no session: {}", self.stage.node.daemon.tail()));
        self.fetch("afterwards", 2);
        runtime.shutdown_timeout(Duration::from_secs(5));
    }
}

fn unknown_task(number: u32) -> bytes::Bytes {
    let mut task = vec![0x77; 32];
    task[..4].copy_from_slice(&number.to_be_bytes());
    task.into()
}

fn lease(id: u64, task: &bytes::Bytes, first: u32, count: u32) -> Body {
    Body::Lease(proto::Lease { id, task: task.clone(), first, count, silence_ms: 0 })
}

fn digests(task: &bytes::Bytes, first: u32, count: usize) -> Body {
    let run = proto::DigestRun { first, digests: vec![0x5a; count * 32].into() };
    Body::Digests(proto::Digests { task: task.clone(), runs: vec![run] })
}

fn links(task: &bytes::Bytes, addresses: impl IntoIterator<Item = String>) -> Body {
    let parent = |(number, quic_address): (usize, String)| proto::Parent {
        name: format!("peer-{number}"),
        quic_address,
        nearness: u32::MAX,
        complete: true,
        seed: true,
        quic_endpoints: 1,
    };
    let add = addresses.into_iter().enumerate().map(parent).collect();
    Body::Parents(proto::Parents { task: task.clone(), add, drop: Vec::new() })
}

fn throttle(host: String) -> Body {
    Body::Throttle(proto::Throttle { origin_host: host, for_ms: u32::MAX })
}

#[test]
fn a_session_that_breaks_its_own_rules_costs_no_client_its_file() {
    let welcome = |progress_ms, ping_ms, epoch| Some(proto::Welcome { progress_ms, ping_ms, epoch, ..WELCOME });
    Victim::start(24_610).endures(&[
        Lie { name: "no welcome", welcome: None, ..SILENCE },
        Lie { name: "welcome of zeros", welcome: welcome(0, 0, 0), ..SILENCE },
        Lie { name: "welcome of weeks", welcome: welcome(u32::MAX, u32::MAX, u64::MAX), ..SILENCE },
        Lie { name: "second welcome", opening: || vec![Body::Welcome(WELCOME)], ..SILENCE },
        Lie { name: "unknown version", welcome: Some(proto::Welcome { protocol: 99, ..WELCOME }), ..SILENCE },
        Lie { name: "end after an answer", answer: |want| vec![lease(1, &want.task, 0, 1)], ends: true, ..SILENCE },
        Lie { name: "message of the largest size", answer: |want| vec![digests(&want.task, 0, 131_000)], ..SILENCE },
        Lie { name: "message too large", answer: |want| vec![digests(&want.task, 0, 132_000)], ..SILENCE },
    ]);
}

#[test]
fn leases_and_digests_that_make_no_sense_cost_no_client_its_file() {
    Victim::start(24_630).endures(&[
        Lie {
            name: "digests before any want",
            opening: || (0..2_000).map(|number| digests(&unknown_task(number), number, 16)).collect(),
            ..SILENCE
        },
        Lie {
            name: "wrong digests",
            answer: |want| (0..200).map(|_| digests(&want.task, 0, 3_000)).collect(),
            ..SILENCE
        },
        Lie { name: "digests past the end", answer: |want| vec![digests(&want.task, u32::MAX - 1, 64)], ..SILENCE },
        Lie {
            name: "leases of unknown tasks",
            opening: || (0..3_000).map(|number| lease(number.into(), &unknown_task(number), 0, 9)).collect(),
            ..SILENCE
        },
        Lie {
            name: "leases out of range",
            answer: |want| (1_000..4_000).map(|id| lease(id, &want.task, 1 << 20, u32::MAX >> 1)).collect(),
            ..SILENCE
        },
        Lie {
            name: "leases by the thousand",
            answer: |want| (0..5_000).map(|id| lease(id, &want.task, 0, 0)).collect(),
            ..SILENCE
        },
        Lie { name: "a lease past all pieces", answer: |want| vec![lease(1, &want.task, 9, u32::MAX)], ..SILENCE },
        Lie {
            name: "overlapping leases",
            answer: |want| (0..2_000).map(|id| lease(id, &want.task, 0, 2)).collect(),
            ..SILENCE
        },
    ]);
}

#[test]
fn links_to_addresses_of_any_kind_cost_no_client_its_file() {
    let anywhere: fn(&proto::Want) -> Vec<Body> = |want| {
        let addresses = ["127.0.0.1:1", "0.0.0.0:9", "[::]:9", "224.0.0.1:9", "255.255.255.255:9", "127.0.0.1:0"];
        let addresses = addresses.into_iter().chain(["10.255.255.1:9", "[ff02::1]:9", "[::1]:65535"]);
        let all = digests(&want.task, 0, 4);
        vec![links(&want.task, addresses.map(str::to_owned)), all]
    };
    let many: fn(&proto::Want) -> Vec<Body> = |want| {
        let addresses = (1..3_000).map(|port| format!("127.0.0.1:{}", 20_000 + port));
        vec![links(&want.task, addresses), digests(&want.task, 0, 4)]
    };
    Victim::start(24_650).endures(&[
        Lie { name: "links anywhere", answer: anywhere, ..SILENCE },
        Lie { name: "links by the thousand", answer: many, ..SILENCE },
        Lie {
            name: "a link without an address",
            answer: |want| vec![links(&want.task, ["nowhere".to_owned()])],
            ..SILENCE
        },
    ]);
}

#[test]
fn orders_that_no_honest_scheduler_gives_cost_no_client_its_file() {
    let pauses: fn(&proto::Want) -> Vec<Body> = |want| vec![throttle(want.origin_host.clone())];
    let leased_pauses: fn(&proto::Want) -> Vec<Body> =
        |want| vec![lease(1, &want.task, 0, 4), throttle(want.origin_host.clone())];
    let preheats: fn() -> Vec<Body> = || {
        let whole_range = [&[3][..], &[9; 32], &0_u64.to_be_bytes(), &u64::MAX.to_be_bytes()].concat();
        let xorb = pondhawk::task::Identity::from_content_name(&whole_range).unwrap();
        let xorb_task = xorb.task_id(None).unwrap().0.to_vec().into();
        let preheat = |task, name: Vec<u8>| {
            let (origin_host, name) = ("cdn.example".to_owned(), name.into());
            Body::Preheat(proto::Preheat { task, len: u64::MAX, origin_host, name, pin: true })
        };
        let unknown = (0..3_000).map(|number| preheat(unknown_task(number), vec![1; 33]));
        std::iter::once(preheat(xorb_task, whole_range)).chain(unknown).collect()
    };
    let denials: fn() -> Vec<Body> = || {
        let names = ["", "..", "victim", "\u{0}\n"].map(str::to_owned);
        let names = names.into_iter().chain([("x".repeat(1 << 20))]).collect();
        let odd = Body::Denied(proto::Denied { names, keys: vec![vec![1; 3].into(), vec![2; 32].into()] });
        let many = proto::Denied { names: vec!["a".to_owned(); 2_000], keys: Vec::new() };
        let renewed = proto::Renewed { chain: vec![vec![0xff; 4_096].into()], not_after_unix: u64::MAX };
        vec![odd, Body::Renewed(renewed), Body::Denied(many)]
    };
    let disputes: fn(&proto::Want) -> Vec<Body> = |want| {
        let dispute = |piece| {
            let (first, second) = ("x".repeat(1_000), String::new());
            Body::Dispute(proto::Dispute { task: want.task.clone(), piece, first, second, refetch: true })
        };
        let pieces = Some(proto::PieceSet { runs: vec![u32::MAX, u32::MAX, 3] });
        let wanted = Body::DigestsWanted(proto::DigestsWanted { task: want.task.clone(), pieces });
        (0..1_000).map(dispute).chain(std::iter::repeat_n(wanted, 500)).collect()
    };
    Victim::start(24_670).endures(&[
        Lie { name: "a pause of weeks", answer: pauses, ..SILENCE },
        Lie { name: "a pause of what is leased", answer: leased_pauses, ..SILENCE },
        Lie {
            name: "pauses of long hosts",
            opening: || (0..120).map(|host| throttle(format!("{host}{}", "h".repeat(1 << 20)))).collect(),
            ..SILENCE
        },
        Lie { name: "preheats of nothing", opening: preheats, ..SILENCE },
        Lie { name: "odd denials", opening: denials, ..SILENCE },
        Lie { name: "disputes by the thousand", answer: disputes, ..SILENCE },
    ]);
}
