//! The dashboard and the alerts in `deploy/` ask for nothing that the node does not export.

use std::collections::{BTreeMap, BTreeSet};

use pondhawk_ebpf::Decision;
use regex::Regex;
use serde_json::Value;

use super::*;

const DASHBOARD: &str = include_str!("../../../deploy/chart/files/dashboard.json");
const ALERTS: &str = include_str!("../../../deploy/chart/files/alerts.yaml");
/// What the scheduler exports, where a test of its own looks.
const SCHEDULERS: &str = "pondhawk_scheduler_";
/// Labels that the scraper adds, and those whose values are numbers.
const FOREIGN: [&str; 3] = ["job", "instance", "le"];

/// Sample names, each with the label values that it has.
type Exported = BTreeMap<String, BTreeSet<(String, String)>>;

fn exported() -> Exported {
    let metrics = Metrics::new();
    metrics.set_scraped(Scraped {
        traces: Box::new(Default::default),
        store: Box::new(StoreGauges::default),
        decisions: Box::new(|| Decision::ALL.into_iter().map(|decision| (decision.name(), 0)).collect()),
        swarm: Box::new(|| Some(SwarmGauges::default())),
    });
    let label = Regex::new(r#"([a-z_]+)="([^"]*)""#).unwrap();
    let mut found = Exported::new();
    for line in metrics.encode().lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap();
        let labels = label.captures_iter(line).map(|pair| (pair[1].to_owned(), pair[2].to_owned()));
        found.entry(name.to_owned()).or_default().extend(labels);
    }
    found
}

/// The strings under these keys, wherever they are.
fn strings<'a>(document: &'a Value, keys: &[&str], into: &mut Vec<&'a str>) {
    match document {
        Value::Object(map) => map.iter().for_each(|(key, value)| match value.as_str() {
            Some(text) if keys.contains(&key.as_str()) => into.push(text),
            _ => strings(value, keys, into),
        }),
        Value::Array(items) => items.iter().for_each(|item| strings(item, keys, into)),
        _ => {}
    }
}

/// What an expression asks for and the node does not export.
fn missing(expression: &str, exported: &Exported) -> Vec<String> {
    let series = Regex::new(r"(pondhawk_[a-z0-9_]+)(?:\{([^}]*)\})?").unwrap();
    let matcher = Regex::new(r#"([a-z_]+)=~?"([^"]*)""#).unwrap();
    let mut wrong = Vec::new();
    for found in series.captures_iter(expression).filter(|found| !found[1].starts_with(SCHEDULERS)) {
        let Some(labels) = exported.get(&found[1]) else {
            wrong.push(found[1].to_owned());
            continue;
        };
        for pair in matcher.captures_iter(found.get(2).map_or("", |braces| braces.as_str())) {
            let known = |value: &str| labels.contains(&(pair[1].to_owned(), value.to_owned()));
            if !FOREIGN.contains(&&pair[1]) && !pair[2].split('|').all(known) {
                wrong.push(found[0].to_owned());
            }
        }
    }
    wrong
}

fn check(document: &Value, keys: &[&str], least: usize) {
    let exported = exported();
    let mut expressions = Vec::new();
    strings(document, keys, &mut expressions);
    assert!(expressions.len() >= least, "only {} expressions found", expressions.len());
    for expression in expressions {
        assert!(
            expression.contains("pondhawk_") || expression == "prometheus",
            "asks for nothing of ours: {expression}"
        );
        assert_eq!(missing(expression, &exported), Vec::<String>::new(), "in {expression}");
    }
}

#[test]
fn the_dashboard_asks_for_what_is_exported() {
    check(&serde_json::from_str(DASHBOARD).unwrap(), &["expr", "query"], 24);
}

#[test]
fn the_alerts_ask_for_what_is_exported() {
    check(&serde_saphyr::from_str(ALERTS).unwrap(), &["expr"], 10);
}

#[test]
fn what_is_not_exported_is_found() {
    let exported = exported();
    assert_eq!(missing("rate(pondhawk_typo_total[5m])", &exported), ["pondhawk_typo_total"]);
    let series = "pondhawk_source_bytes_total{job=~\"$job\",source=~\"origin|pears\"}";
    assert_eq!(missing(series, &exported), [series]);
    assert!(missing("pondhawk_source_bytes_total{instance=\"a\",source=~\"origin|peers\"}", &exported).is_empty());
}
