//! Chunked request bodies: read alike however they are cut, and as hyper's server reads them.

use pondhawk::http::Chunked;
use pondhawk::http::chunked::ChunkedError;

use crate::http_server;

const HEAD: &[u8] = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";

/// A body up to its end, or as far as the bytes go.
#[derive(Debug, PartialEq, Eq)]
struct Body {
    data: Vec<u8>,
    /// Bytes that belong to the body's coding.
    consumed: usize,
    is_whole: bool,
}

/// Runs the target.
pub fn run(bytes: &[u8]) {
    let whole = decode(bytes, bytes.len().max(1));
    for step in [1, 2, 7] {
        assert_eq!(decode(bytes, step), whole, "in parts of {step} bytes");
    }
    let Ok(body) = whole else { return };
    assert!(body.consumed == bytes.len() || body.is_whole);
    if body.is_whole {
        let readings = http_server::read(&[HEAD, &bytes[..body.consumed]].concat());
        let reading = readings.first().expect("hyper reads the head");
        // hyper may refuse extensions that it does not like, but must not find another body or a second request.
        assert_eq!(readings.len(), 1);
        assert!(reading.body.as_ref().is_none_or(|theirs| theirs[..] == body.data));
    }
}

fn decode(mut rest: &[u8], step: usize) -> Result<Body, ChunkedError> {
    let mut decoder = Chunked::new();
    let mut body = Body { data: Vec::new(), consumed: 0, is_whole: false };
    while !rest.is_empty() && !body.is_whole {
        let part = &rest[..step.min(rest.len())];
        let decoded = decoder.decode(part)?;
        assert!(decoded.consumed > 0 || decoded.done, "no progress");
        assert!(decoded.data.end <= decoded.consumed && decoded.consumed <= part.len());
        body.data.extend_from_slice(&part[decoded.data]);
        body.consumed += decoded.consumed;
        body.is_whole = decoded.done;
        rest = &rest[decoded.consumed..];
    }
    Ok(body)
}
