//! Attaches the eBPF programs and speaks to them through their maps.
//!
//! The programs redirect only while the heartbeat is fresh, and fall away with this process: whatever happens to the
//! node, new connections go where their clients meant them to go.

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use aya::{
    Ebpf, EbpfError, Pod,
    maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, lpm_trie::Key},
    programs::{CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, CgroupSockAddr, ProgramError, SockOps},
};
use pondhawk_ebpf::{
    Address, AnswerRecord, Config, Decision, FlowKey, HEARTBEAT_PAUSED, MAX_SUFFIXES, NamespaceAddress, NamespaceReach,
    Original, SUFFIX_LEN, user,
};
use rustix::{
    fs::fstatfs,
    thread::{CapabilitySet, capabilities},
    time::{ClockId, clock_gettime},
};

use super::bypass::{Source, cgroup2_mount};

#[cfg(interception)]
const OBJECT: Option<&[u8]> = Some(aya::include_bytes_aligned!(env!("PONDHAWK_EBPF_OBJECT")));
#[cfg(not(interception))]
const OBJECT: Option<&[u8]> = None;

/// The tool chain that compiled the programs; None if there was none, and [`Interceptor::attach`] says so.
pub const BUILT_WITH: Option<&str> = option_env!("PONDHAWK_EBPF_TOOLCHAIN");

/// Which connections to port 443 are redirected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Those to addresses that DNS answers or the node's own resolver gave for a wanted name.
    Dns,
    /// All of the node's own network namespace, where the server name decides afterwards; elsewhere as [`Mode::Dns`].
    All,
}

/// How to intercept.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whose connections are seen: those of the processes in this cgroup and below it. None: the cgroup2 root, that is
    /// every process of the machine.
    pub cgroup: Option<PathBuf>,
    /// Which connections are redirected.
    pub mode: Mode,
    /// Where the node listens: on 127.0.0.1 and `::1`, and on the addresses below.
    pub port: u16,
    /// `SO_MARK` of the node's own sockets, which are left alone. Not 0.
    pub mark: u32,
    /// Wanted host names and all below them, such as `hf.co`. At most 16, of at most 39 characters.
    pub suffixes: Vec<String>,
    /// The node's address for clients in other network namespaces. None: their IPv4 connections go direct.
    pub node_v4: Option<Ipv4Addr>,
    /// As `node_v4`, for IPv6.
    pub node_v6: Option<Ipv6Addr>,
    /// After so long without [`Interceptor::beat`], connections go direct.
    pub max_silence: Duration,
    /// Whether destinations in private networks are redirected: from the node's own network namespace those that DNS answers
    /// gave too, from others only those that [`Interceptor::learn`] was given.
    pub allow_private: bool,
}

/// Why there is no interception.
#[derive(Debug, thiserror::Error)]
pub enum InterceptError {
    /// The build found no eBPF tool chain.
    #[error(
        "interception is not built into this binary: no eBPF tool chain was there when it was compiled; \
         run `cargo xtask setup` and build again"
    )]
    NotBuilt,
    /// The process lacks capabilities.
    #[error(
        "interception needs {0}: run as root, or grant it (systemd: AmbientCapabilities=CAP_BPF CAP_NET_ADMIN; \
         Kubernetes: securityContext.capabilities.add)"
    )]
    MissingCapability(String),
    /// No cgroup2 file system in /proc/self/mounts.
    #[error("interception needs the cgroup v2 hierarchy, and none is mounted (mount -t cgroup2 none /sys/fs/cgroup)")]
    NoCgroup2,
    /// The cgroup cannot be opened, or is none.
    #[error("cannot attach to cgroup {path}: {source}", path = path.display())]
    Cgroup {
        /// The cgroup's directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// An option that cannot be.
    #[error("{0}")]
    Option(String),
    /// The node's network namespace cannot be told.
    #[error("cannot tell the network namespace (SO_NETNS_COOKIE, Linux 5.14)")]
    Namespace(#[source] io::Error),
    /// The kernel does not take the object.
    #[error("the kernel refuses the eBPF maps")]
    Load(#[source] Box<EbpfError>),
    /// The kernel does not take, or attach, a program.
    #[error("the kernel refuses the eBPF program {name}")]
    Program {
        /// The program's name.
        name: &'static str,
        /// Why; has the verifier's log.
        source: Box<ProgramError>,
    },
    /// The kernel does not take an entry.
    #[error("the kernel refuses an entry of the eBPF map {name}")]
    Map {
        /// The map's name.
        name: &'static str,
        /// Why.
        source: Box<MapError>,
    },
    /// The embedded object is not the one this code was written for.
    #[error("the eBPF object has no {0}")]
    Object(&'static str),
}

/// A redirected connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flow {
    /// Where its client wanted to go.
    pub destination: SocketAddr,
    /// Who its client is.
    pub source: Source,
}

pub(super) type Entries<K, V> = Mutex<HashMap<MapData, K, V>>;

/// The attached programs. Dropping it detaches them; connections already redirected stay.
pub struct Interceptor {
    heartbeat: Mutex<Array<MapData, u64>>,
    flows: Entries<FlowKey, Original>,
    known: Entries<Address, u64>,
    candidates: Mutex<Array<MapData, u64>>,
    overheard: Entries<NamespaceAddress, AnswerRecord>,
    pub(super) namespaces: Entries<u64, NamespaceReach>,
    bypassed: Entries<pondhawk_ebpf::Source, u64>,
    decisions: PerCpuArray<MapData, u64>,
    own_netns: u64,
    // Owns the links.
    _programs: Mutex<Ebpf>,
}

impl Interceptor {
    /// Loads the programs, fills in their settings and attaches them. Nothing is redirected before the first
    /// [`beat`](Self::beat).
    ///
    /// Must be called in the network namespace that the node listens in.
    pub fn attach(options: &Options) -> Result<Self, InterceptError> {
        let object = OBJECT.ok_or(InterceptError::NotBuilt)?;
        check_capabilities()?;
        let suffixes = suffix_keys(&options.suffixes)?;
        let config = config(options)?;
        let cgroup = open_cgroup(options)?;
        let mut ebpf = Ebpf::load(object).map_err(|error| InterceptError::Load(Box::new(error)))?;
        fill(&mut ebpf, config, &suffixes)?;
        let interceptor = Self {
            heartbeat: Mutex::new(take(&mut ebpf, "HEARTBEAT")?),
            flows: Mutex::new(take(&mut ebpf, "FLOWS")?),
            known: Mutex::new(take(&mut ebpf, "KNOWN")?),
            candidates: Mutex::new(take(&mut ebpf, "CANDIDATES")?),
            overheard: Mutex::new(take(&mut ebpf, "OVERHEARD")?),
            namespaces: Mutex::new(take(&mut ebpf, "NAMESPACES")?),
            bypassed: Mutex::new(take(&mut ebpf, "BYPASS")?),
            decisions: take(&mut ebpf, "DECISIONS")?,
            own_netns: config.netns_cookie,
            _programs: Mutex::new(attach_programs(ebpf, &cgroup)?),
        };
        Ok(interceptor)
    }

    /// Says that the node is there and accepts connections: to be called several times within `max_silence`, and no
    /// longer before the listener closes, so that the last redirected connection is still accepted.
    pub fn beat(&self) {
        // An entry of an array can always be set; if it cannot, connections go direct.
        let _ = lock(&self.heartbeat).set(0, now(), 0);
    }

    /// Has new connections go direct until the next [`beat`](Self::beat), since the node has no room for them.
    pub fn pause(&self) {
        // As in `beat`.
        let _ = lock(&self.heartbeat).set(0, HEARTBEAT_PAUSED, 0);
    }

    /// Takes the last beat back: from now on connections go direct.
    pub fn silence(&self) {
        // As in `beat`; the programs are detached soon after in any case.
        let _ = lock(&self.heartbeat).set(0, 0, 0);
    }

    /// Where the connection accepted from `peer` at `local` was going. Answers once: the entry is removed.
    ///
    /// The connection also proves that its network namespace can reach the node.
    ///
    /// None: the programs did not redirect it, or its entry has been evicted. It must be closed.
    pub fn original(&self, peer: SocketAddr, local: SocketAddr) -> Option<Flow> {
        let key = FlowKey {
            client: Address::from(peer.ip()),
            server: Address::from(local.ip()),
            client_port: peer.port(),
            server_port: local.port(),
        };
        let mut flows = lock(&self.flows);
        let original = flows.get(&key, 0).ok()?;
        // Already evicted is as good.
        let _ = flows.remove(&key);
        drop(flows);
        self.record_arrival(original.source.netns_cookie);
        let port = u16::try_from(original.port).ok()?;
        let destination = SocketAddr::new(IpAddr::from(original.address), port);
        Some(Flow { destination, source: original.source.into() })
    }

    /// Leaves new connections from `source` alone for `how_long`. At most 1,024 sources; the least recently used one
    /// makes room.
    pub fn bypass(&self, source: &Source, how_long: Duration) {
        if let Err(error) = lock(&self.bypassed).insert(pondhawk_ebpf::Source::from(*source), later(how_long), 0) {
            tracing::warn!(%error, "cannot bypass a source");
        }
    }

    /// Has new connections of all sources that share `source`'s limits go direct for `how_long`: in the node's own network
    /// namespace those of its user, elsewhere those of its namespace.
    pub fn bypass_party(&self, source: &Source, how_long: Duration) {
        let party = pondhawk_ebpf::Source::from(*source).party(self.own_netns);
        self.bypass(&party.into(), how_long);
    }

    /// Whether the source is in the network namespace that the node listens in.
    pub fn is_own_namespace(&self, source: &Source) -> bool {
        source.netns_cookie == self.own_netns
    }

    /// Makes connections to `address` wanted in every network namespace for `ttl`, or longer if they already are. For addresses
    /// that the node itself resolved: they also count as proven when a connection to them is passed on.
    pub fn learn(&self, address: IpAddr, ttl: Duration) {
        let (address, until) = (Address::from(address), later(ttl));
        self.mark_candidate(&address);
        let mut known = lock(&self.known);
        if known.get(&address, 0).is_ok_and(|known| known >= until) {
            return;
        }
        if known.insert(address, until, 0).is_ok() {
            return;
        }
        // The map evicts nothing, so that no packet can.
        let now = now();
        let over = |(address, until): (Address, u64)| (until <= now).then_some(address);
        let ended: Vec<Address> = known.iter().filter_map(Result::ok).filter_map(over).collect();
        for address in ended {
            let _ = known.remove(&address);
        }
        if let Err(error) = known.insert(address, until, 0) {
            tracing::warn!(%error, "an address of a wanted host cannot be recorded; connections to it may go direct");
        }
    }

    /// Sets the address's bit in the sketch that the programs look at first.
    fn mark_candidate(&self, address: &Address) {
        let (word, mask) = address.candidate_bit();
        let mut candidates = lock(&self.candidates);
        let marked = candidates.get(&word, 0).and_then(|bits| candidates.set(word, bits | mask, 0));
        if let Err(error) = marked {
            tracing::warn!(%error, "an address of a wanted host cannot be marked; connections to it may go direct");
        }
    }

    /// Whether [`learn`](Self::learn) was given the address, and its time is not over.
    pub fn knows(&self, address: IpAddr) -> bool {
        lock(&self.known).get(&Address::from(address), 0).is_ok_and(|until| until > now())
    }

    /// Has new connections from the source's network namespace to an overheard address go direct for `how_long`.
    pub fn refuse(&self, source: &Source, address: IpAddr, how_long: Duration) {
        let key = NamespaceAddress { netns_cookie: source.netns_cookie, address: Address::from(address) };
        let until = later(how_long);
        let record = AnswerRecord { until, refused_until: until };
        if let Err(error) = lock(&self.overheard).insert(key, record, 0) {
            tracing::warn!(%error, "a destination that the node refuses cannot be recorded");
        }
    }

    /// How often the programs decided what, since they were attached; names as in metrics.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let total = |decision| {
            let values = self.decisions.get(&(decision as u32), 0);
            values.map_or(0, |each_cpu| each_cpu.iter().sum())
        };
        Decision::ALL.into_iter().map(|decision| (decision.name(), total(decision))).collect()
    }

    /// The wanted addresses, and for how long yet: those of every network namespace, and those that DNS answers gave to one.
    pub fn learnt(&self) -> Vec<(IpAddr, Duration)> {
        let known = current(&self.known).into_iter().map(|(address, left)| (IpAddr::from(address), left));
        known.chain(self.overheard().into_iter().map(|(_, address, left)| (address, left))).collect()
    }

    /// What DNS answers taught: the cookie of the network namespace, the address, and for how long yet. Without those that the
    /// node refuses.
    pub fn overheard(&self) -> Vec<(u64, IpAddr, Duration)> {
        let now = now();
        let left = |(key, record): (NamespaceAddress, AnswerRecord)| {
            let wanted = record.until > now && record.refused_until <= now;
            wanted.then(|| (key.netns_cookie, key.address.into(), Duration::from_nanos(record.until - now)))
        };
        lock(&self.overheard).iter().filter_map(Result::ok).filter_map(left).collect()
    }

    /// The sources that are left alone, and for how long yet.
    pub fn bypassed(&self) -> Vec<(Source, Duration)> {
        current(&self.bypassed).into_iter().map(|(source, left)| (Source::from(source), left)).collect()
    }
}

/// The entries whose time has not come.
fn current<K: Pod>(map: &Entries<K, u64>) -> Vec<(K, Duration)> {
    let now = now();
    let left = |(key, until): (K, u64)| (until > now).then(|| (key, Duration::from_nanos(until - now)));
    lock(map).iter().filter_map(Result::ok).filter_map(left).collect()
}

/// A panic while a map was locked cannot leave it half-written: the kernel's calls are atomic.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// CLOCK_MONOTONIC in nanoseconds, the clock of `bpf_ktime_get_ns`.
pub(super) fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

fn later(by: Duration) -> u64 {
    now().saturating_add(nanos(by))
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// What loading and attaching need (capabilities(7)). CAP_NET_ADMIN is also what `SO_MARK` needs.
fn check_capabilities() -> Result<(), InterceptError> {
    let held = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    let mut missing = Vec::new();
    if !held.intersects(CapabilitySet::BPF | CapabilitySet::SYS_ADMIN) {
        missing.push("CAP_BPF");
    }
    if !held.contains(CapabilitySet::NET_ADMIN) {
        missing.push("CAP_NET_ADMIN");
    }
    if missing.is_empty() { Ok(()) } else { Err(InterceptError::MissingCapability(missing.join(" and "))) }
}

fn open_cgroup(options: &Options) -> Result<File, InterceptError> {
    let path = options.cgroup.clone().or_else(cgroup2_mount).ok_or(InterceptError::NoCgroup2)?;
    open_cgroup2(&path).map_err(|source| InterceptError::Cgroup { path, source })
}

/// Any directory opens; only one of a cgroup2 file system can be attached to.
fn open_cgroup2(path: &Path) -> io::Result<File> {
    /// CGROUP2_SUPER_MAGIC (linux/magic.h).
    const MAGIC: u64 = 0x6367_7270;
    let file = File::open(path)?;
    let is_cgroup2 = u64::try_from(fstatfs(&file)?.f_type) == Ok(MAGIC);
    if is_cgroup2 { Ok(file) } else { Err(io::Error::other("not a directory of a cgroup2 file system")) }
}

fn config(options: &Options) -> Result<Config, InterceptError> {
    if options.mark == 0 {
        return Err(InterceptError::Option("the mark of the node's own sockets must not be 0".to_owned()));
    }
    if options.port == 0 {
        return Err(InterceptError::Option("the intercept port must not be 0".to_owned()));
    }
    let socket = UnixDatagram::unbound().map_err(InterceptError::Namespace)?;
    Ok(Config {
        netns_cookie: user::netns_cookie(&socket).map_err(InterceptError::Namespace)?,
        max_silence: nanos(options.max_silence),
        mode: match options.mode {
            Mode::Dns => pondhawk_ebpf::MODE_DNS,
            Mode::All => pondhawk_ebpf::MODE_ALL,
        },
        mark: options.mark,
        port: options.port,
        loopback_v6: u16::from(UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()),
        node_v4: options.node_v4.map_or(0, user::network_order),
        node_v6: options.node_v6.map_or(Address::NONE, |address| Address::from(IpAddr::from(address))),
        allow_private: u32::from(options.allow_private),
        padding: 0,
    })
}

type SuffixKey = Key<[u8; SUFFIX_LEN]>;

fn suffix_keys(suffixes: &[String]) -> Result<Vec<SuffixKey>, InterceptError> {
    if suffixes.len() > MAX_SUFFIXES as usize {
        let count = suffixes.len();
        return Err(InterceptError::Option(format!("{count} host suffixes are too many: at most {MAX_SUFFIXES}")));
    }
    suffixes.iter().map(|suffix| suffix_key(suffix)).collect()
}

/// The suffix in DNS wire form (RFC 1035, 3.1) without the final zero byte, backwards.
fn suffix_key(suffix: &str) -> Result<SuffixKey, InterceptError> {
    let name = suffix.trim_start_matches("*.").trim_matches('.').to_ascii_lowercase();
    let is_label = |label: &str| {
        (1..64).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    if name.len() >= SUFFIX_LEN || !name.split('.').all(is_label) {
        let most = SUFFIX_LEN - 1;
        return Err(InterceptError::Option(format!("{suffix:?} is not a host suffix of at most {most} characters")));
    }
    let mut data = [0; SUFFIX_LEN];
    let mut at = 0;
    for label in name.rsplit('.') {
        for byte in label.bytes().rev().chain([label.len() as u8]) {
            data[at] = byte;
            at += 1;
        }
    }
    Ok(Key::new(at as u32 * 8, data))
}

/// Fills the maps that never change. They stay with `ebpf`, since programs are loaded with the maps' descriptors.
fn fill(ebpf: &mut Ebpf, config: Config, suffixes: &[SuffixKey]) -> Result<(), InterceptError> {
    let map = ebpf.map_mut("CONFIG").ok_or(InterceptError::Object("CONFIG"))?;
    Array::try_from(map).and_then(|mut map| map.set(0, config, 0)).map_err(|error| map_error("CONFIG", error))?;
    let map = ebpf.map_mut("SUFFIXES").ok_or(InterceptError::Object("SUFFIXES"))?;
    LpmTrie::try_from(map)
        .and_then(|mut map| suffixes.iter().try_for_each(|key| map.insert(key, 1_u8, 0)))
        .map_err(|error| map_error("SUFFIXES", error))
}

fn take<T: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, InterceptError> {
    let map = ebpf.take_map(name).ok_or(InterceptError::Object(name))?;
    T::try_from(map).map_err(|error| map_error(name, error))
}

fn map_error(name: &'static str, error: MapError) -> InterceptError {
    InterceptError::Map { name, source: Box::new(error) }
}

/// The connect hooks come last: nothing is redirected before its flow can be filed.
fn attach_programs(mut ebpf: Ebpf, cgroup: &File) -> Result<Ebpf, InterceptError> {
    // A link is of its own kind beside whatever else is attached: the flags that say so belong to the old interface.
    let mode = CgroupAttachMode::Single;
    attach::<SockOps>(&mut ebpf, "pondhawk_established", |program| {
        program.load()?;
        program.attach(cgroup, mode).map(drop)
    })?;
    attach::<CgroupSkb>(&mut ebpf, "pondhawk_ingress", |program| {
        program.load()?;
        program.attach(cgroup, CgroupSkbAttachType::Ingress, mode).map(drop)
    })?;
    for name in ["pondhawk_sendmsg4", "pondhawk_sendmsg6", "pondhawk_connect4", "pondhawk_connect6"] {
        attach::<CgroupSockAddr>(&mut ebpf, name, |program| {
            program.load()?;
            program.attach(cgroup, mode).map(drop)
        })?;
    }
    Ok(ebpf)
}

fn attach<'a, P>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
    go: impl FnOnce(&mut P) -> Result<(), ProgramError>,
) -> Result<(), InterceptError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
    P: 'a,
{
    let program = ebpf.program_mut(name).ok_or(InterceptError::Object(name))?;
    <&mut P>::try_from(program).and_then(go).map_err(|error| InterceptError::Program { name, source: Box::new(error) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suffix_is_stored_in_wire_form_backwards() {
        for text in ["hf.co", ".HF.co.", "*.hf.co"] {
            let key = suffix_key(text).unwrap();
            assert_eq!(key.prefix_len(), 6 * 8, "{text}");
            assert_eq!(&key.data()[..7], b"oc\x02fh\x02\x00", "{text}");
        }
    }

    #[test]
    fn what_cannot_be_a_suffix_is_refused_by_name() {
        let long = "a".repeat(20) + "." + &"b".repeat(20);
        for text in ["", ".", "a..b", "http://hf.co", "ä.co", &long, &"c".repeat(40)] {
            let error = suffix_key(text).err().unwrap().to_string();
            assert!(error.contains(&format!("{text:?}")), "{error}");
        }
        assert!(suffix_key(&"c".repeat(39)).is_ok());
        assert!(suffix_keys(&vec!["hf.co".to_owned(); 17]).is_err());
    }

    #[test]
    fn the_interceptor_can_be_shared() {
        fn shared<T: Send + Sync>() {}
        shared::<Interceptor>();
    }
}
