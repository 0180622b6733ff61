//! What is asked for only when somebody scrapes: the store's usage, the BPF program's counters, the process' own costs.

use std::{
    fmt, fs,
    sync::{Arc, OnceLock},
};

use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

use crate::trace::Counts;

/// How full the store is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreGauges {
    /// Tasks held, whole or in part.
    pub tasks: u64,
    /// Bytes that count against the quota.
    pub bytes: u64,
    /// The quota in bytes.
    pub quota: u64,
    /// Tasks that gave way to others since the start.
    pub evictions: u64,
}

/// How this node shares with others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SwarmGauges {
    /// Whether a session with the scheduler stands.
    pub session: bool,
    /// End of this node's certificate of the cluster, Unix seconds; 0: it has none.
    pub certificate_until_unix: u64,
    /// Open connections to parents.
    pub links: u64,
    /// Pieces that are being sent to others.
    pub uploads: u64,
    /// Bytes sent to others since the start.
    pub sent_bytes: u64,
}

/// Where to ask at each scrape; the functions must return at once.
pub struct Scraped {
    /// The store's usage.
    pub store: Box<dyn Fn() -> StoreGauges + Send + Sync>,
    /// The BPF program's counters by decision; none where nothing is intercepted.
    pub decisions: Box<dyn Fn() -> Vec<(&'static str, u64)> + Send + Sync>,
    /// The swarm; none where nothing is shared.
    pub swarm: Box<dyn Fn() -> Option<SwarmGauges> + Send + Sync>,
    /// What became of traces.
    pub traces: Box<dyn Fn() -> Counts + Send + Sync>,
}

impl fmt::Debug for Scraped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scraped")
    }
}

#[derive(Debug)]
pub(super) struct Collector(pub(super) Arc<OnceLock<Scraped>>);

impl prometheus_client::collector::Collector for Collector {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        process(&mut to)?;
        let Some(scraped) = self.0.get() else { return Ok(()) };
        let store = (scraped.store)();
        gauge(&mut to, "store_tasks", "Tasks held, whole or in part", store.tasks)?;
        gauge(&mut to, "store_used_bytes", "Bytes that count against the quota", store.bytes)?;
        counter(&mut to, "store_evictions", "Tasks that gave way to others", store.evictions)?;
        gauge(&mut to, "store_quota_bytes", "What the store may hold", store.quota)?;
        (scraped.swarm)().map_or(Ok(()), |shared| swarm(&mut to, &shared))?;
        let traces = (scraped.traces)();
        counter(&mut to, "trace_spans_exported", "Spans of traces that a collector took", traces.exported)?;
        counter(&mut to, "trace_spans_dropped", "Spans of traces that were lost", traces.dropped)?;
        decisions(&mut to, &(scraped.decisions)())
    }
}

fn gauge(to: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
    gauge.encode(to.encode_descriptor(name, help, None, MetricType::Gauge)?)
}

fn counter(to: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    ConstCounter::new(value).encode(to.encode_descriptor(name, help, None, MetricType::Counter)?)
}

fn swarm(to: &mut DescriptorEncoder<'_>, shared: &SwarmGauges) -> fmt::Result {
    gauge(to, "swarm_session", "Whether a session with the scheduler stands", shared.session.into())?;
    let help = "End of the node's certificate of the cluster in Unix time, 0 without";
    gauge(to, "swarm_certificate_expiry_seconds", help, shared.certificate_until_unix)?;
    gauge(to, "swarm_links", "Open connections to parents", shared.links)?;
    gauge(to, "swarm_uploads", "Pieces that are being sent to others", shared.uploads)?;
    counter(to, "swarm_sent_bytes", "Bytes sent to others", shared.sent_bytes)
}

fn decisions(to: &mut DescriptorEncoder<'_>, counts: &[(&'static str, u64)]) -> fmt::Result {
    let help = "Decisions of the BPF programs";
    let mut family = to.encode_descriptor("intercept_decisions", help, None, MetricType::Counter)?;
    counts.iter().try_for_each(|(decision, count)| {
        ConstCounter::new(*count).encode(family.encode_family(&[("decision", *decision)])?)
    })
}

/// clock_gettime(2) CLOCK_PROCESS_CPUTIME_ID and proc_pid_statm(5); what cannot be read is left out.
fn process(to: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let seconds = cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9;
    let help = "CPU time of the process, user and system";
    ConstCounter::new(seconds).encode(to.encode_descriptor(
        "process_cpu_seconds",
        help,
        None,
        MetricType::Counter,
    )?)?;
    match resident_bytes() {
        Some(bytes) => gauge(to, "process_resident_bytes", "Memory of the process that is resident", bytes),
        None => Ok(()),
    }
}

fn resident_bytes() -> Option<u64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}
