//! `pondhawk preheat`, `pin` and `unpin` on a real node in front of a hub.

#![expect(clippy::unwrap_used, reason = "a panic is how a test reports")]

#[allow(dead_code, reason = "other tests use the rest")]
#[path = "get/errand.rs"]
mod errand;
#[allow(dead_code, reason = "other tests use the rest")]
#[path = "node/stage.rs"]
mod stage;

use errand::{Errand, MIB};
use pondhawk_bench::hub::{Access, Content, Fault, FaultKind};
use stage::Stage;

fn fill(stage: &Stage) {
    for (path, len, seed) in [("a.bin", 3 * MIB, 1), ("b.bin", 2 * MIB, 2), ("config.json", 100, 3)] {
        stage.hub.add_file("owner/model", "main", path, Content::seeded(len, seed)).unwrap();
    }
}

#[test]
fn what_was_preheated_costs_the_origin_only_its_consent() {
    let stage = Stage::open(&["log.level=trace"]);
    fill(&stage);
    stage.hub.set_access("owner/model", Access::Private("hf_very_secret".into()));
    let errand = Errand::by(&stage);
    let refused = errand.of("preheat", &["hf://owner/model"], &stage);
    assert_eq!(refused.code, 3, "{}", refused.err);
    let done = errand.of("preheat", &["hf://owner/model", "--wait", "--token", "hf_very_secret"], &stage);
    assert_eq!(done.code, 0, "{}{}", done.out, done.err);
    assert_eq!(done.out.matches("done").count(), 2, "{}", done.out);
    assert!(done.err.contains("1 files that the Hub serves itself"), "{}", done.err);
    let sent = || stage.hub.stats().object("owner/model/a.bin").body_bytes;
    assert!((3 * MIB..3 * MIB + 64).contains(&sent()), "{}", sent());
    let got = errand.get(&["hf://owner/model/a.bin", "--token", "hf_very_secret"]);
    assert_eq!(got.code, 0, "{}", got.err);
    assert!(sent() < 3 * MIB + 64, "{}", sent());
    assert!(!stage.node.log().contains("hf_very_secret"));
    let status = errand.of("status", &[], &stage);
    assert!(status.out.contains("0 under way, 0 waiting, 2 done, 0 failed"), "{}", status.out);
}

/// A name of one file brought every large file of its repository where the Hub listed them all.
#[test]
fn only_what_is_named_is_preheated() {
    let stage = Stage::open(&[]);
    fill(&stage);
    stage.hub.add_file("owner/model", "main", "onnx/c.bin", Content::seeded(MIB, 4)).unwrap();
    let errand = Errand::by(&stage);
    let preheated = |what: &str| {
        let done = errand.of("preheat", &[what, "--wait", "--json"], &stage);
        assert_eq!(done.code, 0, "{}{}", done.out, done.err);
        let mut sizes: Vec<u64> =
            done.json().as_array().unwrap().iter().map(|file| file["bytes"].as_u64().unwrap()).collect();
        sizes.sort_unstable();
        sizes
    };
    for everything in [false, true] {
        if everything {
            stage.hub.api_rules().list_everything();
        }
        assert_eq!(preheated("hf://owner/model/b.bin"), [2 * MIB]);
        assert_eq!(preheated("hf://owner/model/onnx"), [MIB]);
        assert_eq!(preheated("hf://owner/model"), [MIB, 2 * MIB, 3 * MIB]);
    }
}

/// The CDN answers 416 to the question for the first byte of such a file, which failed the whole command.
#[test]
fn an_empty_file_of_a_renamed_repository_is_done_with_no_byte() {
    let stage = Stage::open(&[]);
    fill(&stage);
    stage.hub.add_file_as("owner/model", "main", "empty.bin", Content::seeded(0, 1), true).unwrap();
    stage.hub.api_rules().rename("old/name", "owner/model");
    let errand = Errand::by(&stage);
    let done = errand.of("preheat", &["hf://old/name", "--wait", "--json", "--pin"], &stage);
    assert_eq!(done.code, 0, "{}{}", done.out, done.err);
    let all = done.json();
    let empty: Vec<_> = all.as_array().unwrap().iter().filter(|file| file["bytes"].as_u64() == Some(0)).collect();
    assert_eq!((all.as_array().unwrap().len(), empty.len()), (3, 1), "{all}");
    assert_eq!((empty[0]["state"].as_str(), empty[0]["task"].as_str()), (Some("done"), None), "{all}");
    let done = errand.of("unpin", &["hf://old/name", "--include", "*.bin"], &stage);
    assert_eq!(done.code, 0, "{}", done.err);
    let got = errand.get(&["hf://old/name/empty.bin"]);
    assert!(got.code == 0 && std::fs::read(errand.path("empty.bin")).unwrap().is_empty(), "{}", got.err);
}

#[test]
fn a_file_that_cannot_be_had_or_is_wrong_fails_by_name() {
    let stage = Stage::open(&[]);
    fill(&stage);
    let errand = Errand::by(&stage);
    let expired = stage.hub.signed_url_at("owner/model/a.bin", std::time::SystemTime::UNIX_EPOCH).unwrap();
    let done = errand.of("preheat", &[&expired, "--wait"], &stage);
    assert_eq!(done.code, 1);
    assert!(done.out.contains("403"), "{}", done.out);
    stage.hub.faults().add(Fault::new(FaultKind::CorruptByte { offset: 7 }).object("owner/model/b.bin").min_bytes(100));
    let done = errand.of("preheat", &["hf://owner/model/b.bin", "--wait", "--json"], &stage);
    assert_eq!((done.code, done.json()[0]["state"].as_str()), (1, Some("failed")), "{}", done.out);
    let elsewhere = errand.of("preheat", &["https://elsewhere.example/x"], &stage);
    assert_eq!((elsewhere.code, elsewhere.err.contains("intercept.hosts")), (1, true), "{}", elsewhere.err);
}

#[test]
fn a_pinned_file_stays_when_room_is_needed_and_after_a_restart() {
    let settings = ["store.quota=64MiB"];
    let mut stage = Stage::open(&settings);
    fill(&stage);
    let errand = Errand::by(&stage);
    let done = errand.of("preheat", &["hf://owner/model/a.bin", "--wait", "--pin"], &stage);
    assert_eq!(done.code, 0, "{}{}", done.out, done.err);
    stage.node.kill_and_restart(&stage.hub, &settings);
    let listed = || errand.of("ls", &[], &stage).out;
    assert!(listed().contains("pinned"), "{}", listed());
    for seed in 10..13 {
        let file = stage.file(&format!("other-{seed}"), 24 * MIB, seed);
        assert!(stage.get(&file).complete);
    }
    assert!(listed().contains("3.0 MiB"), "{}", listed());
    let done = errand.of("unpin", &["hf://owner/model/a.bin"], &stage);
    assert_eq!(done.code, 0, "{}", done.err);
    let file = stage.file("large", 40 * MIB, 20);
    assert!(stage.get(&file).complete);
    assert!(!listed().contains("3.0 MiB"), "{}", listed());
}
