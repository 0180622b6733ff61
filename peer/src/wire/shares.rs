//! Who may have how many uploads at a time [pure].

use std::{
    collections::HashMap,
    hash::Hash,
    time::{Duration, Instant},
};

/// A peer that asked this lately counts when the places are divided, also while it has none.
const REMEMBERED: Duration = Duration::from_secs(1);

/// Divides a number of places among those who ask: one alone may have all of them, several have equal shares, and who has
/// more than that gets no new one until it is back at its share. So a newcomer gets its share as places become free,
/// whatever the others ask for.
#[derive(Debug)]
pub struct Shares<K> {
    places: u32,
    taken: u32,
    /// Only who has places or asked within [`REMEMBERED`]; pruned at every call, so bounded by who is connected.
    askers: HashMap<K, Asker>,
}

#[derive(Debug)]
struct Asker {
    taken: u32,
    asked: Instant,
}

impl<K: Hash + Eq + Clone> Shares<K> {
    /// `places` places, at least one.
    pub fn new(places: u32) -> Self {
        Self { places: places.max(1), taken: 0, askers: HashMap::new() }
    }

    /// Another number of places from now on; nobody loses one that it has.
    pub fn set_places(&mut self, places: u32) {
        self.places = places.max(1);
    }

    /// Takes a place, to be given back with [`Self::leave`]; false where there is none for this one now.
    pub fn enter(&mut self, who: &K, now: Instant) -> bool {
        self.askers.retain(|_, asker| asker.taken > 0 || now.saturating_duration_since(asker.asked) < REMEMBERED);
        let asker = self.askers.entry(who.clone()).or_insert(Asker { taken: 0, asked: now });
        asker.asked = now;
        let own = asker.taken;
        let share = (self.places / u32::try_from(self.askers.len()).unwrap_or(u32::MAX)).max(1);
        let admitted = self.taken < self.places && own < share;
        if let Some(asker) = self.askers.get_mut(who).filter(|_| admitted) {
            asker.taken += 1;
            self.taken += 1;
        }
        admitted
    }

    /// Gives a place back.
    pub fn leave(&mut self, who: &K) {
        if let Some(asker) = self.askers.get_mut(who).filter(|asker| asker.taken > 0) {
            asker.taken -= 1;
            self.taken -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_alone_gets_all_and_two_end_up_with_half_each() {
        let mut shares = Shares::new(8);
        let now = Instant::now();
        assert_eq!((0..10).filter(|_| shares.enter(&'a', now)).count(), 8);
        assert!(!shares.enter(&'b', now), "all are taken");
        for _ in 0..4 {
            shares.leave(&'a');
            assert!(!shares.enter(&'a', now), "the newcomer's share is kept for it");
            assert!(shares.enter(&'b', now));
        }
        assert!(!shares.enter(&'b', now));
    }

    #[test]
    fn who_went_away_is_forgotten() {
        let mut shares = Shares::new(2);
        let now = Instant::now();
        assert!(shares.enter(&'a', now));
        shares.leave(&'a');
        let later = now + REMEMBERED;
        assert!(shares.enter(&'b', later) && shares.enter(&'b', later));
        assert_eq!(shares.askers.len(), 1);
    }

    #[test]
    fn with_fewer_places_nobody_loses_one_and_nobody_new_gets_one() {
        let mut shares = Shares::new(4);
        let now = Instant::now();
        assert_eq!((0..4).filter(|_| shares.enter(&'a', now)).count(), 4);
        shares.set_places(2);
        shares.leave(&'a');
        shares.leave(&'a');
        assert!(!shares.enter(&'a', now), "two are taken of two");
        shares.leave(&'a');
        assert!(shares.enter(&'a', now));
    }

    proptest::proptest! {
        #[test]
        fn never_more_places_are_taken_than_there_are(asks in proptest::collection::vec((0..5u8, proptest::bool::ANY), 0..200)) {
            let mut shares = Shares::new(6);
            let (now, mut taken) = (Instant::now(), [0u32; 5]);
            for (who, leave) in asks {
                let own = &mut taken[usize::from(who)];
                match leave {
                    true => {
                        shares.leave(&who);
                        *own = own.saturating_sub(1);
                    }
                    false => *own += u32::from(shares.enter(&who, now)),
                }
                assert!(taken.iter().sum::<u32>() <= 6);
                assert_eq!(shares.taken, taken.iter().sum::<u32>());
            }
        }
    }
}
