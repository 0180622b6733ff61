//! The rules for Rust files, and the tables that say which module may do what.

use super::Violation;
use super::source::{Source, closing, is_identifier, words};

/// Modules without I/O, clock and runtime; a directory ends with a slash.
const PURE: &[&str] = &[
    "benches/src/chart.rs",
    "benches/src/hub/xet/hash.rs",
    "benches/src/load/arrivals.rs",
    "benches/src/load/body.rs",
    "benches/src/load/head.rs",
    "benches/src/load/html.rs",
    "benches/src/load/random.rs",
    "benches/src/load/workload.rs",
    "benches/src/soak/schedule.rs",
    "peer/src/cli/get/cache.rs",
    "peer/src/cli/get/filter.rs",
    "peer/src/cli/get/names.rs",
    "peer/src/cli/get/reference.rs",
    "peer/src/cli/top/frame.rs",
    "peer/src/task/",
    "peer/src/config/change.rs",
    "peer/src/config/import.rs",
    "peer/src/config/import/",
    "peer/src/http/head.rs",
    "peer/src/http/range.rs",
    "peer/src/http/condition.rs",
    "peer/src/http/response.rs",
    "peer/src/http/date.rs",
    "peer/src/http/cacheable.rs",
    "peer/src/http/chunked.rs",
    "peer/src/http/etag.rs",
    "peer/src/http/multipart.rs",
    "peer/src/http/plan.rs",
    "peer/src/http/mirror/rewrite.rs",
    "peer/src/http/route.rs",
    "peer/src/http/rules.rs",
    "peer/src/http/target.rs",
    "peer/src/http/users.rs",
    "peer/src/http/wishes.rs",
    "peer/src/intercept/client_hello.rs",
    "peer/src/swarm/download.rs",
    "peer/src/swarm/download/",
    "peer/src/swarm/upstream.rs",
    "peer/src/store/layout.rs",
    "peer/src/store/evict.rs",
    "peer/src/wire/frame.rs",
    "peer/src/wire/holdings.rs",
    "peer/src/wire/meter.rs",
    "peer/src/wire/rate.rs",
    "peer/src/wire/shares.rs",
    "scheduler/src/cluster/",
    "scheduler/src/hosts.rs",
    "scheduler/src/kube/shared.rs",
    "scheduler/src/trace/context.rs",
    "scheduler/src/trace/outage.rs",
    "scheduler/src/trust/variables.rs",
    "scheduler/src/webhook/patch.rs",
    "scheduler/src/webhook/review.rs",
    "xtask/src/vm/verdict.rs",
];

/// What a pure module doesn't name. `std::` paths are also found inside `use std::{..}`.
const IMPURE: &[&str] = &["tokio", "tokio_uring", "std::net", "std::fs", "Instant::now", "SystemTime::now"];

/// Where `unsafe` may stand.
const UNSAFE: &[&str] = &["peer/src/uring/", "peer-ebpf/"];

/// Crates, or modules of them, that only the named places know. Tests are free.
const CONFINED: &[(&str, &[&str])] = &[
    ("redb", &["peer/src/store/"]),
    ("aya", &["peer/src/intercept/", "peer-ebpf/"]),
    ("aya_ebpf", &["peer-ebpf/"]),
    ("hyper::client", &["peer/src/swarm/", "peer/src/cli/", "scheduler/src/kube/", "benches/"]),
    ("hyper_util::client", &["peer/src/swarm/", "peer/src/cli/", "benches/"]),
    ("io_uring", &["peer/src/uring/"]),
    (
        "rcgen",
        &[
            "peer/src/tls/",
            "peer/src/swarm/identity.rs",
            "scheduler/src/authority.rs",
            "scheduler/src/trust.rs",
            "scheduler/src/webhook/certificate.rs",
            "benches/",
            "peer/benches/",
        ],
    ),
];

/// Written by generators, whose output is compared with what is committed; not for people to read.
const GENERATED: &[&str] = &["proto/src/generated/"];

const LONGEST_FUNCTION: usize = 70;
const LONGEST_FILE: usize = 800;
/// The comment that excuses a longer function, followed by the reason.
const LONG_REASON: &str = "// long: ";

pub(super) fn check(source: &Source<'_>) -> Vec<Violation> {
    let mut report = Report { source, found: Vec::new() };
    if lies_in(source.path, GENERATED) {
        return report.found;
    }
    opening(&mut report);
    purity(&mut report);
    leftovers(&mut report);
    lengths(&mut report);
    unsafety(&mut report);
    confinement(&mut report);
    relaxations(&mut report);
    report.found
}

struct Report<'a> {
    source: &'a Source<'a>,
    found: Vec<Violation>,
}

impl Report<'_> {
    fn add(&mut self, offset: usize, message: impl Into<String>) {
        let line = self.source.line_of(offset);
        self.found.push(Violation { path: self.source.path.to_owned(), line, message: message.into() });
    }
}

fn lies_in(path: &str, places: &[&str]) -> bool {
    places.iter().any(|place| if place.ends_with('/') { path.starts_with(place) } else { path == *place })
}

fn is_test_file(path: &str) -> bool {
    path.contains("/tests/") || path.ends_with("/tests.rs") || path.ends_with("_tests.rs")
}

fn opening(report: &mut Report<'_>) {
    if !["//!", "#!["].iter().any(|opening| report.source.text.starts_with(opening)) {
        report.add(0, "a file opens with `//!` and says what it is for");
    }
}

fn purity(report: &mut Report<'_>) {
    let source = report.source;
    if !lies_in(source.path, PURE) || is_test_file(source.path) {
        return;
    }
    for name in IMPURE {
        for at in names(&source.production, name) {
            report.add(at, format!("a pure module names no `{name}`"));
        }
    }
}

/// Offsets where code names this word or path, directly or through a braced `use` of its first segment.
fn names(code: &str, path: &str) -> Vec<usize> {
    let mut found: Vec<usize> = words(code, path).collect();
    if let Some((head, tail)) = path.split_once("::") {
        let group = format!("{head}::{{");
        for (at, _) in code.match_indices(&group) {
            let open = at + group.len() - 1;
            let inside = &code[open..closing(code, open)];
            found.extend(words(inside, tail).filter(|&word| leads_a_path(inside, word)).map(|word| open + word));
        }
    }
    found
}

/// Whether the word at `at` starts a path of the group, and is not a later segment such as `fs` in `os::unix::fs`.
fn leads_a_path(group: &str, at: usize) -> bool {
    let before = group[..at].trim_end();
    let depth = before.matches('{').count() - before.matches('}').count();
    depth == 1 && !before.ends_with("::")
}

fn leftovers(report: &mut Report<'_>) {
    let source = report.source;
    for word in ["TODO", "FIXME", "XXX"] {
        for at in words(&source.comments, word) {
            report.add(at, format!("{word}: finish it, or say in an issue what is left"));
        }
    }
    for name in ["todo!", "unimplemented!", "#[ignore"] {
        for (at, _) in source.code.match_indices(name) {
            if name.starts_with('#') || at == 0 || !is_identifier(source.code.as_bytes()[at - 1]) {
                report.add(at, format!("`{name}` is a promise, not code"));
            }
        }
    }
}

fn lengths(report: &mut Report<'_>) {
    let source = report.source;
    let lines: Vec<&str> = source.text.lines().collect();
    if lines.len() > LONGEST_FILE {
        report.add(source.text.len(), format!("{} lines; a file has at most {LONGEST_FILE}", lines.len()));
    }
    for at in words(&source.code, "fn") {
        let Some(body) = body_of(&source.code, at) else { continue };
        let first = source.line_of(at);
        let length = source.line_of(closing(&source.code, body)) - first + 1;
        if length > LONGEST_FUNCTION && !is_excused(&lines[..first - 1]) {
            report.add(at, format!("a function of {length} lines: split it, or put `{LONG_REASON}why` above it"));
        }
    }
}

/// The offset of the brace that opens a function's body; `None` for declarations and function pointer types.
fn body_of(code: &str, function: usize) -> Option<usize> {
    let mut depth = 0_i32;
    let named = code[function + 2..].trim_start().bytes().next().is_some_and(is_identifier);
    if !named {
        return None;
    }
    for (at, byte) in code.bytes().enumerate().skip(function) {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth -= 1,
            b'{' if depth == 0 => return Some(at),
            b';' if depth == 0 => return None,
            _ => {}
        }
    }
    None
}

/// Whether the comments and attributes right above a function give the reason for its length.
fn is_excused(above: &[&str]) -> bool {
    let header = above.iter().rev().map(|line| line.trim());
    let mut header = header.take_while(|line| line.starts_with("//") || line.starts_with("#["));
    header.any(|line| line.strip_prefix(LONG_REASON).is_some_and(|reason| !reason.trim().is_empty()))
}

fn unsafety(report: &mut Report<'_>) {
    let source = report.source;
    if lies_in(source.path, UNSAFE) {
        return;
    }
    for at in words(&source.code, "unsafe") {
        report.add(at, format!("`unsafe` is allowed only in {}", UNSAFE.join(" and ")));
    }
}

fn confinement(report: &mut Report<'_>) {
    let source = report.source;
    for (name, places) in CONFINED {
        if lies_in(source.path, places) || is_test_file(source.path) {
            continue;
        }
        let offsets = names(&source.production, name);
        for at in offsets.into_iter().filter(|&at| is_crate_path(&source.production, at, name)) {
            report.add(at, format!("only {} may name `{name}`", places.join(", ")));
        }
    }
}

/// Whether the name at `at` is a path from the crate's root, as in `use redb;` or `redb::Database`, and not a local name.
fn is_crate_path(code: &str, at: usize, name: &str) -> bool {
    let before = code[..at].trim_end();
    let is_segment =
        before.ends_with("::") && before[..before.len() - 2].ends_with(|c: char| c.is_alphanumeric() || c == '_');
    let leads = name.contains("::") || code[at + name.len()..].starts_with("::") || before.ends_with("use");
    leads && !is_segment
}

/// `allow` and `expect` give their reason.
fn relaxations(report: &mut Report<'_>) {
    let code = &report.source.code;
    let mut silent = Vec::new();
    for opening in ["#[allow(", "#![allow(", "#[expect(", "#![expect("] {
        for (at, _) in code.match_indices(opening) {
            let attribute = code[at..].split(")]").next().unwrap_or_default();
            if words(attribute, "reason").next().is_none() {
                silent.push(at);
            }
        }
    }
    for at in silent {
        report.add(at, "a relaxed lint gives its reason: `#[expect(lint, reason = \"..\")]`");
    }
}

#[cfg(test)]
mod tests;
