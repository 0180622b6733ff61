//! The maps. User space knows them by their names.

use aya_ebpf::{
    macros::map,
    maps::{Array, LpmTrie, LruHashMap, PerCpuArray},
};
use pondhawk_ebpf::{
    Address, Config, Decision, FlowKey, MAX_BYPASSED, MAX_FLOWS, MAX_LEARNT, MAX_PENDING, MAX_SUFFIXES, Original,
    SUFFIX_LEN, Source,
};

#[map]
static CONFIG: Array<Config> = Array::with_max_entries(1, 0);
/// When the node was last alive, CLOCK_MONOTONIC in nanoseconds; 0: never.
#[map]
static HEARTBEAT: Array<u64> = Array::with_max_entries(1, 0);
#[map]
static DECISIONS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Decision::COUNT, 0);
/// Socket cookie -> where it was going, between `connect` and the end of the handshake.
#[map]
pub(crate) static PENDING: LruHashMap<u64, Original> = LruHashMap::with_max_entries(MAX_PENDING, 0);
/// Established connection -> where it was going, until the node asks.
#[map]
pub(crate) static FLOWS: LruHashMap<FlowKey, Original> = LruHashMap::with_max_entries(MAX_FLOWS, 0);
/// Wanted destination -> until when, CLOCK_MONOTONIC in nanoseconds.
#[map]
static LEARNT: LruHashMap<Address, u64> = LruHashMap::with_max_entries(MAX_LEARNT, 0);
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

/// Whether a name we want has this address.
#[inline(always)]
pub(crate) fn is_learnt(address: &Address, now: u64) -> bool {
    learnt_until(address) > now
}

/// Makes an address wanted until `until`, or longer if it already was.
#[inline(always)]
pub(crate) fn learn(address: &Address, until: u64) {
    if learnt_until(address) < until {
        // The map evicts, so it fails only when another CPU holds the last free entries: the next answer teaches again.
        let _ = LEARNT.insert(address, until, 0);
    }
}

/// Whether this source is left alone.
#[inline(always)]
pub(crate) fn is_bypassed(source: &Source, now: u64) -> bool {
    // SAFETY: an entry reused under us holds another source's time: one connection goes the wrong one of two good ways.
    unsafe { BYPASS.get(source) }.is_some_and(|until| *until > now)
}

#[inline(always)]
fn learnt_until(address: &Address) -> u64 {
    // SAFETY: an entry reused under us holds another address's time, as above.
    unsafe { LEARNT.get(address) }.copied().unwrap_or(0)
}
