//! What came out.

use std::fmt;

use serde::Serialize;

/// The outcome of a scenario. Times in seconds of the simulated cluster unless said otherwise.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The scenario.
    pub name: String,
    /// Replays it.
    pub seed: u64,
    /// Nodes.
    pub peers: u32,
    /// Pieces in all files.
    pub pieces: u32,
    /// Bytes in all files.
    pub bytes: u64,
    /// Honest nodes whose client has every file, right to the last byte.
    pub finished: u32,
    /// Nodes that should.
    pub honest: u32,
    /// Until the last client was served.
    pub makespan: f64,
    /// max(F/origin, F/down, N F/(origin + sum of uplinks)), or the last client's begin and F/down.
    pub bound: f64,
    /// makespan / bound.
    pub ratio: f64,
    /// What the origin sent, in times F.
    pub origin_copies: f64,
    /// Messages to the scheduler, a peer.
    pub messages_up: f64,
    /// Messages from the scheduler, a peer.
    pub messages_down: f64,
    /// Errors that clients saw.
    pub client_errors: u32,
    /// Downloads whose SHA-256 was wrong, and that began anew without the swarm.
    pub mismatches: u32,
    /// Pieces that came with other bytes than their digest says.
    pub refused_pieces: u32,
    /// Accusations.
    pub blames: u32,
    /// Bytes that a peer at a task takes in the scheduler.
    pub scheduler_bytes: usize,
    /// Events that the scheduler's core took.
    pub core_events: u64,
    /// The core's events and ticks a second of this machine's time.
    pub core_events_a_second: f64,
    /// Of this machine, seconds.
    pub wall: f64,
    /// Everything that happened, in one number.
    pub fingerprint: u64,
}

impl Report {
    /// Whether every honest node's client has got all it wanted, without an error.
    pub fn is_good(&self) -> bool {
        self.finished == self.honest && self.client_errors == 0
    }

    /// Without what depends on this machine: equal for equal seeds.
    #[must_use]
    pub fn repeatable(&self) -> Self {
        Self { core_events_a_second: 0.0, wall: 0.0, ..self.clone() }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.is_good() { "good" } else { "BAD" };
        writeln!(f, "{} --seed {}: {verdict}", self.name, self.seed)?;
        writeln!(
            f,
            "  {} peers, {} pieces, {:.1} MiB; {} of {} clients served, {} errors, {} mismatches",
            self.peers,
            self.pieces,
            self.bytes as f64 / f64::from(1 << 20),
            self.finished,
            self.honest,
            self.client_errors,
            self.mismatches
        )?;
        writeln!(
            f,
            "  makespan {:.2} s, fluid bound {:.2} s: {:.3}x; origin sent {:.3}x F",
            self.makespan, self.bound, self.ratio, self.origin_copies
        )?;
        writeln!(
            f,
            "  messages a peer: {:.1} to the scheduler, {:.1} from it; refused pieces {}, blames {}",
            self.messages_up, self.messages_down, self.refused_pieces, self.blames
        )?;
        write!(
            f,
            "  scheduler: {} B a peer-task, {} events at {:.0}/s of one core; wall {:.1} s; fingerprint {:016x}",
            self.scheduler_bytes, self.core_events, self.core_events_a_second, self.wall, self.fingerprint
        )
    }
}
