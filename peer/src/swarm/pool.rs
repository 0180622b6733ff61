//! Kept-alive connections, per runtime and place, and the limits on how many requests run at once.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::client::conn::http1::SendRequest;
use tokio::{
    runtime::{self, Handle},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};

use super::connect::Place;

/// An idle connection is not used after this: origins close theirs after 5 s and more, and a race with that costs a retry.
const MAX_IDLE: Duration = Duration::from_secs(20);
/// How long a connection may take to be ready for its next request after its last body was read.
const READY_WITHIN: Duration = Duration::from_millis(200);
/// Places whose limits are kept; those in use are never dropped.
const MAX_PLACES: usize = 1024;

/// The body of a request to the origin; its error is the client's.
pub(super) type RequestBody = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;
pub(super) type Sender = SendRequest<RequestBody>;

/// Which limit a request falls under: short questions never wait behind bulk data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Lane {
    /// Ranges of a download.
    Bulk,
    /// One-byte probes.
    Probe,
}

/// Connections that wait for a request, with the moment when their last one ended.
type Idle = HashMap<(runtime::Id, Place), Vec<(Instant, Sender)>>;

/// A connection's task lives on the runtime that made it, so idle ones are only lent there.
pub(super) struct Pool {
    idle: Mutex<Idle>,
    limits: Mutex<HashMap<(Lane, Place), Arc<Semaphore>>>,
    per_place: usize,
}

impl Pool {
    /// At most `per_place` requests a lane and place at once, and as many idle connections a runtime and place.
    pub(super) fn new(per_place: usize) -> Self {
        Self { idle: Mutex::default(), limits: Mutex::default(), per_place: per_place.max(1) }
    }

    /// Waits up to `patience` for a free slot; `None`: all were busy.
    pub(super) async fn slot(&self, lane: Lane, place: &Place, patience: Duration) -> Option<OwnedSemaphorePermit> {
        let limit = self.limit(lane, place);
        timeout(patience, limit.acquire_owned()).await.ok()?.ok()
    }

    fn limit(&self, lane: Lane, place: &Place) -> Arc<Semaphore> {
        let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        if limits.len() >= MAX_PLACES {
            limits.retain(|_, limit| Arc::strong_count(limit) > 1);
        }
        let fresh = || Arc::new(Semaphore::new(self.per_place));
        Arc::clone(limits.entry((lane, place.clone())).or_insert_with(fresh))
    }

    /// An idle connection of this runtime to `place` that is ready for a request.
    pub(super) async fn take(&self, place: &Place) -> Option<Sender> {
        let key = (Handle::current().id(), place.clone());
        while let Some(mut sender) = self.pop(&key) {
            if !sender.is_closed() && matches!(timeout(READY_WITHIN, sender.ready()).await, Ok(Ok(()))) {
                return Some(sender);
            }
        }
        None
    }

    fn pop(&self, key: &(runtime::Id, Place)) -> Option<Sender> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let senders = idle.get_mut(key)?;
        senders.retain(|(since, _)| since.elapsed() < MAX_IDLE);
        senders.pop().map(|(_, sender)| sender)
    }

    /// Takes a connection back whose last body was read to its end.
    pub(super) fn give_back(&self, place: Place, sender: Sender) {
        let Ok(runtime) = Handle::try_current() else { return };
        if sender.is_closed() {
            return;
        }
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|_, senders| {
            senders.retain(|(since, sender)| since.elapsed() < MAX_IDLE && !sender.is_closed());
            !senders.is_empty()
        });
        let senders = idle.entry((runtime.id(), place)).or_default();
        if senders.len() < self.per_place {
            senders.push((Instant::now(), sender));
        }
    }
}
