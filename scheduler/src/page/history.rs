//! What the nodes have moved, second by second, of the last quarter of an hour [no I/O].

use std::collections::VecDeque;

use serde::{Serialize, Serializer};

use crate::service::Status;

/// Samples kept.
pub(super) const KEPT: usize = 900;

/// Sums at one moment. On the page an array, in the order of the fields: there are many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sample {
    /// Milliseconds since 1970.
    pub(super) at: u64,
    pub(super) from_origin: u64,
    pub(super) from_peers: u64,
    pub(super) to_clients: u64,
    pub(super) sessions: u64,
}

impl Sample {
    pub(super) fn of(at: u64, status: &Status) -> Self {
        let moved = &status.moved;
        let (from_origin, from_peers, to_clients) = (moved.from_origin, moved.from_peers, moved.to_clients);
        Self { at, from_origin, from_peers, to_clients, sessions: status.sessions as u64 }
    }
}

impl Serialize for Sample {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        [self.at, self.from_origin, self.from_peers, self.to_clients, self.sessions].serialize(to)
    }
}

/// The newest samples.
#[derive(Debug, Default)]
pub(super) struct History(VecDeque<Sample>);

impl History {
    pub(super) fn add(&mut self, sample: Sample) {
        if self.0.len() >= KEPT {
            self.0.pop_front();
        }
        self.0.push_back(sample);
    }

    /// From the oldest to the newest.
    pub(super) fn samples(&self) -> impl Iterator<Item = &Sample> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_samples_go_first() {
        let mut history = History::default();
        for at in 0..KEPT as u64 + 10 {
            history.add(Sample::of(at, &Status::default()));
        }
        assert_eq!(history.samples().count(), KEPT);
        let ends = (history.samples().next(), history.samples().last());
        assert_eq!((ends.0.map(|first| first.at), ends.1.map(|last| last.at)), (Some(10), Some(909)));
    }

    #[test]
    fn a_sample_is_a_row_of_numbers() {
        let sample = Sample { at: 1, from_origin: 2, from_peers: 3, to_clients: 4, sessions: 5 };
        assert_eq!(serde_json::to_string(&sample).unwrap(), "[1,2,3,4,5]");
    }
}
