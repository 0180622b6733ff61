//! One trace of a download through two nodes and their scheduler.

#![expect(clippy::unwrap_used, reason = "a panic is how a test reports")]

#[path = "trace/collector.rs"]
#[expect(dead_code, reason = "what one node tells is another test's")]
mod collector;
#[path = "cluster/stage.rs"]
#[expect(dead_code, reason = "crowds are another test's")]
mod stage;

use collector::{Collector, Seen, assert_tree, listen_in};
use pondhawk_bench::lab::{cluster::NodePlan, root_or_skip};
use stage::{MIB, Scene, Stage};

/// Of a cluster's first pod.
const COLLECTOR: &str = "http://10.77.0.220:4317";

#[test]
fn a_download_from_another_node_is_one_trace_with_the_parents_and_the_schedulers_part() {
    if !root_or_skip("a_download_from_another_node_is_one_trace_with_the_parents_and_the_schedulers_part") {
        return;
    }
    let node = NodePlan { more: format!("tracing:\n  endpoint: {COLLECTOR}\n"), ..NodePlan::default() };
    let scheduler = ["--trace-endpoint", COLLECTOR];
    let mut stage = Stage::open(&Scene { size: 24 * MIB, scheduler: Some(&scheduler), node, ..Scene::default() });
    let pod = stage.cluster.add_pod().unwrap();
    let collector = Collector::start(listen_in(pod.netns().name(), ([0, 0, 0, 0], 4317).into()));
    let joining = stage.joining();
    for number in 0..2 {
        stage.node(number).start(&joining).unwrap();
        stage.node(number).wait_joined().unwrap();
    }
    stage.assert_right(&stage.fetch(0), "the first client");
    stage.assert_right(&stage.fetch(1), "the second client");
    let has = |spans: &[Seen], name: &str, count| spans.iter().filter(|span| span.name == name).count() >= count;
    let all = |spans: &[Seen]| has(spans, "fetch", 2) && has(spans, "want", 2) && has(spans, "serve", 1);
    let spans = collector.wait_for(all);
    let one = |name: &str, instance: &str| -> &Seen {
        let found = spans.iter().filter(|span| span.name == name && span.instance == instance);
        let found: Vec<_> = found.collect();
        assert_eq!(found.len(), 1, "{name} of {instance}: {spans:#?}");
        found[0]
    };
    let (first, second) = (one("fetch", "node-0"), one("fetch", "node-1"));
    assert_ne!(first.trace, second.trace);
    assert_eq!(assert_tree(&spans, &first.trace).instance, "node-0");
    assert_eq!(assert_tree(&spans, &second.trace).instance, "node-1");
    let (asked, served) = (one("peer fetch", "node-1"), one("serve", "node-0"));
    assert_eq!((&served.trace, &served.parent), (&asked.trace, &asked.id));
    assert_eq!((&asked.trace, &asked.parent), (&second.trace, &second.id));
    for span in [asked, served, second] {
        let moved = (span.number("pondhawk.bytes"), span.number("pondhawk.pieces"));
        assert_eq!(moved, (stage.file.size, second.number("pondhawk.pieces")), "{span:#?}");
    }
    assert_eq!((&*asked.attributes["pondhawk.peer"], &*served.attributes["pondhawk.peer"]), ("node-0", "node-1"));
    let of_scheduler = |name: &str, trace: &str| -> Vec<&Seen> {
        spans.iter().filter(|span| span.name == name && span.trace == trace).collect()
    };
    let (leased, linked) = (of_scheduler("want", &first.trace), of_scheduler("want", &second.trace));
    assert!(leased.iter().chain(&linked).all(|span| span.service == "pondhawk-scheduler"), "{spans:#?}");
    assert_eq!((leased[0].attributes["pondhawk.answer"].as_str(), &leased[0].parent), ("lease", &first.id));
    assert_eq!((linked[0].attributes["pondhawk.answer"].as_str(), &linked[0].parent), ("parents", &second.id));
    let leases = of_scheduler("lease", &first.trace);
    assert!(leases[0].number("pondhawk.leases") >= 1 && leases[0].number("pondhawk.pieces") > 0, "{leases:#?}");
}
