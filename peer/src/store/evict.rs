//! Which tasks go when room is needed [pure]: first those that hold nothing, then of the lowest priority the least recently
//! used, whole tasks, never one in use or pinned.

use super::Priority;

/// A task as eviction sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate<K> {
    /// Names the task.
    pub key: K,
    /// What its removal gives back, in bytes.
    pub bytes: u64,
    /// Whether no byte of it has been received: it goes before all that was paid for with bytes.
    pub empty: bool,
    /// Higher ones go later.
    pub priority: Priority,
    /// When it was last used; only the order matters.
    pub last_used: u64,
    /// Whether somebody reads or downloads it now.
    pub in_use: bool,
    /// Whether it is to stay whatever happens.
    pub pinned: bool,
}

impl<K> Candidate<K> {
    /// Whether it may be removed.
    pub fn may_go(&self) -> bool {
        !self.in_use && !self.pinned
    }
}

/// The tasks to remove so that at least `need` bytes come free, in their order. Empty when `need` is 0.
///
/// `None` if all that may go would not suffice: then nothing should be removed.
pub fn victims<K: Copy>(candidates: &[Candidate<K>], need: u64) -> Option<Vec<K>> {
    let mut idle: Vec<_> = candidates.iter().filter(|candidate| candidate.may_go()).collect();
    idle.sort_by_key(|candidate| (!candidate.empty, candidate.priority, candidate.last_used));
    let mut freed = 0;
    let mut chosen = Vec::new();
    for candidate in idle {
        if freed >= need {
            break;
        }
        freed = candidate.bytes.saturating_add(freed);
        chosen.push(candidate.key);
    }
    (freed >= need).then_some(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(key: u32, bytes: u64, last_used: u64, in_use: bool) -> Candidate<u32> {
        Candidate { key, bytes, empty: false, priority: Priority::Normal, last_used, in_use, pinned: false }
    }

    #[test]
    fn the_least_recently_used_go_first_and_no_more_than_needed() {
        let all = [candidate(1, 10, 30, false), candidate(2, 10, 10, false), candidate(3, 10, 20, false)];
        assert_eq!(victims(&all, 11), Some(vec![2, 3]));
        assert_eq!(victims(&all, 10), Some(vec![2]));
        assert_eq!(victims(&all, 0), Some(vec![]));
    }

    #[test]
    fn a_task_in_use_stays_even_if_room_cannot_be_made() {
        let all = [candidate(1, 10, 1, true), candidate(2, 10, 2, false)];
        assert_eq!(victims(&all, 11), None);
        assert_eq!(victims(&all, 5), Some(vec![2]));
    }

    #[test]
    fn a_higher_priority_goes_later_however_old_it_is() {
        let high = Candidate { priority: Priority::High, ..candidate(1, 10, 1, false) };
        let low = Candidate { priority: Priority::Low, ..candidate(3, 10, 9, false) };
        assert_eq!(victims(&[high, candidate(2, 10, 5, false), low], 20), Some(vec![3, 2]));
    }

    #[test]
    fn what_holds_nothing_goes_before_all_that_does() {
        let empty = Candidate { empty: true, priority: Priority::High, ..candidate(1, 10, 9, false) };
        assert_eq!(victims(&[candidate(2, 10, 5, false), empty], 20), Some(vec![1, 2]));
    }

    #[test]
    fn a_pinned_task_stays_however_old_it_is() {
        let pinned = Candidate { pinned: true, ..candidate(1, 10, 1, false) };
        assert_eq!(victims(&[pinned, candidate(2, 10, 9, false)], 5), Some(vec![2]));
        assert_eq!(victims(&[pinned], 5), None);
    }

    proptest::proptest! {
        #[test]
        fn victims_suffice_are_idle_and_dropping_the_last_would_not_suffice(
            tasks in proptest::collection::vec((0..1000_u64, 0..50_u64, proptest::bool::ANY), 0..30), need in 0..9000_u64
        ) {
            let all: Vec<_> = (0..).zip(&tasks).map(|(key, &(bytes, used, busy))| candidate(key, bytes, used, busy)).collect();
            let idle: u64 = all.iter().filter(|c| !c.in_use).map(|c| c.bytes).sum();
            match victims(&all, need) {
                None => assert!(idle < need),
                Some(keys) => {
                    let freed: Vec<u64> = keys.iter().map(|&key| all[key as usize].bytes).collect();
                    assert!(keys.iter().all(|&key| !all[key as usize].in_use));
                    assert!(freed.iter().sum::<u64>() >= need);
                    assert!(keys.is_empty() || freed[..freed.len() - 1].iter().sum::<u64>() < need);
                }
            }
        }
    }
}
