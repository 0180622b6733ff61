//! Which pieces are held: set from one shard, read from all.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// A bit a piece; bits are only ever set.
#[derive(Debug)]
pub struct Bitmap {
    words: Box<[AtomicU64]>,
    bits: u32,
    set: AtomicU32,
}

impl Bitmap {
    /// `bits` bits, all clear.
    pub fn new(bits: u32) -> Self {
        let words = (0..bits.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Self { words, bits, set: AtomicU32::new(0) }
    }

    /// Sets bit `index`; whether it was clear. Everything written before the call is seen by whoever sees the bit.
    pub fn set(&self, index: u32) -> bool {
        assert!(index < self.bits, "piece {index} of {}", self.bits);
        let mask = 1 << (index % 64);
        let newly = self.words[index as usize / 64].fetch_or(mask, Ordering::AcqRel) & mask == 0;
        if newly {
            self.set.fetch_add(1, Ordering::AcqRel);
        }
        newly
    }

    /// Whether bit `index` is set; false past the end.
    pub fn get(&self, index: u32) -> bool {
        index < self.bits && self.words[index as usize / 64].load(Ordering::Acquire) & (1 << (index % 64)) != 0
    }

    /// Bits `64 * word` and following, from the lowest; 0 past the end.
    pub fn word(&self, word: u32) -> u64 {
        self.words.get(word as usize).map_or(0, |word| word.load(Ordering::Acquire))
    }

    /// How many bits there are.
    pub fn len(&self) -> u32 {
        self.bits
    }

    /// Whether there are no bits at all.
    pub fn is_empty(&self) -> bool {
        self.bits == 0
    }

    /// How many bits are set.
    pub fn count(&self) -> u32 {
        self.set.load(Ordering::Acquire)
    }

    /// Whether every bit is set.
    pub fn is_full(&self) -> bool {
        self.count() == self.bits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bit_counts_once_however_often_it_is_set() {
        let bitmap = Bitmap::new(65);
        assert!(bitmap.set(64));
        assert!(!bitmap.set(64));
        assert_eq!((bitmap.count(), bitmap.get(64), bitmap.get(0), bitmap.get(65)), (1, true, false, false));
        (0..64).for_each(|bit| assert!(bitmap.set(bit)));
        assert!(bitmap.is_full());
    }
}
