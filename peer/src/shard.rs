//! One core's share of the node: a thread, a ring, its buffers and its listeners.

use std::{
    cell::RefCell,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{limits, node::Node, uring::Pool, wire::Links};

/// What every connection on a shard's thread has at hand.
pub struct Shard {
    /// The node that all shards share.
    pub node: Arc<Node>,
    /// This shard's buffers.
    pub pool: Pool,
    /// This shard's connections to other nodes; none before this node has joined a cluster.
    pub links: RefCell<Option<Rc<Links>>>,
}

impl Shard {
    /// Shows the node again and again that this shard's thread is alive. Runs as long as the shard.
    pub async fn pulse(self: Rc<Self>, index: usize) {
        loop {
            self.node.pulses.beat(index);
            tokio::time::sleep(limits::BEAT_EVERY).await;
        }
    }
}

/// When each shard was last seen, so that the interception's heartbeat stops when a shard hangs.
pub struct Pulses {
    started: Instant,
    last_millis: Box<[AtomicU64]>,
}

impl Pulses {
    /// None of `shards` shards has been seen.
    pub fn new(shards: usize) -> Self {
        Self { started: Instant::now(), last_millis: (0..shards).map(|_| AtomicU64::new(0)).collect() }
    }

    fn beat(&self, index: usize) {
        self.last_millis[index].store(self.millis(), Ordering::Relaxed);
    }

    /// Whether every shard was seen within `silence`.
    pub fn all_within(&self, silence: Duration) -> bool {
        let now = self.millis();
        let alive = |last: &AtomicU64| match last.load(Ordering::Relaxed) {
            0 => false,
            last => u128::from(now.saturating_sub(last)) <= silence.as_millis(),
        };
        self.last_millis.iter().all(alive)
    }

    /// Milliseconds since the start, never 0.
    fn millis(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_silent_shard_silences_the_node() {
        let pulses = Pulses::new(2);
        pulses.beat(0);
        assert!(!pulses.all_within(Duration::from_secs(60)), "the second was never seen");
        pulses.beat(1);
        assert!(pulses.all_within(Duration::from_secs(60)));
    }
}
