//! Which pieces are where, as words of bits, and what is new in them [pure].

use std::ops::Range;

use super::frame::Pieces;
use crate::task::Bitmap;

/// What a peer says it holds of one task. It only grows until the peer forgets the task.
#[derive(Clone, Debug)]
pub(super) struct Holdings {
    pieces: u32,
    words: Vec<u64>,
    /// How often the peer has forgotten it.
    pub(super) forgotten: u32,
}

/// A piece that the task does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OutOfTask;

impl Holdings {
    /// Nothing of a task of so many pieces.
    pub(super) fn none_of(pieces: u32) -> Self {
        Self { pieces, words: vec![0; pieces.div_ceil(64) as usize], forgotten: 0 }
    }

    /// The peer announces what it holds.
    pub(super) fn add(&mut self, held: &Pieces) -> Result<(), OutOfTask> {
        match held {
            Pieces::All => self.add_range(0..self.pieces),
            Pieces::Bits { first, count, .. } if first.saturating_add(*count) > self.pieces => Err(OutOfTask),
            Pieces::Bits { .. } => {
                for piece in held.iter(self.pieces) {
                    self.words[piece as usize / 64] |= 1 << (piece % 64);
                }
                Ok(())
            }
        }
    }

    /// The peer announces more pieces.
    pub(super) fn add_range(&mut self, range: Range<u32>) -> Result<(), OutOfTask> {
        if range.end > self.pieces {
            return Err(OutOfTask);
        }
        let mut piece = range.start;
        while piece < range.end {
            let n = (64 - piece % 64).min(range.end - piece);
            self.words[piece as usize / 64] |= (u64::MAX >> (64 - n)) << (piece % 64);
            piece += n;
        }
        Ok(())
    }

    /// The peer holds nothing any more.
    pub(super) fn forget(&mut self) {
        self.words.fill(0);
        self.forgotten = self.forgotten.wrapping_add(1);
    }

    /// What it holds beyond `told`, which then is the same.
    pub(super) fn news(&self, told: &mut Vec<u64>) -> Vec<Range<u32>> {
        told.resize(self.words.len(), 0);
        news(self.words.iter().copied(), told)
    }
}

/// The words of a bitmap as they are now.
pub(super) fn snapshot(bitmap: &Bitmap) -> impl Iterator<Item = u64> + '_ {
    (0..bitmap.len().div_ceil(64)).map(|word| bitmap.word(word))
}

/// The runs of bits that are in `now` and not in `told`, which then has them too.
pub(super) fn news(now: impl Iterator<Item = u64>, told: &mut [u64]) -> Vec<Range<u32>> {
    let mut runs: Vec<Range<u32>> = Vec::new();
    for ((index, told), now) in (0u32..).zip(told).zip(now) {
        let mut fresh = now & !*told;
        *told |= now;
        while fresh != 0 {
            let start = fresh.trailing_zeros();
            let len = (fresh >> start).trailing_ones();
            fresh &= !((u64::MAX >> (64 - len)) << start);
            let run = index * 64 + start..index * 64 + start + len;
            match runs.last_mut() {
                Some(last) if last.end == run.start => last.end = run.end,
                _ => runs.push(run),
            }
        }
    }
    runs
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "one run of pieces is what is meant")]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_piece_is_told_once_and_in_runs(
            ranges in proptest::collection::vec((0..300u32, 0..90u32), 0..12),
        ) {
            let mut holdings = Holdings::none_of(390);
            let (mut told, mut held) = (Vec::new(), BTreeSet::new());
            for (start, len) in ranges {
                let run = start..start + len;
                holdings.add_range(run.clone()).unwrap();
                let fresh: BTreeSet<u32> = run.filter(|piece| held.insert(*piece)).collect();
                let news = holdings.news(&mut told);
                prop_assert!(news.windows(2).all(|pair| pair[0].end < pair[1].start), "{news:?}");
                prop_assert_eq!(news.into_iter().flatten().collect::<BTreeSet<_>>(), fresh);
            }
        }
    }

    #[test]
    fn a_piece_past_the_end_is_refused() {
        let mut holdings = Holdings::none_of(10);
        assert_eq!(holdings.add_range(3..11), Err(OutOfTask));
        assert_eq!(holdings.add(&Pieces::Bits { first: 8, count: 8, bits: vec![0] }), Err(OutOfTask));
        assert_eq!(holdings.add(&Pieces::All), Ok(()));
        assert_eq!(holdings.news(&mut Vec::new()), [0..10]);
    }

    #[test]
    fn what_was_forgotten_is_news_when_it_comes_back() {
        let mut holdings = Holdings::none_of(100);
        let mut told = Vec::new();
        holdings.add_range(5..70).unwrap();
        assert_eq!(holdings.news(&mut told), [5..70]);
        holdings.forget();
        told.clear();
        assert!(holdings.news(&mut told).is_empty());
        holdings.add_range(5..6).unwrap();
        assert_eq!(holdings.news(&mut told), [5..6]);
    }
}
