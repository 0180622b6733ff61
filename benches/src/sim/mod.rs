//! A cluster in one process: the scheduler's own core and every peer's own download machine under virtual time.
//!
//! One seeded loop takes events in the order of their times; nothing depends on the wall clock, the machine or a random
//! hash, so that a seed replays to the last event ([`Report::fingerprint`] shows it). What is modelled rather than run:
//! - **Network**: every node has an uplink and a downlink, the origin one link and a rate a connection. Each is a queue of
//!   pieces that empties at its rate; a piece is there when the slowest queue on its way has sent it, plus a latency.
//!   Links bound what they ask for, so queues share fairly. Loss lowers the rate of the links it is on.
//! - **Drivers**: what the peer's driver, session and QUIC do between the machine and the wire, with their constants:
//!   progress every 200 ms, `Have` deltas, a bound on uploads, silence of 5 s, redials, inventories.
//! - **Content**: a piece is right or wrong, and a digest says which.

mod control;
mod job;
mod net;
mod node;
mod queue;
mod report;
mod scenario;
#[cfg(test)]
mod tests;
mod world;

pub use report::Report;
pub use scenario::{Churn, Lie, Restart, Scenario, SlowRack};

/// Plays a scenario to its end: all clients are served, or its time is over.
pub fn run(scenario: &Scenario) -> Report {
    world::World::new(scenario.clone()).play()
}
