//! Peers that are to hold a task though no client of theirs asked for it [pure].
//!
//! They are told once and want the task like anybody, without a URL: what they lack comes from those that hold it or may fetch it.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::{Cluster, Directive, TaskName};

/// Between two looks at how far a spread is; for each so many peers of it so much more, as a look costs as much.
const LOOK: Duration = Duration::from_millis(500);
const LOOKED_AT: u32 = 512;
/// A peer that was told and does not want the task by then never will.
const TO_BEGIN: Duration = Duration::from_secs(15);
/// What is not over by then is forgotten.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// Spreads at once, and their peers together, 4 bytes each; more take the place of the oldest.
const MAX_SPREADS: usize = 4_096;
const MAX_PEERS: usize = 4 << 20;

/// Which peers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Only those that are there to hold and serve.
    pub seeds: bool,
    /// Only those with all of these labels.
    pub labels: Vec<(String, String)>,
    /// So many of them; 0: all.
    pub count: usize,
}

/// How far a spread is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Spreading {
    /// Peers that it is for.
    pub peers: u32,
    /// Of those, how many hold the whole task.
    pub complete: u32,
    /// And how many will not.
    pub failed: u32,
}

/// One task's.
#[derive(Debug)]
pub(super) struct Spread {
    /// Whom to tell how far it is.
    asker: Option<u32>,
    peers: Vec<u32>,
    began: Duration,
    look: Duration,
    told: Option<Spreading>,
}

impl Cluster {
    /// Tells the peers that fit to want the task.
    pub(super) fn spread(&mut self, now: Duration, asker: Option<u32>, name: &TaskName, scope: &Scope, pin: bool) {
        let Some(&at) = self.by_name.get(name) else { return };
        let peers = self.fitting(at, asker, scope);
        for &peer in &peers {
            self.preheat(at, peer, pin);
        }
        self.spreads.remove(name);
        self.bound_spreads(peers.len());
        self.spreads.insert(*name, Spread { asker, peers, began: now, look: now, told: None });
        self.look_at_spreads(now);
    }

    /// Makes room for one of so many peers.
    fn bound_spreads(&mut self, more: usize) {
        let mut peers: usize = self.spreads.values().map(|spread| spread.peers.len()).sum();
        while self.spreads.len() >= MAX_SPREADS || peers + more > MAX_PEERS {
            let Some((&oldest, _)) = self.spreads.iter().min_by_key(|(_, spread)| spread.began) else { return };
            peers -= self.spreads.remove(&oldest).map_or(0, |spread| spread.peers.len());
        }
    }

    /// Those with a session whom the scope is for, without the asker; of more than it wants, seeds and those that have the task
    /// first, then by chance.
    fn fitting(&mut self, at: u32, asker: Option<u32>, scope: &Scope) -> Vec<u32> {
        let has = |labels: &[(String, String)]| scope.labels.iter().all(|label| labels.contains(label));
        let members = self.members.iter().filter(|&(peer, member)| {
            Some(peer) != asker && member.connected && (member.info.seed || !scope.seeds) && has(&member.info.labels)
        });
        let rank = |peer| self.seen_entry(at, peer).is_some_and(|entry| entry.complete);
        let mut rated: Vec<_> = members.map(|(peer, member)| (!member.info.seed, !rank(peer), 0, peer)).collect();
        if scope.count == 0 || rated.len() <= scope.count {
            return rated.into_iter().map(|(.., peer)| peer).collect();
        }
        for place in &mut rated {
            place.2 = self.random(usize::MAX);
        }
        rated.sort_unstable();
        rated.into_iter().take(scope.count).map(|(.., peer)| peer).collect()
    }

    /// Tells a peer to want the task, unless it does or has it. That it keeps the task is told in any case.
    pub(super) fn preheat(&mut self, at: u32, peer: u32, pin: bool) {
        let done = self.seen_entry(at, peer).is_some_and(|entry| entry.complete || entry.wants);
        let Some(task) = self.seen(at).filter(|_| pin || !done) else { return };
        let host = task.host.clone().unwrap_or_else(|| Arc::from(""));
        let (task, len, name) = (task.id, task.len, task.name.clone());
        self.tell(peer, Directive::Preheat { task, len, host, name, pin });
    }

    /// Tells those who asked how far it is, where that has changed.
    pub(super) fn look_at_spreads(&mut self, now: Duration) {
        let due = self.spreads.iter().filter(|(_, spread)| spread.look <= now).map(|(name, _)| *name);
        for name in due.collect::<Vec<_>>() {
            let Some(spread) = self.spreads.get(&name) else { continue };
            let (asker, spreading, over) =
                (spread.asker, self.spreading(now, &name, spread), now > spread.began + LONGEST);
            let changed = spread.told != Some(spreading);
            if let Some(asker) = asker.filter(|_| changed) {
                self.tell(asker, Directive::Spreading { task: name, spreading });
            }
            if over || spreading.complete + spreading.failed == spreading.peers {
                self.spreads.remove(&name);
            } else if let Some(spread) = self.spreads.get_mut(&name) {
                let rest = LOOK.saturating_mul(1 + spreading.peers / LOOKED_AT);
                (spread.look, spread.told) = (now + rest, Some(spreading));
            }
        }
    }

    pub(super) fn spreading(&self, now: Duration, name: &TaskName, spread: &Spread) -> Spreading {
        let at = self.by_name.get(name).copied();
        let waits = now < spread.began + TO_BEGIN;
        let mut sum =
            Spreading { peers: u32::try_from(spread.peers.len()).unwrap_or(u32::MAX), ..Spreading::default() };
        for &peer in &spread.peers {
            let entry = at.and_then(|at| self.seen_entry(at, peer));
            let connected = self.members.get(peer).is_some_and(|member| member.connected);
            match entry {
                Some(entry) if entry.complete => sum.complete += 1,
                Some(entry) if entry.wants && (connected || waits) => {}
                _ if connected && waits => {}
                _ => sum.failed += 1,
            }
        }
        sum
    }
}
