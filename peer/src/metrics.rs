//! What the node counts, in Prometheus' terms.
//!
//! Every series exists from the start, so that a rate over it is right from the first event on; counting is one relaxed
//! atomic addition. What others know already (store usage, the BPF program's counters) is asked for at each scrape.

mod label;
mod scraped;

use std::{
    sync::{Arc, OnceLock, atomic::AtomicU64},
    time::Duration,
};

use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::Registry,
};
use serde::{Deserialize, Serialize};

use label::Label;
pub use label::{
    BypassReason, Direction, HandshakeFailure, OriginAnswer, Outcome, Party, PassReason, PassRefusal, Source, Way,
};
pub use scraped::{Scraped, StoreGauges, SwarmGauges};

/// The media type of [`Metrics::encode`]'s text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Time to the first byte: from a hit in the page cache to a client's own timeout of 10 s.
const FIRST_BYTE_SECONDS: [f64; 12] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0, 10.0];
/// Whole downloads: from a configuration file to a large model on a slow line.
const DOWNLOAD_SECONDS: [f64; 12] = [0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0];

/// The node's counters; shared by every shard.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Counters<2>,
    source_bytes: Counters<1>,
    client_bytes: Counter,
    origin_requests: Counters<1>,
    origin_retries: Counter,
    verification_failures: Counters<1>,
    bypasses: Counters<1>,
    handshake_failures: Counters<1>,
    passthrough: Counters<1>,
    passthrough_bytes: Counters<1>,
    pass_refusals: Counters<1>,
    connections: [Gauge; 2],
    connections_refused: Counter,
    tasks_done: Counter,
    tasks_failed: Counter,
    preheats_done: Counter,
    preheats_failed: Counter,
    download_seconds: Histogram,
    first_byte_seconds: Histogram,
    scraped: Arc<OnceLock<Scraped>>,
}

/// Sums for people, as `pondhawk status` shows them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Requests answered, whatever came of them.
    pub requests: u64,
    /// Those served from the store.
    pub hits: u64,
    /// Those served by a download already under way.
    pub joined: u64,
    /// Those that started a download.
    pub misses: u64,
    /// Bytes fetched from origins.
    pub origin_bytes: u64,
    /// Bytes fetched from other nodes.
    #[serde(default)]
    pub peer_bytes: u64,
    /// Bytes read from the store for replies.
    pub store_bytes: u64,
    /// Bytes of bodies sent to clients.
    pub client_bytes: u64,
}

impl Metrics {
    /// All counters at zero.
    pub fn new() -> Arc<Self> {
        let mut registry = Registry::with_prefix("pondhawk");
        registry.register("build", "What runs", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        let metrics = Self::registered(&mut registry);
        registry.register_collector(Box::new(scraped::Collector(Arc::clone(&metrics.scraped))));
        Arc::new(Self { registry, ..metrics })
    }

    /// Every counter, known to the registry; that one takes its place last, since it must be complete by then.
    fn registered(r: &mut Registry) -> Self {
        Self {
            requests: two::<Way, Outcome>(r, "requests", "Requests, by way in and outcome", ["way", "outcome"]),
            source_bytes: one::<Source>(r, "source_bytes", "Bytes of bodies, by where they came from", "source"),
            client_bytes: counter(r, "client_bytes", "Bytes of bodies sent to clients"),
            origin_requests: one::<OriginAnswer>(r, "origin_requests", "Requests to origins, by answer", "status"),
            origin_retries: counter(r, "origin_retries", "Requests to origins made again after a failure"),
            verification_failures: one::<Party>(
                r,
                "verification_failures",
                "Bytes that did not match their digest, by who gave them",
                "party",
            ),
            bypasses: one::<BypassReason>(r, "bypasses", "Clients let through directly, by reason", "reason"),
            handshake_failures: one::<HandshakeFailure>(
                r,
                "tls_handshake_failures",
                "TLS handshakes with clients that failed",
                "reason",
            ),
            passthrough: one::<PassReason>(
                r,
                "passthrough_connections",
                "Connections led through untouched, by reason",
                "reason",
            ),
            passthrough_bytes: one::<Direction>(r, "passthrough_bytes", "Bytes led through untouched", "direction"),
            pass_refusals: one::<PassRefusal>(
                r,
                "passthrough_refusals",
                "Intercepted connections closed because the node does not connect to their destination, by reason",
                "reason",
            ),
            connections: open_connections(r),
            connections_refused: counter(
                r,
                "connections_refused",
                "Connections closed because their client, or all together, hold as many as they may",
            ),
            tasks_done: counter(r, "tasks_done", "Downloads that ended with every byte held and verified"),
            tasks_failed: counter(r, "tasks_failed", "Downloads that were given up"),
            preheats_done: counter(r, "preheats_done", "Files that were fetched before anybody read them"),
            preheats_failed: counter(r, "preheats_failed", "Files that were to be, and could not"),
            download_seconds: histogram(r, "download_seconds", "Duration of whole downloads", &DOWNLOAD_SECONDS),
            first_byte_seconds: histogram(
                r,
                "first_byte_seconds",
                "From a request's last byte to the first byte of its reply's body",
                &FIRST_BYTE_SECONDS,
            ),
            scraped: Arc::default(),
            registry: Registry::default(),
        }
    }

    /// Says where to ask at each scrape. Only the first call counts.
    pub fn set_scraped(&self, scraped: Scraped) {
        let _ = self.scraped.set(scraped);
    }

    /// A request came to its end.
    pub fn request(&self, way: Way, outcome: Outcome) {
        self.requests.0[way.slot() * Outcome::ALL.len() + outcome.slot()].inc();
    }

    /// `bytes` of a body came from `source`.
    pub fn received(&self, source: Source, bytes: u64) {
        self.source_bytes.0[source.slot()].inc_by(bytes);
    }

    /// `bytes` of a body went to a client.
    pub fn sent(&self, bytes: u64) {
        self.client_bytes.inc_by(bytes);
    }

    /// An origin answered, or failed to.
    pub fn origin_request(&self, answer: OriginAnswer) {
        self.origin_requests.0[answer.slot()].inc();
    }

    /// A request to an origin is made again.
    pub fn origin_retry(&self) {
        self.origin_retries.inc();
    }

    /// Bytes did not match their digest.
    pub fn verification_failure(&self, party: Party) {
        self.verification_failures.0[party.slot()].inc();
    }

    /// A client is let through directly from now on.
    pub fn bypass(&self, reason: BypassReason) {
        self.bypasses.0[reason.slot()].inc();
    }

    /// A handshake with a client failed.
    pub fn handshake_failure(&self, reason: HandshakeFailure) {
        self.handshake_failures.0[reason.slot()].inc();
    }

    /// A connection is led through untouched.
    pub fn passthrough(&self, reason: PassReason) {
        self.passthrough.0[reason.slot()].inc();
    }

    /// An intercepted connection was closed instead of passed on.
    pub fn pass_refusal(&self, reason: PassRefusal) {
        self.pass_refusals.0[reason.slot()].inc();
    }

    /// `bytes` of a connection led through.
    pub fn passed(&self, direction: Direction, bytes: u64) {
        self.passthrough_bytes.0[direction.slot()].inc_by(bytes);
    }

    /// Counts a client's connection as open until the guard is dropped.
    pub fn connection(&self, way: Way) -> OpenConnection {
        let gauge = self.connections[way.slot()].clone();
        gauge.inc();
        OpenConnection(gauge)
    }

    /// Client connections open now.
    pub fn open_connections(&self) -> u64 {
        self.connections.iter().map(|gauge| u64::try_from(gauge.get()).unwrap_or(0)).sum()
    }

    /// A connection was closed because too many are open.
    pub fn connection_refused(&self) {
        self.connections_refused.inc();
    }

    /// A download ended well.
    pub fn task_done(&self, took: Duration) {
        self.tasks_done.inc();
        self.download_seconds.observe(took.as_secs_f64());
    }

    /// A download was given up.
    pub fn task_failed(&self) {
        self.tasks_failed.inc();
    }

    /// A file was fetched before anybody read it, or could not be.
    pub fn preheat(&self, done: bool) {
        if done { &self.preheats_done } else { &self.preheats_failed }.inc();
    }

    /// The first byte of a reply's body left so long after its request.
    pub fn first_byte(&self, took: Duration) {
        self.first_byte_seconds.observe(took.as_secs_f64());
    }

    /// The sums so far.
    pub fn totals(&self) -> Totals {
        let of = |outcome: Outcome| -> u64 {
            let slots = Way::ALL.iter().map(|way| way.slot() * Outcome::ALL.len() + outcome.slot());
            slots.map(|slot| self.requests.0[slot].get()).sum()
        };
        Totals {
            requests: Outcome::ALL.iter().map(|outcome| of(*outcome)).sum(),
            hits: of(Outcome::Hit),
            joined: of(Outcome::Joined),
            misses: of(Outcome::Miss),
            origin_bytes: self.source_bytes.0[Source::Origin.slot()].get(),
            peer_bytes: self.source_bytes.0[Source::Peers.slot()].get(),
            store_bytes: self.source_bytes.0[Source::Store.slot()].get(),
            client_bytes: self.client_bytes.get(),
        }
    }

    /// Everything as OpenMetrics text ([`CONTENT_TYPE`]). Reads /proc and asks [`Scraped`]'s functions.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a String takes every write");
        text
    }
}

/// A connection counted as open.
#[derive(Debug)]
pub struct OpenConnection(Gauge);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// One counter for each combination of `N` labels, the last label's slot running fastest.
#[derive(Debug)]
struct Counters<const N: usize>(Box<[Counter]>);

type Labels<const N: usize> = [(&'static str, &'static str); N];

impl<const N: usize> Counters<N> {
    fn register(r: &mut Registry, name: &str, help: &str, series: impl Iterator<Item = Labels<N>>) -> Self {
        let family = Family::<Labels<N>, Counter>::default();
        r.register(name, help, family.clone());
        Self(series.map(|labels| family.get_or_create_owned(&labels)).collect())
    }
}

fn one<L: Label>(r: &mut Registry, name: &str, help: &str, key: &'static str) -> Counters<1> {
    Counters::register(r, name, help, L::ALL.iter().map(|label| [(key, label.text())]))
}

fn two<A: Label, B: Label>(
    r: &mut Registry,
    name: &str,
    help: &str,
    [first, second]: [&'static str; 2],
) -> Counters<2> {
    let pairs = A::ALL.iter().flat_map(|a| B::ALL.iter().map(|b| (a.text(), b.text())));
    Counters::register(r, name, help, pairs.map(|(a, b)| [(first, a), (second, b)]))
}

fn counter(r: &mut Registry, name: &str, help: &str) -> Counter<u64, AtomicU64> {
    let counter = Counter::default();
    r.register(name, help, counter.clone());
    counter
}

fn histogram(r: &mut Registry, name: &str, help: &str, bounds: &[f64]) -> Histogram {
    let histogram = Histogram::new(bounds.iter().copied());
    r.register(name, help, histogram.clone());
    histogram
}

fn open_connections(r: &mut Registry) -> [Gauge; 2] {
    let family = Family::<Labels<1>, Gauge>::default();
    r.register("connections_open", "Client connections open now", family.clone());
    [Way::Intercept, Way::Proxy].map(|way| family.get_or_create_owned(&[("way", way.text())]))
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod watched_tests;
