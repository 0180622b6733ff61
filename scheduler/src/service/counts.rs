//! What became of the two calls, for metrics: one relaxed atomic addition each.

use std::sync::atomic::{AtomicU64, Ordering};

use tonic::Code;

/// Why a session ended, as metrics call it.
pub const ENDS: [&str; 9] =
    ["closed", "replaced", "banned", "silent", "too_slow", "protocol", "certificate", "stopped", "other"];

/// Sums since the process began.
#[derive(Debug, Default)]
pub struct SessionCounts {
    joins: [AtomicU64; 2],
    sessions: [AtomicU64; 2],
    ends: [AtomicU64; ENDS.len()],
}

impl SessionCounts {
    /// A Join was answered.
    pub(super) fn join(&self, taken: bool) {
        self.joins[usize::from(taken)].fetch_add(1, Ordering::Relaxed);
    }

    /// A Session was opened, or refused.
    pub(super) fn session(&self, taken: bool) {
        self.sessions[usize::from(taken)].fetch_add(1, Ordering::Relaxed);
    }

    /// A session ended.
    pub(super) fn end(&self, why: Code) {
        self.ends[slot(why)].fetch_add(1, Ordering::Relaxed);
    }

    /// Joins refused, and taken.
    pub fn joins(&self) -> [u64; 2] {
        self.joins.each_ref().map(|count| count.load(Ordering::Relaxed))
    }

    /// Sessions refused, and opened.
    pub fn sessions(&self) -> [u64; 2] {
        self.sessions.each_ref().map(|count| count.load(Ordering::Relaxed))
    }

    /// Sessions that ended, by [`ENDS`].
    pub fn ends(&self) -> [u64; ENDS.len()] {
        self.ends.each_ref().map(|count| count.load(Ordering::Relaxed))
    }
}

fn slot(why: Code) -> usize {
    match why {
        Code::Ok => 0,
        Code::Aborted => 1,
        Code::PermissionDenied => 2,
        Code::DeadlineExceeded => 3,
        Code::ResourceExhausted => 4,
        Code::InvalidArgument => 5,
        Code::Unauthenticated => 6,
        Code::Unavailable => 7,
        _ => 8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_end_has_its_own_name() {
        let counts = SessionCounts::default();
        counts.end(Code::Ok);
        counts.end(Code::ResourceExhausted);
        counts.end(Code::ResourceExhausted);
        counts.end(Code::DataLoss);
        let named: Vec<_> = ENDS.into_iter().zip(counts.ends()).filter(|(_, count)| *count > 0).collect();
        assert_eq!(named, [("closed", 1), ("too_slow", 2), ("other", 1)]);
    }
}
