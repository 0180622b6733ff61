//! Peers that this node has no connection with, because one of its schedulers says so.
//!
//! Each scheduler sends a list that takes the place of its last one; a peer is denied as long as it is in any of them. A
//! scheduler that cannot be reached is believed as before. Links check the list when they begin and whenever it changes.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::watch;

use super::PeerId;

/// Names, and keys, in one scheduler's list.
pub const MAX_DENIALS: usize = 1024;

/// One list, or all of them together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeniedPeers {
    names: HashSet<Arc<str>>,
    /// SHA-256 of public keys.
    keys: HashSet<[u8; 32]>,
}

/// What all schedulers of a node say, by the scheduler's seat.
#[derive(Debug, Default)]
pub struct DenialList {
    seats: Mutex<Vec<DeniedPeers>>,
    all: watch::Sender<Arc<DeniedPeers>>,
}

impl DeniedPeers {
    /// A scheduler's list; `None` where it is longer than [`MAX_DENIALS`]. Keys of other than 32 bytes are passed over.
    pub fn new(names: Vec<String>, keys: &[bytes::Bytes]) -> Option<Self> {
        if names.len() > MAX_DENIALS || keys.len() > MAX_DENIALS {
            return None;
        }
        let keys = keys.iter().filter_map(|key| <[u8; 32]>::try_from(&key[..]).ok()).collect();
        Some(Self { names: names.into_iter().map(Arc::from).collect(), keys })
    }

    /// How many names and keys.
    pub fn len(&self) -> usize {
        self.names.len() + self.keys.len()
    }

    /// Whether the list has no entry.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn covers(&self, peer: &PeerId, key: &[u8; 32]) -> bool {
        self.names.contains(peer.as_str()) || self.keys.contains(key)
    }
}

impl DenialList {
    /// Takes a scheduler's new list.
    pub fn replace(&self, seat: usize, list: DeniedPeers) {
        let mut seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        if seats.len() <= seat {
            seats.resize_with(seat + 1, DeniedPeers::default);
        }
        seats[seat] = list;
        let mut all = DeniedPeers::default();
        for list in seats.iter() {
            all.names.extend(list.names.iter().cloned());
            all.keys.extend(&list.keys);
        }
        self.all.send_if_modified(|known| {
            let news = **known != all;
            if news {
                *known = Arc::new(all);
            }
            news
        });
    }

    /// Whether a peer of this name, with this key, is denied now.
    pub fn covers(&self, peer: &PeerId, key: &[u8; 32]) -> bool {
        self.all.borrow().covers(peer, key)
    }

    /// Whether the name alone is denied: such a peer is not even dialled.
    pub fn covers_name(&self, peer: &PeerId) -> bool {
        self.all.borrow().names.contains(peer.as_str())
    }

    /// Waits until the peer is denied.
    pub async fn wait_for(&self, peer: &PeerId, key: &[u8; 32]) {
        // The sender lives as long as `self`.
        drop(self.all.subscribe().wait_for(|denied| denied.covers(peer, key)).await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(names: &[&str], keys: &[[u8; 32]]) -> DeniedPeers {
        let keys: Vec<bytes::Bytes> = keys.iter().map(|key| key.to_vec().into()).collect();
        DeniedPeers::new(names.iter().map(|name| (*name).to_owned()).collect(), &keys).unwrap()
    }

    #[test]
    fn a_peer_is_denied_while_any_scheduler_says_so() {
        let denials = DenialList::default();
        let (a, b) = (PeerId::new("a").unwrap(), PeerId::new("b").unwrap());
        denials.replace(1, list(&["a"], &[[7; 32]]));
        denials.replace(0, list(&["a"], &[]));
        assert!(denials.covers(&a, &[1; 32]) && denials.covers(&b, &[7; 32]) && !denials.covers(&b, &[1; 32]));
        denials.replace(1, list(&[], &[]));
        assert!(denials.covers_name(&a) && !denials.covers(&b, &[7; 32]));
        denials.replace(0, list(&[], &[]));
        assert!(!denials.covers(&a, &[1; 32]));
    }

    #[test]
    fn a_list_that_is_too_long_is_refused_and_a_key_that_is_none_is_passed_over() {
        assert!(DeniedPeers::new(vec!["a".to_owned(); MAX_DENIALS + 1], &[]).is_none());
        assert!(DeniedPeers::new(Vec::new(), &vec![bytes::Bytes::new(); MAX_DENIALS + 1]).is_none());
        assert!(DeniedPeers::new(Vec::new(), &[vec![1; 31].into()]).unwrap().is_empty());
    }
}
