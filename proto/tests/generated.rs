//! The committed code is what the generator makes of the committed .proto files, and has no place for secrets.

mod generator;

use std::fs;
use std::path::Path;

#[test]
fn the_generated_code_is_up_to_date() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let fresh = tempfile::tempdir().unwrap();
    generator::generate(root, fresh.path());
    for file in ["pondhawk.v1.rs", "opentelemetry.proto.collector.trace.v1.rs"] {
        let read = |dir: &Path| fs::read_to_string(dir.join(file)).unwrap();
        assert!(
            read(fresh.path()) == read(&root.join("src/generated")),
            "{file}: run `cargo run -p pondhawk-proto --example generate` and commit the result"
        );
    }
}

/// Text can carry a URL: every field that can is listed here, so that a new one is thought about.
#[test]
fn every_field_of_text_is_a_known_one() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let proto = fs::read_to_string(root.join("pondhawk/v1/scheduler.proto")).unwrap();
    let mut fields: Vec<&str> = proto
        .lines()
        .map(|line| line.trim().trim_start_matches("repeated "))
        .filter_map(|line| line.strip_prefix("string "))
        .filter_map(|line| line.split(' ').next())
        .collect();
    fields.sort_unstable();
    let known = [
        "drop",
        "first",
        "intercept_refused",
        "intercept_suffixes",
        "key",
        "name",
        "name",
        "name",
        "names",
        "origin_host",
        "origin_host",
        "origin_host",
        "origin_host",
        "peer",
        "quic_address",
        "quic_address",
        "second",
        "token",
        "value",
    ];
    assert_eq!(fields, known);
}

#[test]
fn versions_meet_at_the_highest_both_know() {
    use pondhawk_proto::common_version;
    assert_eq!(common_version(1, 7), Some(1));
    assert_eq!(common_version(2, 7), None);
    assert_eq!(common_version(0, 0), None);
    assert_eq!(common_version(3, 1), None);
}
