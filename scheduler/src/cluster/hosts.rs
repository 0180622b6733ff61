//! The budget of connections to each origin host, over the whole cluster [pure].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::tasks::Fetcher;
use super::{Cluster, Directive};

/// Pause of a host that asks for less without saying for how long.
const PAUSE: Duration = Duration::from_secs(5);
/// Longest pause that is believed.
const MAX_PAUSE: Duration = Duration::from_secs(60);
/// Hosts remembered; past it hosts without leases are forgotten, and where all have some, a new one is leased nothing of.
const MAX_HOSTS: usize = 4096;

/// Hosts that were first named by one peer, for the same reason: one peer must not use up the table.
const MAX_HOSTS_A_PEER: usize = 256;
/// Tasks in a host's queue beyond two for each task that there is, before the queue is tidied.
const STALE_PENDING: usize = 1_024;

/// An origin host's share of the cluster.
#[derive(Debug, Default)]
pub(super) struct Host {
    /// Who named it first.
    named_by: Option<u32>,
    pub(super) in_use: u32,
    paused_until: Option<Duration>,
    /// Tasks and peers that use connections.
    users: BTreeSet<(u32, u32)>,
    /// How many each peer uses.
    by_peer: BTreeMap<u32, u32>,
    /// Tasks that could lease had the host connections left.
    pending: VecDeque<u32>,
}

impl Cluster {
    pub(super) fn host(&mut self, peer: u32, name: &str) -> Option<Arc<str>> {
        if name.is_empty() {
            return None;
        }
        if let Some((known, _)) = self.hosts.get_key_value(name) {
            return Some(Arc::clone(known));
        }
        let own = |hosts: &BTreeMap<Arc<str>, Host>| hosts.values().filter(|host| host.named_by == Some(peer)).count();
        let full = |hosts: &BTreeMap<_, _>| hosts.len() >= MAX_HOSTS || own(hosts) >= MAX_HOSTS_A_PEER;
        if full(&self.hosts) {
            self.hosts.retain(|_, host| host.in_use > 0 || !host.pending.is_empty());
        }
        if full(&self.hosts) {
            return None;
        }
        let name: Arc<str> = name.into();
        self.hosts.insert(Arc::clone(&name), Host { named_by: Some(peer), ..Host::default() });
        Some(name)
    }

    /// Connections that the peer would use for a task.
    fn connections(&self, at: u32, peer: u32) -> u32 {
        let asked = self.seen_entry(at, peer).map_or(0, |entry| u32::from(entry.connections));
        if asked == 0 { self.options.peer_connections } else { asked }.min(self.origin_share())
    }

    /// Connections to a host that one peer may use: a fourth is always left to the others, where there are any.
    fn origin_share(&self) -> u32 {
        let budget = self.options.origin_connections;
        if self.members.len() > 1 { (budget - budget / 4).max(1) } else { budget }
    }

    /// Whether the peer would use more of the task's host than its share.
    pub(super) fn is_over_origin_share(&self, at: u32, peer: u32) -> bool {
        let Some(task) = self.seen(at).filter(|task| !task.fetchers.contains_key(&peer)) else { return false };
        let used = task.host.as_ref().and_then(|host| self.hosts.get(host)?.by_peer.get(&peer)).copied().unwrap_or(0);
        used > 0 && used + self.connections(at, peer) > self.origin_share()
    }

    /// Whether the peer may have a lease now: takes its connections out of the host's budget unless it has them already.
    pub(super) fn reserve(&mut self, now: Duration, at: u32, peer: u32) -> bool {
        let budget = self.options.origin_connections;
        let connections = self.connections(at, peer);
        let Some(task) = self.tasks.get_mut(at as usize).and_then(Option::as_deref_mut) else { return false };
        let Some(name) = task.host.clone() else { return false };
        let host = self.hosts.entry(Arc::clone(&name)).or_default();
        let known = task.fetchers.contains_key(&peer);
        let paused = host.paused_until.is_some_and(|until| until > now);
        if paused || !known && host.in_use + connections > budget {
            if !std::mem::replace(&mut task.pending, true) {
                host.pending.push_back(at);
                if host.pending.len() > 2 * self.by_name.len() + STALE_PENDING {
                    // Places of tasks that are gone are used again, and so in it several times.
                    let mut kept = BTreeSet::new();
                    host.pending.retain(|&at| kept.insert(at));
                }
            }
            return false;
        }
        if !known {
            host.in_use += connections;
            host.users.insert((at, peer));
            *host.by_peer.entry(peer).or_default() += connections;
            task.fetchers.insert(peer, Fetcher { connections, host: Some(name), ..Fetcher::default() });
        }
        true
    }

    pub(super) fn release_if_idle(&mut self, at: u32, peer: u32) {
        let Some(task) = self.tasks.get_mut(at as usize).and_then(Option::as_deref_mut) else { return };
        if task.fetchers.get(&peer).is_none_or(|fetcher| fetcher.leases > 0) {
            return;
        }
        let Some(fetcher) = task.fetchers.remove(&peer) else { return };
        if let Some(host) = fetcher.host.and_then(|host| self.hosts.get_mut(&host)) {
            host.in_use -= fetcher.connections;
            host.users.remove(&(at, peer));
            if let Some(used) = host.by_peer.get_mut(&peer) {
                *used -= fetcher.connections;
                if *used == 0 {
                    host.by_peer.remove(&peer);
                }
            }
        }
    }

    /// The origin asks for less: all that fetch from it are told.
    pub(super) fn pause(&mut self, now: Duration, at: u32, peer: u32, retry: Duration) {
        let pause = if retry.is_zero() { PAUSE } else { retry.min(MAX_PAUSE) };
        let Some(task) = self.tasks.get_mut(at as usize).and_then(Option::as_deref_mut) else { return };
        let Some(name) = task.fetchers.get(&peer).and_then(|fetcher| fetcher.host.clone()).or(task.host.clone()) else {
            return;
        };
        let host = self.hosts.entry(Arc::clone(&name)).or_default();
        host.paused_until = Some(now + pause);
        if !std::mem::replace(&mut task.pending, true) {
            host.pending.push_back(at);
        }
        let told: BTreeSet<u32> = host.users.iter().map(|&(_, peer)| peer).chain([peer]).collect();
        for peer in told {
            self.tell(peer, Directive::Throttle { host: Arc::clone(&name), pause });
        }
    }

    /// Serves tasks that waited for a host's connections, in turn, as far as the budget goes.
    pub(super) fn resume_hosts(&mut self, now: Duration) {
        let budget = self.options.origin_connections;
        let mut ready = Vec::new();
        for (name, host) in &mut self.hosts {
            let paused = host.paused_until.is_some_and(|until| until > now);
            if !host.pending.is_empty() && host.in_use < budget && !paused {
                ready.push((Arc::clone(name), host.pending.len()));
            }
        }
        for (name, turns) in ready {
            for _ in 0..turns {
                let Some(at) = self.hosts.get_mut(&name).and_then(|host| host.pending.pop_front()) else { break };
                let Some(task) = self.task(at) else { continue };
                task.pending = false;
                self.lease_out(now, at);
                if self.seen(at).is_some_and(|task| task.pending) {
                    break;
                }
            }
        }
    }
}
