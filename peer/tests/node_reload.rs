//! SIGHUP: a node reads its configuration again, takes up what it can and names the rest.

#![expect(clippy::unwrap_used, reason = "a panic is how a test reports")]

#[allow(dead_code, reason = "other tests use the rest")]
#[path = "node/stage.rs"]
mod stage;

use std::time::Duration;

use pondhawk_bench::lab::wait_until;
use rustix::process::Signal;
use stage::Stage;

const MIB: u64 = 1 << 20;
const DEADLINE: Duration = Duration::from_secs(20);

/// Adds to the configuration file, has the node read it again, and waits for a line of its log.
fn reload(stage: &mut Stage, addition: &str, line: &str) {
    let file = stage.node.dir.path().join("config.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text + addition).unwrap();
    stage.node.daemon.signal(Signal::HUP).unwrap();
    stage.node.daemon.wait_for_log(line, DEADLINE).unwrap();
}

#[test]
fn what_can_change_changes_and_what_cannot_is_named() {
    let mut stage = Stage::open(&["store.quota=200MiB"]);
    let (kept, passed) = (stage.file("kept", 2 * MIB, 1), stage.file("passed", 2 * MIB, 2));
    assert!(stage.get(&kept).body == kept.bytes(0, kept.len));
    let rule = format!("rules: [{{match: '{}', store: false}}]\n", path(&stage.url(&passed)));
    reload(&mut stage, &(rule + "shards: 1\n"), "configuration read again");
    let log = stage.node.log();
    assert!(
        log.contains("reload: rules from [] to [{") && log.contains("reload: shards from 0 to 1 needs a restart"),
        "{log}"
    );
    for _ in 0..2 {
        assert!(stage.get(&passed).body == passed.bytes(0, passed.len));
        assert!(stage.get(&kept).body == kept.bytes(0, kept.len));
    }
    assert!(stage.ratio(&passed) >= 2.0 && stage.ratio(&kept) < 1.1, "{} {}", stage.ratio(&passed), stage.ratio(&kept));
    // What is still waiting for a restart is told again.
    reload(&mut stage, "limits: {connections: 99}\n", "changed=1 waiting=1");
}

#[test]
fn a_store_shrinks_to_a_smaller_quota() {
    let mut stage = Stage::open(&[]);
    let files: Vec<_> = (0..10).map(|seed| stage.file(&format!("file-{seed}"), 8 * MIB, seed)).collect();
    assert!(files.iter().all(|file| stage.get(file).complete));
    let config = stage.node.dir.path().join("config.yaml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("keep_free: 1MiB", "keep_free: 1MiB, quota: 64MiB")).unwrap();
    reload(&mut stage, "", "reload: store.quota from \"80%\" to \"64MiB\"");
    let shrunk = || {
        let used = stage.node.metric("pondhawk_store_used_bytes");
        (stage.node.metric("pondhawk_store_quota_bytes") == 64 * MIB && used <= 64 * MIB).then_some(())
    };
    wait_until(DEADLINE, shrunk).expect("idle tasks are evicted in the background");
}

#[test]
fn the_log_says_more_or_less_from_then_on() {
    let mut stage = Stage::open(&[]);
    reload(&mut stage, "log: {level: 'error'}\n", "configuration read again");
    let file = stage.node.dir.path().join("config.yaml");
    let change = |from: &str, to: &str| {
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, text.replace(from, to)).unwrap();
    };
    change("keep_free: 1MiB", "keep_free: 1MiB, quota: 64MiB");
    change("level: 'error'", "level: 'info'");
    stage.node.daemon.signal(Signal::HUP).unwrap();
    let taken = || (stage.node.metric("pondhawk_store_quota_bytes") == 64 * MIB).then_some(());
    wait_until(DEADLINE, taken).expect("the quota is taken up");
    change("quota: 64MiB", "quota: 80MiB");
    stage.node.daemon.signal(Signal::HUP).unwrap();
    stage.node.daemon.wait_for_log("reload: store.quota from \"64MiB\" to \"80MiB\"", DEADLINE).unwrap();
    assert!(!stage.node.log().contains("to \"64MiB\""), "what a log of errors does not tell: {}", stage.node.log());
}

#[test]
fn a_wrong_configuration_changes_nothing_and_the_log_says_where_it_is_wrong() {
    let mut stage = Stage::open(&[]);
    let before = stage.node.metric("pondhawk_store_quota_bytes");
    reload(&mut stage, "limits: {connections: 5}\nstore_quota: 64MiB\n", "the configuration stays as it was");
    assert!(stage.node.log().contains("config.yaml:8:"), "{}", stage.node.log());
    assert_eq!(stage.node.metric("pondhawk_store_quota_bytes"), before);
    let file = stage.file("file", MIB, 1);
    assert!(stage.get(&file).body == file.bytes(0, file.len));
    assert!(stage.node.daemon.terminate(DEADLINE).unwrap().success());
}

/// Without scheme, host and query.
fn path(url: &str) -> String {
    let path = url.split("://").nth(1).unwrap().split_once('/').unwrap().1;
    path.split('?').next().unwrap().to_owned()
}
