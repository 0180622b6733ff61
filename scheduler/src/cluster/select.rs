//! Links between the peers of a task: near ones first, a few random, mutual and bounded [pure].

use std::sync::Arc;
use std::time::Duration;

use super::{Cluster, Directive, Parent};

/// Up to this many peers all are looked at; with more, a sample and the peers of the same groups.
const LOOK_AT_ALL: usize = 64;
/// Peers sampled at random, and from each group.
const SAMPLE: usize = 24;
/// With fewer links than this a late joiner is wired into links of others.
const MIN_LINKS: usize = 4;
/// A task with few pieces gets few links: it is over before more of them are of use.
const PIECES_A_LINK: usize = 2;
/// A wanting peer with fewer links than the first, or none, gets another look this often.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// Peers looked at again in one tick.
const POOR_AT_ONCE: usize = 256;

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
        let pieces = self.seen(at).map_or(0, |task| task.pieces as usize);
        let room = self.options.parents.min(MIN_LINKS + pieces / PIECES_A_LINK).saturating_sub(have);
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
            self.wire_between(now, at, peer, &full, MIN_LINKS - linked);
        }
        let Some(entry) = self.entry(at, peer) else { return };
        if entry.links.len() < MIN_LINKS && !std::mem::replace(&mut entry.poor, true) {
            self.poor.insert((now + LOOK_AGAIN, at, peer));
        }
    }

    /// Looks again for links of those that found few: others came, bans ended.
    pub(super) fn link_poor(&mut self, now: Duration) {
        for _ in 0..POOR_AT_ONCE {
            let Some((_, at, peer)) = self.poor.first().copied().filter(|&(due, ..)| due <= now) else { return };
            self.poor.pop_first();
            let Some(entry) = self.entry(at, peer) else { continue };
            entry.poor = false;
            let (wants, few, holds) = (entry.wants, entry.links.len() < MIN_LINKS, entry.held > 0);
            let wanted = self.seen(at).is_some_and(|task| task.wanters > 0);
            if few && (wants || holds && wanted) {
                self.link_up(now, at, peer);
            }
        }
    }

    /// Breaks links of full peers and puts this one in between: their numbers stay the same.
    fn wire_between(&mut self, now: Duration, at: u32, peer: u32, full: &[u32], wanted: usize) {
        for &a in full.iter().take(wanted.div_ceil(2)) {
            let links = self.seen_entry(at, a).map(|entry| entry.links.clone()).unwrap_or_default();
            let own = self.seen_entry(at, peer).map_or(0, |entry| entry.links.len());
            if links.is_empty() || own + 2 > self.options.max_links {
                continue;
            }
            let b = links[self.random(links.len())];
            if self.may_link(now, at, peer, a) && self.may_link(now, at, peer, b) {
                self.unlink(at, a, b);
                self.link(at, peer, a);
                self.link(at, peer, b);
            }
        }
    }

    /// The links that a peer has, again: it may have missed some between two sessions.
    pub(super) fn tell_links(&mut self, at: u32, peer: u32) {
        let links = self.seen_entry(at, peer).map(|entry| entry.links.clone()).unwrap_or_default();
        for other in links {
            if let Some(directive) = self.introduction(at, peer, other) {
                self.tell(peer, directive);
            }
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
        peer != other
            && b.connected
            && !self.is_banned(now, peer)
            && !self.is_banned(now, other)
            && !avoids(&a.accused, other)
            && !avoids(&b.accused, peer)
            && self.seen_entry(at, peer).is_some_and(|entry| !entry.links.contains(&other))
            && self.seen_entry(at, other).is_some_and(|entry| entry.wants || entry.held > 0)
            && !self.have_nothing_to_say(at, peer, other)
    }

    /// Two that do not want, or hold everything, are of no use to each other.
    fn have_nothing_to_say(&self, at: u32, peer: u32, other: u32) -> bool {
        let takes = |peer| self.seen_entry(at, peer).is_some_and(|entry| entry.wants && !entry.complete);
        !takes(peer) && !takes(other)
    }

    fn has_room(&self, at: u32, peer: u32) -> bool {
        self.seen_entry(at, peer).is_some_and(|entry| entry.links.len() < self.options.max_links)
    }

    fn score(&self, at: u32, peer: u32, other: u32) -> i64 {
        let (Some(member), Some(entry)) = (self.members.get(other), self.seen_entry(at, other)) else { return 0 };
        let load = entry.links.len() + (member.load.uploads as usize).min(32);
        i64::from(self.members.nearness(peer, other)) * 16
            + i64::from(member.info.seed) * 24
            + i64::from(entry.complete) * 8
            + i64::from(entry.held > 0) * 4
            - i64::try_from(load).unwrap_or(0)
    }

    fn link(&mut self, at: u32, a: u32, b: u32) {
        for (from, to) in [(a, b), (b, a)] {
            let Some(directive) = self.introduction(at, from, to) else { return };
            if let Some(entry) = self.entry(at, from) {
                if entry.links.len() == entry.links.capacity() {
                    entry.links.reserve_exact(4);
                }
                entry.links.push(to);
            }
            self.tell(from, directive);
        }
    }

    fn introduction(&self, at: u32, from: u32, to: u32) -> Option<Directive> {
        let info = &self.members.get(to)?.info;
        let parent = Parent {
            name: Arc::clone(&info.name),
            address: info.address,
            endpoints: info.endpoints,
            seed: info.seed,
            nearness: self.members.nearness(from, to),
            complete: self.seen_entry(at, to).is_some_and(|entry| entry.complete),
        };
        Some(Directive::Link { task: self.seen(at)?.id, parent })
    }

    fn unlink(&mut self, at: u32, a: u32, b: u32) {
        for (from, to) in [(a, b), (b, a)] {
            let Some(entry) = self.entry(at, from) else { continue };
            let before = entry.links.len();
            entry.links.retain(|&other| other != to);
            if entry.links.len() == before {
                continue;
            }
            self.members.part(from, to, at);
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
            let poor = self
                .seen_entry(at, other)
                .is_some_and(|entry| entry.wants && entry.links.len() < self.options.parents / 2);
            if poor {
                self.link_up(now, at, other);
            }
        }
    }

    /// Parts two peers; each that wants looks for others.
    pub(super) fn unlink_pair(&mut self, now: Duration, at: u32, a: u32, b: u32) {
        self.unlink(at, a, b);
        for peer in [a, b] {
            if self.seen_entry(at, peer).is_some_and(|entry| entry.wants) {
                self.link_up(now, at, peer);
            }
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
