//! How many peers hold each piece of a task [pure].

use std::collections::BTreeMap;
use std::ops::Range;

/// Tasks of no more pieces than this have an array from their first holder on: it is smaller than a node of a tree.
const SMALL: u32 = 32;
/// An array takes the tree's place when there is a step for each so many pieces, and the tree the array's when there are four
/// times fewer. A step takes about 24 bytes in the tree, a piece 4 in the array.
const PIECES_A_STEP: u32 = 8;

/// Counts by piece, kept as the steps where the count changes while these are few, and as an array once that is smaller:
/// what it takes follows from the runs that peers have reported, not from the length that one claims.
#[derive(Debug)]
pub(super) struct HolderCounts {
    shape: Shape,
    /// Places where a piece's count differs from the one before it.
    steps: u32,
}

#[derive(Debug)]
enum Shape {
    /// First piece of a step to the count from there on; before the first one it is 0.
    Steps(BTreeMap<u32, u32>),
    Each(Box<[u32]>),
}

impl Default for HolderCounts {
    fn default() -> Self {
        Self { shape: Shape::Steps(BTreeMap::new()), steps: 0 }
    }
}

impl HolderCounts {
    /// One more holder of a run within `0..pieces`; the runs that had none before.
    pub(super) fn raise(&mut self, run: Range<u32>, pieces: u32) -> Vec<Range<u32>> {
        self.change(run, pieces, |count| {
            let first = *count == 0;
            *count = count.saturating_add(1);
            first
        })
    }

    /// One holder less of a run that was raised before; the runs that have none left.
    pub(super) fn lower(&mut self, run: Range<u32>, pieces: u32) -> Vec<Range<u32>> {
        self.change(run, pieces, |count| {
            debug_assert!(*count > 0, "a run is lowered only after it was raised");
            *count = count.saturating_sub(1);
            *count == 0
        })
    }

    pub(super) fn get(&self, piece: u32) -> u32 {
        match &self.shape {
            Shape::Steps(steps) => count_at(steps, piece),
            Shape::Each(counts) => counts.get(piece as usize).copied().unwrap_or(0),
        }
    }

    /// The runs within `within` that have no holder.
    pub(super) fn empty_runs(&self, within: Range<u32>) -> Vec<Range<u32>> {
        let mut runs = Vec::new();
        match &self.shape {
            Shape::Steps(steps) => {
                let mut at = within.start;
                let mut count = count_at(steps, at);
                let later = steps.range(within.start.saturating_add(1)..within.end.max(within.start.saturating_add(1)));
                for (&start, &next) in later.chain(std::iter::once((&within.end, &0))) {
                    if count == 0 {
                        push(&mut runs, at..start.min(within.end));
                    }
                    (at, count) = (start, next);
                }
            }
            Shape::Each(counts) => {
                let end = within.end.min(u32::try_from(counts.len()).unwrap_or(u32::MAX));
                for piece in (within.start..end).filter(|&piece| counts[piece as usize] == 0) {
                    push(&mut runs, piece..piece + 1);
                }
            }
        }
        runs
    }

    /// Bytes allocated, about.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        match &self.shape {
            Shape::Steps(steps) => steps.len() * 24,
            Shape::Each(counts) => counts.len() * size_of::<u32>(),
        }
    }

    fn change(&mut self, run: Range<u32>, pieces: u32, work: impl Fn(&mut u32) -> bool) -> Vec<Range<u32>> {
        let run = run.start..run.end.min(pieces);
        if run.is_empty() {
            return Vec::new();
        }
        self.reshape(pieces);
        match &mut self.shape {
            Shape::Steps(steps) => {
                let named = change_steps(steps, run, pieces, work);
                self.steps = u32::try_from(steps.len()).unwrap_or(u32::MAX);
                named
            }
            Shape::Each(counts) => {
                let before = steps_at(counts, &run);
                let mut named = Vec::new();
                for piece in run.clone() {
                    if work(&mut counts[piece as usize]) {
                        push(&mut named, piece..piece + 1);
                    }
                }
                self.steps = self.steps + steps_at(counts, &run) - before;
                named
            }
        }
    }

    /// Takes the smaller form for what there is.
    fn reshape(&mut self, pieces: u32) {
        match &self.shape {
            Shape::Steps(steps) if pieces <= SMALL || self.steps > pieces / PIECES_A_STEP => {
                let mut counts = vec![0; pieces as usize].into_boxed_slice();
                let ends = steps.keys().copied().skip(1).chain([pieces]);
                for ((&start, &count), end) in steps.iter().zip(ends) {
                    counts[start as usize..end as usize].fill(count);
                }
                self.shape = Shape::Each(counts);
            }
            Shape::Each(counts) if pieces > SMALL && self.steps < pieces / PIECES_A_STEP / 4 => {
                let mut steps = BTreeMap::new();
                let mut before = 0;
                for (piece, &count) in (0..).zip(counts) {
                    if count != before {
                        steps.insert(piece, count);
                    }
                    before = count;
                }
                self.shape = Shape::Steps(steps);
            }
            _ => {}
        }
    }
}

fn count_at(steps: &BTreeMap<u32, u32>, piece: u32) -> u32 {
    steps.range(..=piece).next_back().map_or(0, |(_, &count)| count)
}

fn change_steps(
    steps: &mut BTreeMap<u32, u32>,
    run: Range<u32>,
    pieces: u32,
    work: impl Fn(&mut u32) -> bool,
) -> Vec<Range<u32>> {
    for edge in [run.start, run.end] {
        if edge < pieces && !steps.contains_key(&edge) {
            let count = count_at(steps, edge);
            steps.insert(edge, count);
        }
    }
    let mut named = Vec::new();
    let mut open = None;
    for (&start, count) in steps.range_mut(run.clone()) {
        if let Some(from) = open.take() {
            push(&mut named, from..start);
        }
        open = work(count).then_some(start);
    }
    if let Some(from) = open {
        push(&mut named, from..run.end);
    }
    for edge in [run.start, run.end] {
        let before = steps.range(..edge).next_back().map_or(0, |(_, &count)| count);
        if steps.get(&edge) == Some(&before) {
            steps.remove(&edge);
        }
    }
    if steps.is_empty() {
        // A tree keeps its last node otherwise.
        *steps = BTreeMap::new();
    }
    named
}

/// How many of the two edges of a run are steps; inside it a change of all changes none.
fn steps_at(counts: &[u32], run: &Range<u32>) -> u32 {
    let is_step = |edge: u32| {
        let before = edge.checked_sub(1).map_or(0, |before| counts[before as usize]);
        counts.get(edge as usize).is_some_and(|&count| count != before)
    };
    u32::from(is_step(run.start)) + u32::from(is_step(run.end))
}

fn push(runs: &mut Vec<Range<u32>>, run: Range<u32>) {
    match runs.last_mut() {
        _ if run.is_empty() => {}
        Some(last) if last.end == run.start => last.end = run.end,
        _ => runs.push(run),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_of_the_longest_task_costs_no_more_than_its_runs() {
        let mut counts = HolderCounts::default();
        let whole = 0..4_194_304;
        assert_eq!(counts.raise(whole.clone(), whole.end), std::slice::from_ref(&whole));
        counts.raise(9..10, 4_194_304);
        assert!(counts.bytes() <= 100, "{}", counts.bytes());
        assert_eq!(counts.lower(0..4_194_304, 4_194_304), [0..9, 10..4_194_304]);
    }

    #[test]
    fn an_array_that_is_not_needed_any_more_is_given_back() {
        let mut counts = HolderCounts::default();
        for piece in 0..50_000 {
            counts.raise(piece * 2..piece * 2 + 1, 100_000);
        }
        assert_eq!(counts.bytes(), 400_000);
        for piece in 0..50_000 {
            counts.lower(piece * 2..piece * 2 + 1, 100_000);
        }
        counts.raise(5..6, 100_000);
        assert!(counts.bytes() <= 100, "{}", counts.bytes());
    }

    proptest::proptest! {
        #[test]
        fn it_agrees_with_an_array(
            ops in proptest::collection::vec((0u32..200, 1u32..60, 0usize..40), 1..80),
            pieces in proptest::sample::select(vec![20u32, 256, 5_000]),
        ) {
            let mut counts = HolderCounts::default();
            let mut model = vec![0u32; pieces as usize];
            let mut raised: Vec<Range<u32>> = Vec::new();
            for (start, len, which) in ops {
                let (run, adds) = match raised.len() > which {
                    true => (raised.swap_remove(which), false),
                    false => (start.min(pieces)..(start + len).min(pieces), true),
                };
                let mut expected = Vec::new();
                for piece in run.clone() {
                    let count = &mut model[piece as usize];
                    if adds { *count += 1 } else { *count -= 1 }
                    if *count == u32::from(adds) {
                        push(&mut expected, piece..piece + 1);
                    }
                }
                let named = match adds {
                    true => counts.raise(run.clone(), pieces),
                    false => counts.lower(run.clone(), pieces),
                };
                assert_eq!(named, expected);
                if adds {
                    raised.push(run);
                }
            }
            assert!((0..pieces).all(|piece| counts.get(piece) == model[piece as usize]));
            for within in [0..pieces, 3..pieces / 2] {
                let empty: Vec<u32> = counts.empty_runs(within.clone()).into_iter().flatten().collect();
                assert!(within.filter(|&piece| model[piece as usize] == 0).eq(empty));
            }
        }
    }
}
