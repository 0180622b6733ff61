//! What a machine's console tells about the node on its kernel. Without I/O.

use std::{collections::BTreeMap, fmt::Write as _};

use serde_json::Value;

use super::{FILE_BYTES, kernels::series_of};

/// The oldest series on which everything has to work, as README.md promises.
const OLDEST: (u32, u32) = (6, 1);

/// What the node did on one kernel.
pub(super) struct Outcome {
    pub(super) release: String,
    /// That connections are caught, or why not.
    bpf: Result<(), String>,
    /// What the node found in io_uring, in its own words; or why it does not run.
    ring: Result<String, String>,
    /// A caught client's bytes were right and came from the origin by way of the node.
    download: Result<(), String>,
    /// The second client's came from the store.
    store: Result<(), String>,
    /// A client that was told of the node got its bytes from the store.
    told: Result<(), String>,
    /// SIGTERM ended it.
    stopped: Result<(), String>,
    /// Whether the kernel can encrypt for sockets, which the node does not use.
    ktls: String,
}

impl Outcome {
    /// From the lines `vm: KEY VALUE` on a console.
    pub(super) fn read(release: &str, console: &str) -> Self {
        let lines: BTreeMap<&str, &str> = console
            .lines()
            .filter_map(|line| line.strip_prefix("vm: "))
            .map(|line| line.split_once(' ').unwrap_or((line, "")))
            .collect();
        let value = |key: &str| lines.get(key).copied().unwrap_or("");
        let ring = match (value("up"), value("ended")) {
            ("", "") => Err("the machine never came so far".to_owned()),
            ("", ended) => Err(format!("the node ended with {ended}")),
            (up, _) => Ok(features(up)),
        };
        let bpf = match (&ring, value("uncaught")) {
            (Err(_), _) => Err("no node".to_owned()),
            (Ok(_), "") => Ok(()),
            (Ok(_), reason) => Err(reason.to_owned()),
        };
        Self {
            release: release.to_owned(),
            bpf,
            ring,
            download: loaded(value("first"))
                .and_then(|()| caught(value("first-requests"), "miss"))
                .and_then(|()| once(value("first-hub"))),
            store: loaded(value("second"))
                .and_then(|()| caught(value("second-requests"), "hit"))
                .and_then(|()| once(value("second-hub"))),
            told: exit(value("get"))
                .and_then(|()| served(value("get-requests")))
                .and_then(|()| at_most_once_more(value("second-hub"), value("get-hub"))),
            stopped: exit(value("stopped")),
            ktls: value("ktls").to_owned(),
        }
    }

    /// Whether a kernel that is promised to work does not.
    pub(super) fn is_failure(&self) -> bool {
        is_supported(&self.release) && self.first_problem().is_some()
    }

    /// In one line.
    pub(super) fn verdict(&self) -> String {
        match self.first_problem() {
            None if is_supported(&self.release) => "works".to_owned(),
            None => "works, not promised".to_owned(),
            Some(problem) if is_supported(&self.release) => format!("FAILS: {problem}"),
            Some(problem) => format!("not supported: {problem}"),
        }
    }

    fn first_problem(&self) -> Option<String> {
        let steps = [
            ("io_uring", self.ring.as_ref().err()),
            ("BPF", self.bpf.as_ref().err()),
            ("download", self.download.as_ref().err()),
            ("from the store", self.store.as_ref().err()),
            ("by the proxy", self.told.as_ref().err()),
            ("SIGTERM", self.stopped.as_ref().err()),
        ];
        steps.into_iter().find_map(|(step, error)| Some(format!("{step}: {}", error?)))
    }
}

/// A row a kernel.
pub(super) fn table(outcomes: &[Outcome]) -> String {
    let mut text = format!(
        "{:<32} {:<9} {:<30} {:<9} {:<6} {:<6} {:<5} {}\n",
        "kernel", "BPF", "io_uring", "download", "store", "proxy", "kTLS", "verdict"
    );
    let mark = |result: &Result<(), String>| if result.is_ok() { "ok" } else { "no" };
    for outcome in outcomes {
        let _ = writeln!(
            text,
            "{:<32} {:<9} {:<30} {:<9} {:<6} {:<6} {:<5} {}",
            outcome.release,
            if outcome.bpf.is_ok() { "attached" } else { "no" },
            outcome.ring.as_deref().unwrap_or("no"),
            mark(&outcome.download),
            mark(&outcome.store),
            mark(&outcome.told),
            if outcome.ktls == "tls" { "yes" } else { "no" },
            outcome.verdict(),
        );
    }
    text
}

fn is_supported(release: &str) -> bool {
    let number = |text: Option<&str>| text.and_then(|text| text.parse::<u32>().ok());
    let mut parts = series_of(release).unwrap_or_default().split('.');
    match (number(parts.next()), number(parts.next())) {
        (Some(major), Some(minor)) => (major, minor) >= OLDEST,
        _ => true,
    }
}

/// What the log line `node up` has in `kernel={..}`: how the rings were made, and whether there are zero-copy sends.
fn features(up: &str) -> String {
    let inside = up.split_once("kernel=").and_then(|(_, rest)| Some(format!("{}}}", rest.split_once('}')?.0)));
    let told: BTreeMap<String, String> =
        inside.and_then(|inside| serde_json::from_str(&inside).ok()).unwrap_or_default();
    let value = |key: &str| told.get(key).map_or("not told", String::as_str);
    format!("{}, SEND_ZC {}", value("ring"), value("SEND_ZC"))
}

/// The exit code that a value begins with has to be 0; what follows is why not.
fn exit(value: &str) -> Result<(), String> {
    match value.split_once(' ').unwrap_or((value, "")) {
        ("0", _) => Ok(()),
        ("", _) => Err("was not tried".to_owned()),
        (code, words) => Err(format!("exit code {code} {words}").trim_end().to_owned()),
    }
}

/// The load generator's exit code and counts: one download, and it was right.
fn loaded(value: &str) -> Result<(), String> {
    exit(value)?;
    let counts = value.split_once(' ').map_or("", |(_, counts)| counts.trim());
    if counts == "completed=1 failed=0" { Ok(()) } else { Err(format!("the client counts {counts}")) }
}

/// The node's counters of requests: the caught client's ended so.
fn caught(counters: &str, outcome: &str) -> Result<(), String> {
    let wanted = [format!("outcome=\"{outcome}\""), "way=\"intercept\"".to_owned()];
    match counted(counters).any(|labels| wanted.iter().all(|one| labels.contains(one.as_str()))) {
        true => Ok(()),
        false => Err(format!("the node counts no caught request that was a {outcome}")),
    }
}

/// The same counters: somebody who asked the node itself was given a file by way of the store.
fn served(counters: &str) -> Result<(), String> {
    let stored = |labels: &str| labels.contains("outcome=\"hit\"") || labels.contains("outcome=\"miss\"");
    match counted(counters).any(|labels| !labels.contains("way=\"intercept\"") && stored(labels)) {
        true => Ok(()),
        false => Err("the node counts no request by the proxy that its store took part in".to_owned()),
    }
}

/// The labels of the counters that are not zero.
fn counted(counters: &str) -> impl Iterator<Item = &str> {
    let samples = counters.split("pondhawk_requests_total").filter_map(|sample| sample.trim().rsplit_once(' '));
    samples.filter(|(_, count)| *count != "0").map(|(labels, _)| labels)
}

/// Bytes of the file that left the hub so far, by its counters.
fn sent(stats: &str) -> Option<u64> {
    let stats: Value = serde_json::from_str(stats).ok()?;
    stats["objects"]["lab/model/weights.bin"]["body_bytes"].as_u64()
}

/// Questions about consent take a byte each.
const SLACK: u64 = 1000;

/// The file left the hub once, however many had it.
fn once(stats: &str) -> Result<(), String> {
    match sent(stats) {
        Some(sent) if (FILE_BYTES..FILE_BYTES + SLACK).contains(&sent) => Ok(()),
        Some(sent) => Err(format!("{sent} bytes left the origin instead of {FILE_BYTES}")),
        None => Err("the origin was not asked".to_owned()),
    }
}

fn at_most_once_more(before: &str, after: &str) -> Result<(), String> {
    let more = sent(after).zip(sent(before)).and_then(|(after, before)| after.checked_sub(before));
    match more {
        Some(more) if more < FILE_BYTES + SLACK => Ok(()),
        Some(more) => Err(format!("{more} bytes left the origin instead of at most {FILE_BYTES}")),
        None => Err("the origin was not asked".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RELEASE: &str = "6.1.0-56-cloud-amd64";

    /// What a machine writes on which everything went well, with one line replaced.
    fn console(key: &str, value: &str) -> String {
        let figures = "0 completed=1 failed=0 ";
        let stats = r#"{"objects":{"lab/model/weights.bin":{"body_bytes":25165826}}}"#;
        let counters = |outcome: &str| {
            format!(
                "pondhawk_requests_total{{way=\"intercept\",outcome=\"{outcome}\"}} 1 pondhawk_requests_total{{way=\"proxy\"}} 0"
            )
        };
        let (miss, hit) = (counters("miss"), counters("hit"));
        let good = [
            ("ktls", "tls"),
            ("up", r#"shards=1 kernel={"SEND_ZC": "there", "ring": "COOP_TASKRUN"}"#),
            ("uncaught", ""),
            ("first", figures),
            ("first-hub", stats),
            ("first-requests", &miss),
            ("second", figures),
            ("second-hub", stats),
            ("second-requests", &hit),
            ("get", "0 "),
            ("get-hub", stats),
            ("get-requests", "pondhawk_requests_total{way=\"proxy\",outcome=\"hit\"} 1"),
            ("stopped", "0"),
        ];
        let line = |(name, usual): (&str, &str)| format!("vm: {name} {}\n", if name == key { value } else { usual });
        good.into_iter().map(line).collect::<String>() + "vm: finished\n"
    }

    #[test]
    fn a_kernel_on_which_all_went_well_works() {
        let outcome = Outcome::read(RELEASE, &console("", ""));
        assert_eq!(outcome.verdict(), "works");
        assert!(!outcome.is_failure());
        let table = table(&[outcome]);
        assert!(table.contains("attached  COOP_TASKRUN, SEND_ZC there") && table.contains(" yes "), "{table}");
    }

    #[test]
    fn each_step_that_goes_wrong_is_named() {
        let wrong_bytes = "1 completed=0 failed=1";
        let twice = r#"{"objects":{"lab/model/weights.bin":{"body_bytes":50331648}}}"#;
        let thrice = r#"{"objects":{"lab/model/weights.bin":{"body_bytes":75497472}}}"#;
        let hit = "pondhawk_requests_total{way=\"intercept\",outcome=\"hit\"} 1";
        let cases = [
            ("uncaught", "no CAP_BPF", "FAILS: BPF: no CAP_BPF"),
            ("first", wrong_bytes, "FAILS: download: exit code 1 completed=0 failed=1"),
            ("second", "0 completed=0 failed=1", "FAILS: from the store: the client counts completed=0"),
            (
                "first-requests",
                "pondhawk_requests_total{way=\"intercept\",outcome=\"miss\"} 0",
                "FAILS: download: the node",
            ),
            ("second-hub", twice, "FAILS: from the store: 50331648 bytes"),
            ("get-requests", hit, "FAILS: by the proxy: the node counts no request"),
            ("get-hub", thrice, "FAILS: by the proxy: 50331646 bytes"),
            ("get", "4 wrong", "FAILS: by the proxy: exit code 4 wrong"),
            ("stopped", "143", "FAILS: SIGTERM: exit code 143"),
        ];
        for (key, value, expected) in cases {
            let outcome = Outcome::read(RELEASE, &console(key, value));
            assert!(outcome.verdict().starts_with(expected), "{key}: {}", outcome.verdict());
            assert!(outcome.is_failure());
        }
    }

    #[test]
    fn a_machine_that_said_nothing_failed() {
        let outcome = Outcome::read(RELEASE, "Kernel panic\n");
        assert_eq!(outcome.verdict(), "FAILS: io_uring: the machine never came so far");
    }

    #[test]
    fn a_node_that_ended_at_once_says_why_and_an_old_kernel_may() {
        let console = "vm: ended 1: pondhawk: this kernel's io_uring has no SEND\nvm: finished\n";
        let outcome = Outcome::read("5.10.0-46-cloud-amd64", console);
        assert!(!outcome.is_failure());
        assert!(
            outcome.verdict().starts_with("not supported: io_uring: the node ended with 1: "),
            "{}",
            outcome.verdict()
        );
    }

    #[test]
    fn without_bpf_the_proxy_may_work_all_the_same() {
        let direct = r#"{"objects":{"lab/model/weights.bin":{"body_bytes":50331648}}}"#;
        let more = r#"{"objects":{"lab/model/weights.bin":{"body_bytes":75497472}}}"#;
        let lines = console("uncaught", "SO_NETNS_COOKIE").replace("vm: first-requests", "vm: none");
        let hub = |key: &str, stats: &str| format!("vm: {key} {stats}\n");
        let outcome =
            Outcome::read("5.10.0-46-cloud-amd64", &(lines + &hub("second-hub", direct) + &hub("get-hub", more)));
        assert_eq!(outcome.told, Ok(()));
        assert!(
            outcome.download.is_err() && outcome.verdict().starts_with("not supported: BPF"),
            "{}",
            outcome.verdict()
        );
    }

    #[test]
    fn the_oldest_supported_kernel_is_told_by_number() {
        assert!(is_supported("6.1.0-56-cloud-amd64") && is_supported("6.12.1+deb12-cloud-amd64"));
        assert!(is_supported("10.0.1-cloud-amd64") && !is_supported("5.10.0-46-cloud-amd64"));
    }
}
