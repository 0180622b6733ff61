//! What is asked for: which object, and what of it.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use serde::Serialize;

use super::{
    arrivals::{Arrivals, Times},
    random::Random,
};

/// How often which object is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Popularity {
    /// Each as often as the next.
    #[default]
    Uniform,
    /// One after the other in the order of the list, over all clients, and from its start again.
    InTurn,
    /// The n-th of the list with a weight of 1/n^s; 1 is about what caches see.
    Zipf(f64),
}

/// What is asked for of an object. Sizes are in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// The whole object in one request.
    #[default]
    Whole,
    /// A range of this size, from anywhere.
    Random {
        /// Size of a range; a smaller object is asked for from start to end.
        bytes: u64,
    },
    /// Readers go through an object range by range, then choose the next object.
    Sequential {
        /// Size of a range; the last one of an object may be shorter.
        bytes: u64,
        /// Readers of an open loop, which take turns. In a closed loop each client is one.
        readers: usize,
    },
    /// The whole object in ranges of this size over several connections, as hf_transfer does it. All of it counts as one
    /// operation.
    Parallel {
        /// Size of a range; hf_transfer's is 10 MiB.
        bytes: u64,
        /// Ranges on their way at the same time.
        at_once: usize,
    },
}

impl Shape {
    /// Whether the sizes of the objects have to be known.
    pub(super) fn needs_sizes(self) -> bool {
        self != Self::Whole
    }
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ask {
    /// Index in the list of objects.
    pub(super) object: usize,
    /// None: all of it.
    pub(super) range: Option<Range<u64>>,
}

/// How many objects were chosen in turn.
type Turns = Arc<AtomicUsize>;

/// The objects and what is done with them.
#[derive(Clone, Debug)]
pub(super) struct Workload {
    /// In bytes; not looked at where the shape needs none.
    pub(super) sizes: Vec<u64>,
    pub(super) shape: Shape,
    /// Sums of the weights of each object and all before it; empty: all weights are equal.
    cumulated: Vec<f64>,
    /// Of objects in turn: how many the clients of a closed loop have chosen.
    turns: Option<Turns>,
    seed: u64,
}

impl Workload {
    pub(super) fn new(sizes: Vec<u64>, shape: Shape, popularity: Popularity, seed: u64) -> Self {
        let mut sum = 0.0;
        let cumulated = match popularity {
            Popularity::Uniform | Popularity::InTurn => Vec::new(),
            Popularity::Zipf(exponent) => {
                let add = |rank| {
                    sum += (rank as f64).powf(-exponent);
                    sum
                };
                (1..=sizes.len()).map(add).collect()
            }
        };
        let turns = (popularity == Popularity::InTurn).then(Arc::default);
        Self { sizes, shape, cumulated, turns, seed }
    }

    /// The operations of client or reader `number`.
    pub(super) fn stream(&self, number: usize) -> Stream {
        Stream { random: Random::new(self.seed, number as u64 + 1), turns: self.turns.clone(), walk: None }
    }

    /// All operations of an open loop in the order of their times.
    pub(super) fn schedule(&self, arrivals: Arrivals, rate: f64) -> Schedule<'_> {
        let readers = if let Shape::Sequential { readers, .. } = self.shape { readers.max(1) } else { 1 };
        // Every thread goes through all of the schedule, so each counts for itself.
        let turns = self.turns.as_ref().map(|_| Turns::default());
        Schedule {
            workload: self,
            times: Times::new(arrivals, rate, Random::new(self.seed, 0)),
            streams: (0..readers).map(|number| Stream { turns: turns.clone(), ..self.stream(number) }).collect(),
            turn: 0,
        }
    }

    fn choose(&self, random: &mut Random) -> usize {
        match self.cumulated.last() {
            None => random.below(self.sizes.len() as u64) as usize,
            Some(sum) => {
                let at = random.unit() * sum;
                self.cumulated.partition_point(|cumulated| *cumulated <= at).min(self.sizes.len() - 1)
            }
        }
    }
}

/// The operations of one client or reader, without end.
#[derive(Clone, Debug)]
pub(super) struct Stream {
    random: Random,
    turns: Option<Turns>,
    /// The object that is being read and where the next range starts.
    walk: Option<(usize, u64)>,
}

impl Stream {
    pub(super) fn next(&mut self, workload: &Workload) -> Ask {
        match workload.shape {
            Shape::Whole | Shape::Parallel { .. } => Ask { object: self.choose(workload), range: None },
            Shape::Random { bytes } => {
                let object = self.choose(workload);
                let size = workload.sizes[object];
                let len = bytes.min(size);
                let start = self.random.below(size - len + 1);
                Ask { object, range: (len > 0).then(|| start..start + len) }
            }
            Shape::Sequential { bytes, .. } => {
                let (object, start) = self.walk.take().unwrap_or_else(|| (self.choose(workload), 0));
                let size = workload.sizes[object];
                let end = start.saturating_add(bytes).min(size);
                self.walk = (end < size).then_some((object, end));
                Ask { object, range: (size > 0).then_some(start..end) }
            }
        }
    }
}

impl Stream {
    fn choose(&mut self, workload: &Workload) -> usize {
        match &self.turns {
            Some(turns) => turns.fetch_add(1, Ordering::Relaxed) % workload.sizes.len(),
            None => workload.choose(&mut self.random),
        }
    }
}

/// An open loop's operations with their intended starts.
#[derive(Clone, Debug)]
pub(super) struct Schedule<'a> {
    workload: &'a Workload,
    times: Times,
    streams: Vec<Stream>,
    turn: usize,
}

impl Iterator for Schedule<'_> {
    type Item = (std::time::Duration, Ask);

    fn next(&mut self) -> Option<Self::Item> {
        let at = self.times.next()?;
        let ask = self.streams[self.turn].next(self.workload);
        self.turn = (self.turn + 1) % self.streams.len();
        Some((at, ask))
    }
}

/// The ranges that make up an object of this size.
pub(super) fn split(size: u64, bytes: u64) -> impl Iterator<Item = Range<u64>> {
    (0..size.div_ceil(bytes)).map(move |number| number * bytes..(number + 1).saturating_mul(bytes).min(size))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn asks(workload: &Workload, number: usize, count: usize) -> Vec<Ask> {
        let mut stream = workload.stream(number);
        (0..count).map(|_| stream.next(workload)).collect()
    }

    #[test]
    fn zipf_prefers_the_first_by_its_exponent() {
        let workload = Workload::new(vec![1; 100], Shape::Whole, Popularity::Zipf(1.0), 3);
        let mut counts = [0_u32; 100];
        asks(&workload, 0, 200_000).iter().for_each(|ask| counts[ask.object] += 1);
        let ratio = |a: usize, b: usize| f64::from(counts[a]) / f64::from(counts[b]);
        assert!((ratio(0, 1) / 2.0 - 1.0).abs() < 0.05, "{}", ratio(0, 1));
        assert!((ratio(0, 9) / 10.0 - 1.0).abs() < 0.10, "{}", ratio(0, 9));
        assert!(counts.iter().all(|count| *count > 0));
    }

    #[test]
    fn in_turn_each_object_comes_once_before_any_comes_again_whoever_asks() {
        let workload = Workload::new(vec![1; 10], Shape::Whole, Popularity::InTurn, 3);
        let mut objects: Vec<usize> =
            (0..2).flat_map(|client| asks(&workload, client, 5)).map(|ask| ask.object).collect();
        objects.sort_unstable();
        assert_eq!(objects, (0..10).collect::<Vec<_>>());
        for _thread in 0..2 {
            let order: Vec<usize> =
                workload.schedule(Arrivals::Constant, 1.0).take(10).map(|(_, ask)| ask.object).collect();
            assert_eq!(order, (0..10).collect::<Vec<_>>(), "every thread sees the same schedule");
        }
    }

    #[test]
    fn readers_of_an_open_loop_take_turns() {
        let shape = Shape::Sequential { bytes: 10, readers: 2 };
        let workload = Workload::new(vec![25], shape, Popularity::Uniform, 1);
        let schedule = workload.schedule(Arrivals::Constant, 1.0);
        let ranges: Vec<_> = schedule.take(8).map(|(_, ask)| ask.range.unwrap()).collect();
        assert_eq!(ranges, [0..10, 0..10, 10..20, 10..20, 20..25, 20..25, 0..10, 0..10]);
    }

    proptest! {
        #[test]
        fn random_ranges_lie_inside_and_have_the_size(
            sizes in prop::collection::vec(0_u64..5000, 1..9), bytes in 1_u64..3000, seed: u64
        ) {
            let workload = Workload::new(sizes.clone(), Shape::Random { bytes }, Popularity::Uniform, seed);
            for ask in asks(&workload, 0, 200) {
                let size = sizes[ask.object];
                match ask.range {
                    None => prop_assert_eq!(size, 0),
                    Some(range) => {
                        prop_assert!(range.end <= size);
                        prop_assert_eq!(range.end - range.start, bytes.min(size));
                    }
                }
            }
        }

        #[test]
        fn a_reader_goes_through_each_object_once_without_gap(
            sizes in prop::collection::vec(1_u64..500, 1..9), bytes in 1_u64..300, seed: u64
        ) {
            let shape = Shape::Sequential { bytes, readers: 1 };
            let workload = Workload::new(sizes.clone(), shape, Popularity::Zipf(0.9), seed);
            let mut expected = None;
            for ask in asks(&workload, 5, 300) {
                let range = ask.range.unwrap();
                prop_assert_eq!(range.start, expected.map_or(0, |(_, start)| start));
                prop_assert!(expected.is_none_or(|(object, _)| object == ask.object));
                expected = (range.end < sizes[ask.object]).then_some((ask.object, range.end));
            }
        }

        #[test]
        fn a_seed_repeats_the_load_and_streams_differ(seed: u64) {
            let workload = Workload::new(vec![1 << 40; 50], Shape::Random { bytes: 9 }, Popularity::Uniform, seed);
            prop_assert_eq!(asks(&workload, 1, 50), asks(&workload, 1, 50));
            prop_assert_ne!(asks(&workload, 1, 50), asks(&workload, 2, 50));
        }

        #[test]
        fn the_parts_of_an_object_add_up_to_it(size in 0_u64..10_000, bytes in 1_u64..3000) {
            let mut end = 0;
            for range in split(size, bytes) {
                prop_assert_eq!(range.start, end);
                prop_assert!(range.end > range.start && range.end - range.start <= bytes);
                end = range.end;
            }
            prop_assert_eq!(end, size);
        }
    }
}
