//! A set of pieces that takes memory in proportion to what was reported of it, never to the task's length [pure].

use std::ops::Range;

/// A set of piece numbers: sorted runs while they are few, a bitmap once that is smaller.
///
/// A run costs 8 bytes and a bitmap one bit for each piece of the task, so a set takes at most 8 bytes for each run that was
/// ever added, and at most an eighth of a byte for each piece. The empty set allocates nothing.
#[derive(Clone, Debug)]
pub(super) enum PieceSet {
    /// Rising, disjoint, not touching.
    Runs(Vec<(u32, u32)>),
    Map(Box<[u64]>),
}

impl Default for PieceSet {
    fn default() -> Self {
        Self::Runs(Vec::new())
    }
}

impl PieceSet {
    /// Adds a run and returns how many of its pieces are new. `pieces` is the number of pieces of the task.
    pub(super) fn set(&mut self, run: Range<u32>, pieces: u32) -> u32 {
        if run.is_empty() {
            return 0;
        }
        let fresh = match self {
            Self::Runs(runs) => add(runs, run),
            Self::Map(map) => change(map, run, |word, mask| {
                let fresh = mask & !*word;
                *word |= mask;
                fresh
            }),
        };
        self.shrink(pieces);
        fresh
    }

    /// Removes a run and returns how many of its pieces were in the set.
    pub(super) fn clear(&mut self, run: Range<u32>, pieces: u32) -> u32 {
        if run.is_empty() {
            return 0;
        }
        let gone = match self {
            Self::Runs(runs) => cut(runs, run),
            Self::Map(map) => change(map, run, |word, mask| {
                let gone = mask & *word;
                *word &= !mask;
                gone
            }),
        };
        self.shrink(pieces);
        gone
    }

    /// Adds all pieces of another set of the same task.
    pub(super) fn join(&mut self, other: &Self, pieces: u32) {
        match (&mut *self, other) {
            (Self::Map(own), Self::Map(other)) => {
                own.iter_mut().zip(other).for_each(|(word, other)| *word |= other);
            }
            (Self::Runs(own), other) if own.is_empty() => *self = other.clone(),
            _ => other.runs(0..pieces, true).into_iter().for_each(|run| {
                self.set(run, pieces);
            }),
        }
    }

    /// How many pieces are in this set and not in the other one.
    pub(super) fn beyond(&self, other: &Self) -> u32 {
        match (self, other) {
            (Self::Map(own), Self::Map(other)) => {
                let others = other.iter().copied().chain(std::iter::repeat(0));
                own.iter().zip(others).map(|(word, other)| (word & !other).count_ones()).sum()
            }
            (Self::Runs(own), _) => own.iter().map(|&(start, end)| end - start - other.count_within(start..end)).sum(),
            (_, Self::Runs(other)) => {
                let both: u32 = other.iter().map(|&(start, end)| self.count_within(start..end)).sum();
                self.count() - both
            }
        }
    }

    /// How many pieces are in the set.
    pub(super) fn count(&self) -> u32 {
        match self {
            Self::Runs(runs) => runs.iter().map(|(start, end)| end - start).sum(),
            Self::Map(map) => map.iter().map(|word| word.count_ones()).sum(),
        }
    }

    /// How many pieces of `run` are in the set.
    pub(super) fn count_within(&self, run: Range<u32>) -> u32 {
        match self {
            Self::Runs(runs) => {
                let first = runs.partition_point(|&(_, end)| end <= run.start);
                let inside = runs[first..].iter().take_while(|&&(start, _)| start < run.end);
                inside.map(|&(start, end)| end.min(run.end) - start.max(run.start)).sum()
            }
            Self::Map(map) => {
                words(run).map(|(index, mask)| map.get(index).map_or(0, |word| (word & mask).count_ones())).sum()
            }
        }
    }

    pub(super) fn has(&self, piece: u32) -> bool {
        match self {
            Self::Runs(runs) => {
                let at = runs.partition_point(|&(_, end)| end <= piece);
                runs.get(at).is_some_and(|&(start, _)| start <= piece)
            }
            Self::Map(map) => map.get(piece as usize / 64).is_some_and(|word| word >> (piece % 64) & 1 == 1),
        }
    }

    /// The runs within `within` that are in the set (or, with `set` false, that are not).
    pub(super) fn runs(&self, within: Range<u32>, set: bool) -> Vec<Range<u32>> {
        let mut found = Vec::new();
        let mut at = within.start;
        while at < within.end {
            let start = self.next(at, within.end, set);
            if start >= within.end {
                break;
            }
            at = self.next(start, within.end, !set);
            found.push(start..at);
        }
        found
    }

    /// Of how many runs the set is made: what fragments the tables that the peers of a task share.
    pub(super) fn run_count(&self) -> usize {
        match self {
            Self::Runs(runs) => runs.len(),
            Self::Map(map) => {
                let mut before = 0;
                let starts = map.iter().map(|&word| {
                    let starts = word & !(word << 1 | before);
                    before = word >> 63;
                    starts.count_ones() as usize
                });
                starts.sum()
            }
        }
    }

    /// The first piece past the last one of `run` that is in the set; the run's start where it has none.
    pub(super) fn after_last(&self, run: Range<u32>) -> u32 {
        match self {
            Self::Runs(runs) => {
                let past = runs.partition_point(|&(start, _)| start < run.end);
                let last = past.checked_sub(1).map_or(run.start, |at| runs[at].1);
                last.clamp(run.start, run.end.max(run.start))
            }
            Self::Map(map) => {
                let words: Vec<(usize, u64)> = words(run.clone()).collect();
                let set = |&(index, mask): &(usize, u64)| (index, map.get(index).map_or(0, |word| word & mask));
                let last = words.iter().rev().map(set).find(|&(_, word)| word != 0);
                last.map_or(run.start, |(index, word)| index as u32 * 64 + 64 - word.leading_zeros())
            }
        }
    }

    /// Bytes allocated.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Runs(runs) => runs.capacity() * size_of::<(u32, u32)>(),
            Self::Map(map) => map.len() * size_of::<u64>(),
        }
    }

    /// Becomes a bitmap where that takes less than the runs do.
    fn shrink(&mut self, pieces: u32) {
        let Self::Runs(runs) = self else { return };
        let size = pieces.div_ceil(64) as usize;
        if runs.len() <= size {
            return;
        }
        let mut map = vec![0; size].into_boxed_slice();
        for &(start, end) in &*runs {
            change(&mut map, start..end, |word, mask| {
                *word |= mask;
                mask
            });
        }
        *self = Self::Map(map);
    }

    fn next(&self, from: u32, end: u32, set: bool) -> u32 {
        match self {
            Self::Runs(runs) => {
                let at = runs.partition_point(|&(_, end)| end <= from);
                match (runs.get(at), set) {
                    (Some(&(start, _)), true) => start.clamp(from, end),
                    (Some(&(start, last)), false) if start <= from => last.min(end),
                    (None, true) => end,
                    (_, false) => from,
                }
            }
            Self::Map(map) => next_in_map(map, from, end, set),
        }
    }
}

/// Adds a run to sorted ones and joins those that it touches.
fn add(runs: &mut Vec<(u32, u32)>, run: Range<u32>) -> u32 {
    let first = runs.partition_point(|&(_, end)| end < run.start);
    let last = first + runs[first..].partition_point(|&(start, _)| start <= run.end);
    let touched = &runs[first..last];
    let known: u32 = touched.iter().map(|&(start, end)| overlap(start..end, &run)).sum();
    match (touched.first().copied(), touched.last().copied()) {
        (Some((start, _)), Some((_, end))) => {
            runs[first] = (start.min(run.start), end.max(run.end));
            runs.drain(first + 1..last);
        }
        _ => {
            reserve(runs);
            runs.insert(first, (run.start, run.end));
        }
    }
    run.end - run.start - known
}

/// Cuts a run out of sorted ones.
fn cut(runs: &mut Vec<(u32, u32)>, run: Range<u32>) -> u32 {
    let first = runs.partition_point(|&(_, end)| end <= run.start);
    let last = first + runs[first..].partition_point(|&(start, _)| start < run.end);
    let gone = runs[first..last].iter().map(|&(start, end)| overlap(start..end, &run)).sum();
    let (Some(&(start, _)), Some(&(_, end))) = (runs[first..last].first(), runs[first..last].last()) else { return 0 };
    let left = (start < run.start).then_some((start, run.start));
    let right = (run.end < end).then_some((run.end, end));
    if left.is_some() && right.is_some() && last - first == 1 {
        reserve(runs);
    }
    runs.splice(first..last, left.into_iter().chain(right));
    gone
}

/// A quarter more rather than twice as much.
fn reserve(runs: &mut Vec<(u32, u32)>) {
    if runs.len() == runs.capacity() {
        runs.reserve_exact(runs.len() / 4 + 1);
    }
}

fn overlap(a: Range<u32>, b: &Range<u32>) -> u32 {
    a.end.min(b.end).saturating_sub(a.start.max(b.start))
}

/// Works on the words of a run; returns how many bits `work` names.
fn change(map: &mut [u64], run: Range<u32>, work: impl Fn(&mut u64, u64) -> u64) -> u32 {
    words(run).map(|(index, mask)| map.get_mut(index).map_or(0, |word| work(word, mask).count_ones())).sum()
}

fn next_in_map(map: &[u64], from: u32, end: u32, set: bool) -> u32 {
    let mut at = from;
    while at < end {
        let word = map.get(at as usize / 64).copied().unwrap_or(0);
        let word = if set { word } else { !word } >> (at % 64);
        if word != 0 {
            return (at + word.trailing_zeros()).min(end);
        }
        at = (at / 64 + 1) * 64;
    }
    end
}

fn words(run: Range<u32>) -> impl Iterator<Item = (usize, u64)> {
    let last = run.end.div_ceil(64);
    let first = if run.is_empty() { last } else { run.start / 64 };
    (first..last).map(move |word| {
        let base = word * 64;
        let low = run.start.saturating_sub(base);
        let high = (run.end - base).min(64);
        let mask = (u64::MAX >> (64 - (high - low))) << low;
        (word as usize, mask)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_piece_of_the_longest_task_takes_a_few_bytes() {
        let mut set = PieceSet::default();
        set.set(4_000_000..4_000_001, 4_194_304);
        assert!(set.bytes() <= 8, "{}", set.bytes());
        set.set(0..4_194_304, 4_194_304);
        set.clear(7..8, 4_194_304);
        assert!(set.bytes() <= 16, "{}", set.bytes());
    }

    #[test]
    fn many_runs_take_no_more_than_a_bitmap() {
        let mut set = PieceSet::default();
        for piece in 0..500 {
            set.set(piece * 2..piece * 2 + 1, 1_000);
        }
        assert_eq!((set.bytes(), set.run_count(), set.count()), (128, 500, 500));
    }

    proptest::proptest! {
        #[test]
        fn it_agrees_with_a_set_in_either_form(
            ops in proptest::collection::vec((0u32..900, 0u32..80, proptest::bool::ANY), 1..60),
            pieces in proptest::sample::select(vec![1_000u32, 100_000]),
        ) {
            let (mut set, mut other) = (PieceSet::default(), PieceSet::default());
            let mut model = std::collections::BTreeSet::new();
            for (start, len, adds) in ops {
                let (run, before) = (start..start + len, model.len());
                if adds {
                    model.extend(run.clone());
                    assert_eq!(set.set(run.clone(), pieces) as usize, model.len() - before);
                } else {
                    model.retain(|piece| !run.contains(piece));
                    assert_eq!(set.clear(run.clone(), pieces) as usize, before - model.len());
                    other.set(run.clone(), pieces);
                }
                let last = model.range(run.clone()).next_back().map_or(run.start, |piece| piece + 1);
                assert_eq!(set.after_last(run.clone()), last);
                assert_eq!(set.count_within(run.clone()) as usize, model.range(run).count());
            }
            assert_eq!(set.count() as usize, model.len());
            let listed: Vec<u32> = set.runs(0..1_000, true).into_iter().flatten().collect();
            assert!(listed.iter().eq(model.iter()));
            assert_eq!(set.runs(0..1_000, true).len(), set.run_count());
            let unset: usize = set.runs(0..1_000, false).into_iter().map(|run| run.len()).sum();
            assert_eq!(unset + model.len(), 1_000);
            assert!((0..1_000).all(|piece| set.has(piece) == model.contains(&piece)));
            assert_eq!(set.beyond(&other) as usize, model.iter().filter(|&&piece| !other.has(piece)).count());
            set.join(&other, pieces);
            assert!((0..1_000).all(|piece| set.has(piece) == (model.contains(&piece) || other.has(piece))));
        }
    }
}
