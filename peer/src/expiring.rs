//! What is remembered for a while, and of which there are only so many.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Values by a hash of what they are about, each until its own end. Where there is no room, nothing more is remembered: whoever
/// asks then finds nothing, and has to do without.
#[derive(Debug)]
pub struct Expiring<V> {
    most: usize,
    values: Mutex<HashMap<[u8; 32], (Instant, V)>>,
}

impl<V: Clone> Expiring<V> {
    /// At most `most` at a time.
    pub fn new(most: usize) -> Self {
        Self { most, values: Mutex::default() }
    }

    /// Remembers a value for `life` from `now`.
    pub fn insert(&self, key: [u8; 32], value: V, now: Instant, life: Duration) {
        let mut values = self.lock();
        if values.len() >= self.most {
            values.retain(|_, (until, _)| *until > now);
        }
        if values.len() < self.most && !life.is_zero() {
            values.insert(key, (now + life, value));
        }
    }

    /// The value, unless it has ended.
    pub fn get(&self, key: &[u8; 32], now: Instant) -> Option<V> {
        self.lock().get(key).filter(|(until, _)| *until > now).map(|(_, value)| value.clone())
    }

    /// Ends a value at once.
    pub fn remove(&self, key: &[u8; 32]) {
        self.lock().remove(key);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<[u8; 32], (Instant, V)>> {
        self.values.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_ends_and_a_full_memory_takes_no_more_until_one_has() {
        let (memory, now, life) = (Expiring::new(2), Instant::now(), Duration::from_secs(60));
        memory.insert([1; 32], 'a', now, life);
        memory.insert([2; 32], 'b', now, life * 2);
        memory.insert([3; 32], 'c', now, life);
        assert_eq!((memory.get(&[1; 32], now), memory.get(&[3; 32], now)), (Some('a'), None));
        let later = now + life;
        assert_eq!(memory.get(&[1; 32], later), None);
        memory.insert([3; 32], 'c', later, life);
        assert_eq!((memory.get(&[2; 32], later), memory.get(&[3; 32], later)), (Some('b'), Some('c')));
        memory.remove(&[2; 32]);
        memory.insert([4; 32], 'd', later, Duration::ZERO);
        assert_eq!((memory.get(&[2; 32], later), memory.get(&[4; 32], later)), (None, None));
    }
}
