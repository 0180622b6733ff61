//! Reads what a TLS client says first: which host it wants, without a key to anything [pure].
//!
//! RFC 8446 section 4.1.2 (ClientHello) and 5.1 (records), RFC 6066 section 3 (server_name), RFC 7301 (ALPN), RFC 9849
//! (Encrypted ClientHello). A hello may be spread over several records.

/// More than any hello: with two post-quantum key shares and ECH one is about 3 KiB.
pub const MAX_HELLO: usize = 16 * 1024;

const RECORD_HEADER: usize = 5;
const MAX_RECORD: usize = 1 << 14;
const CONTENT_HANDSHAKE: u8 = 22;
const HANDSHAKE_HEADER: usize = 4;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;
const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;

/// What the first bytes of a connection are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Hello {
    /// The start of a hello. It cannot be told before there are `needs` bytes, counted from the connection's first.
    Incomplete {
        /// More than were given, at most [`MAX_HELLO`].
        needs: usize,
    },
    /// Not TLS, not a ClientHello, malformed, or longer than [`MAX_HELLO`]: for the origin to judge.
    NotTls,
    /// A ClientHello.
    Tls {
        /// The host name, in lower case.
        sni: Option<String>,
        /// There is an Encrypted ClientHello: `sni` may be a cover name. Clients also send a meaningless one (GREASE),
        /// which looks the same; then `sni` is the true name.
        ech: bool,
        /// Application protocols, the preferred one first.
        alpn: Vec<Vec<u8>>,
    },
}

/// Tells what `bytes`, all that a client sent so far, are.
pub fn parse(bytes: &[u8]) -> Hello {
    match assemble(bytes) {
        Ok(message) => read_hello(&message).unwrap_or(Hello::NotTls),
        Err(verdict) => verdict,
    }
}

/// The body of the handshake message, put together from its records.
fn assemble(bytes: &[u8]) -> Result<Vec<u8>, Hello> {
    let mut message = Vec::new();
    let mut at = 0;
    loop {
        let fragment = record(&bytes[at.min(bytes.len())..], at)?;
        message.extend_from_slice(fragment);
        if let Some(needed) = message_len(&message)? {
            if message.len() >= needed {
                return Ok(message[HANDSHAKE_HEADER..needed].to_vec());
            }
            let in_record = needed - (message.len() - fragment.len());
            incomplete_if_cut(bytes, at, fragment.len(), in_record)?;
        } else {
            incomplete_if_cut(bytes, at, fragment.len(), HANDSHAKE_HEADER)?;
        }
        at += RECORD_HEADER + fragment.len();
    }
}

/// As much of the record's fragment as there is; `at` is the record's place in the connection.
fn record(bytes: &[u8], at: usize) -> Result<&[u8], Hello> {
    // What is there already must fit, so that a client that speaks no TLS is not waited for.
    let expected = [Some(CONTENT_HANDSHAKE), Some(3)];
    if bytes.iter().zip(expected).any(|(byte, expected)| Some(*byte) != expected) {
        return Err(Hello::NotTls);
    }
    let Some((header, rest)) = bytes.split_at_checked(RECORD_HEADER) else {
        // The fragment has at least one byte.
        return Err(incomplete(at + RECORD_HEADER + 1));
    };
    let len = usize::from(u16::from_be_bytes([header[3], header[4]]));
    if len == 0 || len > MAX_RECORD {
        return Err(Hello::NotTls);
    }
    if rest.is_empty() {
        return Err(incomplete(at + RECORD_HEADER + 1));
    }
    Ok(&rest[..len.min(rest.len())])
}

/// The whole message's length with its header, once that can be told.
fn message_len(message: &[u8]) -> Result<Option<usize>, Hello> {
    if message.first() != Some(&CLIENT_HELLO) {
        return Err(Hello::NotTls);
    }
    let [_, high, middle, low, ..] = message else { return Ok(None) };
    let len = HANDSHAKE_HEADER + u32::from_be_bytes([0, *high, *middle, *low]) as usize;
    if len > MAX_HELLO { Err(Hello::NotTls) } else { Ok(Some(len)) }
}

/// An error if the record at `at` goes on beyond the `have` bytes of its fragment that are there.
fn incomplete_if_cut(bytes: &[u8], at: usize, have: usize, wanted: usize) -> Result<(), Hello> {
    let len = usize::from(u16::from_be_bytes([bytes[at + 3], bytes[at + 4]]));
    if have == len { Ok(()) } else { Err(incomplete(at + RECORD_HEADER + len.min(wanted.max(have + 1)))) }
}

fn incomplete(needs: usize) -> Hello {
    if needs > MAX_HELLO { Hello::NotTls } else { Hello::Incomplete { needs } }
}

/// The ClientHello, whole; None if it is malformed.
fn read_hello(body: &[u8]) -> Option<Hello> {
    let mut rest = Reader(body);
    // legacy_version and random
    rest.take(2 + 32)?;
    let session_id = rest.vector8()?;
    let cipher_suites = rest.vector16()?;
    let compression_methods = rest.vector8()?;
    let lengths_fit = session_id.len() <= 32
        && !cipher_suites.is_empty()
        && cipher_suites.len() % 2 == 0
        && !compression_methods.is_empty();
    if !lengths_fit {
        return None;
    }
    // TLS 1.2 clients may leave the extensions out altogether.
    let extensions = if rest.0.is_empty() { &[] } else { rest.vector16()? };
    if rest.0.is_empty() { read_extensions(Reader(extensions)) } else { None }
}

fn read_extensions(mut rest: Reader<'_>) -> Option<Hello> {
    let (mut sni, mut alpn, mut ech) = (None, None, false);
    while !rest.0.is_empty() {
        let kind = rest.u16()?;
        let mut body = Reader(rest.vector16()?);
        let repeated = match kind {
            SERVER_NAME => sni.replace(server_name(&mut body)?).is_some(),
            ALPN => alpn.replace(protocols(&mut body)?).is_some(),
            ENCRYPTED_CLIENT_HELLO => std::mem::replace(&mut ech, true),
            _ => false,
        };
        if repeated {
            return None;
        }
    }
    Some(Hello::Tls { sni: sni.flatten(), ech, alpn: alpn.unwrap_or_default() })
}

/// The first host name of the list. Outer None: malformed; inner None: no name that could be a host's.
fn server_name(body: &mut Reader<'_>) -> Option<Option<String>> {
    const HOST_NAME: u8 = 0;
    const MAX_NAME: usize = 255;
    let mut list = Reader(body.vector16()?);
    let mut name = None;
    while !list.0.is_empty() {
        let kind = list.take(1)?[0];
        let value = list.vector16()?;
        if kind == HOST_NAME && name.is_none() {
            name = Some(value);
        }
    }
    let is_host = |name: &&[u8]| !name.is_empty() && name.len() <= MAX_NAME && name.iter().all(u8::is_ascii_graphic);
    Some(name.filter(is_host).map(|name| String::from_utf8_lossy(name).to_ascii_lowercase()))
}

fn protocols(body: &mut Reader<'_>) -> Option<Vec<Vec<u8>>> {
    let mut list = Reader(body.vector16()?);
    let mut names = Vec::new();
    while !list.0.is_empty() {
        names.push(list.vector8()?.to_vec());
    }
    Some(names)
}

/// Takes TLS's presentation language apart (RFC 8446, section 3).
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// A vector whose length is one byte.
    fn vector8(&mut self) -> Option<&'a [u8]> {
        let len = self.take(1)?[0];
        self.take(usize::from(len))
    }

    /// A vector whose length is two bytes.
    fn vector16(&mut self) -> Option<&'a [u8]> {
        let len = self.u16()?;
        self.take(usize::from(len))
    }
}

#[cfg(test)]
#[path = "client_hello_tests.rs"]
mod tests;
