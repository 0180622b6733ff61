//! Which pieces the scheduler lets this node fetch from the origin [pure].

use std::{collections::BTreeMap, ops::Range, time::Duration};

use super::{Leader, bits::Bits};

/// A scheduler does not give one peer more at a time than this.
const MAX_LEASES: usize = 1024;
/// After the session is lost the leases and links of before go on for so long before everything may be fetched: a
/// scheduler that restarts is back by then.
const GRACE: Duration = Duration::from_secs(5);
/// A piece that a reader stands before and nobody brings is fetched without a lease after this: before clients give up.
const PATIENCE: Duration = Duration::from_secs(6);
/// After each further wait without a lease in between so many times more pieces are fetched without one, up to a bound: while
/// links bring other pieces, and while nothing comes. A scheduler that keeps its session and leases nothing must not hold a
/// download to a few pieces for each wait.
const FED_PERMITS: PermitGrowth = PermitGrowth { factor: 2, most: 16 };
const UNFED_PERMITS: PermitGrowth = PermitGrowth { factor: 8, most: 4096 };

struct PermitGrowth {
    factor: u32,
    most: u32,
}

/// The right to fetch from the origin.
pub(super) struct Leases {
    leases: BTreeMap<u64, Range<u32>>,
    leased: Bits,
    /// Pieces that may be fetched without a lease.
    permitted: Bits,
    permit: u32,
    leader: Leader,
    lost_since: Option<Duration>,
}

impl Leases {
    pub(super) fn new(pieces: u32) -> Self {
        Self {
            leases: BTreeMap::new(),
            leased: Bits::new(pieces),
            permitted: Bits::new(pieces),
            permit: 1,
            leader: Leader::None,
            lost_since: None,
        }
    }

    /// Whether only leased pieces may be fetched.
    pub(super) fn is_led(&self) -> bool {
        !matches!(self.leader, Leader::None)
    }

    pub(super) fn lead(&mut self, now: Duration, leader: Leader) {
        self.lost_since = matches!(leader, Leader::Lost).then(|| self.lost_since.unwrap_or(now));
        self.leader = leader;
        if matches!(leader, Leader::New | Leader::None) {
            self.leases.clear();
            self.rebuild();
        }
    }

    /// Gives up on a leader that stays away; whether that changed something.
    pub(super) fn tire(&mut self, now: Duration) -> bool {
        let tired = self.lost_since.is_some_and(|since| now >= since + GRACE);
        if tired {
            self.lead(now, Leader::None);
        }
        tired
    }

    /// False if there are too many.
    pub(super) fn add(&mut self, lease: u64, pieces: Range<u32>) -> bool {
        if self.leases.len() >= MAX_LEASES && !self.leases.contains_key(&lease) {
            return false;
        }
        let pieces = pieces.start..pieces.end.min(self.leased.len());
        self.permit = 1;
        match self.leases.insert(lease, pieces.clone()) {
            None => self.leased.set_run(pieces),
            Some(_) => self.rebuild(),
        }
        true
    }

    pub(super) fn remove(&mut self, lease: u64) -> bool {
        let there = self.leases.remove(&lease).is_some();
        if there {
            self.rebuild();
        }
        there
    }

    /// Takes all out.
    pub(super) fn take(&mut self) -> Vec<u64> {
        self.leased.clear_all();
        std::mem::take(&mut self.leases).into_keys().collect()
    }

    /// Forgets those of which every piece is held: the scheduler ends them by itself.
    pub(super) fn prune(&mut self, held: impl Fn(u32) -> bool) {
        let before = self.leases.len();
        self.leases.retain(|_, pieces| !pieces.clone().all(&held));
        if self.leases.len() < before {
            self.rebuild();
        }
    }

    /// Takes those out of which no piece is needed.
    pub(super) fn take_unneeded(&mut self, needed: impl Fn(u32) -> bool) -> Vec<u64> {
        let unneeded = self.leases.iter().filter(|(_, pieces)| !(*pieces).clone().any(&needed));
        let unneeded: Vec<u64> = unneeded.map(|(lease, _)| *lease).collect();
        self.leases.retain(|lease, _| !unneeded.contains(lease));
        if !unneeded.is_empty() {
            self.rebuild();
        }
        unneeded
    }

    pub(super) fn of(&self, piece: u32) -> Option<u64> {
        self.leases.iter().find(|(_, pieces)| pieces.contains(&piece)).map(|(lease, _)| *lease)
    }

    /// Pieces that may be fetched though a link has them, too.
    pub(super) fn permitted(&self, index: usize) -> u64 {
        self.permitted.word(index)
    }

    /// Pieces that may be fetched.
    pub(super) fn word(&self, index: usize) -> u64 {
        if self.is_led() { self.leased.word(index) } else { u64::MAX }
    }

    pub(super) fn may(&self, piece: u32) -> bool {
        !self.is_led() || self.leased.get(piece) || self.permitted.get(piece)
    }

    /// Lets the pieces from `piece` on be fetched without a lease, more of them each time that no lease came in between.
    /// `is_fed`: links bring other pieces.
    pub(super) fn permit(&mut self, piece: u32, is_fed: bool) {
        let growth = if is_fed { FED_PERMITS } else { UNFED_PERMITS };
        self.permitted.set_run(piece..piece.saturating_add(self.permit.min(growth.most)));
        self.permit = self.permit.saturating_mul(growth.factor).min(UNFED_PERMITS.most);
    }

    pub(super) fn is_permitted(&self, piece: u32) -> bool {
        self.permitted.get(piece)
    }

    /// How long a reader waits for one piece; spread by the download's own seed, so that peers who wait for the same
    /// piece do not all ask the origin for it.
    pub(super) fn patience(seed: u64) -> Duration {
        PATIENCE + Duration::from_millis(seed % 2_000)
    }

    fn rebuild(&mut self) {
        self.leased.clear_all();
        for pieces in self.leases.values() {
            self.leased.set_run(pieces.clone());
        }
    }
}
