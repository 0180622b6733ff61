//! What holds in the cluster after every event, checked in full: for property tests and the fuzz targets [pure].

use std::ops::Range;
use std::time::Duration;

use super::tasks::Entry;
use super::{Cluster, Lease, Task};

impl Cluster {
    /// Panics if the cluster contradicts itself. Costs time in proportion to everything in it.
    #[doc(hidden)]
    pub fn check_invariants(&self, now: Duration) {
        for (at, _) in (0_u32..).zip(&self.tasks) {
            if let Some(task) = self.seen(at) {
                self.check_pieces(at, task);
                self.check_fetchers(task);
                self.check_entries(at, task, now);
            }
        }
        for (name, host) in &self.hosts {
            let fetchers = self.tasks.iter().flatten().flat_map(|task| task.fetchers.values());
            let of_host = fetchers.filter(|fetcher| fetcher.host.as_ref() == Some(name));
            assert_eq!(of_host.map(|fetcher| fetcher.connections).sum::<u32>(), host.in_use);
            assert!(host.in_use <= self.options.origin_connections);
        }
        let leases: usize = self.tasks.iter().flatten().map(|task| task.leases.len()).sum();
        assert_eq!(leases, self.leases.len());
        let digests: usize = self.tasks.iter().flatten().map(|task| task.digests.bytes()).sum();
        assert_eq!(digests, self.digest_bytes);
    }

    /// Every piece is held, leased once, or free; a held piece may lie inside a lease.
    fn check_pieces(&self, at: u32, task: &Task) {
        let mut leased = vec![0; task.pieces as usize];
        for (start, id) in &task.leases {
            let lease = &self.leases[id];
            assert!(lease.start == *start && lease.end > lease.start && lease.task == at);
            (lease.start..lease.end).for_each(|piece| leased[piece as usize] += 1);
            assert_eq!(lease.left as usize, (lease.start..lease.end).filter(|&piece| !task.is_held(piece)).count());
            assert!(lease.left > 0, "a lease without work");
        }
        let free: Vec<Range<u32>> = task.free.clone_runs();
        for piece in 0..task.pieces {
            let is_free = free.iter().any(|run| run.contains(&piece));
            let (held, leased) = (task.is_held(piece), leased[piece as usize]);
            assert!(leased <= 1, "piece {piece} is leased twice");
            assert_eq!(is_free, !held && leased == 0, "piece {piece}: held {held}, leased {leased}");
            let holders = task.entries.iter().filter(|entry| entry.have.has(piece)).count();
            assert_eq!(task.holders.get(piece) as usize, holders);
        }
    }

    fn check_fetchers(&self, task: &Task) {
        for (peer, fetcher) in &task.fetchers {
            let leases = task.leases.values().map(|id| &self.leases[id]);
            let own: Vec<&Lease> = leases.filter(|lease| lease.peer == *peer).collect();
            assert_eq!(own.len(), fetcher.leases as usize);
            assert_eq!(own.iter().map(|lease| lease.left).sum::<u32>(), fetcher.left);
            assert!(fetcher.leases > 0);
        }
    }

    fn check_entries(&self, at: u32, task: &Task, now: Duration) {
        let count = |is: fn(&Entry) -> bool| task.entries.iter().filter(|entry| is(entry)).count();
        assert_eq!(count(|entry| entry.wants), task.wanters as usize);
        assert_eq!(count(|entry| entry.can_fetch), task.can_fetch as usize);
        assert_eq!(count(|entry| entry.complete), task.complete as usize);
        for entry in &task.entries {
            let bits = if entry.complete { task.pieces } else { entry.have.count() };
            assert_eq!(bits, entry.held);
            assert!(!entry.complete || entry.have.bytes() == 0);
            assert!(entry.links.len() <= self.options.max_links, "{} links", entry.links.len());
            assert!(!self.is_banned(now, entry.peer) || entry.links.is_empty() && entry.held == 0);
            for (n, &other) in entry.links.iter().enumerate() {
                assert!(!entry.links[..n].contains(&other), "linked twice");
                let back = self.seen_entry(at, other).expect("a link leads to a peer of the task");
                assert!(back.links.contains(&entry.peer), "links are mutual");
            }
        }
    }
}
