//! Places for connections of which one party can take only a share.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A bounded number of places, and how many of them each party has. A party is an address before its certificate is known,
/// and a name afterwards.
#[derive(Debug)]
pub(super) struct PlaceShares<K> {
    most: usize,
    most_of_one: usize,
    taken: Mutex<Taken<K>>,
}

#[derive(Debug)]
struct Taken<K> {
    total: usize,
    /// Never a zero, so bounded by `total`.
    by_party: HashMap<K, usize>,
}

/// A place, given back when it drops.
#[derive(Debug)]
pub(super) struct SharedPlace<K: Hash + Eq> {
    shares: Arc<PlaceShares<K>>,
    party: K,
}

impl<K: Hash + Eq + Clone> PlaceShares<K> {
    /// `most` places, of which one party can have `most_of_one`.
    pub(super) fn new(most: usize, most_of_one: usize) -> Arc<Self> {
        Arc::new(Self { most, most_of_one, taken: Mutex::new(Taken { total: 0, by_party: HashMap::new() }) })
    }

    /// A place for `party`; `None` where it has its share, or all are taken.
    pub(super) fn take(self: &Arc<Self>, party: K) -> Option<SharedPlace<K>> {
        let mut taken = self.lock();
        let own = taken.by_party.get(&party).copied().unwrap_or(0);
        if taken.total >= self.most || own >= self.most_of_one {
            return None;
        }
        taken.total += 1;
        taken.by_party.insert(party.clone(), own + 1);
        Some(SharedPlace { shares: Arc::clone(self), party })
    }
}

impl<K> PlaceShares<K> {
    fn lock(&self) -> MutexGuard<'_, Taken<K>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Hash + Eq> Drop for SharedPlace<K> {
    fn drop(&mut self) {
        let mut taken = self.shares.lock();
        taken.total -= 1;
        if let Some(own) = taken.by_party.get_mut(&self.party) {
            *own -= 1;
            if *own == 0 {
                taken.by_party.remove(&self.party);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_party_leaves_places_for_others_and_gets_its_own_back() {
        let shares = PlaceShares::new(4, 2);
        let (first, _second) = (shares.take("greedy").unwrap(), shares.take("greedy").unwrap());
        assert!(shares.take("greedy").is_none());
        let _other = shares.take("other").unwrap();
        drop(first);
        let _third = shares.take("greedy").unwrap();
        let _last = shares.take("last").unwrap();
        assert!(shares.take("late").is_none(), "all places are taken");
        assert_eq!(shares.lock().by_party.len(), 3);
    }
}
