//! ClientHello: what rustls and the node both accept has one server name and the same protocols, also when it arrives byte by byte.

use pondhawk::intercept::client_hello::{Hello, MAX_HELLO, parse};
use rustls::server::Acceptor;

/// Prefixes that are tried of one input.
const PREFIXES: usize = 64;

/// Runs the target.
pub fn run(bytes: &[u8]) {
    let whole = parse(bytes);
    check_prefixes(bytes, &whole);
    if let Some((sni, protocols)) = by_rustls(bytes) {
        match whole {
            Hello::Tls { sni: ours, alpn, .. } => {
                assert_eq!(alpn, protocols);
                // rustls takes the root's dot off; the node does so where it uses the name.
                let ours = ours.map(|name| name.strip_suffix('.').map_or(name.clone(), str::to_owned));
                assert!(sni.is_none() || ours == sni, "{ours:?}, and for rustls {sni:?}");
            }
            // The node is stricter with names of types to come, whose form RFC 6066 section 3 gives, and with lengths; such a
            // connection is joined to where it was going.
            Hello::NotTls => {}
            Hello::Incomplete { .. } => panic!("rustls needs no more bytes"),
        }
    }
}

/// Before a hello is whole more bytes are asked for, and once it is judged more bytes change nothing.
fn check_prefixes(bytes: &[u8], whole: &Hello) {
    let step = bytes.len().div_ceil(PREFIXES).max(1);
    for end in (0..bytes.len()).step_by(step) {
        match parse(&bytes[..end]) {
            Hello::Incomplete { needs } => assert!(needs > end && needs <= MAX_HELLO, "{needs} after {end}"),
            judged => assert_eq!(&judged, whole, "already after {end} bytes"),
        }
    }
}

/// Server name and protocols as rustls's server reads them.
fn by_rustls(mut bytes: &[u8]) -> Option<(Option<String>, Vec<Vec<u8>>)> {
    let mut acceptor = Acceptor::default();
    while !bytes.is_empty() {
        acceptor.read_tls(&mut bytes).ok()?;
        if let Some(accepted) = acceptor.accept().ok()? {
            let hello = accepted.client_hello();
            let protocols = hello.alpn().map(|names| names.map(<[u8]>::to_vec).collect()).unwrap_or_default();
            return Some((hello.server_name().map(str::to_ascii_lowercase), protocols));
        }
    }
    None
}
