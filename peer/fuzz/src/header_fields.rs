//! Single header fields that clients and origins send: dates, entity tags, trace contexts; and what is kept of an answer.

use pondhawk::http::cacheable::{Asked, Cacheability, judge};
use pondhawk::http::date;
use pondhawk::http::{Authority, Etag};
use pondhawk_scheduler::trace::Traceparent;

const NOW: i64 = 1_800_000_000;

/// Runs the target: a value that is read as each of the fields, or lines of `name: value` of an answer.
pub fn run(bytes: &[u8]) {
    check_date(bytes);
    check_etag(bytes);
    check_authority(bytes);
    if let Some(parent) = Traceparent::parse(bytes) {
        assert!(parent.context.trace != [0; 16] && parent.context.span != [0; 8]);
    }
    check_answer(bytes);
}

fn check_date(bytes: &[u8]) {
    if let Some(moment) = date::parse(bytes, NOW) {
        assert_eq!(date::parse(date::format(moment).as_bytes(), NOW), Some(moment));
    }
}

fn check_etag(bytes: &[u8]) {
    if let Some(etag) = Etag::parse(bytes) {
        assert_eq!(Etag::parse(&etag.to_bytes()).as_ref(), Some(&etag));
        assert_eq!(Etag::parse_list(bytes), Some(vec![etag]));
    }
    if let Some(list) = Etag::parse_list(bytes) {
        let written = list.iter().map(Etag::to_bytes).collect::<Vec<_>>().join(&b", "[..]);
        assert_eq!(Etag::parse_list(&written), Some(list));
    }
}

fn check_authority(bytes: &[u8]) {
    if let Some(authority) = Authority::parse(bytes) {
        assert!(!authority.host.contains(['/', '@', '?', '#', '\\']) && !authority.host.is_empty());
        assert_eq!(Authority::parse(authority.to_string().as_bytes()), Some(authority));
    }
}

fn check_answer(bytes: &[u8]) {
    let lines = bytes.split(|byte| *byte == b'\n').filter_map(|line| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let name = std::str::from_utf8(&line[..colon]).ok()?.trim().to_ascii_lowercase();
        Some((name, line[colon + 1..].trim_ascii().to_vec()))
    });
    let headers: Vec<_> = lines.collect();
    for (status, content_addressed) in [(200, false), (206, false), (206, true)] {
        let asked = Asked { range: status == 206, content_addressed };
        if let Cacheability::Cache(kept) = judge(status, &headers, asked) {
            assert!(content_addressed || kept.etag.as_ref().is_some_and(Etag::is_strong));
            assert!(kept.headers.iter().all(|kept| kept.0 != "set-cookie" && headers.contains(kept)));
        }
    }
}
