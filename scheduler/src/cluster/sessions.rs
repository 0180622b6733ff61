//! What becomes of peers whose session ended or began anew [pure].

use std::time::Duration;

use super::Cluster;
use super::tasks::Owes;

/// Tasks of a peer that are worked on in one tick when it left or came back: what is due for others is not to wait for one with
/// many.
pub(super) const TASKS_AT_ONCE: usize = 256;
/// The next tick is later than this.
pub(super) const LATER: Duration = Duration::from_millis(1);

/// What is looked after at a set time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Check {
    /// Without a session for a while: others may need what it held.
    Absent,
    /// Its inventory is in, and did not name all that it held.
    Unnamed,
    /// Gone for good.
    Forget,
    /// Its inventory is in: what it wanted in the session before and has not said again, it does not want.
    Wants,
}

impl Cluster {
    pub(super) fn gone(&mut self, now: Duration, peer: u32) {
        if let Some(member) = self.members.get_mut(peer).filter(|member| member.connected) {
            member.connected = false;
            member.gone = Some(now);
            if member.refused {
                self.checks.insert((now, peer, Check::Forget));
            }
            self.checks.insert((now + self.options.absence, peer, Check::Absent));
            self.checks.insert((now + self.options.grace, peer, Check::Forget));
        }
    }

    pub(super) fn check_peers(&mut self, now: Duration) {
        while let Some((_, peer, check)) = self.checks.first().copied().filter(|&(due, ..)| due <= now) {
            self.checks.pop_first();
            let gone = self.members.get(peer).and_then(|member| member.gone);
            let gone_for = |least: Duration| gone.is_some_and(|since| since + least <= now);
            match check {
                Check::Absent if gone_for(self.options.absence) => self.set_aside(now, peer),
                Check::Forget if gone_for(self.options.grace) || gone.is_some() && self.is_refused(peer) => {
                    self.forget(now, peer);
                }
                Check::Unnamed => self.drop_unnamed(now, peer),
                Check::Wants => self.drop_unsaid(now, peer),
                Check::Absent | Check::Forget => {}
            }
        }
    }

    /// Its links stay, and its name; its leases and the pieces that it alone held are free.
    fn set_aside(&mut self, now: Duration, peer: u32) {
        let fetches = |at| self.seen(at).is_some_and(|task| task.fetchers.contains_key(&peer));
        let has = |&at: &u32| self.seen_entry(at, peer).is_some_and(|entry| entry.held > 0) || fetches(at);
        let mut tasks: Vec<u32> = self.tasks_of(peer).into_iter().filter(has).collect();
        if tasks.len() > TASKS_AT_ONCE {
            tasks.truncate(TASKS_AT_ONCE);
            self.checks.insert((now + LATER, peer, Check::Absent));
        }
        for at in tasks {
            self.end_leases(at, peer, false);
            self.lose_all(at, peer);
            self.lease_out(now, at);
        }
    }

    fn is_refused(&self, peer: u32) -> bool {
        self.members.get(peer).is_some_and(|member| member.refused)
    }

    /// Takes a peer out of its tasks, some at each tick.
    fn forget(&mut self, now: Duration, peer: u32) {
        let mut tasks = self.tasks_of(peer);
        let more = tasks.len() > TASKS_AT_ONCE;
        tasks.truncate(TASKS_AT_ONCE);
        for at in tasks {
            self.remove_entry(now, at, peer);
            self.lease_out(now, at);
        }
        if more {
            self.checks.insert((now + LATER, peer, Check::Forget));
            return;
        }
        if let Some(member) = self.members.leave(peer, &self.options.label_keys)
            && let Some((_, last)) = member.load.totals
        {
            self.traffic.depart(&member.info.name, last);
        }
    }

    fn drop_unsaid(&mut self, now: Duration, peer: u32) {
        if self.members.get(peer).is_none_or(|member| !member.connected) {
            return;
        }
        for at in self.tasks_of(peer) {
            if self.seen_entry(at, peer).is_some_and(|entry| entry.owes.has(Owes::WANT))
                && let Some(name) = self.seen(at).map(|task| task.id)
            {
                self.unwant(now, peer, &name);
            }
        }
    }
}
