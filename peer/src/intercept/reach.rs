//! Which network namespaces cannot reach the node: their redirected connections leave and do not arrive.
//!
//! The programs stop redirecting such a namespace by themselves ([`pondhawk_ebpf::NamespaceReach`]). Here the node records
//! what arrived, and looks once a second at what did not, so that it can say what is in the way.

use std::{collections::HashSet, time::Duration};

use pondhawk_ebpf::{NamespaceReach, REACH_GRACE_NANOS};

use super::redirect::{Interceptor, lock, now};

/// How often the namespaces are looked at.
pub const REACH_PERIOD: Duration = Duration::from_secs(1);
/// A namespace without another attempt for this long is forgotten: it may be gone.
const FORGOTTEN_AFTER_NANOS: u64 = 600 * 1_000_000_000;

impl Interceptor {
    /// Records that a redirected connection of the namespace arrived.
    pub(super) fn record_arrival(&self, netns_cookie: u64) {
        let mut namespaces = lock(&self.namespaces);
        // Without an entry there is nothing outstanding.
        let Ok(reach) = namespaces.get(&netns_cookie, 0) else { return };
        if reach.failing_since != 0 {
            let arrived = NamespaceReach { failing_since: 0, established: now(), ..reach };
            // A failure leaves the namespace for one to be tried again.
            let _ = namespaces.insert(netns_cookie, arrived, 0);
        }
    }

    /// The network namespaces, by cookie, whose redirected connections do not arrive. Forgets those that try no longer.
    pub fn unreachable(&self) -> HashSet<u64> {
        let now = now();
        let mut namespaces = lock(&self.namespaces);
        let failing: Vec<(u64, NamespaceReach)> =
            namespaces.iter().filter_map(Result::ok).filter(|(_, reach)| is_failing(reach, now)).collect();
        let (old, failing): (Vec<_>, Vec<_>) = failing.into_iter().partition(|(_, reach)| is_forgotten(reach, now));
        for (netns_cookie, _) in old {
            // Removed by another in the meantime is as good.
            let _ = namespaces.remove(&netns_cookie);
        }
        failing.into_iter().map(|(netns_cookie, _)| netns_cookie).collect()
    }
}

fn is_failing(reach: &NamespaceReach, now: u64) -> bool {
    reach.failing_since != 0 && now.saturating_sub(reach.failing_since) >= REACH_GRACE_NANOS
}

fn is_forgotten(reach: &NamespaceReach, now: u64) -> bool {
    now.saturating_sub(reach.last_trial) >= FORGOTTEN_AFTER_NANOS
}

/// The namespaces that were warned about, so that each is once.
#[derive(Debug, Default)]
pub struct ReachReport {
    failing: HashSet<u64>,
}

/// What has changed since the last look.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ReachChange {
    /// Namespaces that cannot reach the node any more.
    pub lost: Vec<u64>,
    /// Namespaces that can again, or have gone.
    pub recovered: Vec<u64>,
}

impl ReachReport {
    /// Takes what [`Interceptor::unreachable`] found.
    pub fn update(&mut self, failing: HashSet<u64>) -> ReachChange {
        let sorted = |cookies: std::collections::hash_set::Difference<'_, u64, _>| {
            let mut cookies: Vec<u64> = cookies.copied().collect();
            cookies.sort_unstable();
            cookies
        };
        let change = ReachChange {
            lost: sorted(failing.difference(&self.failing)),
            recovered: sorted(self.failing.difference(&failing)),
        };
        self.failing = failing;
        change
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_namespace_fails_when_a_connection_is_outstanding_for_too_long() {
        let reach = |failing_since| NamespaceReach { failing_since, last_trial: failing_since, established: 0 };
        assert!(!is_failing(&reach(0), 100 * SECOND), "nothing is outstanding");
        assert!(!is_failing(&reach(99 * SECOND), 100 * SECOND), "it may still arrive");
        assert!(is_failing(&reach(90 * SECOND), 100 * SECOND));
        assert!(!is_forgotten(&reach(90 * SECOND), 100 * SECOND));
        assert!(is_forgotten(&reach(90 * SECOND), 700 * SECOND));
    }

    #[test]
    fn each_namespace_is_reported_when_it_fails_and_when_it_recovers() {
        let mut report = ReachReport::default();
        let change = report.update(HashSet::from([2, 1]));
        assert_eq!(change, ReachChange { lost: vec![1, 2], recovered: vec![] });
        assert_eq!(report.update(HashSet::from([1, 2])), ReachChange::default(), "reported already");
        assert_eq!(report.update(HashSet::from([2, 3])), ReachChange { lost: vec![3], recovered: vec![1] });
    }
}
