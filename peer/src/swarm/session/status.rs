//! How this node stands with its scheduler, for people.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

/// Shared by identity and session, which write it, and whoever shows it.
#[derive(Debug)]
pub struct SwarmStatus(Mutex<Snapshot>);

/// The status at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// `host:port`, as configured.
    pub scheduler: String,
    /// Whether a session stands.
    pub connected: bool,
    /// Since when it does, or does not; Unix seconds.
    pub since_unix: u64,
    /// Sessions that stood since the start.
    pub sessions: u64,
    /// Names the scheduler's present start.
    pub epoch: Option<u64>,
    /// End of this node's certificate, Unix seconds; none: it has none.
    pub certificate_until_unix: Option<u64>,
    /// What keeps this node from a certificate, or from a new one.
    pub identity_error: Option<String>,
    /// Why there is no session.
    pub session_error: Option<String>,
}

impl Snapshot {
    /// What is wrong now, if anything: without a certificate there is no session.
    pub fn error(&self) -> Option<&str> {
        self.identity_error.as_deref().or(self.session_error.as_deref())
    }
}

impl SwarmStatus {
    /// Of a node that was never connected.
    pub fn new(scheduler: &str) -> Self {
        let scheduler = scheduler.to_owned();
        Self(Mutex::new(Snapshot { scheduler, since_unix: unix_now(), ..Snapshot::default() }))
    }

    /// The status now.
    pub fn snapshot(&self) -> Snapshot {
        self.lock().clone()
    }

    pub(in crate::swarm) fn certified(&self, until_unix: Option<u64>) {
        self.lock().certificate_until_unix = until_unix;
    }

    /// Whether this is news, for the log.
    pub(in crate::swarm) fn identity(&self, error: Option<String>) -> bool {
        let mut status = self.lock();
        let news = status.identity_error != error;
        status.identity_error = error;
        news
    }

    pub(super) fn up(&self, epoch: u64) {
        let mut status = self.lock();
        status.connected = true;
        status.since_unix = unix_now();
        status.sessions += 1;
        status.epoch = Some(epoch);
        status.session_error = None;
    }

    /// Whether this is news, for the log.
    pub(super) fn down(&self, error: String) -> bool {
        let mut status = self.lock();
        let news = status.connected || status.session_error.as_ref() != Some(&error);
        if status.connected {
            status.connected = false;
            status.since_unix = unix_now();
        }
        status.session_error = Some(error);
        news
    }

    fn lock(&self) -> MutexGuard<'_, Snapshot> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Seconds since 1970.
pub(in crate::swarm) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
