//! What the control endpoints say, as JSON on both sides: the node writes it, the commands read it.

use std::{collections::BTreeMap, net::SocketAddr};

use serde::{Deserialize, Serialize};
use url::Url;

use crate::metrics::Totals;

/// A task on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// 64 hexadecimal digits.
    pub id: String,
    /// Host and path, without the query.
    pub label: String,
    /// Bytes of the whole file.
    pub bytes: u64,
    /// Bytes held.
    pub held_bytes: u64,
    /// Pieces of the whole file.
    pub pieces: u32,
    /// Pieces held.
    pub held_pieces: u32,
    /// Whether the whole matched the SHA-256 in its name: `not_needed`, `pending`, `verified`, `mismatch` or `unreadable`.
    pub verdict: String,
    /// Whether somebody reads or downloads it now.
    pub in_use: bool,
    /// Whether it stays whatever room is needed.
    #[serde(default)]
    pub pinned: bool,
    /// Bytes of it that came from origins since the node's start.
    #[serde(default)]
    pub origin_bytes: u64,
    /// Bytes of it that came from other nodes since the node's start.
    #[serde(default)]
    pub peer_bytes: u64,
    /// Seconds since 1970.
    pub created_unix: u64,
    /// Seconds since 1970 at the last use.
    pub used_unix: u64,
}

/// What became of a removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// Gone.
    Removed,
    /// There is no such task.
    Unknown,
    /// Somebody reads or downloads it.
    InUse,
    /// It is pinned.
    Pinned,
}

/// A file to fetch into the store, as `POST /v1/preheats` takes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreheatWanted {
    /// https, at a host that the node serves.
    pub url: String,
    /// With which the origin is asked.
    #[serde(default)]
    pub headers: Vec<(String, String)>,
    /// Whether it is pinned when it is there.
    #[serde(default)]
    pub pin: bool,
    /// Which other nodes are to hold it too; none where it is for this node alone.
    #[serde(default)]
    pub nodes: Option<PreheatScope>,
}

impl PreheatWanted {
    /// The file at a URL, asked for with these header lines.
    pub fn of(url: &Url, lines: &[(String, Vec<u8>)]) -> Self {
        let text = |(name, value): &(String, Vec<u8>)| (name.clone(), String::from_utf8_lossy(value).into_owned());
        Self { url: url.to_string(), headers: lines.iter().map(text).collect(), ..Self::default() }
    }
}

/// Which other nodes are to hold a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreheatScope {
    /// Only seed peers.
    #[serde(default)]
    pub seeds: bool,
    /// Only nodes with all of these labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// So many of them; 0: all.
    #[serde(default)]
    pub count: u32,
}

/// How far other nodes are with a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreheatNodes {
    /// Nodes that it is for, beside the one that was asked.
    pub peers: u32,
    /// Of those, how many hold it.
    pub complete: u32,
    /// And how many will not.
    pub failed: u32,
}

/// Why a file is not fetched into the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PreheatRefusal {
    /// No URL.
    Wrong(String),
    /// Not a host that this node serves.
    NotServed(String),
    /// Later, perhaps.
    Full(String),
}

/// The number of a preheat that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreheatTaken {
    /// As in [`Preheat`].
    pub id: u64,
}

/// A file that is, was or will be fetched into the store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preheat {
    /// Unique since the node's start.
    pub id: u64,
    /// Host and path, without the query.
    pub label: String,
    /// `waiting`, `running`, `spreading` (it is here, and not yet on all other nodes that it is for), `done` or `failed`.
    pub state: String,
    /// Its task, once it is known.
    pub task: Option<String>,
    /// Bytes of the whole file, once they are known.
    pub bytes: u64,
    /// Bytes held.
    pub held_bytes: u64,
    /// Why it failed.
    pub error: Option<String>,
    /// How far other nodes are, where any are to hold it.
    #[serde(default)]
    pub nodes: Option<PreheatNodes>,
}

/// How many preheats stand how; of those that are over, the last thousand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreheatCounts {
    /// Not begun.
    pub waiting: u64,
    /// Under way.
    pub running: u64,
    /// In the store.
    pub done: u64,
    /// Not in the store.
    pub failed: u64,
}

/// How a node is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The package's version.
    pub version: String,
    /// The process.
    pub pid: u32,
    /// Seconds since the start.
    pub uptime_seconds: u64,
    /// Threads that serve.
    pub shards: usize,
    /// Why it is not ready; empty if it is.
    pub unready: Vec<String>,
    /// What it does less well than it could while it is ready, and what would change that.
    #[serde(default)]
    pub degraded: Vec<String>,
    /// Client connections open now.
    pub connections: u64,
    /// Where the proxy listens.
    pub proxy: Option<SocketAddr>,
    /// The path of the Unix socket on which changes are accepted.
    #[serde(default)]
    pub admin_socket: Option<String>,
    /// The store.
    pub store: StoreStatus,
    /// Sums since the start.
    pub totals: Totals,
    /// What is fetched before anybody reads it.
    #[serde(default)]
    pub preheats: PreheatCounts,
    /// Other nodes; none where nothing is shared.
    pub swarm: Option<SwarmReport>,
    /// The transparent way in.
    pub interception: Interception,
    /// What was chosen after the kernel was probed, by feature.
    pub kernel: BTreeMap<String, String>,
}

/// How full the store is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreStatus {
    /// Where it is.
    pub dir: String,
    /// Tasks held, whole or in part.
    pub tasks: u64,
    /// Bytes that count against the quota.
    pub bytes: u64,
    /// The quota in bytes.
    pub quota: u64,
}

/// How this node shares with others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwarmReport {
    /// This node's name.
    pub name: String,
    /// The scheduler: host:port.
    pub scheduler: String,
    /// How the session with it stands: `up`, `lost`, or `none` so far.
    pub session: String,
    /// Why it does not stand, and what would change that.
    pub error: Option<String>,
    /// Pieces that are being sent to others now.
    pub uploads: u32,
    /// Bytes sent to others since the start.
    pub sent_bytes: u64,
    /// Open connections to parents.
    pub links: Vec<LinkReport>,
}

/// A connection over which this node fetches pieces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkReport {
    /// The other node's name.
    pub peer: String,
    /// Its QUIC endpoint.
    pub address: SocketAddr,
    /// Bytes fetched over it.
    pub bytes: u64,
    /// Bytes a second, lately.
    pub rate: u64,
}

/// Whether port-443 connections are caught.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interception {
    /// Whether they are.
    pub on: bool,
    /// If not: why, and what would change it.
    pub why_off: Option<String>,
    /// `dns` or `all`.
    pub mode: String,
    /// Where the programs are attached.
    pub cgroup: Option<String>,
    /// To which port connections are led.
    pub port: Option<u16>,
    /// Whether new connections go direct because nearly as many are open as may be.
    #[serde(default)]
    pub paused: bool,
    /// Network namespaces whose redirected connections do not arrive, so that theirs go direct.
    #[serde(default)]
    pub unreachable: u64,
    /// Decisions of the BPF programs since the start.
    pub decisions: BTreeMap<String, u64>,
}
