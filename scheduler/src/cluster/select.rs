//! Links between the peers of a task: near ones first, a few random, mutual and bounded [pure].

use std::time::Duration;

use super::{Cluster, Directive, Parent};

/// Up to this many peers all are looked at; with more, a sample and the peers of the same groups.
const LOOK_AT_ALL: usize = 64;
/// Peers sampled at random, and from each group.
const SAMPLE: usize = 24;
/// With fewer links than this a late joiner is wired into links of others.
const MIN_LINKS: usize = 4;

impl Cluster {
    pub(super) fn grouped(&self, at: u32) -> bool {
        self.seen(at).is_some_and(|task| task.entries.len() >= LOOK_AT_ALL)
    }

    /// Gives a peer links up to the number aimed at.
    pub(super) fn link_up(&mut self, now: Duration, at: u32, peer: u32) {
        let mut candidates = self.candidates(at, peer);
        candidates.retain(|&other| self.may_link(now, at, peer, other));
        let mut scored: Vec<(i64, u32)> =
            candidates.iter().map(|&other| (self.score(at, peer, other), other)).collect();
        scored.sort_unstable_by_key(|&(score, other)| (std::cmp::Reverse(score), other));
        let have = self.seen_entry(at, peer).map_or(0, |entry| entry.links.len());
        let room = self.options.parents.saturating_sub(have);
        let near = room.saturating_sub(self.options.random_parents);
        let (mut open, full): (Vec<u32>, Vec<u32>) =
            scored.into_iter().map(|(_, other)| other).partition(|&other| self.has_room(at, other));
        let mut chosen: Vec<u32> = open.drain(..near.min(open.len())).collect();
        while chosen.len() < room && !open.is_empty() {
            let at = self.random(open.len());
            chosen.push(open.swap_remove(at));
        }
        let linked = have + chosen.len();
        for other in chosen {
            self.link(at, peer, other);
        }
        if linked < MIN_LINKS {
            self.wire_between(at, peer, &full, MIN_LINKS - linked);
        }
    }

    /// Breaks links of full peers and puts this one in between: their numbers stay the same.
    fn wire_between(&mut self, at: u32, peer: u32, full: &[u32], wanted: usize) {
        for &a in full.iter().take(wanted.div_ceil(2)) {
            let links = self.seen_entry(at, a).map(|entry| entry.links.clone()).unwrap_or_default();
            if links.is_empty() {
                continue;
            }
            let b = links[self.random(links.len())];
            let known =
                self.seen_entry(at, peer).is_some_and(|entry| entry.links.contains(&b) || entry.links.contains(&a));
            if b == peer || known {
                continue;
            }
            self.unlink(at, a, b);
            self.link(at, peer, a);
            self.link(at, peer, b);
        }
    }

    fn candidates(&mut self, at: u32, peer: u32) -> Vec<u32> {
        let Some(task) = self.seen(at) else { return Vec::new() };
        let count = task.entries.len();
        if count <= LOOK_AT_ALL {
            return task.entries.iter().map(|entry| entry.peer).collect();
        }
        let mut found = Vec::with_capacity(SAMPLE * 3);
        for _ in 0..SAMPLE {
            let place = self.random(count);
            found.extend(self.seen(at).map(|task| task.entries[place].peer));
        }
        let groups = self.members.get(peer).map(|member| member.groups.clone()).unwrap_or_default();
        for group in groups {
            for _ in 0..SAMPLE {
                let Some(size) = self.seen(at).and_then(|task| task.near.get(&group)).map(Vec::len).filter(|&n| n > 0)
                else {
                    break;
                };
                let place = self.random(size);
                let Some(near) = self.task(at).and_then(|task| task.near.get_mut(&group)) else { break };
                let other = near[place];
                if self.seen_entry(at, other).is_some() {
                    found.push(other);
                } else if let Some(near) = self.task(at).and_then(|task| task.near.get_mut(&group)) {
                    near.swap_remove(place);
                }
            }
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    fn may_link(&self, now: Duration, at: u32, peer: u32, other: u32) -> bool {
        let (Some(a), Some(b)) = (self.members.get(peer), self.members.get(other)) else { return false };
        let avoids = |list: &[(u32, Duration)], whom| list.iter().any(|&(peer, until)| peer == whom && until > now);
        let banned = |until: Option<Duration>| until.is_some_and(|until| until > now);
        peer != other
            && b.connected
            && !banned(b.banned_until)
            && !banned(a.banned_until)
            && !avoids(&a.accused, other)
            && !avoids(&b.accused, peer)
            && self.seen_entry(at, peer).is_some_and(|entry| !entry.links.contains(&other))
            && self.seen_entry(at, other).is_some_and(|entry| entry.wants || entry.held > 0)
    }

    fn has_room(&self, at: u32, peer: u32) -> bool {
        self.seen_entry(at, peer).is_some_and(|entry| entry.links.len() < self.options.max_links)
    }

    fn score(&self, at: u32, peer: u32, other: u32) -> i64 {
        let (Some(member), Some(entry)) = (self.members.get(other), self.seen_entry(at, other)) else { return 0 };
        let load = entry.links.len() + (member.uploads as usize).min(32);
        i64::from(self.members.nearness(peer, other)) * 16
            + i64::from(member.info.seed) * 24
            + i64::from(entry.complete) * 8
            + i64::from(entry.held > 0) * 4
            - i64::try_from(load).unwrap_or(0)
    }

    fn link(&mut self, at: u32, a: u32, b: u32) {
        for (from, to) in [(a, b), (b, a)] {
            let nearness = self.members.nearness(from, to);
            let complete = self.seen_entry(at, to).is_some_and(|entry| entry.complete);
            let (Some(task), Some(member)) = (self.seen(at), self.members.get(to)) else { return };
            let info = &member.info;
            let (name, address) = (info.name.clone(), info.address);
            let parent = Parent { name, address, seed: info.seed, nearness, complete };
            let directive = Directive::Link { task: task.id, parent };
            if let Some(entry) = self.entry(at, from) {
                if entry.links.len() == entry.links.capacity() {
                    entry.links.reserve_exact(4);
                }
                entry.links.push(to);
            }
            self.tell(from, directive);
        }
    }

    fn unlink(&mut self, at: u32, a: u32, b: u32) {
        for (from, to) in [(a, b), (b, a)] {
            let Some(entry) = self.entry(at, from) else { continue };
            let before = entry.links.len();
            entry.links.retain(|&other| other != to);
            if entry.links.len() == before {
                continue;
            }
            let name = self.name_of(to);
            if let Some(task) = self.seen(at).map(|task| task.id) {
                self.tell(from, Directive::Unlink { task, peer: name });
            }
        }
    }

    /// Parts a peer from everybody at a task; those left with few links and still wanting get new ones.
    pub(super) fn unlink_all(&mut self, now: Duration, at: u32, peer: u32) {
        let links = self.seen_entry(at, peer).map(|entry| entry.links.clone()).unwrap_or_default();
        for &other in &links {
            self.unlink(at, peer, other);
        }
        for other in links {
            let poor = self.seen_entry(at, other).is_some_and(|entry| entry.wants && entry.links.len() < MIN_LINKS);
            if poor {
                self.link_up(now, at, other);
            }
        }
    }

    pub(super) fn unlink_pair(&mut self, now: Duration, at: u32, a: u32, b: u32) {
        self.unlink(at, a, b);
        if self.seen_entry(at, a).is_some_and(|entry| entry.wants) {
            self.link_up(now, at, a);
        }
    }

    /// Two peers that hold everything have nothing to say to each other; their places go to those that do not.
    pub(super) fn part_from_complete(&mut self, at: u32, peer: u32) {
        let links = self.seen_entry(at, peer).map(|entry| entry.links.clone()).unwrap_or_default();
        for other in links {
            if self.seen_entry(at, other).is_some_and(|entry| entry.complete) {
                self.unlink(at, peer, other);
            }
        }
    }
}
