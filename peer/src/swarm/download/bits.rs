//! A set of pieces, worked on by words [pure].

use std::ops::Range;

/// Pieces of one task.
#[derive(Clone, Debug)]
pub(super) struct Bits {
    words: Box<[u64]>,
    len: u32,
    set: u32,
}

impl Bits {
    pub(super) fn new(len: u32) -> Self {
        Self { words: vec![0; len.div_ceil(64) as usize].into(), len, set: 0 }
    }

    pub(super) fn len(&self) -> u32 {
        self.len
    }

    pub(super) fn is_full(&self) -> bool {
        self.set == self.len
    }

    pub(super) fn get(&self, piece: u32) -> bool {
        piece < self.len && self.words[piece as usize / 64] >> (piece % 64) & 1 == 1
    }

    /// Whether it was clear. Pieces past the end are nobody's.
    pub(super) fn set(&mut self, piece: u32) -> bool {
        let fresh = piece < self.len && !self.get(piece);
        if fresh {
            self.words[piece as usize / 64] |= 1 << (piece % 64);
            self.set += 1;
        }
        fresh
    }

    /// Whether it was set.
    pub(super) fn clear(&mut self, piece: u32) -> bool {
        let there = self.get(piece);
        if there {
            self.words[piece as usize / 64] &= !(1 << (piece % 64));
            self.set -= 1;
        }
        there
    }

    pub(super) fn set_run(&mut self, run: Range<u32>) {
        for (index, mask) in masks(run.start..run.end.min(self.len)) {
            self.set += (mask & !self.words[index]).count_ones();
            self.words[index] |= mask;
        }
    }

    pub(super) fn clear_run(&mut self, run: Range<u32>) {
        for (index, mask) in masks(run.start..run.end.min(self.len)) {
            self.set -= (mask & self.words[index]).count_ones();
            self.words[index] &= !mask;
        }
    }

    pub(super) fn clear_all(&mut self) {
        self.words.fill(0);
        self.set = 0;
    }

    pub(super) fn word(&self, index: usize) -> u64 {
        self.words.get(index).copied().unwrap_or(0)
    }
}

/// The words that a run reaches into, each with the run's bits in it.
fn masks(run: Range<u32>) -> impl Iterator<Item = (usize, u64)> {
    let words = if run.is_empty() { 0..0 } else { run.start / 64..run.end.div_ceil(64) };
    words.map(move |index| {
        let first = run.start.saturating_sub(index * 64);
        let end = (run.end - index * 64).min(64);
        (index as usize, u64::MAX << first & u64::MAX >> (64 - end))
    })
}

/// The first piece of a run whose bit is set in the words that `word` gives.
pub(super) fn first(within: Range<u32>, word: impl Fn(usize) -> u64) -> Option<u32> {
    let mut at = within.start;
    while at < within.end {
        let rest = word(at as usize / 64) >> (at % 64);
        if rest != 0 {
            return Some(at + rest.trailing_zeros()).filter(|found| *found < within.end);
        }
        at = (at / 64 + 1) * 64;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn bits_agree_with_a_set(ops in proptest::collection::vec((0u32..150, 0u32..70, proptest::bool::ANY), 1..40)) {
            let mut bits = Bits::new(150);
            let mut set = std::collections::BTreeSet::new();
            for (start, len, add) in ops {
                let run = start..(start + len).min(150);
                if add {
                    set.extend(run.clone());
                    bits.set_run(run);
                } else {
                    set.retain(|piece| !run.contains(piece));
                    bits.clear_run(run);
                }
                assert!((0..150).all(|piece| bits.get(piece) == set.contains(&piece)));
                assert_eq!(bits.is_full(), set.len() == 150);
                assert_eq!(first(start..150, |word| bits.word(word)), set.range(start..).next().copied());
            }
        }
    }
}
