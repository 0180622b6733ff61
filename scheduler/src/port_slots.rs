//! Which connections a small port keeps when it has as many as it may [pure].
//!
//! A port that waits for a free place before it accepts is closed to everyone by as many idle connections as it has places,
//! health probes included, and an orchestrator then ends a process that works. So a new connection is always accepted:
//! past the bound it takes the place of one that is idle, of the address that has the most of them.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};

/// One connection of a [`SlotTable`].
pub(crate) type SlotId = u64;

/// The open connections of a port.
#[derive(Debug)]
pub(crate) struct SlotTable {
    most: usize,
    next: SlotId,
    slots: HashMap<SlotId, Slot>,
}

#[derive(Debug)]
struct Slot {
    network: IpAddr,
    /// Requests under way.
    busy: u32,
    /// Rises with each begin and end of a request, over all connections.
    used: u64,
}

/// What becomes of a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SlotVerdict {
    /// It has a place.
    Open(SlotId),
    /// It has a place, and the connection named second is to be closed for it.
    Replace(SlotId, SlotId),
    /// Every place is taken by a request under way.
    Full,
}

impl SlotTable {
    /// A table of `most` places.
    pub(crate) fn new(most: usize) -> Self {
        Self { most, next: 0, slots: HashMap::new() }
    }

    /// Decides about a new connection from `address`.
    pub(crate) fn open(&mut self, address: IpAddr) -> SlotVerdict {
        let evicted = if self.slots.len() < self.most {
            None
        } else {
            let Some(idle) = self.idlest() else { return SlotVerdict::Full };
            self.slots.remove(&idle);
            Some(idle)
        };
        self.next += 1;
        self.slots.insert(self.next, Slot { network: network(address), busy: 0, used: self.next });
        evicted.map_or(SlotVerdict::Open(self.next), |evicted| SlotVerdict::Replace(self.next, evicted))
    }

    /// A request of the connection begins.
    pub(crate) fn begin_request(&mut self, id: SlotId) {
        self.touch(id, |busy| busy.saturating_add(1));
    }

    /// A request of the connection is answered.
    pub(crate) fn end_request(&mut self, id: SlotId) {
        self.touch(id, |busy| busy.saturating_sub(1));
    }

    /// The connection is over.
    pub(crate) fn close(&mut self, id: SlotId) {
        self.slots.remove(&id);
    }

    fn touch(&mut self, id: SlotId, busy: impl Fn(u32) -> u32) {
        self.next += 1;
        if let Some(slot) = self.slots.get_mut(&id) {
            (slot.busy, slot.used) = (busy(slot.busy), self.next);
        }
    }

    /// The idle connection that was used longest ago, of the network with the most connections.
    fn idlest(&self) -> Option<SlotId> {
        let mut by_network: HashMap<IpAddr, usize> = HashMap::new();
        self.slots.values().for_each(|slot| *by_network.entry(slot.network).or_default() += 1);
        let idle = self.slots.iter().filter(|(_, slot)| slot.busy == 0);
        let worst = idle.max_by_key(|(_, slot)| (by_network[&slot.network], std::cmp::Reverse(slot.used)));
        worst.map(|(id, _)| *id)
    }
}

/// The network that one party can be assumed to control: an IPv4 address, or the /64 of an IPv6 address.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_probe_finds_a_place_whatever_another_address_holds() {
        let mut table = SlotTable::new(4);
        for _ in 0..4 {
            assert!(matches!(table.open(ip("192.0.2.1")), SlotVerdict::Open(_)));
        }
        let SlotVerdict::Replace(probe, _) = table.open(ip("127.0.0.1")) else { panic!("no place for a probe") };
        // Another flood takes its own places, never the probe's.
        for _ in 0..10 {
            let SlotVerdict::Replace(_, evicted) = table.open(ip("192.0.2.1")) else { panic!("refused") };
            assert_ne!(evicted, probe);
        }
    }

    #[test]
    fn a_request_under_way_is_never_cut_and_the_longest_idle_goes_first() {
        let mut table = SlotTable::new(2);
        let (SlotVerdict::Open(first), SlotVerdict::Open(second)) = (table.open(ip("::1")), table.open(ip("::1")))
        else {
            panic!()
        };
        table.begin_request(first);
        table.end_request(first);
        assert!(matches!(table.open(ip("::1")), SlotVerdict::Replace(_, evicted) if evicted == second));
        let mut table = SlotTable::new(1);
        let SlotVerdict::Open(only) = table.open(ip("::1")) else { panic!() };
        table.begin_request(only);
        assert_eq!(table.open(ip("192.0.2.1")), SlotVerdict::Full);
        table.close(only);
        assert!(matches!(table.open(ip("192.0.2.1")), SlotVerdict::Open(_)));
    }

    #[test]
    fn hosts_of_one_ipv6_network_count_as_one() {
        assert_eq!(network(ip("2001:db8::1")), network(ip("2001:db8::2")));
        assert_ne!(network(ip("2001:db8::1")), network(ip("2001:db8:0:1::1")));
        assert_eq!(network(ip("::ffff:192.0.2.1")), ip("192.0.2.1"));
    }
}
