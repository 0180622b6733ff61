//! Peers that others blame [pure].
//!
//! An accusation counts only from a peer that the scheduler has linked with the accused at that task, and accusers from one
//! address count as one: who has a token has as many names as it likes, but not as many links and addresses.

use std::time::Duration;

use super::{Cluster, PeerId};

/// This many peers must blame one for wrong bytes before the others are kept from it.
const ACCUSERS: usize = 2;
/// And this many for silence: whoever dies is silent, and blameless when it is back.
const SILENCE_ACCUSERS: usize = 4;
/// A ban for silence is this much shorter.
const SILENCE_BAN: u32 = 10;
/// What a peer did not answer before its session, or just after that began, is forgiven.
const FORGIVEN: Duration = Duration::from_secs(10);
/// A peer that blames more than this many is not believed: it is the one that is broken.
const MAX_ACCUSED: usize = 8;
/// Accusations count for this long, and two that fell out are not linked again.
const WINDOW: Duration = Duration::from_secs(600);
const SILENCE_WINDOW: Duration = Duration::from_secs(60);

/// Who says so, until when it counts, and whether it is for silence only.
pub(super) type Accusation = (u32, Duration, bool);

impl Cluster {
    pub(super) fn blame(&mut self, now: Duration, accuser: u32, name: &str, task: &[u8; 32], silent: bool) {
        let Some(accused) = self.members.named(name).filter(|&accused| accused != accuser) else { return };
        self.counts.blames += 1;
        let Some(&at) = self.by_name.get(task) else { return };
        if !self.had_link(at, accuser, accused) {
            return;
        }
        let until = now + if silent { SILENCE_WINDOW } else { WINDOW };
        let Some(member) = self.members.get_mut(accuser) else { return };
        member.accused.retain(|&(peer, until)| until > now && peer != accused);
        let believed = member.accused.len() < MAX_ACCUSED;
        if believed {
            member.accused.push((accused, until));
        }
        self.unlink_pair(now, at, accuser, accused);
        let Some(member) = self.members.get_mut(accused).filter(|_| believed) else { return };
        if silent && (!member.connected || now < member.since + FORGIVEN) {
            return;
        }
        member.accusers.retain(|&(peer, until, silent_too)| until > now && (peer != accuser || silent && !silent_too));
        if !member.accusers.iter().any(|&(peer, ..)| peer == accuser) {
            member.accusers.push((accuser, until, silent));
        }
        let accusers = member.accusers.clone();
        let wrong = accusers.iter().filter(|(.., silent)| !silent).map(|accusation| accusation.0);
        let ban = self.options.ban;
        if self.members.independent(wrong) >= ACCUSERS {
            self.ban(now, accused, ban);
        } else if self.members.independent(accusers.iter().map(|accusation| accusation.0)) >= SILENCE_ACCUSERS {
            self.ban(now, accused, ban / SILENCE_BAN);
        }
    }

    fn had_link(&self, at: u32, peer: u32, other: u32) -> bool {
        self.seen_entry(at, peer).is_some_and(|entry| entry.links.contains(&other))
            || self.members.were_linked(peer, other, at)
    }

    /// Nobody's parent, without leases and not believed for a while; what it holds does not count.
    pub(super) fn ban(&mut self, now: Duration, peer: u32, length: Duration) {
        let until = now + length;
        let Some(member) = self.members.get_mut(peer) else { return };
        member.accusers.clear();
        member.banned_until = Some(until);
        self.banned.push(PeerId(peer));
        self.counts.bans += 1;
        for at in self.tasks_of(peer) {
            self.end_leases(at, peer, true);
            self.lose_all(at, peer);
            self.unlink_all(now, at, peer);
            self.cooling.insert((until, at, peer));
            self.lease_out(now, at);
        }
    }

    pub(super) fn is_banned(&self, now: Duration, peer: u32) -> bool {
        self.members.get(peer).and_then(|member| member.banned_until).is_some_and(|until| until > now)
    }
}
