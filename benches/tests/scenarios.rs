//! `pondhawk-bench` from the outside: what it writes and how it ends.

#![cfg(feature = "sim")]
#![expect(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

use std::{path::Path, process::Command};

use serde_json::Value;

fn bench() -> Command {
    Command::new(env!("CARGO_BIN_EXE_pondhawk-bench"))
}

#[test]
fn a_cheap_scenario_writes_json_of_the_promised_shape_and_a_page() {
    let folder = tempfile::tempdir().unwrap();
    let (json, html) = (folder.path().join("figures.json"), folder.path().join("page.html"));
    let mut run = bench();
    run.args(["run", "scheduler", "--quick", "--target"]).arg(folder.path());
    run.arg("--json").arg(&json).arg("--html").arg(&html);
    let output = run.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains("events_per_s_1k_peers") && said.contains("kernel") && said.contains("others used"),
        "{said}"
    );
    check_shape(&json, "scheduler");
    let page = std::fs::read_to_string(&html).unwrap();
    assert!(page.contains("<h2>scheduler</h2>") && page.contains("events_per_s_1k_peers"));
}

/// `{"scenario": {"metric": {"value", "unit", "baseline", "ratio", "target", "met", "spread"}}}`
fn check_shape(json: &Path, scenario: &str) {
    let figures: Value = serde_json::from_str(&std::fs::read_to_string(json).unwrap()).unwrap();
    let scenarios: Vec<&String> = figures.as_object().unwrap().keys().collect();
    assert_eq!(scenarios, [scenario], "nothing but scenarios at the top");
    let metrics = figures[scenario].as_object().unwrap();
    assert!(metrics.contains_key("bytes_per_peer_task_1k_peers"));
    for (name, metric) in metrics {
        let keys: Vec<&str> = metric.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys, ["baseline", "met", "ratio", "spread", "target", "unit", "value"], "{name}");
        assert!(metric["value"].is_f64() && metric["unit"].is_string(), "{name}");
        let has = |key: &str, is: fn(&Value) -> bool| metric[key].is_null() || is(&metric[key]);
        assert!(has("baseline", Value::is_number) && has("ratio", Value::is_number), "{name}");
        assert!(has("target", Value::is_string) && has("met", Value::is_boolean), "{name}");
    }
}

#[test]
fn a_scenario_that_cannot_run_says_what_is_missing_and_fails() {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("figures.json");
    let mut run = bench();
    run.args(["run", "peer-link", "--quick", "--wire", "/nowhere/wire", "--json"]).arg(&json);
    let output = run.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success() && said.contains("FAILED: cannot run here") && said.contains("--wire"), "{said}");
    let figures: Value = serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
    assert_eq!(figures, serde_json::json!({ "peer-link": {} }));
}

#[test]
fn the_list_names_every_scenario_with_what_it_needs() {
    let output = bench().arg("list").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let names =
        ["seed-five", "local-hit", "cold", "flash-crowd", "peer-link", "many-small", "connections", "scheduler"];
    for name in names.iter().chain(&["intercept", "memory"]) {
        assert!(said.contains(name), "{said}");
    }
    assert!(said.contains("needs: root"));
}
