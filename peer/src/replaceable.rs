//! A value that is read at all times and replaced at times, without a lock for those who read.

use std::{
    ops::Deref,
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

/// How often one value may be replaced: each stays in memory, and finding the newest passes all before it.
const MOST: usize = 256;

/// The newest of a chain of values. What was replaced stays for whoever still reads it, as long as this does.
#[derive(Debug)]
pub struct Replaceable<T> {
    first: Version<T>,
    replaced: AtomicUsize,
}

#[derive(Debug)]
struct Version<T> {
    value: T,
    next: OnceLock<Box<Self>>,
}

/// It was replaced too often.
#[derive(Debug, thiserror::Error)]
#[error("changed {MOST} times since the start: more needs a restart")]
pub struct TooOften;

impl<T> Replaceable<T> {
    /// Holds this until it is replaced.
    pub fn new(value: T) -> Self {
        Self { first: Version { value, next: OnceLock::new() }, replaced: AtomicUsize::new(0) }
    }

    /// Whoever reads from now on finds this one.
    ///
    /// # Errors
    /// [`TooOften`], and nothing changed.
    pub fn replace(&self, value: T) -> Result<(), TooOften> {
        let room = |count| (count < MOST).then_some(count + 1);
        self.replaced.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).map_err(|_| TooOften)?;
        let mut new = Box::new(Version { value, next: OnceLock::new() });
        // Whoever replaces at the same time was first.
        while let Err(refused) = self.newest().next.set(new) {
            new = refused;
        }
        Ok(())
    }

    fn newest(&self) -> &Version<T> {
        let mut version = &self.first;
        while let Some(next) = version.next.get() {
            version = next;
        }
        version
    }
}

impl<T> Deref for Replaceable<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.newest().value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_is_read_and_who_reads_an_older_one_keeps_it() {
        let value = Replaceable::new("a".to_owned());
        let older: &String = &value;
        value.replace("b".to_owned()).unwrap();
        assert_eq!((older.as_str(), value.as_str()), ("a", "b"));
    }

    #[test]
    fn the_chain_is_bounded() {
        let value = Replaceable::new(0);
        assert!((1..=MOST).all(|next| value.replace(next).is_ok()));
        assert!(value.replace(0).is_err());
        assert_eq!(*value, MOST);
    }

    #[test]
    fn none_of_those_who_replace_at_once_is_lost() {
        let value = Replaceable::new(0);
        std::thread::scope(|scope| {
            for next in 1..=8 {
                let value = &value;
                scope.spawn(move || value.replace(next).unwrap());
            }
        });
        let mut seen = Vec::new();
        let mut version = &value.first;
        while let Some(next) = version.next.get() {
            seen.push(next.value);
            version = next;
        }
        seen.sort_unstable();
        assert_eq!(seen, (1..=8).collect::<Vec<_>>());
    }
}
