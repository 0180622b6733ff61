//! The maps. User space knows them by their names.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray},
};
use pondhawk_ebpf::{
    Address, AnswerRecord, CANDIDATE_WORDS, Config, Decision, DnsQuery, FlowKey, MAX_BYPASSED, MAX_FLOWS, MAX_KNOWN,
    MAX_NAMESPACES, MAX_OVERHEARD, MAX_PENDING, MAX_QUERIES, MAX_SUFFIXES, NamespaceAddress, NamespaceReach, Original,
    REACH_GRACE_NANOS, REACH_TRIAL_NANOS, SUFFIX_LEN, Source,
};

#[map]
static CONFIG: Array<Config> = Array::with_max_entries(1, 0);
/// When the node was last alive, CLOCK_MONOTONIC in nanoseconds; 0: never; `HEARTBEAT_PAUSED`: it takes no more for now.
#[map]
static HEARTBEAT: Array<u64> = Array::with_max_entries(1, 0);
#[map]
static DECISIONS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Decision::COUNT, 0);
/// Socket cookie -> where it was going, between `connect` and the end of the handshake.
#[map]
pub(crate) static PENDING: LruHashMap<u64, Original> = LruHashMap::with_max_entries(MAX_PENDING, 0);
/// Established connection -> where it was going, until the node asks.
///
/// The node knows a connection only by its addresses, so a network namespace that has given itself another pod's address and
/// the node's could write that pod's entry between the pod's handshake and the node's accept. It gains nothing: the entry
/// names the writer as the source, so the rules for the writer's own namespace decide where the connection may lead, and TLS
/// shows the pod that it is not where it meant to be. Connections of the node's own namespace have loopback addresses here,
/// which the programs give to no other namespace.
#[map]
pub(crate) static FLOWS: LruHashMap<FlowKey, Original> = LruHashMap::with_max_entries(MAX_FLOWS, 0);
/// Wanted destination that the node resolved itself -> until when, CLOCK_MONOTONIC in nanoseconds. It holds for every network
/// namespace, and no packet changes it.
#[map]
static KNOWN: HashMap<Address, u64> = HashMap::with_max_entries(MAX_KNOWN, 0);
/// Wanted destination that a name server gave to a socket of this network namespace, which holds for this namespace alone.
#[map]
static OVERHEARD: LruHashMap<NamespaceAddress, AnswerRecord> = LruHashMap::with_max_entries(MAX_OVERHEARD, 0);
/// A sketch of all destinations in `KNOWN` and `OVERHEARD`, whose bits stay set when these end: what is not in it is not
/// wanted, and costs one look at an array instead of two into hash maps. Most connections to port 443 are such.
///
/// Who fills it with answers of its own makes connections cost what they would without it. Words are changed without a lock,
/// so that one of two bits set at the same time can be lost; the next answer sets it again.
#[map]
static CANDIDATES: Array<u64> = Array::with_max_entries(CANDIDATE_WORDS, 0);
/// Question to a name server -> the network namespace (`SO_NETNS_COOKIE`) of the socket that asked.
#[map]
static QUERIES: LruHashMap<DnsQuery, u64> = LruHashMap::with_max_entries(MAX_QUERIES, 0);
/// Network namespace (`SO_NETNS_COOKIE`) -> whether its redirected connections arrive.
#[map]
static NAMESPACES: LruHashMap<u64, NamespaceReach> = LruHashMap::with_max_entries(MAX_NAMESPACES, 0);
/// Source that is left alone -> until when, CLOCK_MONOTONIC in nanoseconds.
#[map]
static BYPASS: LruHashMap<Source, u64> = LruHashMap::with_max_entries(MAX_BYPASSED, 0);
/// Wanted host suffixes: wire form, backwards, so that the longest prefix is the longest suffix.
#[map]
pub(crate) static SUFFIXES: LpmTrie<[[u8; 8]; SUFFIX_LEN / 8], u8> = LpmTrie::with_max_entries(MAX_SUFFIXES, 0);

/// The node's settings; None before it wrote them.
#[inline(always)]
pub(crate) fn config() -> Option<&'static Config> {
    CONFIG.get(0).filter(|config| config.mode != 0)
}

/// When the node was last alive, in nanoseconds.
#[inline(always)]
pub(crate) fn last_beat() -> u64 {
    HEARTBEAT.get(0).copied().unwrap_or(0)
}

/// Adds one to a decision's counter.
#[inline(always)]
pub(crate) fn count(decision: Decision) {
    if let Some(counter) = DECISIONS.get_ptr_mut(decision as u32) {
        // SAFETY: the kernel's pointer to this CPU's slot; programs of one CPU do not preempt each other in the middle
        // of an addition that matters more than a statistic.
        unsafe { *counter += 1 }
    }
}

/// Whether the destination may be wanted. It is not where this says no.
#[inline(always)]
pub(crate) fn is_candidate(address: &Address) -> bool {
    let (word, mask) = address.candidate_bit();
    CANDIDATES.get(word).is_some_and(|bits| *bits & mask != 0)
}

#[inline(always)]
fn mark_candidate(address: &Address) {
    let (word, mask) = address.candidate_bit();
    if let Some(bits) = CANDIDATES.get_ptr_mut(word) {
        // SAFETY: the kernel's pointer into the array, whose memory outlives the program; a word is written at once.
        unsafe { *bits |= mask }
    }
}

/// Whether the node itself resolved a wanted name to this address.
#[inline(always)]
pub(crate) fn is_known(address: &Address, now: u64) -> bool {
    // SAFETY: an entry that is reused meanwhile holds another address's time: one connection takes the other of two good ways.
    unsafe { KNOWN.get(address) }.is_some_and(|until| *until > now)
}

/// Whether a DNS answer gave this address for a wanted name, and the node does not refuse to connect to it.
#[inline(always)]
pub(crate) fn is_overheard(destination: &NamespaceAddress, now: u64) -> bool {
    // SAFETY: as for `is_known`.
    unsafe { OVERHEARD.get(destination) }.is_some_and(|record| record.until > now && record.refused_until <= now)
}

/// Makes a destination wanted until `until`, or longer if it already is. A refusal stays.
#[inline(always)]
pub(crate) fn record_answer(destination: &NamespaceAddress, until: u64) {
    mark_candidate(&destination.address);
    if let Some(record) = OVERHEARD.get_ptr_mut(destination) {
        // SAFETY: the kernel's pointer into the map, whose memory outlives the program; a word is written at once.
        unsafe { (*record).until = until.max((*record).until) }
        return;
    }
    // The map evicts, so it fails only when another CPU holds the last free entries: the next answer teaches again.
    let _ = OVERHEARD.insert(destination, AnswerRecord { until, refused_until: 0 }, 0);
}

/// Remembers that a socket asks a name server.
#[inline(always)]
pub(crate) fn record_query(query: &DnsQuery, netns_cookie: u64) {
    // As above: without the entry the answer is ignored.
    let _ = QUERIES.insert(query, netns_cookie, 0);
}

/// The network namespace of the socket, if it asked this name server.
#[inline(always)]
pub(crate) fn asker(query: &DnsQuery) -> Option<u64> {
    // SAFETY: as for `is_known`; a reused entry holds the cookie of another namespace that asks name servers, and all it gains
    // is one destination of its own.
    unsafe { QUERIES.get(query) }.copied()
}

/// Whether this source is left alone.
#[inline(always)]
pub(crate) fn is_bypassed(source: &Source, now: u64) -> bool {
    // SAFETY: as for `is_known`.
    unsafe { BYPASS.get(source) }.is_some_and(|until| *until > now)
}

/// Whether a connection from this network namespace may be redirected, and records that it is.
///
/// Until a first handshake has shown that the node can be reached, one connection at a time has to find out, so that a
/// packet filter in between costs one client its patience. Where redirected connections stop arriving, one a minute does.
#[inline(always)]
pub(crate) fn admit(netns_cookie: u64, now: u64) -> Result<(), Decision> {
    let Some(reach) = NAMESPACES.get_ptr_mut(netns_cookie) else {
        let reach = NamespaceReach { failing_since: now, last_trial: now, established: 0 };
        // Without an entry the next connection is a first one again.
        let _ = NAMESPACES.insert(netns_cookie, reach, 0);
        return Ok(());
    };
    // SAFETY: the kernel's pointer into the map, whose memory outlives the program. Words are read and written at once; what
    // CPUs do to each other's times moves a deadline by microseconds.
    unsafe {
        let failing_since = (*reach).failing_since;
        if failing_since == 0 {
            (*reach).failing_since = now;
            (*reach).last_trial = now;
            return Ok(());
        }
        if now.saturating_sub(failing_since) < REACH_GRACE_NANOS {
            return if (*reach).established == 0 { Err(Decision::Untried) } else { Ok(()) };
        }
        if now.saturating_sub((*reach).last_trial) < REACH_TRIAL_NANOS {
            return Err(Decision::Unreachable);
        }
        (*reach).last_trial = now;
    }
    Ok(())
}

/// Records a finished handshake of a redirected connection. In the node's own network namespace that proves that it arrives.
/// From another one something in between may have taken it, such as a sidecar proxy: the node records the arrival itself.
#[inline(always)]
pub(crate) fn record_handshake(netns_cookie: u64, now: u64, ours: bool) {
    if let Some(reach) = NAMESPACES.get_ptr_mut(netns_cookie) {
        // SAFETY: as in `admit`.
        unsafe {
            (*reach).established = now;
            if ours {
                (*reach).failing_since = 0;
            }
        }
    }
}
