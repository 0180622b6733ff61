//! What is remembered for a while, and of which there are only so many.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Time since the machine was started, the time that it was suspended included (CLOCK_BOOTTIME, clock_gettime(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootTime(Duration);

impl BootTime {
    /// Now.
    pub fn now() -> Self {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let (seconds, nanos) = (u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0));
        Self(Duration::new(seconds, nanos))
    }
}

/// When something that was permitted ends. The clock of [`Instant`] stands still while the machine is suspended, and a right may be
/// revoked meanwhile: the earlier of both clocks decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Expiry {
    awake: Instant,
    boot: BootTime,
}

impl Expiry {
    /// `life` from now, by both clocks.
    pub fn after(now: (Instant, BootTime), life: Duration) -> Self {
        Self { awake: now.0 + life, boot: BootTime(now.1.0.saturating_add(life)) }
    }

    /// Whether it is still to come.
    pub fn is_ahead(&self, now: (Instant, BootTime)) -> bool {
        self.awake > now.0 && self.boot > now.1
    }
}

/// Values by a hash of what they are about, each until its own end. Where there is no room, nothing more is remembered: whoever
/// asks then finds nothing, and has to do without.
#[derive(Debug)]
pub struct Expiring<V> {
    most: usize,
    values: Mutex<HashMap<[u8; 32], (Expiry, V)>>,
}

impl<V: Clone> Expiring<V> {
    /// At most `most` at a time.
    pub fn new(most: usize) -> Self {
        Self { most, values: Mutex::default() }
    }

    /// Remembers a value for `life` from `now`.
    pub fn insert(&self, key: [u8; 32], value: V, now: Instant, life: Duration) {
        self.insert_at(key, value, (now, BootTime::now()), life);
    }

    /// The value, unless it has ended.
    pub fn get(&self, key: &[u8; 32], now: Instant) -> Option<V> {
        self.get_at(key, (now, BootTime::now()))
    }

    fn insert_at(&self, key: [u8; 32], value: V, now: (Instant, BootTime), life: Duration) {
        let mut values = self.lock();
        if values.len() >= self.most {
            values.retain(|_, (until, _)| until.is_ahead(now));
        }
        if values.len() < self.most && !life.is_zero() {
            values.insert(key, (Expiry::after(now, life), value));
        }
    }

    fn get_at(&self, key: &[u8; 32], now: (Instant, BootTime)) -> Option<V> {
        self.lock().get(key).filter(|(until, _)| until.is_ahead(now)).map(|(_, value)| value.clone())
    }

    /// Ends a value at once.
    pub fn remove(&self, key: &[u8; 32]) {
        self.lock().remove(key);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<[u8; 32], (Expiry, V)>> {
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
    /// A consent outlived `authorize.cap` by the whole suspension, since the monotonic clock stood still in it.
    #[test]
    fn a_value_ends_in_time_on_a_machine_that_was_suspended() {
        let (memory, life) = (Expiring::new(2), Duration::from_secs(60));
        let (awake, boot) = (Instant::now(), BootTime::now());
        memory.insert_at([1; 32], 'a', (awake, boot), life);
        let suspended_for = |time| BootTime(boot.0 + time);
        assert_eq!(memory.get_at(&[1; 32], (awake, suspended_for(life / 2))), Some('a'));
        assert_eq!(memory.get_at(&[1; 32], (awake, suspended_for(life))), None);
        assert_eq!(memory.get_at(&[1; 32], (awake + life, boot)), None);
    }

    #[test]
    fn the_time_since_the_start_goes_on() {
        let before = BootTime::now();
        assert!(before.0 > Duration::ZERO && BootTime::now() >= before);
    }
}
