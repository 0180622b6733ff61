//! Heads are read back by httparse, as clients would.

use super::*;
use proptest::prelude::*;

const ABOUT: About = About { now: 784_111_777, age: 7, version: Version::Http11, keep_alive: true };

fn headers(list: &[(&str, &str)]) -> Vec<(String, Vec<u8>)> {
    list.iter().map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec())).collect()
}

/// Status and headers (names in lower case, sorted) of the head at the start of `bytes`, and what follows it.
fn read(bytes: &[u8]) -> (u16, Vec<(String, String)>, &[u8]) {
    let mut lines = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut lines);
    let httparse::Status::Complete(end) = response.parse(bytes).unwrap() else { panic!("incomplete") };
    let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    let mut found: Vec<_> = response.headers.iter().map(|it| (it.name.to_ascii_lowercase(), text(it.value))).collect();
    found.sort();
    (response.code.unwrap(), found, &bytes[end..])
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn origin() -> Vec<(String, Vec<u8>)> {
    headers(&[
        ("content-type", "application/x"),
        ("content-length", "999"),
        ("etag", "\"a\""),
        ("content-disposition", "inline; filename=\"a.bin\""),
        ("x-repo-commit", "c"),
        ("connection", "keep-alive, X-Hop"),
        ("x-hop", "1"),
        ("keep-alive", "timeout=5"),
        ("age", "99"),
        ("date", "Mon, 01 Jan 1990 00:00:00 GMT"),
        ("alt-svc", "h3=\":443\""),
        ("via", "1.1 cdn"),
    ])
}

#[test]
fn a_whole_reply_keeps_the_origins_headers_and_recomputes_ours() {
    let bytes = stored_reply(&Selection::Whole { len: 10 }, &origin(), &ABOUT);
    assert!(bytes.starts_with(b"HTTP/1.1 200 OK\r\nContent-Type: application/x\r\nEtag: "));
    let (status, found, rest) = read(&bytes);
    let expected = pairs(&[
        ("accept-ranges", "bytes"),
        ("age", "7"),
        ("content-disposition", "inline; filename=\"a.bin\""),
        ("content-length", "10"),
        ("content-type", "application/x"),
        ("date", "Sun, 06 Nov 1994 08:49:37 GMT"),
        ("etag", "\"a\""),
        ("via", "1.1 pondhawk"),
        ("x-repo-commit", "c"),
    ]);
    assert_eq!((status, found, rest), (200, expected, b"".as_slice()));
}

#[test]
fn each_selection_tells_what_its_body_is() {
    let told = |selection: Selection<'_>| {
        let bytes = stored_reply(&selection, &origin(), &ABOUT);
        let (status, found, _) = read(&bytes);
        let get = |name: &str| found.iter().find(|(held, _)| held == name).map(|(_, value)| value.clone());
        (status, get("content-length"), get("content-range"), get("content-type"), get("etag").is_some())
    };
    let some = |text: &str| Some(text.to_owned());
    let part = told(Selection::Part { range: 2..5, total: Some(10) });
    assert_eq!(part, (206, some("3"), some("bytes 2-4/10"), some("application/x"), true));
    let parts = told(Selection::Parts { content_type: "multipart/byteranges; boundary=b", content_length: 77 });
    assert_eq!(parts, (206, some("77"), None, some("multipart/byteranges; boundary=b"), true));
    assert_eq!(told(Selection::NotModified), (304, None, None, None, true));
    assert_eq!(told(Selection::PreconditionFailed), (412, some("0"), None, None, true));
    assert_eq!(told(Selection::Unsatisfiable { total: 10 }), (416, some("0"), some("bytes */10"), None, true));
}

#[test]
fn the_connection_header_follows_the_clients_version() {
    let connection = |version, keep_alive| {
        let about = About { version, keep_alive, ..ABOUT };
        let bytes = stored_reply(&Selection::Whole { len: 1 }, &[], &about);
        read(&bytes).1.into_iter().find(|(name, _)| name == "connection").map(|(_, value)| value)
    };
    assert_eq!(connection(Version::Http11, true), None);
    assert_eq!(connection(Version::Http11, false).as_deref(), Some("close"));
    assert_eq!(connection(Version::Http10, true).as_deref(), Some("keep-alive"));
    assert_eq!(connection(Version::Http10, false).as_deref(), Some("close"));
}

#[test]
fn a_relayed_reply_keeps_what_the_origin_says_of_its_age_and_path() {
    let relayed = headers(&[
        ("date", "d"),
        ("age", "9"),
        ("set-cookie", "a=b"),
        ("set-cookie", "c=d"),
        ("transfer-encoding", "gzip"),
        ("content-length", "4"),
        ("via", "1.1 cdn"),
    ]);
    let bytes = relayed_reply(302, &relayed, RelayedBody::Chunked, &ABOUT);
    let expected = pairs(&[
        ("age", "9"),
        ("date", "d"),
        ("set-cookie", "a=b"),
        ("set-cookie", "c=d"),
        ("transfer-encoding", "chunked"),
        ("via", "1.1 cdn"),
        ("via", "1.1 pondhawk"),
    ]);
    assert_eq!(read(&bytes), (302, expected, b"".as_slice()));
    let open_ended = relayed_reply(200, &[], RelayedBody::UntilClose, &ABOUT);
    assert!(read(&open_ended).1.contains(&("connection".into(), "close".into())));
}

#[test]
fn an_error_names_who_is_at_fault_in_one_line() {
    let retry = [("retry-after", "5")];
    let bytes = error_reply(502, Party::Origin, "the origin\r\nX: y cut the reply", &retry, false, &ABOUT);
    let (status, found, body) = read(&bytes);
    let get = |name: &str| found.iter().find(|(held, _)| held == name).map(|(_, value)| value.as_str());
    assert_eq!((status, get("retry-after"), get("x")), (502, Some("5"), None));
    assert_eq!(get("x-pondhawk-error"), Some("origin; the origin  X: y cut the reply"));
    assert_eq!(body, b"pondhawk: the origin  X: y cut the reply (at fault: origin)\n");
    assert_eq!(get("content-length"), Some(body.len().to_string().as_str()));
    let head_only = error_reply(502, Party::Origin, "x", &[], true, &ABOUT);
    assert!(read(&head_only).2.is_empty());
}

proptest! {
    #[test]
    fn stored_bytes_never_start_a_line_of_their_own(
        stored in proptest::collection::vec((
            ".{0,12}",
            proptest::collection::vec(prop_oneof![any::<u8>(), Just(b'\r'), Just(b'\n')], 0..12),
        ), 0..8),
        status in 100u16..1000,
    ) {
        let bytes = stored_reply(&Selection::Whole { len: 10 }, &stored, &ABOUT);
        let (_, found, rest) = read(&bytes);
        prop_assert!(rest.is_empty());
        prop_assert!(found.len() <= stored.len() + 5);
        prop_assert_eq!(found.iter().filter(|(name, _)| name == "content-length").count(), 1);
        let relayed = relayed_reply(status, &stored, RelayedBody::Length(3), &ABOUT);
        prop_assert!(read(&relayed).2.is_empty());
    }
}
