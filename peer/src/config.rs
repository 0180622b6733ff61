//! The configuration file: one YAML document, every key documented.
//!
//! A value is looked for on the command line (`--set section.key=value`), in the environment (`PONDHAWK_SECTION__KEY`),
//! in the file, and taken from [`Config::default`] otherwise. The documentation of each key below is what
//! `pondhawk config --example` prints.

pub mod change;
mod check;
mod document;
pub mod import;
mod load;
mod value;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
};

use pondhawk_scheduler::hosts::HUB_HOSTS;
use serde::{Deserialize, Serialize};

use crate::store::Priority;
pub use check::CheckError;
use document::{Keys, section};
pub use load::{ConfigError, Loaded};
pub use value::{Listen, Mark, Period, Quota, Size, SocketPath, ValueError};

/// The admin socket's name in `data_dir`, unless `admin.socket` names another place.
const ADMIN_SOCKET: &str = "admin.sock";

section! {
    /// Everything that can be set.
    Config {
        /// Where the store, its index and the node's certificate authority live. Unit: a path. Cost: as much disk as
        /// store.quota allows. Default: the place that the FHS gives to a service's state.
        data_dir: PathBuf = "/var/lib/pondhawk".into(),
        /// Threads that serve and download, each with its own io_uring. Unit: threads; 0 is one for each core that the
        /// process may use. Cost: a shard takes its share of limits.buffer_memory and a ring. Default 0: a shard never
        /// waits for another, so one a core uses them all.
        shards: u16 = 0,
        /// How long a stopping node lets running replies finish before it cuts them. Unit: time. Cost: a restart may
        /// take as long. Default 30s: inside the 90s after which systemd kills, and most replies are done by then.
        drain: Period = Period::secs(30),
        /// What is logged, and how. Log lines go to standard error.
        #[serde(deserialize_with = "document::section_or_default")]
        log: Log = Log::default(),
        /// Where the node listens.
        #[serde(deserialize_with = "document::section_or_default")]
        listen: ListenOn = ListenOn::default(),
        /// Who may change a running node: pin and remove files, have files preheated, take a CPU profile.
        #[serde(deserialize_with = "document::section_or_default")]
        admin: AdminRights = AdminRights::default(),
        /// The transparent way in: port-443 connections of this machine, caught by eBPF.
        #[serde(deserialize_with = "document::section_or_default")]
        intercept: Intercept = Intercept::default(),
        /// How files are fetched from where they come from.
        #[serde(deserialize_with = "document::section_or_default")]
        origin: Origin = Origin::default(),
        /// What is kept on disk.
        #[serde(deserialize_with = "document::section_or_default")]
        store: Store = Store::default(),
        /// Who may have what is kept: the origin decides.
        #[serde(deserialize_with = "document::section_or_default")]
        authorize: Authorize = Authorize::default(),
        /// Which parts of a URL do not name the file.
        #[serde(deserialize_with = "document::section_or_default")]
        filter: Filter = Filter::default(),
        /// Who may go where through the proxy port.
        #[serde(deserialize_with = "document::section_or_default")]
        proxy: Proxy = Proxy::default(),
        /// The Hub under this node's own address, for clients that are told HF_ENDPOINT=http://node:65001.
        #[serde(deserialize_with = "document::section_or_default")]
        mirror: Mirror = Mirror::default(),
        /// What is done with which URLs. Each rule has a `match`, a regular expression that is looked for in the whole URL; the
        /// first that is found decides. `store: false` passes the request through; `https: true` asks the origin by https
        /// though the client said http; `redirect: HOST` asks another host; `drop_params: [NAME, ...]` are no part
        /// of the file's name; `public: true` serves what is kept without asking the origin; `keep: 7d` keeps files no longer
        /// than that; `priority: low` or `high` has them go before or after others when room is needed. Tried with
        /// `pondhawk explain URL`. Default none: files of intercept.hosts are kept, all else is passed through.
        rules: Vec<Rule> = Vec::new(),
        /// How this node shares with others.
        #[serde(deserialize_with = "document::section_or_default")]
        swarm: Swarm = Swarm::default(),
        /// Who tells the nodes about each other.
        #[serde(deserialize_with = "document::section_or_default")]
        scheduler: Scheduler = Scheduler::default(),
        /// Traces: where the time of each request went, on this node and those that it had pieces from.
        #[serde(deserialize_with = "document::section_or_default")]
        tracing: Tracing = Tracing::default(),
        /// Bounds on what a node takes in and holds in memory.
        #[serde(deserialize_with = "document::section_or_default")]
        limits: Limits = Limits::default(),
    }
}

section! {
    /// What is logged, and how.
    Log {
        /// The least severe lines that are written: error, warn, info, debug, trace, or one for each module as in
        /// `info,pondhawk::swarm=debug`. Cost: debug writes several lines a request. Default info: a line for each
        /// finished task and each thing that went wrong.
        level: String = "info".into(),
        /// How a line looks: text or json. Default text: read by people and by journald; json where a collector reads.
        format: LogFormat = LogFormat::Text,
    }
}

section! {
    /// Where the node listens.
    ListenOn {
        /// The forward proxy and mirror. Unit: address:port, or off; port 0 takes any free one. Cost: whoever reaches it
        /// can download through this node. Default: this machine only.
        proxy: Listen = loopback(65001),
        /// A Unix socket on which clients are served as on the proxy port, and those that speak TLS as if they were caught: for
        /// hf_xet with HF_XET_CLIENT_UNIX_SOCKET_PATH. Unit: an absolute path, or off. Cost: whoever can open it can download
        /// through this node; the mode of its directory says who. Default off: most nodes catch connections.
        unix: SocketPath = SocketPath(None),
        /// Metrics, health, and what the node holds and does, for reading only: see admin.socket for changes. Unit:
        /// address:port, or off. Cost: everyone who reaches it sees what is kept. Default: this machine only.
        admin: Listen = loopback(65002),
        /// The port to which caught connections are led, on every address so that clients in other network namespaces
        /// reach it; a connection that the BPF program did not send there is closed. Unit: a port; 0 takes any free one.
        /// Default 65003: beside the other two.
        intercept_port: u16 = 65003,
    }
}

section! {
    /// Who may change a running node.
    AdminRights {
        /// The Unix socket on which the node accepts changes, and which `pondhawk` uses by default. The kernel says which user
        /// is at the other end: root and the user that the node runs as may change it, beside those named here; every other
        /// user may read. Unit: an absolute path of at most 107 bytes; null is admin.sock in data_dir; off accepts no
        /// changes at all. Cost: none. Default null: data_dir is writable wherever a node runs.
        socket: Option<SocketPath> = None,
        /// Further users who may change the node. Unit: user ids, as `id -u` prints them. Cost: each can remove all that is
        /// kept, and pin files until no room is left. Default none.
        users: Vec<u32> = Vec::new(),
        /// Groups whose members may change the node, supplementary groups included. Unit: group ids, as
        /// `getent group NAME` prints them. Cost: as for users. Default none.
        groups: Vec<u32> = Vec::new(),
    }
}

section! {
    /// The transparent way in.
    Intercept {
        /// Whether connections are caught: auto, on or off. auto catches when the process has what it takes (CAP_BPF,
        /// CAP_PERFMON, CAP_NET_ADMIN, cgroup2) and otherwise says what is missing and goes on; on refuses to start without it.
        /// Cost: 0.1 to 0.2 microseconds a connect() below the cgroup. Default auto: the same file works with and without root.
        enabled: Switch = Switch::Auto,
        /// The cgroup whose processes, and those below it, are caught. Unit: the path of its directory, as in
        /// /sys/fs/cgroup/user.slice; null is the cgroup2 root, so everyone.
        /// Default null: the whole machine is served.
        cgroup: Option<PathBuf> = None,
        /// How a connection is chosen: dns takes those to addresses that DNS answers gave for `hosts`; all takes every
        /// connection to port 443 of the node's own network namespace and lets the server name in its first bytes decide; from
        /// other namespaces (pods) it takes the same as dns. Cost of all: connections that are not ours pass through this
        /// process. Default dns: what is not ours is not touched.
        mode: InterceptMode = InterceptMode::Dns,
        /// The hosts whose downloads are served: at most 16 names of at most 63 characters; a name stands for itself and for
        /// every name below it. The node's certificate authority is constrained to them: after a change `pondhawk ca install`
        /// is due again. Default: where the Hugging Face Hub keeps its files.
        hosts: Vec<String> = HUB_HOSTS.map(String::from).to_vec(),
        /// The mark (SO_MARK) on the node's own connections, by which the BPF program leaves them alone. Unit: 32 bits, not
        /// 0. Default 0x706f6e64 (`pond`): change it where a firewall uses the same bits.
        mark: Mark = Mark(0x706f_6e64),
        /// The IPv4 address at which other network namespaces (pods) reach this node. null finds it from the default route.
        /// Default null: right wherever there is one uplink.
        node_address_v4: Option<Ipv4Addr> = None,
        /// The same for IPv6.
        node_address_v6: Option<Ipv6Addr> = None,
        /// How old the node's heartbeat may be before connections go directly to where they were meant. Unit: time, at least
        /// 1s, five heartbeats. Cost: clients of a node that hangs wait up to this long. Default 2s: no busy machine starves a thread longer.
        heartbeat_max_silence: Period = Period::secs(2),
        /// How long a client that does not trust the node's certificate is let through directly. Unit: time. Cost: its
        /// downloads come from the origin meanwhile. Default 10min: an installed certificate is noticed soon.
        bypass_for: Period = Period::secs(600),
    }
}

section! {
    /// How files are fetched from where they come from.
    Origin {
        /// Connections to one host at a time. Unit: connections. Cost: one buffer each while it receives. Default 16: origins
        /// that limit each connection are drained 16 times faster, and hf_transfer's users open more than that.
        connections_per_host: u16 = 16,
        /// How fast downloads for the store come from origins, all together; what is passed through is not slowed down. Unit: bytes a
        /// second, at least 1MiB; 0 is as fast as it can. Default 0.
        rate: Size = Size(0),
        /// Files (PEM) with certificate authorities that are trusted for origins beside the system's. Default none.
        extra_cas: Vec<PathBuf> = Vec::new(),
        /// Whether origins at private, loopback and link-local addresses may be fetched from. Cost: whoever reaches the proxy
        /// could reach into the private network through this node. Default false.
        allow_private: bool = false,
        /// Addresses to use instead of asking DNS, by `host` or `host:port`: {cdn.example: "192.0.2.7:443"}. Such an address may
        /// be private. Default none.
        overrides: BTreeMap<String, SocketAddr> = BTreeMap::new(),
        /// The HTTP proxy by which everything outside is reached, where the network has no other way out: http://host:port. It is
        /// asked for a tunnel (CONNECT) for each connection, and it resolves names, so that `allow_private` holds only for
        /// addresses in URLs. HTTPS_PROXY is not looked at: it may name this very node. Default null: straight.
        proxy: Option<String> = None,
        /// A file with the line `name:password` for `proxy` (Basic). Cost: they travel unencrypted. Default null: none.
        proxy_login: Option<PathBuf> = None,
        /// Hosts that are reached without `proxy`: a name is for itself and every name below it. Default none.
        no_proxy: Vec<String> = Vec::new(),
        /// How long connecting, the TLS handshake included, may take. Unit: time. Default 10s: the time in which the Hub's
        /// clients give up reading.
        connect_timeout: Period = Period::secs(10),
        /// How long an origin may take from a request to the head of its answer, for what the node keeps; what is only
        /// passed through waits as long as its client does. Unit: time. Default 9s: the Hub's clients
        /// give up after 10s without a byte.
        head_timeout: Period = Period::secs(9),
        /// How long an origin may send nothing in the middle of an answer before the connection is given up and the rest
        /// asked for again. Unit: time. Default 6s: the retry still reaches the client within its own 10s.
        stall_timeout: Period = Period::secs(6),
        /// How many failures in a row (a cut, a stall, a 5xx) without one new byte an origin may have before the download
        /// fails. Unit: failures, at least 1. Default 6: with the waits between them about 13s.
        retries: u32 = 6,
        /// The wait before the first retry; it doubles with each. Unit: time. Default 200ms: one 503 stays invisible.
        retry_backoff: Period = Period(std::time::Duration::from_millis(200)),
        /// The longest wait between retries, and the longest Retry-After that is waited for. Unit: time. Default 10s: a
        /// client waits no longer without a byte.
        retry_max: Period = Period::secs(10),
        /// How many redirects are followed. Unit: redirects. Default 5: the Hub uses one or two.
        redirects: u8 = 5,
    }
}

section! {
    /// What is kept on disk.
    Store {
        /// What the store may hold; the tasks used longest ago give way. Unit: bytes, as in 100GiB, or a share of the size of
        /// data_dir's file system, as in 80%. Cost: that disk. Default 80%: independent of what is free at some start, so
        /// that a restart evicts nothing.
        quota: Quota = Quota::Percent(80),
        /// What stays free on the file system whatever the quota says. Unit: bytes. Default 2GiB: others that write there
        /// do not meet a full disk.
        keep_free: Size = Size(2 << 30),
        /// Whether a download goes on when the last client that wanted it has left. Cost: bytes that perhaps nobody
        /// reads, as some clients open a file and drop it. Default false: it goes on when the next client asks, and what came is kept.
        finish_alone: bool = false,
        /// Whether a request for a part of a file brings all of it, as the header X-Pondhawk-Prefetch does for one. Cost: bytes that
        /// perhaps nobody reads, as readers of data sets take a few columns. Default false.
        prefetch: bool = false,
    }
}

section! {
    /// Who may have what is kept.
    Authorize {
        /// How long the origin's yes to a client's URL and credentials is remembered, and never longer than the URL's own
        /// expiry. Unit: time; 0s asks each time. Cost of less: one small request to the origin a hit. Default 60s: a
        /// revoked right ends within a minute.
        cap: Period = Period::secs(60),
        /// What anyone may have without the origin being asked: `host` (it and all below) or `host/path/` (paths that begin
        /// so). Cost: who knows such a URL's path needs no signature. Default none.
        public: Vec<String> = Vec::new(),
        /// Whether what is kept is served to anyone while the origin cannot be reached. Cost: a revoked right comes back for as
        /// long. Default false: a cached file is no weaker protected than the original.
        serve_when_origin_down: bool = false,
    }
}

section! {
    /// Which parts of a URL do not name the file.
    Filter {
        /// Query parameters to leave out of a file's name beside the clouds' signatures (Expires, Policy, Signature,
        /// Key-Pair-Id, X-Amz-*, response-content-* and so on): a name in its case, or the beginning of names in any case, as in
        /// `utm_*`. Cost: two files that differ only there become one. Default none.
        drop_params: Vec<String> = Vec::new(),
    }
}

section! {
    /// Who may go where through the proxy port.
    Proxy {
        /// Hosts that clients may reach through the proxy port beside intercept.hosts and those of `rules`: `host` (it and all
        /// below), `host:port`, or `*` for every public one. What is not to be kept is passed on untouched, CONNECT as a tunnel.
        /// Default empty: every public one while listen.proxy is for this machine only, so that HTTPS_PROXY may be set for a whole
        /// shell; none where others reach it, so that it is no open proxy.
        allow: Vec<String> = Vec::new(),
        /// Ports that clients may reach where `allow` names none. Default 80 and 443: no mail server, no database.
        ports: Vec<u16> = vec![80, 443],
        /// A file of lines `name:password`: the proxy then serves nobody else (Proxy-Authorization, Basic). The mirror's
        /// clients cannot send these, so it is off with it. Cost: they travel unencrypted. Default null: anybody who reaches the port.
        users: Option<PathBuf> = None,
    }
}

section! {
    /// The Hub under this node's own address.
    Mirror {
        /// The Hub that requests to the proxy port are for if they name no other host: `https://host`. null: such requests are
        /// refused. Cost: its API and its small files pass through this node, with the clients' own tokens. Default
        /// https://huggingface.co.
        hub: Option<String> = Some("https://huggingface.co".into()),
        /// The CDN that such requests are for if their path is one of its files' (`/repos/...`), which the Hub does not have: the
        /// adapter of Dragonfly's guide sends these. Unit: `https://host`, one of intercept.hosts. null: they are the Hub's.
        /// Default https://cdn-lfs.huggingface.co.
        cdn: Option<String> = Some("https://cdn-lfs.huggingface.co".into()),
        /// What clients of the mirror call it by, for the URLs that it gives them: `https://models.example`, where something
        /// before this node speaks TLS. null: `http://` and the name that the request was for. Default null.
        url: Option<String> = None,
    }
}

/// What is done with the URLs that a pattern is found in: see [`Config::rules`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// A regular expression.
    #[serde(rename = "match")]
    pub pattern: String,
    /// Whether files are kept.
    #[serde(default = "yes")]
    pub store: bool,
    /// Whether http becomes https.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub https: bool,
    /// The host, with or without a port, that is asked instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redirect: Option<String>,
    /// Query parameters that are no part of the name, beside `filter.drop_params`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drop_params: Vec<String>,
    /// Whether what is kept is served unasked.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub public: bool,
    /// For how long files are kept at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<Period>,
    /// What goes first when room is needed.
    #[serde(default, skip_serializing_if = "is_normal")]
    pub priority: Priority,
}

fn is_normal(priority: &Priority) -> bool {
    *priority == Priority::Normal
}

fn yes() -> bool {
    true
}

section! {
    /// How this node shares with others.
    Swarm {
        /// The node's name, unique in the cluster: 1 to 63 of a-z, 0-9, '.' and '-'. null: the machine's host name, in lower
        /// case. Default null.
        name: Option<String> = None,
        /// Where other nodes fetch pieces from this one, by QUIC. Unit: address:port, the first of one UDP port a shard; or
        /// off: nothing is shared. Cost: only nodes with a certificate of the cluster get an answer. Default 0.0.0.0:65010.
        listen: Listen = anywhere(65010),
        /// The address that others are told to fetch from. Unit: an IP address. null: the one that this node's session with
        /// the scheduler comes from. Default null: right unless there is a network for the bulk apart.
        address: Option<IpAddr> = None,
        /// The MTU of the link between the nodes. Unit: bytes, 1280 to 65535. Packets grow up to it as far as the path lets
        /// them. Default 1500; 9000 where the network carries jumbo frames is much faster.
        link_mtu: u16 = 1500,
        /// Where this node stands, for the scheduler to link near nodes: {zone: a, rack: r7}. At most 16. Default none.
        labels: BTreeMap<String, String> = BTreeMap::new(),
        /// Whether this node is there to hold and serve: others are led to it first. Default false.
        seed: bool = false,
        /// How fast this node sends to others, all together. Unit: bytes a second, at least 1MiB; 0 is as fast as it can. Default 0.
        upload_rate: Size = Size(0),
        /// How fast this node fetches from others, all together. Unit: bytes a second, at least 1MiB; 0 is as fast as it can. Default 0.
        download_rate: Size = Size(0),
        /// Pieces that are sent to others at a time; more are told to come back. Unit: pieces. Cost: disk and CPU of this
        /// machine, not memory. Default 64.
        uploads: u16 = 64,
    }
}

section! {
    /// Who tells the nodes about each other.
    Scheduler {
        /// The scheduler of the cluster to join. Unit: host:port, or several of them with commas between: they share the tasks, and
        /// take over those of one that is gone; name them alike on every node. null: this node is its own, and others may
        /// join it. Default null.
        join: Option<String> = None,
        /// The file with the token to join with, as `pondhawk-scheduler token` prints it. Read at each try, so it may be
        /// renewed in place; not needed again once the node has its certificate. Default null.
        token: Option<PathBuf> = None,
        /// Where other nodes join this one, if it is its own scheduler. Unit: address:port, or off: this node stays alone.
        /// Cost: only nodes with a token or certificate get an answer. Default 0.0.0.0:65100.
        listen: Listen = anywhere(65100),
        /// Where this node's own scheduler shows people the cluster, and Prometheus its metrics. Unit: address:port, or off. Cost:
        /// a little memory; whoever looks needs the token that `pondhawk token --page` prints, which travels unencrypted: from
        /// other machines only by way of something that speaks TLS, or ssh -L. Default off; 127.0.0.1:65101 is the usual place.
        page: Listen = Listen(None),
    }
}

section! {
    /// Where the time of requests went.
    Tracing {
        /// The collector that gets them, by OTLP over gRPC. Unit: `http://host:port`, or `https://host:port` with a certificate that
        /// the system trusts; null: nothing is traced. Cost: a thread, and a few spans of some 600 bytes for each request that is
        /// traced, of which 2048 wait at most: a collector that is slow or away loses some and slows nobody down. They tell who
        /// reads it hosts and paths of URLs, never a query, and names of nodes. Default null.
        endpoint: Option<String> = None,
        /// The share of requests that is traced. Unit: a number from 0 to 1. The same on all nodes: what one traces, its parents
        /// do. Default 1.0: whoever sets an endpoint for a try sees something; 0.01 is plenty for a busy cluster.
        sample: f64 = 1.0,
        /// Whether a client's `traceparent` header puts its request into its own trace, and says whether that is recorded.
        /// Cost: who reaches the node can have everything traced, or all of it in one trace. Default false: a trace of the node's own,
        /// which refers to the client's, and `sample` decides.
        follow: bool = false,
    }
}

section! {
    /// Bounds on what a node takes in and holds in memory.
    Limits {
        /// The longest request head. Unit: bytes, 4KiB to 1MiB. Cost: that much for each client that sends one. Default 64KiB:
        /// signed URLs of 8 KiB and cookies fit several times.
        head_bytes: Size = Size(64 << 10),
        /// The most header fields in a request. Unit: fields, up to 1024. Default 128: clients send 10, proxies add a few.
        headers: u16 = 128,
        /// How long a connection may wait between requests. Unit: time. Cost: a descriptor. Default 60s: clients reuse theirs
        /// within seconds.
        idle_timeout: Period = Period::secs(60),
        /// How long a client's TLS handshake may take after its first message. Unit: time. Default 10s: slower ones have given up.
        handshake_timeout: Period = Period::secs(10),
        /// How long a client may take nothing in the middle of a reply before it is cut off. Unit: time. Cost of more: a reply
        /// holds a buffer. Default 60s.
        send_stall: Period = Period::secs(60),
        /// Client connections at a time, all ways in together. A client may hold a quarter of them: an intercepted one is a
        /// local user or a network namespace, one of the proxy port an address (a /64 of IPv6; all of this machine together
        /// three quarters). Beyond that, and when seven eighths of all are open, intercepted clients go direct, and connections
        /// to the proxy port are closed. Unit: connections. Cost: about 4 KiB each when idle. Default 16384.
        connections: u32 = 16384,
        /// Downloads from origins at a time; what is asked for beyond them is passed through and not kept. Unit: tasks. Cost:
        /// up to origin.connections_per_host connections each. Default 64.
        downloads: u32 = 64,
        /// Memory for the buffers between disks and sockets, all shards together; every shard gets at least 8 buffers. Unit:
        /// bytes. Cost: that memory while clients are busy; 8 buffers a shard of it are locked from the start. Default 32MiB:
        /// two for each of 64 clients at a time.
        buffer_memory: Size = Size(32 << 20),
        /// One of those buffers. Unit: bytes, a multiple of 4KiB, 16KiB to 4MiB. Default 256KiB: larger ones gained nothing.
        buffer_size: Size = Size(256 << 10),
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people and journald.
    Text,
    /// One object a line.
    Json,
}

/// On, off, or on where it can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Switch {
    /// On where the process is capable of it.
    Auto,
    /// On, or no start.
    #[serde(alias = "true")]
    On,
    /// Off.
    #[serde(alias = "false")]
    Off,
}

/// How a connection is chosen to be caught.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InterceptMode {
    /// By addresses that DNS gave for the hosts.
    Dns,
    /// Every one to port 443.
    All,
}

impl Keys for LogFormat {}
impl Keys for Switch {}
impl Keys for InterceptMode {}

impl Config {
    /// How many shards run on this machine.
    pub fn shard_count(&self) -> usize {
        match self.shards {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => usize::from(n),
        }
    }
}

impl Scheduler {
    /// The schedulers to join, each as host:port; none: this node is its own.
    pub fn places(&self) -> Vec<&str> {
        self.join.iter().flat_map(|join| join.split(',')).map(str::trim).collect()
    }
}

impl Limits {
    /// Fewest buffers a shard.
    pub const MIN_BUFFERS: usize = 8;

    /// How many buffers each of `shards` shards gets.
    pub fn buffers_per_shard(&self, shards: usize) -> usize {
        (self.buffer_memory.as_usize() / self.buffer_size.as_usize().max(1) / shards.max(1)).max(Self::MIN_BUFFERS)
    }
}

impl Config {
    /// Where the admin socket is; `None`: it is off.
    pub fn admin_socket(&self) -> Option<PathBuf> {
        match &self.admin.socket {
            Some(path) => path.0.clone(),
            None => Some(self.data_dir.join(ADMIN_SOCKET)),
        }
    }
}

fn anywhere(port: u16) -> Listen {
    Listen(Some(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))))
}

fn loopback(port: u16) -> Listen {
    Listen(Some((Ipv4Addr::LOCALHOST, port).into()))
}

#[cfg(test)]
mod tests;
