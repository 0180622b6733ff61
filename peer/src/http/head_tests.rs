//! Heads as real clients send them, and as smugglers do.

use super::*;
use proptest::prelude::*;

fn head(bytes: &[u8]) -> Result<RequestHead, HeadError> {
    match parse(bytes, &HeadLimits::default())? {
        Parsed::Complete { head, consumed } => {
            assert_eq!(consumed, bytes.len());
            Ok(head)
        }
        Parsed::Incomplete => panic!("incomplete: {}", bytes.escape_ascii()),
    }
}

fn with(lines: &str) -> Result<RequestHead, HeadError> {
    head(format!("POST /a HTTP/1.1\r\nHost: h\r\n{lines}\r\n").as_bytes())
}

#[test]
fn the_heads_of_real_clients_are_read() {
    let url = "/repos/aa/bb/0f/e3?response-content-disposition=inline%3B+filename*%3DUTF-8%27%27a.bin";
    for (bytes, range) in [
        (include_bytes!("captures/curl.head").as_slice(), None),
        (include_bytes!("captures/curl_resume.head"), Some("bytes=4-")),
        (include_bytes!("captures/requests.head"), Some("bytes=4-")),
        (include_bytes!("captures/aria2.head"), None),
    ] {
        let head = head(bytes).unwrap();
        assert_eq!((head.method.as_str(), head.version), ("GET", Version::Http11));
        assert!(head.target.path_and_query().unwrap().starts_with(url));
        assert_eq!(head.host().unwrap().to_string(), "127.0.0.1:18931");
        assert_eq!(head.get("range"), range.map(str::as_bytes));
        assert!(head.keep_alive() && !head.expect_continue());
        assert_eq!(head.framing(), Framing::None);
    }
    let wget = head(include_bytes!("captures/wget_continue.head")).unwrap();
    assert!(wget.target.path_and_query().unwrap().contains("UTF-8''a.bin"));
    assert_eq!(wget.get("range"), Some(b"bytes=4-".as_slice()));
    assert_eq!(head(include_bytes!("captures/curl_head.head")).unwrap().method, "HEAD");
}

#[test]
fn what_clients_send_to_a_proxy_is_read() {
    let absolute = head(include_bytes!("captures/curl_proxy.head")).unwrap();
    let authority = Authority { host: "cdn-lfs.huggingface.co".into(), port: None };
    let path_and_query = "/repos/x?Expires=1".into();
    assert_eq!(absolute.target, Target::Absolute { scheme: "http", authority, path_and_query });
    let connect = head(include_bytes!("captures/curl_connect.head")).unwrap();
    assert_eq!(connect.target, Target::Authority { host: "cdn-lfs.huggingface.co".into(), port: 443 });
}

#[test]
fn the_url_is_put_together_from_target_and_host() {
    let url = |text: &str| head(text.as_bytes()).unwrap().url("https").map(String::from);
    let path = |target: &str| url(&format!("GET {target} HTTP/1.1\r\nHost: H:444\r\n\r\n"));
    assert_eq!(path("/a%2fb?c=d").as_deref(), Some("https://h:444/a%2fb?c=d"));
    assert_eq!(path("//evil.example/a").as_deref(), Some("https://h:444//evil.example/a"));
    assert_eq!(path("/@evil.example/").as_deref(), Some("https://h:444/@evil.example/"));
    assert_eq!(path("http://other/a").as_deref(), Some("http://other/a"));
    assert_eq!(url("OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n"), None);
    assert_eq!(url("CONNECT h:443 HTTP/1.1\r\nHost: h\r\n\r\n"), None);
    assert_eq!(url("GET / HTTP/1.0\r\n\r\n"), None);
}

#[test]
fn uploads_say_how_their_bodies_end() {
    let put = head(include_bytes!("captures/curl_put.head")).unwrap();
    assert_eq!((put.framing(), put.expect_continue()), (Framing::Length(635), true));
    let chunked = head(include_bytes!("captures/curl_put_chunked.head")).unwrap();
    assert_eq!((chunked.framing(), chunked.expect_continue()), (Framing::Chunked, true));
}

#[test]
fn a_body_whose_end_two_readers_could_see_differently_is_refused() {
    for (lines, status) in [
        ("Content-Length: 1\r\nContent-Length: 1\r\n", 400),
        ("Content-Length: 1\r\nContent-Length: 2\r\n", 400),
        ("Content-Length: 1, 1\r\n", 400),
        ("Content-Length: +1\r\n", 400),
        ("Content-Length: 0x1\r\n", 400),
        ("Content-Length: -1\r\n", 400),
        ("Content-Length:\r\n", 400),
        ("Content-Length: 99999999999999999999\r\n", 400),
        ("Content-Length: 1\r\nTransfer-Encoding: chunked\r\n", 400),
        ("Transfer-Encoding: chunked\r\nContent-Length: 1\r\n", 400),
        ("Transfer-Encoding: chunked, chunked\r\n", 400),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", 400),
        ("Transfer-Encoding:\r\n", 400),
        ("Transfer-Encoding: gzip, chunked\r\n", 501),
        ("Transfer-Encoding: chunked, identity\r\n", 501),
        ("Transfer-Encoding: \"chunked\"\r\n", 501),
        ("Transfer-Encoding: xchunked\r\n", 501),
        ("Transfer-Encoding : chunked\r\n", 400),
        ("Content-Length : 1\r\n", 400),
        ("A: b\r\n Content-Length: 1\r\n", 400),
        ("A: b\r\n\tc\r\n", 400),
        (" A: b\r\n", 400),
        ("A: b\rContent-Length: 1\r\n", 400),
        ("A: b\nContent-Length: 1\r\n", 400),
        ("A: \0\r\n", 400),
        ("A: \x0b\r\n", 400),
        ("A\r\n", 400),
        (": b\r\n", 400),
    ] {
        assert_eq!(with(lines).map_err(|error| error.status()), Err(status), "{lines:?}");
    }
    assert_eq!(with("transfer-encoding: Chunked\r\n").unwrap().framing(), Framing::Chunked);
    assert!(head(b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n").is_err());
    assert!(head(b"CONNECT h:1 HTTP/1.1\r\nHost: h:1\r\nContent-Length: 4\r\n\r\n").is_err());
}

#[test]
fn a_host_must_be_there_once_and_be_one() {
    let host = |bytes: &[u8]| head(bytes).map(|head| head.host().map(ToString::to_string));
    assert_eq!(host(b"GET / HTTP/1.1\r\n\r\n"), Err(HeadError::Host("missing")));
    assert_eq!(host(b"GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n"), Err(HeadError::Host("repeated")));
    assert_eq!(host(b"GET / HTTP/1.1\r\nHost: a@b\r\n\r\n"), Err(HeadError::Host("malformed")));
    assert_eq!(host(b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n"), Err(HeadError::Host("malformed")));
    assert_eq!(host(b"GET / HTTP/1.0\r\n\r\n"), Ok(None));
    assert_eq!(host(b"GET http://b:1/ HTTP/1.1\r\nHost: a\r\n\r\n"), Ok(Some("b:1".into())));
}

#[test]
fn versions_and_connection_options_decide_on_keeping_the_connection() {
    let keeps = |text: &str| head(text.as_bytes()).unwrap().keep_alive();
    assert!(keeps("GET / HTTP/1.1\r\nHost: h\r\n\r\n"));
    assert!(!keeps("GET / HTTP/1.1\r\nHost: h\r\nConnection: TE, Close\r\n\r\n"));
    assert!(!keeps("GET / HTTP/1.0\r\nHost: h\r\n\r\n"));
    assert!(keeps("GET / HTTP/1.0\r\nHost: h\r\nConnection: Keep-Alive\r\n\r\n"));
    let upgrade = with("Connection: upgrade\r\nUpgrade: websocket\r\n").unwrap();
    assert_eq!(upgrade.upgrade(), Some(b"websocket".as_slice()));
    assert_eq!(with("Upgrade: websocket\r\n").unwrap().upgrade(), None);
}

#[test]
fn other_versions_are_told_so() {
    assert_eq!(head(b"PRI * HTTP/2.0\r\n\r\n"), Err(HeadError::Version));
    assert_eq!(head(b"GET / HTTP/1.2\r\nHost: h\r\n\r\n"), Err(HeadError::Version));
}

#[test]
fn limits_hold_before_the_head_is_complete() {
    let limits = HeadLimits { bytes: 400, headers: 2, target: 100 };
    let status = |bytes: &[u8]| parse(bytes, &limits).map_err(|error| error.status());
    assert_eq!(status(&[b"GET /".as_slice(), &[b'a'; 200]].concat()), Err(414));
    assert_eq!(status(format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", "a".repeat(101)).as_bytes()), Err(414));
    assert_eq!(status(format!("GET / HTTP/1.1\r\nA: {}", "a".repeat(400)).as_bytes()), Err(431));
    assert_eq!(status(b"GET / HTTP/1.1\r\nHost: h\r\nA: a\r\nB: b\r\n\r\n"), Err(431));
    assert_eq!(status(b"GET / HTTP/1.1\r\nHost: h\r\nA: a\r\n"), Ok(Parsed::Incomplete));
}

#[test]
fn a_pipelined_request_starts_where_the_first_one_ends() {
    let two = b"\r\nGET /a HTTP/1.1\r\nHost: h\r\n\r\nGET /b HTTP/1.1\r\nHost: h\r\n\r\n";
    let limits = HeadLimits::default();
    let Ok(Parsed::Complete { head, consumed }) = parse(two, &limits) else { panic!("not parsed") };
    assert_eq!(head.target.path_and_query(), Some("/a"));
    let Ok(Parsed::Complete { head, .. }) = parse(&two[consumed..], &limits) else { panic!("not parsed") };
    assert_eq!(head.target.path_and_query(), Some("/b"));
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse(&bytes, &HeadLimits::default());
    }

    #[test]
    fn a_damaged_head_is_refused_or_read_but_never_panics(at in 0usize..200, byte: u8) {
        let mut bytes = include_bytes!("captures/curl_put.head").to_vec();
        let at = at % bytes.len();
        bytes[at] = byte;
        let _ = parse(&bytes, &HeadLimits::default());
    }

    #[test]
    fn every_prefix_of_a_head_is_incomplete_and_the_whole_says_what_was_written(
        path in "/[!-\"$-~]{0,40}",
        names in proptest::collection::vec("X-[A-Za-z0-9-]{1,10}", 0..8),
        value in "([!-~]([ -~]{0,20}[!-~])?)?",
    ) {
        let lines: String = names.iter().map(|name| format!("{name}: {value}\r\n")).collect();
        let bytes = format!("GET {path} HTTP/1.1\r\nHost: h\r\n{lines}\r\n").into_bytes();
        for end in 0..bytes.len() {
            prop_assert_eq!(parse(&bytes[..end], &HeadLimits::default()), Ok(Parsed::Incomplete));
        }
        let head = head(&bytes).unwrap();
        prop_assert_eq!(head.target.path_and_query(), Some(path.as_str()));
        prop_assert_eq!(head.headers.len(), names.len() + 1);
        for (held, name) in head.headers[1..].iter().zip(&names) {
            prop_assert_eq!(&held.0, &name.to_ascii_lowercase());
            prop_assert_eq!(&held.1, value.as_bytes());
        }
    }

    #[test]
    fn what_comes_in_cuts_is_read_as_what_comes_at_once(
        blank in 0usize..4,
        lines in proptest::collection::vec("(GET / HTTP/1.1|Host: h|A: b|\r|\n|)", 0..6),
        cuts in proptest::collection::vec(0usize..60, 0..6),
    ) {
        let limits = HeadLimits::default();
        let bytes = format!("{}{}\r\n\r\n", "\r\n".repeat(blank), lines.join("\r\n")).into_bytes();
        let mut cuts: Vec<_> = cuts.into_iter().filter(|cut| *cut < bytes.len()).chain([bytes.len()]).collect();
        cuts.sort_unstable();
        let (mut seen, mut read) = (0, Ok(Parsed::Incomplete));
        for cut in cuts {
            prop_assert_eq!(&parse_more(&bytes[..cut], seen, &limits), &parse(&bytes[..cut], &limits));
            read = parse_more(&bytes[..cut], seen, &limits);
            if read != Ok(Parsed::Incomplete) {
                break;
            }
            seen = cut;
        }
        // Only an error may depend on how much is there to see.
        if let Ok(Parsed::Complete { .. }) = parse(&bytes, &limits) {
            prop_assert_eq!(read, parse(&bytes, &limits));
        }
    }

    #[test]
    fn framing_is_never_ambiguous(lines in proptest::collection::vec(
        prop_oneof![
            (0u8..20).prop_map(|n| format!("Content-Length: {n}")),
            Just("Transfer-Encoding: chunked".to_owned()),
            Just("Transfer-Encoding: gzip".to_owned()),
            Just("X-A: b".to_owned()),
        ], 0..4),
    ) {
        let count = |name: &str| lines.iter().filter(|line| line.starts_with(name)).count();
        let text: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
        match with(&text).map(|head| head.framing()) {
            Ok(Framing::None) => prop_assert_eq!((count("Content"), count("Transfer")), (0, 0)),
            Ok(Framing::Length(n)) => {
                let line = format!("Content-Length: {n}");
                prop_assert_eq!((count("Content"), count(&line), count("Transfer")), (1, 1, 0));
            }
            Ok(Framing::Chunked) => {
                let chunked = count("Transfer-Encoding: chunked");
                prop_assert_eq!((count("Content"), count("Transfer"), chunked), (0, 1, 1));
            }
            Err(_) => prop_assert!(count("Content") + count("Transfer") > 1 || count("Transfer-Encoding: g") > 0),
        }
    }
}
