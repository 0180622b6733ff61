//! How long tasks are in pieces, free runs, and windows of pieces [pure].

use std::collections::BTreeMap;
use std::ops::Range;

/// How many pieces a task of `len` bytes has: the peers' `task::Layout`, which a test there compares with this.
/// `None` past 64 TiB.
pub fn pieces_of(len: u64) -> Option<u32> {
    if len > 64 << 40 {
        return None;
    }
    let piece_len = (len / 1_000).clamp(1 << 20, 16 << 20).next_power_of_two().min(16 << 20);
    u32::try_from(len.div_ceil(piece_len)).ok()
}

/// Pieces that are neither held nor leased, as disjoint runs that do not touch.
#[derive(Debug, Default)]
pub(super) struct FreeRuns {
    runs: BTreeMap<u32, u32>,
    total: u32,
}

impl FreeRuns {
    pub(super) fn total(&self) -> u32 {
        self.total
    }

    pub(super) fn add(&mut self, run: Range<u32>) {
        if run.is_empty() {
            return;
        }
        self.remove(run.clone());
        self.total += run.end - run.start;
        let (mut start, mut end) = (run.start, run.end);
        if let Some((&before, &before_end)) = self.runs.range(..start).next_back()
            && before_end == start
        {
            start = before;
        }
        if let Some(after_end) = self.runs.remove(&end) {
            end = after_end;
        }
        self.runs.insert(start, end);
    }

    pub(super) fn remove(&mut self, run: Range<u32>) {
        if run.is_empty() {
            return;
        }
        while let Some((&start, &end)) = self.runs.range(..run.end).next_back().filter(|&(_, &end)| end > run.start) {
            self.runs.remove(&start);
            self.total -= end.min(run.end) - start.max(run.start);
            if end > run.end {
                self.runs.insert(run.end, end);
            }
            if start < run.start {
                self.runs.insert(start, run.start);
            }
        }
        if self.runs.is_empty() {
            // A tree keeps its last node otherwise.
            self.runs = BTreeMap::new();
        }
    }

    /// The runs, for the invariants.
    pub(super) fn clone_runs(&self) -> Vec<Range<u32>> {
        self.runs.iter().map(|(&start, &end)| start..end).collect()
    }

    /// Takes up to `most` pieces from the lowest run inside the window, which is rising and disjoint.
    pub(super) fn take_within(&mut self, window: &[Range<u32>], most: u32) -> Option<Range<u32>> {
        let run = window.iter().find_map(|part| self.inside(part).next())?;
        let run = run.start..run.end.min(run.start.saturating_add(most.max(1)));
        self.remove(run.clone());
        Some(run)
    }

    /// Free pieces inside the window; past `enough` it stops counting.
    pub(super) fn count_within(&self, window: &[Range<u32>], enough: u32) -> u32 {
        let mut count = 0;
        for run in window.iter().flat_map(|part| self.inside(part)) {
            count += run.end - run.start;
            if count >= enough {
                break;
            }
        }
        count
    }

    /// The free runs cut to `part`, rising.
    fn inside(&self, part: &Range<u32>) -> impl Iterator<Item = Range<u32>> {
        let part = part.clone();
        let first = self.runs.range(..=part.start).next_back().map_or(part.start, |(&start, _)| start);
        let last = part.end.max(first);
        self.runs
            .range(first..last)
            .map(move |(&start, &end)| start.max(part.start)..end.min(part.end))
            .filter(|run| !run.is_empty())
    }
}

/// Rising, disjoint, not touching and within `0..pieces`, whatever was said; past `most` runs the rest is left out.
pub(super) fn tidied(mut runs: Vec<Range<u32>>, pieces: u32, most: usize) -> Vec<Range<u32>> {
    runs.sort_unstable_by_key(|run| run.start);
    let mut tidy: Vec<Range<u32>> = Vec::with_capacity(runs.len().min(most));
    for run in runs.into_iter().map(|run| run.start..run.end.min(pieces)).filter(|run| !run.is_empty()) {
        let full = tidy.len() == most;
        match tidy.last_mut() {
            Some(last) if run.start <= last.end => last.end = last.end.max(run.end),
            _ if full => break,
            _ => tidy.push(run),
        }
    }
    tidy
}

/// Adds a piece past all others.
pub(super) fn append(runs: &mut Vec<Range<u32>>, piece: u32) {
    match runs.last_mut() {
        Some(last) if last.end == piece => last.end += 1,
        _ => runs.push(piece..piece + 1),
    }
}

/// Rising runs without others, which are rising as well.
pub(super) fn subtract(runs: &[Range<u32>], others: &[Range<u32>]) -> Vec<Range<u32>> {
    let mut left = Vec::with_capacity(runs.len());
    let mut next = 0;
    for run in runs {
        let mut at = run.start;
        while let Some(other) = others.get(next).filter(|other| other.start < run.end) {
            if at < other.start {
                left.push(at..other.start);
            }
            at = at.max(other.end);
            if other.end > run.end {
                // It may cover a part of the next run.
                break;
            }
            next += 1;
        }
        if at < run.end {
            left.push(at..run.end);
        }
    }
    left
}

/// The window without a run.
pub(super) fn without(window: &[Range<u32>], run: &Range<u32>) -> Vec<Range<u32>> {
    let parts = |part: &Range<u32>| {
        [part.start..part.end.min(run.start).max(part.start), part.start.max(run.end).min(part.end)..part.end]
    };
    window.iter().flat_map(parts).filter(|part| !part.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn free_runs_agree_with_a_set(ops in proptest::collection::vec((0u32..200, 0u32..80, 0u8..3), 1..60)) {
            let mut free = FreeRuns::default();
            let mut set = std::collections::BTreeSet::new();
            for (start, len, op) in ops {
                let run = start..(start + len).min(256);
                match op {
                    0 => {
                        set.extend(run.clone());
                        free.add(run);
                    }
                    1 => {
                        set.retain(|piece| !run.contains(piece));
                        free.remove(run);
                    }
                    _ => {
                        let window = [10..run.start.max(10), run.end.max(10)..240];
                        let mut inside = set.iter().copied().filter(|piece| window.iter().any(|w| w.contains(piece)));
                        let (first, count) = (inside.clone().next(), inside.by_ref().count());
                        assert_eq!(free.count_within(&window, u32::MAX) as usize, count);
                        let taken = free.take_within(&window, len);
                        assert_eq!(taken.as_ref().map(|taken| taken.start), first);
                        if let Some(taken) = taken {
                            assert!(taken.clone().all(|piece| set.remove(&piece)));
                        }
                    }
                }
                assert_eq!(free.total() as usize, set.len());
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn windows_are_tidied_and_cut_as_sets(said in proptest::collection::vec((0u32..120, 0u32..40), 0..12), cut in 0u32..120) {
            let runs: Vec<_> = said.iter().map(|&(start, len)| start..start + len).collect();
            let set: std::collections::BTreeSet<u32> = runs.iter().cloned().flatten().filter(|&piece| piece < 100).collect();
            let tidy = tidied(runs, 100, 64);
            assert!(tidy.windows(2).all(|pair| pair[0].end < pair[1].start));
            assert!(tidy.iter().cloned().flatten().eq(set.iter().copied()));
            let left = without(&tidy, &(cut..cut + 9));
            let others = [cut..cut + 9, cut + 20..cut + 21, cut + 30..cut + 60];
            let kept = subtract(&tidy, &others);
            assert!(kept.windows(2).all(|pair| pair[0].end <= pair[1].start));
            let outside = |piece: &u32| others.iter().all(|other| !other.contains(piece));
            assert!(kept.into_iter().flatten().eq(set.iter().copied().filter(outside)));
            assert!(left.into_iter().flatten().eq(set.into_iter().filter(|piece| !(cut..cut + 9).contains(piece))));
        }
    }
}
