//! Snapshots for those that look: one a second, made once for all of them, and none while nobody does.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde::Serialize;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use super::history::{History, Sample};
use crate::cluster::Cluster;
use crate::cluster::snapshot::Snapshot;
use crate::service::Viewer;

/// Those that look at once.
pub(super) const MAX_VIEWERS: usize = 32;
/// Between two snapshots, and two samples.
const EVERY: Duration = Duration::from_secs(1);
/// For the first snapshot.
const FIRST: Duration = Duration::from_secs(8);

/// What the page is fed from.
pub(super) struct Feed {
    viewer: Viewer,
    latest: watch::Sender<Option<Bytes>>,
    history: Mutex<History>,
    places: Arc<Semaphore>,
    looked: Notify,
}

/// A snapshot with the time that it was made at.
#[derive(Serialize)]
struct Told {
    sample: Sample,
    #[serde(flatten)]
    snapshot: Snapshot,
}

/// Somebody who looks; dropped, its place is free.
pub(super) struct Look {
    latest: watch::Receiver<Option<Bytes>>,
    _place: OwnedSemaphorePermit,
}

impl Feed {
    pub(super) fn new(viewer: Viewer) -> Self {
        Self {
            viewer,
            latest: watch::Sender::new(None),
            history: Mutex::default(),
            places: Arc::new(Semaphore::new(MAX_VIEWERS)),
            looked: Notify::new(),
        }
    }

    /// Samples always, which costs the cluster nothing, and snapshots while somebody looks.
    pub(super) async fn run(&self) {
        tokio::join!(self.sample(), self.make());
    }

    async fn sample(&self) {
        let mut seconds = interval(EVERY);
        seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            seconds.tick().await;
            let sample = Sample::of(unix_millis(), &self.viewer.status());
            self.history.lock().unwrap_or_else(PoisonError::into_inner).add(sample);
        }
    }

    async fn make(&self) {
        loop {
            if self.latest.receiver_count() == 0 {
                // What the next one sees first is to be fresh.
                self.latest.send_replace(None);
                self.looked.notified().await;
                continue;
            }
            let began = Instant::now();
            if let Some(snapshot) = self.viewer.ask(Cluster::snapshot).await {
                let sample = Sample::of(unix_millis(), &self.viewer.status());
                match serde_json::to_vec(&Told { sample, snapshot }) {
                    Ok(json) => drop(self.latest.send_replace(Some(json.into()))),
                    Err(error) => tracing::error!(%error, "the page's snapshot cannot be written"),
                }
            }
            sleep_until(began + EVERY).await;
        }
    }

    /// Lets one more look, if there is a place.
    pub(super) fn look(&self) -> Option<Look> {
        let place = Arc::clone(&self.places).try_acquire_owned().ok()?;
        let latest = self.latest.subscribe();
        self.looked.notify_one();
        Some(Look { latest, _place: place })
    }

    /// The history as an event.
    pub(super) fn history(&self) -> Bytes {
        let history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        let rows: Vec<&Sample> = history.samples().collect();
        event("history", serde_json::to_string(&rows).unwrap_or_default().as_bytes())
    }
}

impl Look {
    /// A snapshot of now.
    pub(super) async fn first(mut self) -> Option<Bytes> {
        let made = timeout(FIRST, self.latest.wait_for(Option::is_some)).await;
        made.ok()?.ok()?.clone()
    }

    /// Sends events until nobody takes them any more.
    pub(super) async fn tell(mut self, first: Bytes, to: mpsc::Sender<Bytes>) {
        if to.send(first).await.is_err() {
            return;
        }
        loop {
            let latest = self.latest.borrow_and_update().clone();
            if let Some(json) = latest
                && to.send(event("snapshot", &json)).await.is_err()
            {
                return;
            }
            tokio::select! {
                changed = self.latest.changed() => if changed.is_err() { return },
                () = to.closed() => return,
            }
        }
    }
}

/// JSON has no line break outside of strings, and none that is not escaped within.
fn event(name: &str, json: &[u8]) -> Bytes {
    let mut text = String::with_capacity(json.len() + 32);
    let _ = write!(text, "event: {name}\ndata: {}\n\n", String::from_utf8_lossy(json));
    text.into()
}

pub(super) fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
