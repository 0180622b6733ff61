//! What was asked of the hub, per object.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard},
};

use serde::{Deserialize, Serialize};

/// Counts since the start or the last reset.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// TCP connections accepted.
    pub connections: u64,
    /// TLS handshakes that failed.
    pub tls_failures: u64,
    /// Requests to the Hub itself, of any kind; not those to its CDN.
    pub hub_requests: u64,
    /// Bytes of bodies of all objects.
    pub body_bytes: u64,
    /// By label: `owner/name/path`, or `plain/name`.
    pub objects: BTreeMap<String, ObjectStats>,
}

impl Stats {
    /// The object's counts; all zero when it was never asked for.
    pub fn object(&self, label: &str) -> ObjectStats {
        self.objects.get(label).cloned().unwrap_or_default()
    }
}

/// Counts of one object. Requests for its bytes only (CDN, or the Hub for small files), resolve redirects apart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectStats {
    /// GETs by response status.
    pub gets: BTreeMap<u16, u64>,
    /// HEADs by response status.
    pub heads: BTreeMap<u16, u64>,
    /// Requests to the resolve endpoint that were redirected to the CDN.
    pub resolves: u64,
    /// Bytes of body handed to connections. Of a response that was broken off up to 768 KiB may not have left.
    pub body_bytes: u64,
    /// Connections that asked for the object's bytes.
    pub connections: u64,
    /// Most bodies under way at once.
    pub most_at_once: u64,
    /// Bodies under way.
    pub under_way: u64,
}

impl ObjectStats {
    /// All GETs, whatever the status.
    pub fn all_gets(&self) -> u64 {
        self.gets.values().sum()
    }
}

#[derive(Debug, Default)]
pub(super) struct StatsBook(Mutex<Stats>);

impl StatsBook {
    pub(super) fn snapshot(&self) -> Stats {
        self.lock().clone()
    }

    /// Everything to zero, but for the bodies under way.
    pub(super) fn reset(&self) {
        let mut stats = self.lock();
        stats.connections = 0;
        stats.tls_failures = 0;
        stats.hub_requests = 0;
        stats.body_bytes = 0;
        stats.objects.retain(|_, object| object.under_way > 0);
        for object in stats.objects.values_mut() {
            *object =
                ObjectStats { under_way: object.under_way, most_at_once: object.under_way, ..ObjectStats::default() };
        }
    }

    pub(super) fn connected(&self) {
        self.lock().connections += 1;
    }

    pub(super) fn hub_asked(&self) {
        self.lock().hub_requests += 1;
    }

    pub(super) fn tls_failed(&self) {
        self.lock().tls_failures += 1;
    }

    pub(super) fn answered(&self, label: &str, head: bool, status: u16) {
        self.object(label, |object| {
            let requests = if head { &mut object.heads } else { &mut object.gets };
            *requests.entry(status).or_default() += 1;
        });
    }

    pub(super) fn resolved(&self, label: &str) {
        self.object(label, |object| object.resolves += 1);
    }

    pub(super) fn new_connection_for(&self, label: &str) {
        self.object(label, |object| object.connections += 1);
    }

    pub(super) fn body_started(&self, label: &str) {
        self.object(label, |object| {
            object.under_way += 1;
            object.most_at_once = object.most_at_once.max(object.under_way);
        });
    }

    pub(super) fn body_ended(&self, label: &str) {
        self.object(label, |object| object.under_way = object.under_way.saturating_sub(1));
    }

    pub(super) fn sent(&self, label: &str, bytes: u64) {
        self.object(label, |object| object.body_bytes += bytes);
        self.lock().body_bytes += bytes;
    }

    fn object(&self, label: &str, change: impl FnOnce(&mut ObjectStats)) {
        let mut stats = self.lock();
        if !stats.objects.contains_key(label) {
            stats.objects.insert(label.to_owned(), ObjectStats::default());
        }
        change(stats.objects.get_mut(label).expect("inserted above"));
    }

    fn lock(&self) -> MutexGuard<'_, Stats> {
        self.0.lock().expect("no holder panics")
    }
}
