//! Asks work on the same shard to end.

use std::{cell::Cell, rc::Rc};

use tokio::sync::Notify;

/// Set once, seen by all clones. Work that sees it ends as soon as it can do so cleanly.
#[derive(Clone, Debug, Default)]
pub struct Stop(Rc<Flag>);

#[derive(Debug, Default)]
struct Flag {
    set: Cell<bool>,
    changed: Notify,
}

impl Stop {
    /// Not set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets it, for good.
    pub fn set(&self) {
        self.0.set.set(true);
        self.0.changed.notify_waiters();
    }

    /// Whether it is set.
    pub fn is_set(&self) -> bool {
        self.0.set.get()
    }

    /// Waits until it is set.
    pub async fn wait(&self) {
        let changed = self.0.changed.notified();
        if !self.is_set() {
            changed.await;
        }
    }
}
