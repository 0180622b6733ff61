//! Request heads: what the node accepts, hyper's server reads the same way, and so does the node after forwarding it.

use pondhawk::http::head::{parse, parse_more};
use pondhawk::http::{Authority, Framing, HeadError, HeadLimits, Parsed, RequestHead, Target, Version};

use crate::http_server::{self, Reading};

/// Bodies up to this length are sent to hyper.
const MAX_BODY: u64 = 64;

/// Runs the target.
pub fn run(bytes: &[u8]) {
    let limits = HeadLimits::default();
    let whole = parse(bytes, &limits);
    check_split(bytes, &whole, &limits);
    let Ok(Parsed::Complete { head, consumed }) = whole else { return };
    check_written_head(&head, &limits);
    check_forwarded_fields(&head);
    check_hyper(&head, &bytes[..consumed]);
}

/// A head that arrives in two parts is the same head.
fn check_split(bytes: &[u8], whole: &Result<Parsed, HeadError>, limits: &HeadLimits) {
    let cuts = [1, 2, 3, 5, 8].map(|part| bytes.len() * part / 9);
    for cut in cuts {
        match parse(&bytes[..cut], limits) {
            Ok(Parsed::Incomplete) => assert_eq!(&parse_more(bytes, cut, limits), whole, "after {cut} bytes"),
            first @ Ok(Parsed::Complete { .. }) => assert_eq!(&first, whole, "{cut} bytes"),
            Err(_) => assert!(whole.is_err(), "an error at {cut} bytes that more bytes heal"),
        }
    }
}

/// A head that is written out again reads back as itself.
fn check_written_head(head: &RequestHead, limits: &HeadLimits) {
    let bytes = written(head);
    match parse(&bytes, limits) {
        Ok(Parsed::Complete { head: again, consumed }) => {
            assert_eq!(&again, head);
            assert_eq!(consumed, bytes.len());
        }
        // Percent-encoding and lower case make the target no shorter.
        Err(HeadError::TargetTooLong | HeadError::TooLarge) => {}
        other => panic!("{head:?} is written as {:?}, which is {other:?}", String::from_utf8_lossy(&bytes)),
    }
}

fn written(head: &RequestHead) -> Vec<u8> {
    let version = if head.version == Version::Http10 { "HTTP/1.0" } else { "HTTP/1.1" };
    let mut out = format!("{} {} {version}\r\n", head.method, target_text(&head.target)).into_bytes();
    for (name, value) in &head.headers {
        out.extend([name.as_bytes(), b": ", value, b"\r\n"].concat());
    }
    out.extend(b"\r\n");
    out
}

fn target_text(target: &Target) -> String {
    match target {
        Target::Origin { path_and_query } => path_and_query.clone(),
        Target::Absolute { scheme, authority, path_and_query } => format!("{scheme}://{authority}{path_and_query}"),
        Target::Authority { host, port } => Authority { host: host.clone(), port: Some(*port) }.to_string(),
        Target::Asterisk => "*".to_owned(),
    }
}

/// What belongs to the client's connection does not go to the origin.
fn check_forwarded_fields(head: &RequestHead) {
    let named: Vec<String> = head
        .get_all("connection")
        .flat_map(|value| value.split(|byte| *byte == b','))
        .map(|option| String::from_utf8_lossy(option.trim_ascii()).to_ascii_lowercase())
        .collect();
    for (name, _) in pondhawk::fuzz::forwarded(&head.headers) {
        assert!(!named.contains(&name), "{name} is named by Connection and goes to the origin");
        assert!(!["connection", "transfer-encoding", "upgrade", "host", "te", "trailer"].contains(&name.as_str()));
    }
}

fn check_hyper(head: &RequestHead, bytes: &[u8]) {
    let body: &[u8] = match head.framing() {
        Framing::Length(len) if len <= MAX_BODY => &[b'b'; MAX_BODY as usize][..usize::try_from(len).unwrap_or(0)],
        Framing::Chunked => b"4\r\nbody\r\n0\r\n\r\n",
        Framing::None | Framing::Length(_) => b"",
    };
    let readings = http_server::read(&[bytes, body].concat());
    // hyper may refuse what the node accepts: a URI that its types cannot hold.
    let Some(reading) = readings.first() else { return };
    assert_eq!(readings.len(), 1, "hyper reads several requests");
    assert_eq!(reading.head.method.as_str(), head.method);
    assert_eq!(reading.head.version == http::Version::HTTP_10, head.version == Version::Http10);
    check_target(&head.target, &reading.head.uri);
    check_fields(head, reading);
    check_body(head, reading);
}

fn check_target(ours: &Target, theirs: &http::Uri) {
    let path = || {
        let text = theirs.path_and_query().map_or("", http::uri::PathAndQuery::as_str);
        let text = if text.starts_with('/') { text.to_owned() } else { format!("/{text}") };
        let encoded = |byte: u8| if byte < 0x80 { char::from(byte).to_string() } else { format!("%{byte:02X}") };
        text.bytes().map(encoded).collect::<String>()
    };
    let host = || theirs.host().unwrap_or_default().trim_end_matches('.').to_ascii_lowercase();
    match ours {
        Target::Origin { path_and_query } => assert_eq!((path_and_query, theirs.host()), (&path(), None)),
        Target::Absolute { scheme, authority, path_and_query } => {
            assert_eq!(Some(*scheme), theirs.scheme_str());
            assert_eq!((&authority.host, authority.port), (&host(), theirs.port_u16()));
            assert_eq!(path_and_query, &path());
        }
        Target::Authority { host: ours, port } => assert_eq!((ours, Some(*port)), (&host(), theirs.port_u16())),
        Target::Asterisk => assert_eq!(theirs.path(), "*"),
    }
}

fn check_fields(head: &RequestHead, reading: &Reading) {
    assert_eq!(reading.head.headers.len(), head.headers.len());
    for name in reading.head.headers.keys() {
        let theirs = reading.head.headers.get_all(name).iter().map(http::HeaderValue::as_bytes);
        assert!(theirs.eq(head.get_all(name.as_str())), "{name} differs");
    }
}

fn check_body(head: &RequestHead, reading: &Reading) {
    match head.framing() {
        _ if head.method == "CONNECT" => {}
        Framing::None | Framing::Length(0) => assert!(reading.is_bodiless),
        Framing::Length(len) => {
            assert_eq!(reading.exact, Some(len));
            let body = reading.body.as_ref();
            assert!(len > MAX_BODY || body.is_some_and(|body| body.len() as u64 == len));
        }
        Framing::Chunked => {
            assert_eq!(reading.exact, None);
            assert_eq!(reading.body.as_deref(), Some(&b"body"[..]));
        }
    }
}
