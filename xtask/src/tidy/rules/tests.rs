//! Every rule against a sample that breaks it and one that does not.

use super::*;

fn messages(path: &str, text: &str) -> Vec<String> {
    check(&Source::new(path, text)).into_iter().map(|violation| violation.to_string()).collect()
}

fn is_clean(path: &str, text: &str) {
    assert_eq!(messages(path, text), Vec::<String>::new());
}

fn breaks(path: &str, text: &str, line: usize, part: &str) {
    let found = messages(path, text);
    let start = format!("{path}:{line}: ");
    assert!(found.iter().any(|message| message.starts_with(&start) && message.contains(part)), "{found:?}");
    assert_eq!(found.len(), 1, "{found:?}");
}

#[test]
fn a_file_without_an_opening_comment_is_reported() {
    breaks("peer/src/a.rs", "use std::io;\n", 1, "opens with");
    is_clean("peer/src/a.rs", "#![no_std]\n//! Text.\n");
}

#[test]
fn a_pure_module_that_names_the_runtime_is_reported() {
    breaks("peer/src/task/id.rs", "//! T.\nuse tokio::sync::Notify;\n", 2, "no `tokio`");
    breaks("peer/src/task/id.rs", "//! T.\nfn f() { let now = std::time::Instant::now(); }\n", 2, "Instant::now");
    is_clean("peer/src/fetch.rs", "//! T.\nuse tokio::sync::Notify;\n");
}

#[test]
fn a_pure_module_is_found_out_through_a_braced_import() {
    breaks("peer/src/http/range.rs", "//! T.\nuse std::{fs, io};\n", 2, "std::fs");
    breaks("peer/src/http/range.rs", "//! T.\nuse std::{io, net::{IpAddr, SocketAddr}};\n", 2, "std::net");
    is_clean("peer/src/http/range.rs", "//! T.\nuse std::{fmt, os::unix::{ffi, fs}};\n");
}

#[test]
fn a_pure_module_may_mention_the_runtime_in_words_and_use_it_in_tests() {
    is_clean("peer/src/task/id.rs", "//! No tokio here.\n#[cfg(test)]\nmod tests { use tokio::test; use std::fs; }\n");
    is_clean("peer/src/task/tests.rs", "//! T.\nuse std::fs;\n");
    is_clean("peer/src/task/id.rs", "//! T.\nconst S: &str = \"std::fs and tokio\";\n");
}

#[test]
fn leftovers_are_reported_in_comments_and_code_but_not_in_strings() {
    breaks("a.rs", concat!("//! T.\n// TO", "DO: more\n"), 2, "finish it");
    breaks("a.rs", concat!("//! T.\nfn f() { to", "do!() }\n"), 2, "promise");
    breaks("a.rs", concat!("//! T.\n#[ig", "nore]\nfn f() {}\n"), 2, "promise");
    is_clean("a.rs", concat!("//! T.\nconst S: &str = \"TO", "DO\";\n"));
}

fn function_of(lines: usize, above: &str) -> String {
    format!("//! T.\n{above}fn long() {{\n{}}}\n", "    step();\n".repeat(lines - 2))
}

#[test]
fn a_function_over_seventy_lines_needs_a_reason() {
    breaks("a.rs", &function_of(71, ""), 2, "71 lines");
    is_clean("a.rs", &function_of(70, ""));
    is_clean("a.rs", &function_of(90, "// long: a table\n#[inline]\n"));
    breaks("a.rs", &function_of(90, "// long: \n"), 3, "90 lines");
}

#[test]
fn braces_in_strings_and_array_types_do_not_confuse_the_count() {
    let text = "//! T.\nfn a(x: [u8; 4]) -> &'static str { \"{\" }\ntrait T { fn b(&self); }\ntype F = fn(u8) -> u8;\n";
    is_clean("a.rs", &format!("{text}{}", "// line\n".repeat(100)));
}

#[test]
fn a_file_over_eight_hundred_lines_is_reported() {
    let text = format!("//! T.\n{}", "// line\n".repeat(800));
    breaks("a.rs", &text, 802, "801 lines");
    is_clean("a.rs", &text[..text.len() - "// line\n".len()]);
}

#[test]
fn unsafe_code_is_confined() {
    breaks("peer/src/fetch.rs", "//! T.\nfn f() { unsafe { g() } }\n", 2, "peer/src/uring/");
    is_clean("peer/src/uring/ring.rs", "//! T.\nfn f() { unsafe { g() } }\n");
    is_clean("peer/src/fetch.rs", "#![deny(unsafe_code)]\n");
}

#[test]
fn confined_crates_are_reported_elsewhere() {
    breaks("peer/src/fetch.rs", "//! T.\nuse redb::Database;\n", 2, "peer/src/store/");
    breaks("peer/src/fetch.rs", "//! T.\nfn f(b: ::aya::Ebpf) {}\n", 2, "peer/src/intercept/");
    breaks("peer/src/tls/mod.rs", "//! T.\nuse hyper::{body::Body, client::conn};\n", 2, "hyper::client");
    is_clean("peer/src/store/index.rs", "//! T.\nuse redb::Database;\n");
    is_clean("peer/src/fetch.rs", "//! T.\nuse crate::aya::Thing;\nfn f(redb: u8) {}\n");
    is_clean("peer/tests/crash.rs", "//! T.\nuse redb::Database;\n");
}

#[test]
fn a_relaxed_lint_without_a_reason_is_reported() {
    breaks("a.rs", "//! T.\n#[allow(dead_code)]\nfn f() {}\n", 2, "reason");
    is_clean("a.rs", "//! T.\n#[expect(dead_code, reason = \"used by tests (only)\")]\nfn f() {}\n");
}
