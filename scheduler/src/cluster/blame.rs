//! Peers that others blame [pure].

use std::time::Duration;

use super::Cluster;

/// This many peers must blame one before the others are kept from it.
const ACCUSERS: usize = 2;
/// A peer that blames more than this many is not believed: it is the one that is broken.
const MAX_ACCUSED: usize = 8;
/// Accusations count for this long.
const WINDOW: Duration = Duration::from_secs(600);

impl Cluster {
    pub(super) fn blame(&mut self, now: Duration, accuser: u32, name: &str, task: &[u8; 32], _piece: u32) {
        let Some(accused) = self.members.named(name).filter(|&accused| accused != accuser) else { return };
        let Some(member) = self.members.get_mut(accuser) else { return };
        member.accused.retain(|&(_, until)| until > now);
        let known = member.accused.iter().any(|&(peer, _)| peer == accused);
        if !known && member.accused.len() >= MAX_ACCUSED {
            return;
        }
        if !known {
            member.accused.push((accused, now + WINDOW));
        }
        if let Some(&at) = self.by_name.get(task) {
            self.unlink_pair(now, at, accuser, accused);
        }
        let Some(member) = self.members.get_mut(accused) else { return };
        member.accusers.retain(|&(peer, until)| until > now && peer != accuser);
        member.accusers.push((accuser, now + WINDOW));
        if member.accusers.len() >= ACCUSERS {
            member.accusers.clear();
            self.ban(now, accused);
        }
    }

    /// Nobody's parent, and without leases, for a while.
    pub(super) fn ban(&mut self, now: Duration, peer: u32) {
        let until = now + self.options.ban;
        let Some(member) = self.members.get_mut(peer) else { return };
        member.banned_until = Some(until);
        let tasks: Vec<u32> = member.tasks.keys().copied().collect();
        for at in tasks {
            self.end_leases(now, at, peer, true);
            self.unlink_all(now, at, peer);
            self.lease_out(now, at);
        }
    }
}
