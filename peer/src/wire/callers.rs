//! Which callers an endpoint admits: handshakes by address until the certificate is known, links by peer afterwards.
//!
//! A party that is not a peer of the cluster can only take places among the handshakes, and one address only a share of
//! those. A peer can only take its share of the links, however many connections it opens, so that it never keeps another
//! peer out. Past [`VALIDATE_FROM`] handshakes a caller must show that it receives what is sent to its address (a Retry
//! packet, RFC 9000 section 8.1.2), since the source of a first packet can be forged.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use tokio::sync::Semaphore;

use super::{PeerId, uploads::LINK_BLOCKS};

/// Handshakes at a time, per endpoint. Each costs some 20 KiB for at most the five seconds that a handshake may take.
pub(super) const MAX_HANDSHAKES: usize = 256;
/// Handshakes of one address at a time. A host with more shards than this dials again after a moment.
pub(super) const MAX_HANDSHAKES_PER_ADDRESS: usize = 64;
/// Handshakes at a time with callers that have not proved that their address is their own. Past these, every caller has to.
pub(super) const VALIDATE_FROM: usize = 64;
/// Links at a time, per endpoint. Each costs some 50 KiB when idle.
pub(super) const MAX_LINKS: usize = 512;
/// Links of one peer at a time, per endpoint: each shard of a peer dials one, and a peer can have several times as many
/// shards as this node has endpoints.
pub(super) const MAX_LINKS_PER_PEER: usize = 64;

/// What happens to a caller whose first packet has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CallerVerdict {
    /// The handshake begins. [`CallerTable::end_handshake`] must follow.
    Admit,
    /// The caller is asked to prove its address first.
    Validate,
    /// There is no room for the caller's address, or for any.
    Refuse,
}

/// Who occupies an endpoint. Counts only: the connections are elsewhere.
#[derive(Debug, Default)]
pub(super) struct CallerTable {
    /// Of callers that proved their address, by network (see [`network`]). Never a zero.
    handshakes: HashMap<IpAddr, usize>,
    validated: usize,
    /// Of all others. They count against no address: the one that they name may be forged.
    unvalidated: usize,
    /// Never without a link.
    peers: HashMap<PeerId, PeerShare>,
    links_total: usize,
}

/// What one peer has of an endpoint, over all its links.
#[derive(Debug)]
struct PeerShare {
    links: usize,
    /// Memory of its uploads.
    blocks: Arc<Semaphore>,
}

impl CallerTable {
    /// Decides about a caller, and counts its handshake if it is admitted.
    pub(super) fn begin_handshake(&mut self, address: IpAddr, is_validated: bool) -> CallerVerdict {
        if !is_validated {
            if self.unvalidated >= VALIDATE_FROM {
                return CallerVerdict::Validate;
            }
            self.unvalidated += 1;
            return CallerVerdict::Admit;
        }
        let of_network = self.handshakes.get(&network(address)).copied().unwrap_or(0);
        if self.validated >= MAX_HANDSHAKES || of_network >= MAX_HANDSHAKES_PER_ADDRESS {
            return CallerVerdict::Refuse;
        }
        self.handshakes.insert(network(address), of_network + 1);
        self.validated += 1;
        CallerVerdict::Admit
    }

    /// An admitted handshake is over, whatever came of it. The arguments are those that it began with.
    pub(super) fn end_handshake(&mut self, address: IpAddr, is_validated: bool) {
        if !is_validated {
            self.unvalidated -= 1;
        } else if let Some(count) = self.handshakes.get_mut(&network(address)) {
            *count -= 1;
            self.validated -= 1;
            if *count == 0 {
                self.handshakes.remove(&network(address));
            }
        }
    }

    /// Counts a link of `peer` and gives the memory that all its links share; `None` where the peer, or the endpoint, has as
    /// many links as it may. [`Self::end_link`] must follow.
    pub(super) fn begin_link(&mut self, peer: &PeerId) -> Option<Arc<Semaphore>> {
        let links = self.peers.get(peer).map_or(0, |share| share.links);
        if self.links_total >= MAX_LINKS || links >= MAX_LINKS_PER_PEER {
            return None;
        }
        let new = || PeerShare { links: 0, blocks: Arc::new(Semaphore::new(LINK_BLOCKS)) };
        let share = self.peers.entry(peer.clone()).or_insert_with(new);
        share.links += 1;
        self.links_total += 1;
        Some(Arc::clone(&share.blocks))
    }

    /// A counted link is over.
    pub(super) fn end_link(&mut self, peer: &PeerId) {
        if let Some(share) = self.peers.get_mut(peer) {
            share.links -= 1;
            self.links_total -= 1;
            if share.links == 0 {
                self.peers.remove(peer);
            }
        }
    }
}

/// The network that one party can be assumed to control: an IPv4 address, or the /64 of an IPv6 address.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

const _: () = assert!(MAX_HANDSHAKES_PER_ADDRESS < MAX_HANDSHAKES);
const _: () = assert!(MAX_LINKS_PER_PEER * 4 <= MAX_LINKS);

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(name: &str) -> PeerId {
        PeerId::new(name).unwrap()
    }

    #[test]
    fn one_address_leaves_handshakes_for_others_and_gets_its_own_back() {
        let mut table = CallerTable::default();
        let (greedy, other): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        for _ in 0..MAX_HANDSHAKES_PER_ADDRESS {
            assert_eq!(table.begin_handshake(greedy, true), CallerVerdict::Admit);
        }
        assert_eq!(table.begin_handshake(greedy, true), CallerVerdict::Refuse);
        assert_eq!(table.begin_handshake(other, true), CallerVerdict::Admit);
        table.end_handshake(greedy, true);
        assert_eq!(table.begin_handshake(greedy, true), CallerVerdict::Admit);
    }

    #[test]
    fn addresses_of_one_ipv6_network_share_and_mapped_ones_count_as_ipv4() {
        let mut table = CallerTable::default();
        for host in 0..MAX_HANDSHAKES_PER_ADDRESS {
            let address: IpAddr = format!("2001:db8::{host:x}").parse().unwrap();
            assert_eq!(table.begin_handshake(address, true), CallerVerdict::Admit);
        }
        assert_eq!(table.begin_handshake("2001:db8::ffff".parse().unwrap(), true), CallerVerdict::Refuse);
        assert_eq!(table.begin_handshake("2001:db8:0:1::1".parse().unwrap(), true), CallerVerdict::Admit);
        assert_eq!(network("::ffff:192.0.2.1".parse().unwrap()), network("192.0.2.1".parse().unwrap()));
    }

    #[test]
    fn forged_sources_never_fill_the_table() {
        let mut table = CallerTable::default();
        let verdicts: Vec<_> = (0..4096_u32)
            .map(|number| table.begin_handshake(IpAddr::V4((0xc612_0000 + number).into()), false))
            .collect();
        let admitted = verdicts.iter().filter(|verdict| **verdict == CallerVerdict::Admit).count();
        assert_eq!(admitted, VALIDATE_FROM);
        assert!(!verdicts.contains(&CallerVerdict::Refuse), "a forged packet refuses its victim");
        let named_by_forgers = IpAddr::V4(0xc612_0000.into());
        assert_eq!(table.begin_handshake(named_by_forgers, true), CallerVerdict::Admit);
    }

    #[test]
    fn a_peer_has_one_share_of_links_and_memory() {
        let mut table = CallerTable::default();
        let (greedy, other) = (peer("greedy"), peer("other"));
        let first = table.begin_link(&greedy).unwrap();
        for _ in 1..MAX_LINKS_PER_PEER {
            assert!(Arc::ptr_eq(&first, &table.begin_link(&greedy).unwrap()));
        }
        assert!(table.begin_link(&greedy).is_none());
        assert!(!Arc::ptr_eq(&first, &table.begin_link(&other).unwrap()));
        table.end_link(&greedy);
        assert!(table.begin_link(&greedy).is_some());
    }

    #[test]
    fn nothing_is_remembered_of_callers_that_are_gone() {
        let mut table = CallerTable::default();
        let address = "192.0.2.1".parse().unwrap();
        assert_eq!(table.begin_handshake(address, false), CallerVerdict::Admit);
        table.begin_link(&peer("a")).unwrap();
        table.end_handshake(address, false);
        table.end_link(&peer("a"));
        assert!(table.handshakes.is_empty() && table.peers.is_empty());
        assert_eq!((table.validated, table.unvalidated, table.links_total), (0, 0, 0));
    }
}
