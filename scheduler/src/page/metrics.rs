//! The scheduler in Prometheus' terms, put together at each scrape.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::cluster::snapshot::Gauges;
use crate::cluster::{Counts, Totals};
use crate::service::{ENDS, SessionCounts};
use crate::trace;

/// The media type of [`text`]'s answer.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What a scrape found.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Scrape {
    /// `None` while nodes are not served.
    pub(super) cluster: Option<(Gauges, Counts, Totals)>,
    pub(super) joins: [u64; 2],
    pub(super) sessions: [u64; 2],
    pub(super) ends: [u64; ENDS.len()],
    pub(super) traces: trace::Counts,
}

impl Scrape {
    pub(super) fn of(
        cluster: Option<(Gauges, Counts, Totals)>,
        sessions: &SessionCounts,
        traces: trace::Counts,
    ) -> Self {
        Self { cluster, joins: sessions.joins(), sessions: sessions.sessions(), ends: sessions.ends(), traces }
    }
}

/// OpenMetrics text. Every name begins with `pondhawk_scheduler_`.
pub(super) fn text(scrape: Scrape) -> String {
    let mut registry = Registry::with_prefix("pondhawk_scheduler");
    registry.register("build", "What runs", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
    registry.register_collector(Box::new(scrape));
    let mut text = String::new();
    encode(&mut text, &registry).expect("a String takes every write");
    text
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut to = To(&mut encoder);
        to.gauge("serving", "Whether nodes are served", u64::from(self.cluster.is_some()))?;
        if let Some((gauges, counts, moved)) = &self.cluster {
            to.gauges(gauges)?;
            to.counts(counts)?;
            to.moved(moved)?;
        }
        let results = |[refused, taken]: [u64; 2]| [("refused", refused), ("taken", taken)];
        to.family("joins", "Nodes that asked for a certificate", "result", results(self.joins))?;
        to.family("sessions", "Sessions that nodes asked for", "result", results(self.sessions))?;
        let ends = ENDS.into_iter().zip(self.ends);
        to.family(
            "session_ends",
            "Sessions that ended, by reason; all but closed and stopped are errors",
            "reason",
            ends,
        )?;
        to.counter("trace_spans_exported", "Spans of traces that a collector took", self.traces.exported)?;
        to.counter("trace_spans_dropped", "Spans of traces that were lost", self.traces.dropped)
    }
}

struct To<'a, 'e>(&'a mut DescriptorEncoder<'e>);

impl To<'_, '_> {
    fn gauges(&mut self, gauges: &Gauges) -> fmt::Result {
        let size = |count: usize| count as u64;
        self.gauge("peers_connected", "Nodes with a session", size(gauges.connected))?;
        self.gauge("peers_known", "Nodes known, also those that have just left", size(gauges.known))?;
        self.gauge("peers_banned", "Nodes that take no part for a while", size(gauges.banned))?;
        self.gauge("peers_blamed", "Nodes blamed for wrong bytes and not banned", size(gauges.blamed))?;
        self.gauge("tasks", "Tasks that a node holds something of, or wants", size(gauges.tasks))?;
        self.gauge("tasks_wanted", "Tasks that a node wants", size(gauges.wanted_tasks))?;
        self.gauge("wants", "Wishes, one for each node and task", gauges.wants)?;
        self.gauge("leases_active", "Leases under way", size(gauges.leases))?;
        self.gauge("disputes_open", "Pieces on whose digest nodes disagree", size(gauges.disputes))?;
        self.gauge("digest_bytes", "Memory that digests of pieces take", size(gauges.digest_bytes))?;
        let connections = u64::from(gauges.origin_connections);
        self.gauge("origin_connections", "Connections to origins that leases stand for", connections)
    }

    fn counts(&mut self, counts: &Counts) -> fmt::Result {
        self.counter("events", "Events of nodes that were handled", counts.events)?;
        let pieces = [("origin", counts.pieces_from_origin), ("peers", counts.pieces_from_peers)];
        self.family("pieces", "Pieces that nodes came to hold, by where they had them from", "source", pieces)?;
        self.counter("leases", "Leases given", counts.leases)?;
        self.counter("leases_silent", "Leases taken back because nothing moved", counts.leases_silent)?;
        self.counter("disputes", "Pieces on whose digest nodes began to disagree", counts.disputes)?;
        self.counter("doubts", "Tasks that were whole and wrong", counts.doubts)?;
        self.counter("blames", "Times that a node blamed another", counts.blames)?;
        self.counter("refusals", "Times that a node claimed more than its share of memory", counts.refusals)?;
        self.counter("bans", "Times that a node was banned", counts.bans)
    }

    fn moved(&mut self, moved: &Totals) -> fmt::Result {
        let sources = [("origin", moved.from_origin), ("peers", moved.from_peers)];
        self.family("source_bytes", "Bytes that nodes say they had, by source", "source", sources)?;
        self.counter("client_bytes", "Bytes that nodes say they sent to clients", moved.to_clients)?;
        let other = moved.requests.saturating_sub(moved.hits + moved.joined + moved.misses);
        let outcomes = [("hit", moved.hits), ("joined", moved.joined), ("miss", moved.misses), ("other", other)];
        self.family("requests", "Clients' requests that nodes say they answered, by outcome", "outcome", outcomes)
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
        gauge.encode(self.0.encode_descriptor(name, help, None, MetricType::Gauge)?)
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        ConstCounter::new(value).encode(self.0.encode_descriptor(name, help, None, MetricType::Counter)?)
    }

    fn family(
        &mut self,
        name: &str,
        help: &str,
        label: &'static str,
        series: impl IntoIterator<Item = (&'static str, u64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        series
            .into_iter()
            .try_for_each(|(value, count)| ConstCounter::new(count).encode(family.encode_family(&[(label, value)])?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrape_has_every_series_and_says_where_bytes_came_from() {
        let moved = Totals { from_origin: 10, from_peers: 30, requests: 9, hits: 4, misses: 2, ..Totals::default() };
        let gauges = Gauges { connected: 3, ..Gauges::default() };
        let counts = SessionCounts::default();
        let counted = (gauges, Counts { bans: 2, ..Counts::default() }, moved);
        let text = text(Scrape::of(Some(counted), &counts, trace::Counts { exported: 5, dropped: 3 }));
        for line in [
            "pondhawk_scheduler_peers_connected 3",
            "pondhawk_scheduler_source_bytes_total{source=\"origin\"} 10",
            "pondhawk_scheduler_source_bytes_total{source=\"peers\"} 30",
            "pondhawk_scheduler_requests_total{outcome=\"other\"} 3",
            "pondhawk_scheduler_bans_total 2",
            "pondhawk_scheduler_trace_spans_dropped_total 3",
            "pondhawk_scheduler_session_ends_total{reason=\"too_slow\"} 0",
            "# EOF",
        ] {
            assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
        }
        assert!(text.lines().all(|line| line.starts_with("pondhawk_scheduler_") || line.starts_with('#')));
    }

    #[test]
    fn a_scheduler_that_does_not_serve_says_so() {
        let text = text(Scrape::default());
        assert!(text.contains("pondhawk_scheduler_serving 0") && !text.contains("peers_connected"), "{text}");
    }
}
