//! The session against a rustls client in memory, for both protocol versions.

use std::io::{Read, Write};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion};

use super::*;
use crate::tls::{Authority, LeafCache, Suffixes, server_config};

const VERSIONS: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS12, &rustls::version::TLS13];

struct Pair {
    client: ClientConnection,
    server: Session,
    flights: u32,
    client_got: Vec<u8>,
}

struct Node {
    _dir: tempfile::TempDir,
    config: Arc<ServerConfig>,
    roots: RootCertStore,
}

fn node() -> Node {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::open(dir.path(), &Suffixes::new(["hf.co"]).unwrap()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(authority.info().der.clone()).unwrap();
    let config = server_config(Arc::new(LeafCache::new(Arc::new(authority)))).unwrap();
    Node { _dir: dir, config, roots }
}

impl Node {
    fn client(&self, version: &'static SupportedProtocolVersion) -> ClientConfig {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[version]).unwrap();
        builder.with_root_certificates(self.roots.clone()).with_no_client_auth()
    }

    fn pair(&self, client: ClientConfig, host: &'static str) -> Pair {
        let client = ClientConnection::new(Arc::new(client), ServerName::try_from(host).unwrap()).unwrap();
        Pair { client, server: Session::new(Arc::clone(&self.config)).unwrap(), flights: 0, client_got: Vec::new() }
    }

    fn open(&self, version: &'static SupportedProtocolVersion) -> Pair {
        let mut pair = self.pair(self.client(version), "cdn-lfs.hf.co");
        pair.run(usize::MAX).unwrap();
        pair
    }
}

impl Pair {
    /// Moves bytes both ways, the client's in chunks of `chunk`, until neither has more to say.
    fn run(&mut self, chunk: usize) -> Result<(), Error> {
        loop {
            let mut wire = Vec::new();
            while self.client.wants_write() {
                self.client.write_tls(&mut wire).unwrap();
            }
            for part in wire.chunks(chunk.min(wire.len().max(1))) {
                self.feed(part)?;
            }
            self.server.advance()?;
            let answer = self.server.take_outgoing();
            if answer.is_empty() && wire.is_empty() {
                return Ok(());
            }
            self.flights += u32::from(!answer.is_empty());
            self.deliver(&answer);
        }
    }

    fn feed(&mut self, bytes: &[u8]) -> Result<(), Error> {
        for part in bytes.chunks(1_000) {
            let mut incoming = self.server.take_incoming()?;
            incoming.extend_from_slice(part);
            self.server.put_incoming(incoming);
            self.server.advance()?;
        }
        Ok(())
    }

    fn deliver(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            self.client.read_tls(&mut bytes).unwrap();
            // A client that refuses queues an alert, which the next round delivers.
            let _ = self.client.process_new_packets();
            let _ = self.client.reader().read_to_end(&mut self.client_got);
        }
    }

    fn client_reads(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.client_got)
    }
}

#[test]
fn both_versions_shake_hands_whatever_the_fragmentation() {
    let node = node();
    for version in VERSIONS {
        for chunk in [1, 7, 100, usize::MAX] {
            let mut pair = node.pair(node.client(version), "cdn-lfs.hf.co");
            pair.run(chunk).unwrap();
            assert!(!pair.client.is_handshaking());
            assert_eq!(pair.server.advance().unwrap(), Progress::Open);
            assert!(pair.server.presented_certificate(pair.flights));
        }
    }
}

#[test]
fn aes_128_gcm_is_chosen_against_the_client_s_order_and_http_1_1_by_alpn() {
    let node = node();
    for version in VERSIONS {
        let mut config = node.client(version);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let mut pair = node.pair(config, "cdn-lfs.hf.co");
        pair.run(usize::MAX).unwrap();
        assert_eq!(pair.client.alpn_protocol(), Some(&b"http/1.1"[..]));
        let suite = format!("{:?}", pair.server.negotiated().unwrap().1);
        assert!(suite.contains("AES_128_GCM"), "{suite}");
    }
}

#[test]
fn a_client_without_http_1_1_or_for_a_foreign_host_is_refused_before_anything_is_sent() {
    let node = node();
    for version in VERSIONS {
        let mut config = node.client(version);
        config.alpn_protocols = vec![b"h2".to_vec()];
        let mut pair = node.pair(config, "cdn-lfs.hf.co");
        assert_eq!(pair.run(usize::MAX), Err(Error::NoApplicationProtocol));
        assert_eq!(pair.flights, 0);
        let mut pair = node.pair(node.client(version), "example.org");
        assert!(pair.run(usize::MAX).is_err());
        assert_eq!(pair.flights, 0);
    }
}

#[test]
fn max_plain_always_fits_and_what_is_encrypted_arrives() {
    let node = node();
    for version in VERSIONS {
        let mut pair = node.open(version);
        let plain: Vec<u8> = (0..300_000u32).map(|i| i as u8).collect();
        for room in [0, 93, 94, 1_000, 16_384, 16_500, 32_900, 65_536, 262_144] {
            let mut out = vec![0; room];
            let n = pair.server.max_plain(room);
            assert!(n > 0 || room <= 93, "{room}");
            let written = pair.server.encrypt(&plain[..n], &mut out).unwrap();
            pair.deliver(&out[..written]);
            assert_eq!(pair.client_reads(), &plain[..n]);
            assert!(pair.server.room_for(n) <= room || n == 0, "{room}");
        }
        let error = pair.server.encrypt(&plain, &mut [0; 1_000]).unwrap_err();
        assert!(matches!(error, SealError::NoRoom(needed) if needed > 300_000), "{error}");
        let mut out = vec![0; 1_000];
        let written = pair.server.encrypt(b"after the error", &mut out).unwrap();
        pair.deliver(&out[..written]);
        assert_eq!(pair.client_reads(), b"after the error");
    }
}

#[test]
fn tickets_that_wait_go_out_before_the_data() {
    let node = node();
    let mut pair = node.pair(node.client(&rustls::version::TLS13), "cdn-lfs.hf.co");
    let mut wire = Vec::new();
    pair.client.write_tls(&mut wire).unwrap();
    pair.feed(&wire).unwrap();
    let flight = pair.server.take_outgoing();
    pair.deliver(&flight);
    let mut wire = Vec::new();
    while pair.client.wants_write() {
        pair.client.write_tls(&mut wire).unwrap();
    }
    pair.feed(&wire).unwrap();
    assert!(pair.server.wants_send());
    assert!(!pair.server.must_flush_handshake());
    let mut out = vec![0; 100_000];
    let plain = vec![7; pair.server.max_plain(out.len())];
    let n = pair.server.encrypt(&plain, &mut out).unwrap();
    pair.deliver(&out[..n]);
    assert_eq!(pair.client_reads(), plain);
    assert_eq!(pair.client.tls13_tickets_received(), 2);
}

#[test]
fn a_second_connection_resumes_and_shows_no_certificate() {
    let node = node();
    for version in VERSIONS {
        let config = node.client(version);
        for resumed in [false, true] {
            let mut pair = node.pair(config.clone(), "cdn-lfs.hf.co");
            pair.run(usize::MAX).unwrap();
            assert_eq!(pair.server.is_resumed(), resumed, "{version:?}");
            assert_eq!(pair.server.presented_certificate(pair.flights), !resumed);
        }
    }
}

#[test]
fn a_key_update_of_the_client_is_answered_between_replies() {
    let node = node();
    let mut pair = node.open(&rustls::version::TLS13);
    for round in 0..20u8 {
        pair.client.refresh_traffic_keys().unwrap();
        pair.client.writer().write_all(b"GET").unwrap();
        let mut wire = Vec::new();
        while pair.client.wants_write() {
            pair.client.write_tls(&mut wire).unwrap();
        }
        pair.feed(&wire).unwrap();
        let mut got = Vec::new();
        pair.server.take_received(&mut got);
        assert_eq!(got, b"GET");
        let mut out = vec![0; 40_000];
        let plain = vec![round; pair.server.max_plain(out.len())];
        let n = pair.server.encrypt(&plain, &mut out).unwrap();
        pair.deliver(&out[..n]);
        assert_eq!(pair.client_reads(), plain);
    }
}

#[test]
fn a_request_that_comes_while_replies_are_encrypted_is_kept_for_later() {
    let node = node();
    for version in VERSIONS {
        let mut pair = node.open(version);
        pair.client.writer().write_all(b"next request").unwrap();
        let mut wire = Vec::new();
        pair.client.write_tls(&mut wire).unwrap();
        let (first, rest) = wire.split_at(10);
        for part in [first, rest] {
            let mut incoming = pair.server.take_incoming().unwrap();
            incoming.extend_from_slice(part);
            pair.server.put_incoming(incoming);
            let mut out = vec![0; 1_000];
            let n = pair.server.encrypt(b"reply", &mut out).unwrap();
            pair.deliver(&out[..n]);
            assert_eq!(pair.client_reads(), b"reply");
        }
        let mut got = Vec::new();
        pair.server.take_received(&mut got);
        assert_eq!(got, b"next request");
    }
}

#[test]
fn close_notify_is_seen_and_still_lets_us_answer() {
    let node = node();
    for version in VERSIONS {
        let mut pair = node.open(version);
        pair.client.writer().write_all(b"last").unwrap();
        pair.client.send_close_notify();
        let mut wire = Vec::new();
        while pair.client.wants_write() {
            pair.client.write_tls(&mut wire).unwrap();
        }
        pair.feed(&wire).unwrap();
        assert!(pair.server.peer_closed());
        let mut out = vec![0; 1_000];
        let n = pair.server.encrypt(b"answer", &mut out).unwrap();
        out.truncate(n);
        out.extend(pair.server.close().unwrap());
        pair.deliver(&out);
        assert_eq!(pair.client_reads(), b"answer");
        assert_eq!(pair.server.advance().unwrap(), Progress::Closed);
        assert!(matches!(pair.server.encrypt(b"x", &mut [0; 100]), Err(SealError::NotOpen)));
    }
}

#[test]
fn a_client_that_does_not_know_the_ca_is_told_from_one_that_misbehaves() {
    let (ours, other) = (node(), node());
    for version in VERSIONS {
        let mut pair = ours.pair(other.client(version), "cdn-lfs.hf.co");
        let Err(Error::AlertReceived(alert)) = pair.run(usize::MAX) else { panic!("no alert") };
        assert!(is_distrust(alert), "{alert:?}");
        assert!(pair.server.presented_certificate(pair.flights));
    }
}

#[test]
fn the_constraints_hold_against_a_certificate_for_a_foreign_host() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::open(dir.path(), &Suffixes::new(["hf.co"]).unwrap()).unwrap();
    let leaf = authority.issue("example.org", time::OffsetDateTime::now_utc()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(authority.info().der.clone()).unwrap();
    let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(
        Arc::new(roots),
        Arc::new(rustls::crypto::aws_lc_rs::default_provider()),
    );
    let result = rustls::client::danger::ServerCertVerifier::verify_server_cert(
        &*verifier.build().unwrap(),
        &leaf.key.cert[0],
        &leaf.key.cert[1..],
        &ServerName::try_from("example.org").unwrap(),
        &[],
        rustls::pki_types::UnixTime::now(),
    );
    let error = format!("{:?}", result.unwrap_err());
    assert!(error.contains("NameConstraintViolation"), "{error}");
}

#[test]
fn garbage_and_records_that_claim_too_much_end_in_an_error_not_in_memory() {
    let node = node();
    let inputs: [&[u8]; 4] = [
        b"GET / HTTP/1.1\r\n\r\n",
        &[0x16, 3, 1, 0xff, 0xff],
        &[0; 64],
        // A ClientHello that announces 16 MiB.
        &[0x16, 3, 1, 0, 4, 1, 0xff, 0xff, 0xff],
    ];
    for input in inputs {
        let mut pair = node.pair(node.client(&rustls::version::TLS13), "cdn-lfs.hf.co");
        assert!(pair.feed(input).is_err(), "{input:?}");
    }
    // A ClientHello of 60 kB, announced honestly and sent in small records.
    let mut pair = node.pair(node.client(&rustls::version::TLS13), "cdn-lfs.hf.co");
    let mut message = vec![1, 0, 0xea, 0x60];
    message.resize(60_000, 0);
    let records = message.chunks(500).flat_map(|part| {
        let mut record = vec![0x16, 3, 1];
        record.extend((part.len() as u16).to_be_bytes());
        record.extend(part);
        record
    });
    let error = pair.feed(&records.collect::<Vec<_>>()).unwrap_err();
    assert_eq!(error, Error::InvalidMessage(InvalidMessage::MessageTooLarge));
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]
    #[test]
    fn no_change_to_the_client_s_bytes_makes_the_session_panic(
        flips in proptest::collection::vec((0usize..3_000, 1u8..=255), 1..8),
        established in proptest::bool::ANY,
    ) {
        thread_local!(static NODE: Node = node());
        NODE.with(|node| {
            let mut pair = if established {
                node.open(&rustls::version::TLS13)
            } else {
                node.pair(node.client(&rustls::version::TLS13), "cdn-lfs.hf.co")
            };
            if established {
                pair.client.writer().write_all(&[1; 2_000]).unwrap();
            }
            let mut wire = Vec::new();
            pair.client.write_tls(&mut wire).unwrap();
            for (at, flip) in flips {
                let at = at % wire.len();
                wire[at] ^= flip;
            }
            let _ = pair.feed(&wire);
            let _ = pair.server.encrypt(b"x", &mut [0; 100]);
            let _ = pair.server.close();
        });
    }
}
