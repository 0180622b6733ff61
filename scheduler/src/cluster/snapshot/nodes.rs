//! Nodes and the links between them, as shown [pure].

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use serde::Serialize;

use super::super::membership::Member;
use super::super::{Cluster, Totals};
use super::{MAX_ENTRIES, MAX_LINKS, MAX_NODES};

/// Places of shown nodes at tasks whose links are looked at, and tasks of one node among which they are sought.
const MAX_LOOKS: usize = 10_000;
const MAX_TASKS_A_NODE: usize = 1_000;

/// How a node stands, the worst last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// With a session, and nothing against it.
    Up,
    /// Its leases failed or fell silent and none has moved since, or others say that it does not answer.
    Slow,
    /// Without a session since a moment ago.
    Away,
    /// Another node says that it gave wrong bytes.
    Blamed,
    /// It takes no part for a while.
    Banned,
}

/// A node. Name, labels and address are what it says of itself: whoever shows them trusts none of them.
#[derive(Clone, Debug, Serialize)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Where others fetch from it.
    pub address: String,
    /// Where it stands.
    pub labels: Vec<(String, String)>,
    /// Whether it is there to hold and serve.
    pub seed: bool,
    /// How it stands.
    pub state: State,
    /// Seconds since its session began.
    pub connected_for: Option<u64>,
    /// Seconds until it may take part again.
    pub banned_for: Option<u64>,
    /// Pieces that it sends, or that wait to be sent.
    pub uploads: u32,
    /// Bytes a second that it sends to others.
    pub upload_rate: u64,
    /// Tasks that it holds something of, or wants.
    pub tasks: usize,
    /// Tasks that it wants.
    pub wants: u32,
    /// Leases that it has.
    pub leases: u32,
    /// Seconds since its start, if it says.
    pub uptime: Option<u64>,
    /// Its sums since then, if it says.
    pub totals: Option<Totals>,
    /// How many blame it for wrong bytes.
    pub blamed_by: usize,
    /// How many say that it does not answer.
    pub silent_to: usize,
}

/// What tasks that somebody wants say of their nodes.
pub(super) struct Busy {
    /// By the node's place: how many tasks it wants, and leases it has.
    counts: Vec<(u32, u32)>,
}

impl Busy {
    fn of(&self, peer: u32) -> (u32, u32) {
        self.counts.get(peer as usize).copied().unwrap_or_default()
    }
}

impl Cluster {
    pub(super) fn busy(&self) -> Busy {
        let mut counts = vec![(0, 0); self.members.places()];
        for lease in self.leases.values() {
            counts[lease.peer as usize].1 += 1;
        }
        let wanted = self.tasks.iter().flatten().filter(|task| task.wanters > 0);
        for entry in wanted.flat_map(|task| &task.entries).take(MAX_ENTRIES).filter(|entry| entry.wants) {
            counts[entry.peer as usize].0 += 1;
        }
        Busy { counts }
    }

    /// Links between the nodes shown, of tasks that somebody wants: two places in `slots`, which are places in the cluster,
    /// and for how many tasks.
    pub(super) fn links(&self, slots: &[u32]) -> Vec<(usize, usize, u32)> {
        let shown: HashMap<u32, usize> = slots.iter().enumerate().map(|(at, &slot)| (slot, at)).collect();
        let mut pairs: BTreeMap<(usize, usize), u32> = BTreeMap::new();
        let tasks = |&slot: &u32| {
            let member = self.members.get(slot).into_iter();
            member.flat_map(|member| member.tasks.keys().take(MAX_TASKS_A_NODE)).map(move |&task| (task, slot))
        };
        let wanted = |&(task, _): &(u32, u32)| self.seen(task).is_some_and(|task| task.wanters > 0);
        for (task, slot) in slots.iter().flat_map(tasks).filter(wanted).take(MAX_LOOKS) {
            let links = self.seen_entry(task, slot).map(|entry| &entry.links[..]).unwrap_or_default();
            let places = links.iter().filter(|&&other| other > slot).filter_map(|other| shown.get(other));
            for &other in places {
                let own = shown[&slot];
                *pairs.entry((own.min(other), own.max(other))).or_default() += 1;
            }
        }
        pairs.into_iter().map(|((a, b), tasks)| (a, b, tasks)).take(MAX_LINKS).collect()
    }

    /// Those shown by name, and their places in the cluster.
    pub(super) fn nodes(&self, now: Duration, busy: &Busy) -> (Vec<Node>, Vec<u32>) {
        let mut all: Vec<(u32, &Member)> = self.members.iter().collect();
        if all.len() > MAX_NODES {
            let rank = |&(slot, member): &(u32, &Member)| {
                let (wants, leases) = busy.of(slot);
                Reverse((state(now, member), leases, wants, member.load.uploads, member.tasks.len()))
            };
            let mut ranked: Vec<_> = all.iter().map(rank).zip(0_usize..).collect();
            ranked.select_nth_unstable(MAX_NODES);
            all = ranked[..MAX_NODES].iter().map(|&(_, at)| all[at]).collect();
        }
        all.sort_unstable_by(|(_, a), (_, b)| a.info.name.cmp(&b.info.name));
        all.into_iter().map(|(slot, member)| (node(now, member, busy.of(slot)), slot)).unzip()
    }
}

fn node(now: Duration, member: &Member, (wants, leases): (u32, u32)) -> Node {
    let (blamed_by, silent_to) = accusers(now, member);
    let until = member.banned_until.filter(|&until| until > now);
    Node {
        name: member.info.name.to_string(),
        address: member.info.address.to_string(),
        labels: member.info.labels.clone(),
        seed: member.info.seed,
        state: state(now, member),
        connected_for: member.connected.then(|| now.saturating_sub(member.since).as_secs()),
        banned_for: until.map(|until| (until - now).as_secs()),
        uploads: member.load.uploads,
        upload_rate: member.load.upload_rate,
        tasks: member.tasks.len(),
        wants,
        leases,
        uptime: member.load.totals.map(|(uptime, _)| uptime.as_secs()),
        totals: member.load.totals.map(|(_, totals)| totals),
        blamed_by,
        silent_to,
    }
}

/// How a node stands now.
pub(super) fn state(now: Duration, member: &Member) -> State {
    let (wrong, silent) = accusers(now, member);
    match () {
        () if member.banned_until.is_some_and(|until| until > now) => State::Banned,
        () if wrong > 0 => State::Blamed,
        () if !member.connected => State::Away,
        () if silent > 0 || member.lapses > 0 => State::Slow,
        () => State::Up,
    }
}

/// How many blame it now: for wrong bytes, and for silence.
fn accusers(now: Duration, member: &Member) -> (usize, usize) {
    let count = |kind| member.accusers.iter().filter(|&&(_, until, silent)| until > now && silent == kind).count();
    (count(false), count(true))
}
