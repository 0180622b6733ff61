//! What is played.

use std::time::Duration;

/// A peer that does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// It serves wrong bytes.
    Pieces,
    /// What it fetches from the origin it changes, and tells the digests of that.
    Digests,
    /// It says that it has everything and answers nothing.
    Silence,
}

/// Nodes that die without a word.
#[derive(Clone, Copy, Debug)]
pub struct Churn {
    /// One each time.
    pub every: Duration,
    /// It is back after this, with what it had on its disk.
    pub back: Duration,
    /// How many in all.
    pub deaths: u32,
}

/// The scheduler dies and another one starts, knowing nothing.
#[derive(Clone, Copy, Debug)]
pub struct Restart {
    /// When.
    pub at: Duration,
    /// How long there is none.
    pub down: Duration,
}

/// Some nodes have slower links.
#[derive(Clone, Copy, Debug)]
pub struct SlowRack {
    /// How many.
    pub peers: u32,
    /// Times the others' rate.
    pub factor: f64,
}

/// A cluster, what it downloads and what goes wrong. Rates are bytes a second.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// For people.
    pub name: String,
    /// Replays.
    pub seed: u64,
    /// Nodes, each with a client that wants every file.
    pub peers: u32,
    /// Bytes in each.
    pub files: Vec<u64>,
    /// Files that a client downloads at once.
    pub at_once: usize,
    /// Every node's uplink.
    pub up: f64,
    /// Every node's downlink.
    pub down: f64,
    /// The origin's link.
    pub origin: f64,
    /// What the origin sends on one connection.
    pub connection: f64,
    /// One way, between any two.
    pub latency: Duration,
    /// Share of packets lost on the nodes' links: so much less gets through.
    pub loss: f64,
    /// Clients begin within this time.
    pub arrive: Duration,
    /// So many begin later.
    pub late: u32,
    /// So much later.
    pub later: Duration,
    /// See there.
    pub slow: Option<SlowRack>,
    /// The first so many nodes lie.
    pub liars: u32,
    /// How.
    pub lie: Lie,
    /// See there.
    pub churn: Option<Churn>,
    /// See there.
    pub restart: Option<Restart>,
    /// Links hear of new pieces this often. 10 ms is the peer's own; more takes less of this program's time.
    pub have_every: Duration,
    /// A machine is polled at most this often. 0: after each event, as the peer does.
    pub poll_every: Duration,
    /// It fails if it takes longer.
    pub limit: Duration,
}

const MIB: u64 = 1 << 20;
/// 1 Gbit/s.
const GIGABIT: f64 = 125e6;

impl Scenario {
    /// A flash crowd: all want one file of `bytes` at once over links of 1 Gbit/s.
    pub fn crowd(peers: u32, bytes: u64) -> Self {
        Self {
            name: "crowd".to_owned(),
            seed: 1,
            peers,
            files: vec![bytes],
            at_once: 8,
            up: GIGABIT,
            down: GIGABIT,
            origin: GIGABIT,
            connection: GIGABIT,
            latency: Duration::from_micros(250),
            loss: 0.0,
            arrive: Duration::from_millis(100),
            late: 0,
            later: Duration::ZERO,
            slow: None,
            liars: 0,
            lie: Lie::Pieces,
            churn: None,
            restart: None,
            have_every: Duration::from_millis(10),
            poll_every: Duration::ZERO,
            limit: Duration::from_secs(3_600),
        }
    }

    /// All names that [`Scenario::named`] knows.
    pub const NAMES: &'static [&'static str] = &[
        "crowd-8",
        "crowd-10",
        "crowd-200",
        "leases",
        "crowd-1k",
        "crowd-100k",
        "many-small",
        "late",
        "loss",
        "slow-rack",
        "churn",
        "wrong-pieces",
        "wrong-digests",
        "silent",
        "restart",
    ];

    /// One of a known name; `peers` instead of its own number where given.
    pub fn named(name: &str, peers: Option<u32>) -> Option<Self> {
        let some = |usual: u32| peers.unwrap_or(usual);
        let seconds = Duration::from_secs;
        let mut it = match name {
            "crowd-8" => Self::crowd(some(8), 1024 * MIB),
            "crowd-200" => Self::crowd(some(200), 512 * MIB),
            "crowd-10" => Self::crowd(some(10), 1024 * MIB),
            // The origin sends 20 MB/s a connection, a node opens 16; nodes and origin have 10 Gbit/s: leases add up.
            "leases" => {
                let (fast, connection) = (10.0 * GIGABIT, 20e6);
                Self { origin: fast, up: fast, down: fast, connection, ..Self::crowd(some(8), 2048 * MIB) }
            }
            "crowd-1k" => Self::crowd(some(1_000), 1024 * MIB),
            "crowd-100k" => Self::huge(some(100_000)),
            "many-small" => {
                Self { files: (0..100).map(|n| (n % 7 + 1) * MIB / 2).collect(), ..Self::crowd(some(100), 0) }
            }
            "late" => Self { late: some(200) / 2, later: seconds(6), ..Self::crowd(some(200), 1024 * MIB) },
            "loss" => Self { loss: 0.05, ..Self::crowd(some(200), 512 * MIB) },
            "slow-rack" => {
                let slow = Some(SlowRack { peers: some(200) / 10, factor: 0.1 });
                Self { slow, ..Self::crowd(some(200), 512 * MIB) }
            }
            "churn" => {
                let churn = Churn { every: Duration::from_millis(200), back: seconds(5), deaths: 40 };
                Self { churn: Some(churn), ..Self::crowd(some(200), 1024 * MIB) }
            }
            "wrong-pieces" => Self { liars: 2, ..Self::crowd(some(200), 512 * MIB) },
            "wrong-digests" => Self { liars: 1, lie: Lie::Digests, ..Self::crowd(some(20), 128 * MIB) },
            "silent" => Self { liars: 2, lie: Lie::Silence, ..Self::crowd(some(200), 512 * MIB) },
            "restart" => {
                let restart = Some(Restart { at: seconds(3), down: seconds(2) });
                Self { restart, ..Self::crowd(some(200), 1024 * MIB) }
            }
            _ => return None,
        };
        name.clone_into(&mut it.name);
        Some(it)
    }

    /// 64 pieces of 1 MiB over links of 8 MB/s: as 1 GiB in pieces of 16 MiB over 1 Gbit/s.
    fn huge(peers: u32) -> Self {
        let rate = GIGABIT / 16.0;
        Self {
            up: rate,
            down: rate,
            origin: rate,
            connection: rate,
            arrive: Duration::from_secs(2),
            have_every: Duration::from_millis(200),
            poll_every: Duration::from_millis(50),
            ..Self::crowd(peers, 64 * MIB)
        }
    }
}
