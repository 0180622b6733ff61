//! Who is in the cluster [pure].

use core::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::Map;
use super::blame::Accusation;
use super::traffic::Load;

/// A peer's place in the cluster's tables. Kept over reconnections of the same name, reused after its expiry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerId(pub u32);

/// What a peer says of itself in Hello.
#[derive(Clone, Debug)]
pub struct PeerInfo {
    /// Unique in the cluster.
    pub name: Arc<str>,
    /// Its first QUIC endpoint.
    pub address: SocketAddr,
    /// Endpoints at consecutive ports, at least 1.
    pub endpoints: u16,
    /// Key and value of each label.
    pub labels: Vec<(String, String)>,
    /// Preferred as a parent.
    pub seed: bool,
}

#[derive(Debug)]
pub(super) struct Member {
    pub(super) info: PeerInfo,
    /// Another number for each member ever, where a place is used again.
    serial: u32,
    /// Where its sessions come from, as far as that tells peers apart.
    origin: Option<IpAddr>,
    /// The last links that ended: the other end's serial number, and the task.
    parted: VecDeque<(u32, u32)>,
    /// Groups it belongs to, coarse to fine.
    pub(super) groups: Box<[u32]>,
    /// Task to this peer's place in the task's entries.
    pub(super) tasks: Map<u32, u32>,
    pub(super) connected: bool,
    /// Since when it has no session.
    pub(super) gone: Option<Duration>,
    /// When its session began to say what it holds.
    pub(super) since: Duration,
    pub(super) load: Load,
    /// Bytes that its claims are charged with.
    pub(super) claims: usize,
    /// It is over its budget: what it claimed is being dropped, and its session ends.
    pub(super) refused: bool,
    /// Digests that are kept of its reports.
    pub(super) digests: usize,
    /// Leases that failed or fell silent since one moved.
    pub(super) lapses: u8,
    /// It gets no lease before.
    pub(super) cool_at: Duration,
    pub(super) banned_until: Option<Duration>,
    /// Who blamed it lately.
    pub(super) accusers: Vec<Accusation>,
    /// Whom it blamed lately: not linked with again for a while.
    pub(super) accused: Vec<(u32, Duration)>,
}

#[derive(Debug, Default)]
pub(super) struct Members {
    slots: Vec<Option<Member>>,
    free: Vec<u32>,
    by_name: HashMap<Arc<str>, u32>,
    /// A label within a group to the group that they make, and how many members are in it.
    groups: HashMap<(u32, String), (u32, u32)>,
    next_group: u32,
    seeds: BTreeSet<u32>,
    next_serial: u32,
}

/// Links that ended which a member remembers: an accusation may come after the link's end.
const MAX_PARTED: usize = 16;

impl Members {
    /// Enters a peer, or takes a known name up again; `keys` are the label keys that count, coarse to fine.
    pub(super) fn enter(&mut self, info: PeerInfo, keys: &[String]) -> u32 {
        let groups = self.groups_of(&info, keys);
        if let Some(&slot) = self.by_name.get(&info.name)
            && let Some(member) = self.slots[slot as usize].as_mut()
        {
            mark(&mut self.seeds, slot, info.seed);
            let before = std::mem::replace(&mut member.info, info);
            member.groups = groups;
            member.refused = false;
            member.connected = true;
            member.gone = None;
            self.leave_groups(&before, keys);
            return slot;
        }
        let name = Arc::clone(&info.name);
        let serial = self.next_serial;
        self.next_serial = serial.wrapping_add(1);
        let member = Member {
            info,
            serial,
            origin: None,
            parted: VecDeque::new(),
            groups,
            tasks: Map::default(),
            connected: true,
            gone: None,
            since: Duration::ZERO,
            load: Load::default(),
            claims: 0,
            refused: false,
            digests: 0,
            lapses: 0,
            cool_at: Duration::ZERO,
            banned_until: None,
            accusers: Vec::new(),
            accused: Vec::new(),
        };
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            u32::try_from(self.slots.len() - 1).expect("fewer than 2^32 peers")
        });
        mark(&mut self.seeds, slot, member.info.seed);
        self.slots[slot as usize] = Some(member);
        self.by_name.insert(name, slot);
        slot
    }

    /// Where a member's sessions come from. Peers behind one address of IPv4, or in one /64 of IPv6, which one machine can have
    /// all of, count as one voice; those on the scheduler's own machine can only be told apart by their names.
    pub(super) fn set_origin(&mut self, slot: u32, from: IpAddr) {
        let Some(member) = self.get_mut(slot) else { return };
        member.origin = match from.to_canonical() {
            from if from.is_loopback() => None,
            IpAddr::V6(from) => Some(Ipv6Addr::from_bits(from.to_bits() & !u128::from(u64::MAX)).into()),
            from => Some(from),
        };
    }

    /// How many of these members speak for themselves: by origin, where that is known.
    pub(super) fn independent(&self, slots: impl Iterator<Item = u32>) -> usize {
        let voice = |slot| match self.get(slot).and_then(|member| member.origin) {
            Some(origin) => (Some(origin), 0),
            None => (None, slot),
        };
        slots.map(voice).collect::<BTreeSet<_>>().len()
    }

    /// Remembers that a link has ended, at its end `slot`.
    pub(super) fn part(&mut self, slot: u32, other: u32, task: u32) {
        let Some(serial) = self.get(other).map(|other| other.serial) else { return };
        let Some(member) = self.get_mut(slot) else { return };
        if member.parted.len() >= MAX_PARTED {
            member.parted.pop_front();
        }
        member.parted.push_back((serial, task));
    }

    /// Whether two members had a link at a task, among the last ones that ended.
    pub(super) fn were_linked(&self, slot: u32, other: u32, task: u32) -> bool {
        let (Some(member), Some(other)) = (self.get(slot), self.get(other)) else { return false };
        member.parted.contains(&(other.serial, task))
    }

    pub(super) fn leave(&mut self, slot: u32, keys: &[String]) -> Option<Member> {
        let member = self.slots.get_mut(slot as usize).and_then(Option::take)?;
        self.leave_groups(&member.info, keys);
        self.by_name.remove(&member.info.name);
        self.seeds.remove(&slot);
        self.free.push(slot);
        Some(member)
    }

    pub(super) fn get(&self, slot: u32) -> Option<&Member> {
        self.slots.get(slot as usize)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, slot: u32) -> Option<&mut Member> {
        self.slots.get_mut(slot as usize)?.as_mut()
    }

    pub(super) fn seeds(&self) -> impl Iterator<Item = u32> {
        self.seeds.iter().copied()
    }

    pub(super) fn named(&self, name: &str) -> Option<u32> {
        self.by_name.get(name).copied()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Member)> {
        (0u32..).zip(&self.slots).filter_map(|(slot, member)| Some((slot, member.as_ref()?)))
    }

    /// Every place is below.
    pub(super) fn places(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn len(&self) -> usize {
        self.by_name.len()
    }

    /// How many groups two peers share.
    pub(super) fn nearness(&self, a: u32, b: u32) -> u32 {
        let (Some(a), Some(b)) = (self.get(a), self.get(b)) else { return 0 };
        let shared = a.groups.iter().zip(&b.groups).take_while(|(a, b)| a == b).count();
        u32::try_from(shared).unwrap_or(0)
    }

    /// A group is a label within the group before it: racks of the same name in two zones are different.
    fn groups_of(&mut self, info: &PeerInfo, keys: &[String]) -> Box<[u32]> {
        let mut within = 0;
        let mut groups = Vec::with_capacity(keys.len());
        for key in keys {
            let Some((_, value)) = info.labels.iter().find(|(name, _)| name == key) else { break };
            let (group, members) = self.groups.entry((within, value.clone())).or_insert_with(|| {
                self.next_group = self.next_group.wrapping_add(1);
                (self.next_group, 0)
            });
            *members += 1;
            within = *group;
            groups.push(within);
        }
        groups.into()
    }

    /// Takes a member out of its groups. A group without members is forgotten: a peer can name other labels at each session.
    fn leave_groups(&mut self, info: &PeerInfo, keys: &[String]) {
        let mut within = 0;
        for key in keys {
            let Some((_, value)) = info.labels.iter().find(|(name, _)| name == key) else { break };
            let label = (within, value.clone());
            let Some((group, members)) = self.groups.get_mut(&label) else { break };
            within = *group;
            *members -= 1;
            if *members == 0 {
                self.groups.remove(&label);
            }
        }
    }

    #[cfg(test)]
    pub(super) fn group_count(&self) -> usize {
        self.groups.len()
    }
}

fn mark(seeds: &mut BTreeSet<u32>, slot: u32, seed: bool) {
    match seed {
        true => seeds.insert(slot),
        false => seeds.remove(&slot),
    };
}
