//! Which faults were in force when: what can excuse a failed download.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::schedule::{NODES, NodeFault, OriginFault};
use crate::hub::FaultKind;

/// The heartbeat of the interception is stale a second after its node stopped; a busy machine takes somewhat longer.
const HEARTBEAT_GRACE: Duration = Duration::from_secs(3);
/// Ranges of a file whose bytes were wrong are refused for two minutes (`WHOLE_ONLY` of the node).
const WRONG_BYTES_GRACE: Duration = Duration::from_secs(121);
/// A download that a fault of the origin has hit may fail somewhat later, after its retries.
const ORIGIN_GRACE: Duration = Duration::from_secs(15);

/// From when to when something was so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: Instant,
    pub(super) end: Instant,
}

impl Span {
    fn overlaps(&self, start: Instant, end: Instant) -> bool {
        self.start <= end && start <= self.end
    }
}

/// What happened to a node.
#[derive(Clone, Copy, Debug)]
struct NodeTrouble {
    kind: NodeFault,
    start: Instant,
    /// None: not over.
    end: Option<Instant>,
}

/// What the origin did wrong.
#[derive(Clone, Debug)]
struct OriginTrouble {
    fault: OriginFault,
    start: Instant,
    end: Option<Instant>,
}

/// All faults of a run with their times.
#[derive(Debug, Default)]
pub(super) struct TroubleLog {
    nodes: [Mutex<Vec<NodeTrouble>>; NODES],
    origin: Mutex<Vec<OriginTrouble>>,
}

impl TroubleLog {
    /// A fault of this node begins.
    pub(super) fn begin_node(&self, node: usize, kind: NodeFault) {
        lock(&self.nodes[node]).push(NodeTrouble { kind, start: Instant::now(), end: None });
    }

    /// It is over, and the node serves again.
    pub(super) fn end_node(&self, node: usize) {
        if let Some(last) = lock(&self.nodes[node]).last_mut() {
            last.end = Some(Instant::now());
        }
    }

    /// The origin may do this wrong from now on.
    pub(super) fn begin_origin(&self, fault: OriginFault) {
        lock(&self.origin).push(OriginTrouble { fault, start: Instant::now(), end: None });
    }

    /// No longer.
    pub(super) fn end_origin(&self) {
        if let Some(last) = lock(&self.origin).last_mut() {
            last.end = Some(Instant::now());
        }
    }

    /// The fault that excuses a failed try from `span.start` to `span.end` by a client of this node. A client that names the node as its
    /// proxy or mirror fails as long as the node is away. One that is intercepted fails only if the node stopped during the
    /// try or just before it: afterwards it must be led past the node. A full disk never excuses anything.
    pub(super) fn excuse(&self, node: usize, intercepted: bool, span: Span) -> Option<NodeFault> {
        let troubles = lock(&self.nodes[node]);
        let excuses = |trouble: &&NodeTrouble| match (trouble.kind, intercepted) {
            (NodeFault::FillDisk, _) => false,
            (NodeFault::Kill | NodeFault::Freeze, true) => {
                trouble.start <= span.end && trouble.start + HEARTBEAT_GRACE >= span.start
            }
            _ => trouble.span(Duration::ZERO).overlaps(span.start, span.end),
        };
        troubles.iter().rev().find(excuses).map(|trouble| trouble.kind)
    }

    /// Whether the node may have passed bytes through that it could not check, for want of itself or of its store.
    pub(super) fn was_passed_through(&self, node: usize, span: Span) -> bool {
        lock(&self.nodes[node]).iter().any(|trouble| trouble.span(HEARTBEAT_GRACE).overlaps(span.start, span.end))
    }

    /// What the origin did wrong to this file during a try, the latest first.
    pub(super) fn origin_faults(&self, file: usize, span: Span) -> Vec<OriginFault> {
        let hit = |trouble: &&OriginTrouble| {
            let grace = match trouble.fault.kind {
                FaultKind::CorruptByte { .. } => WRONG_BYTES_GRACE,
                _ => ORIGIN_GRACE,
            };
            let all = Span { start: trouble.start, end: trouble.end.unwrap_or_else(Instant::now) + grace };
            trouble.fault.file.is_none_or(|only| only == file) && all.overlaps(span.start, span.end)
        };
        let mut found: Vec<OriginFault> = Vec::new();
        for trouble in lock(&self.origin).iter().rev().filter(hit) {
            if !found.contains(&trouble.fault) {
                found.push(trouble.fault.clone());
            }
        }
        found
    }

    /// Whether a node's disk has been full, and whether the origin has sent wrong bytes, at any time of the run.
    pub(super) fn had(&self, node: usize) -> (bool, bool) {
        let full = lock(&self.nodes[node]).iter().any(|trouble| trouble.kind == NodeFault::FillDisk);
        let corrupt = |trouble: &OriginTrouble| matches!(trouble.fault.kind, FaultKind::CorruptByte { .. });
        (full, lock(&self.origin).iter().any(corrupt))
    }
}

impl NodeTrouble {
    fn span(&self, grace: Duration) -> Span {
        Span { start: self.start, end: self.end.unwrap_or_else(Instant::now) + grace }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(start: Instant, from: u64, to: u64) -> Span {
        Span { start: start + Duration::from_secs(from), end: start + Duration::from_secs(to) }
    }

    #[test]
    fn a_dead_node_excuses_its_proxy_clients_throughout_and_intercepted_ones_only_at_first() {
        let log = TroubleLog::default();
        let start = Instant::now();
        let end = Some(start + Duration::from_secs(20));
        lock(&log.nodes[1]).push(NodeTrouble { kind: NodeFault::Kill, start, end });
        assert_eq!(log.excuse(1, false, span(start, 10, 11)), Some(NodeFault::Kill));
        assert_eq!(log.excuse(1, true, span(start, 2, 11)), Some(NodeFault::Kill));
        assert_eq!(log.excuse(1, true, span(start, 10, 11)), None);
        assert_eq!(log.excuse(1, false, span(start, 21, 22)), None);
        assert_eq!(log.excuse(0, false, span(start, 10, 11)), None);
    }

    #[test]
    fn a_full_disk_excuses_no_failure_but_bytes_that_were_not_checked() {
        let log = TroubleLog::default();
        log.begin_node(2, NodeFault::FillDisk);
        let now = Instant::now();
        assert_eq!(log.excuse(2, false, span(now, 0, 1)), None);
        assert!(log.was_passed_through(2, span(now, 0, 1)));
        assert!(!log.was_passed_through(3, span(now, 0, 1)));
    }

    #[test]
    fn a_fault_of_one_file_excuses_no_other() {
        let log = TroubleLog::default();
        log.begin_origin(OriginFault { kind: FaultKind::CorruptByte { offset: 1 }, file: Some(3) });
        log.end_origin();
        let now = Instant::now();
        assert_eq!(log.origin_faults(3, span(now, 100, 101)).len(), 1);
        assert_eq!(log.origin_faults(4, span(now, 0, 1)), []);
        assert_eq!(log.origin_faults(3, span(now, 130, 131)), []);
    }
}
