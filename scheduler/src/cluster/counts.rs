//! What has happened since the scheduler began [pure].

use serde::Serialize;

/// Sums that only rise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Events of nodes that were handled.
    pub events: u64,
    /// Pieces that nodes reported as held with a digest of their own: from an origin.
    pub pieces_from_origin: u64,
    /// Pieces that nodes reported as held without one: from other nodes, or found in their store.
    pub pieces_from_peers: u64,
    /// Leases given.
    pub leases: u64,
    /// Leases taken back because nothing moved.
    pub leases_silent: u64,
    /// Pieces on whose digest nodes began to disagree.
    pub disputes: u64,
    /// Tasks that were whole and wrong: read once more.
    pub doubts: u64,
    /// Times that a node blamed another.
    pub blames: u64,
    /// Times that a node was banned.
    pub bans: u64,
    /// Times that a node claimed more than its share of the scheduler's memory.
    pub refusals: u64,
}
