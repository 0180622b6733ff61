//! What a scraper reads.

use super::*;

fn value(text: &str, series: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
    line.parse().ok()
}

#[test]
fn every_series_is_there_at_zero_from_the_start() {
    let text = Metrics::new().encode();
    for series in [
        "pondhawk_requests_total{way=\"proxy\",outcome=\"hit\"}",
        "pondhawk_source_bytes_total{source=\"store\"}",
        "pondhawk_client_bytes_total",
        "pondhawk_origin_requests_total{status=\"5xx\"}",
        "pondhawk_verification_failures_total{party=\"disk\"}",
        "pondhawk_bypasses_total{reason=\"unknown_ca\"}",
        "pondhawk_passthrough_bytes_total{direction=\"down\"}",
        "pondhawk_connections_open{way=\"intercept\"}",
        "pondhawk_first_byte_seconds_count",
    ] {
        assert_eq!(value(&text, series), Some(0.0), "{series} in\n{text}");
    }
    assert!(text.contains(concat!("pondhawk_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1")));
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn each_label_counts_in_its_own_series() {
    let metrics = Metrics::new();
    for (index, way) in Way::ALL.iter().enumerate() {
        for (n, outcome) in Outcome::ALL.iter().enumerate() {
            (0..index * 10 + n).for_each(|_| metrics.request(*way, *outcome));
        }
    }
    let text = metrics.encode();
    for (index, way) in Way::ALL.iter().enumerate() {
        for (n, outcome) in Outcome::ALL.iter().enumerate() {
            let series = format!("pondhawk_requests_total{{way=\"{}\",outcome=\"{}\"}}", way.text(), outcome.text());
            assert_eq!(value(&text, &series), Some((index * 10 + n) as f64), "{series}");
        }
    }
}

#[test]
fn totals_add_up_both_ways_in() {
    let metrics = Metrics::new();
    metrics.request(Way::Intercept, Outcome::Hit);
    metrics.request(Way::Proxy, Outcome::Hit);
    metrics.request(Way::Proxy, Outcome::Miss);
    metrics.received(Source::Origin, 5);
    metrics.received(Source::Store, 7);
    metrics.sent(12);
    let expected = Totals {
        requests: 3,
        hits: 2,
        joined: 0,
        misses: 1,
        origin_bytes: 5,
        peer_bytes: 0,
        store_bytes: 7,
        client_bytes: 12,
    };
    assert_eq!(metrics.totals(), expected);
}

#[test]
fn a_connection_is_open_until_its_guard_goes() {
    let metrics = Metrics::new();
    let first = metrics.connection(Way::Proxy);
    let second = metrics.connection(Way::Intercept);
    assert_eq!(metrics.open_connections(), 2);
    drop(first);
    assert_eq!(value(&metrics.encode(), "pondhawk_connections_open{way=\"proxy\"}"), Some(0.0));
    assert_eq!(metrics.open_connections(), 1);
    drop(second);
}

#[test]
fn what_others_know_is_asked_for_at_each_scrape() {
    let metrics = Metrics::new();
    assert!(!metrics.encode().contains("pondhawk_store_used_bytes"));
    let count = Arc::new(AtomicU64::new(3));
    let counted = Arc::clone(&count);
    metrics.set_scraped(Scraped {
        traces: Box::new(Default::default),
        store: Box::new(|| StoreGauges { tasks: 1, bytes: 2, quota: 3, evictions: 4 }),
        decisions: Box::new(move || {
            vec![("redirected", counted.load(std::sync::atomic::Ordering::Relaxed)), ("stale", 0)]
        }),
        swarm: Box::new(|| Some(SwarmGauges { session: true, sent_bytes: 7, ..SwarmGauges::default() })),
    });
    let series = "pondhawk_intercept_decisions_total{decision=\"redirected\"}";
    assert_eq!(value(&metrics.encode(), series), Some(3.0));
    count.store(4, std::sync::atomic::Ordering::Relaxed);
    let text = metrics.encode();
    assert_eq!(value(&text, series), Some(4.0));
    assert_eq!(value(&text, "pondhawk_store_used_bytes"), Some(2.0));
    assert_eq!(value(&text, "pondhawk_swarm_session"), Some(1.0));
    assert_eq!(value(&text, "pondhawk_swarm_sent_bytes_total"), Some(7.0));
    assert!(value(&text, "pondhawk_process_resident_bytes").unwrap() > 0.0);
    assert!(value(&text, "pondhawk_process_cpu_seconds_total").unwrap() > 0.0);
}

#[test]
fn durations_fall_into_buckets() {
    let metrics = Metrics::new();
    metrics.first_byte(Duration::from_millis(15));
    metrics.task_done(Duration::from_secs(3));
    let text = metrics.encode();
    assert_eq!(value(&text, "pondhawk_first_byte_seconds_bucket{le=\"0.01\"}"), Some(0.0));
    assert_eq!(value(&text, "pondhawk_first_byte_seconds_bucket{le=\"0.02\"}"), Some(1.0));
    assert_eq!(value(&text, "pondhawk_tasks_done_total"), Some(1.0));
}

#[test]
fn an_origins_status_falls_into_its_class() {
    use OriginAnswer::{Client, Redirect, Server, Success};
    let classes = [200, 206, 302, 304, 403, 429, 500, 503].map(OriginAnswer::of_status);
    assert_eq!(classes, [Success, Success, Redirect, Redirect, Client, Client, Server, Server]);
}
