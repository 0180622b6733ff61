//! Real hellos, hellos taken apart and put together differently, and noise.

use proptest::prelude::*;

use super::*;

/// `curl 7.88 https://cdn-lfs.huggingface.co` (OpenSSL 3.0, TLS 1.3 offered), captured on loopback.
const CURL: &str = "\
    1603010200010001fc030330f010ece1488252cd6f1ff9cf83e37ee9c8082f379ac59a61b1c1912914b6c6205c8285e75e31c49851434616\
    69883250248f4fea378ac752fad59c803b635296003e130213031301c02cc030009fcca9cca8ccaac02bc02f009ec024c028006bc023c027\
    0067c00ac0140039c009c0130033009d009c003d003c0035002f00ff010001750000001b001900001663646e2d6c66732e68756767696e67\
    666163652e636f000b000403000102000a00160014001d0017001e00190018010001010102010301040010000e000c02683208687474702f\
    312e31001600000017000000310000000d002a0028040305030603080708080809080a080b08040805080604010501060103030301030204\
    0205020602002b0009080304030303020301002d00020101003300260024001d0020221afb30791b22f5c8565e6444ef67233e6471561d3c\
    70f30c80c9682ccf3a15001500a7000000000000000000000000000000000000000000000000000000000000000000000000000000000000\
    0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000\
    0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000\
    00000000000000000000000000";

/// `openssl s_client -tls1_2 -servername cdn-lfs-us-1.hf.co`, captured on loopback.
const OPENSSL: &str = "\
    16030100d2010000ce03031cac230645bc07502a9e4e1d044a3826f7d3f7c9d173ec71c3ae6356d7680924000038c02cc030009fcca9cca8\
    ccaac02bc02f009ec024c028006bc023c0270067c00ac0140039c009c0130033009d009c003d003c0035002f00ff0100006d000000170015\
    00001263646e2d6c66732d75732d312e68662e636f000b000403000102000a000c000a001d0017001e001900180023000000160000001700\
    00000d002a0028040305030603080708080809080a080b080408050806040105010601030303010302040205020602";

/// Python's `ssl.create_default_context()` with server name `Transfer.XetHub.hf.co`, captured on loopback.
const PYTHON: &str = "\
    1603010200010001fc030354e7aa8c2ef33649eefe09edf7e3668f054068fea0f601630e48055d2ca33c32208d1665ef42d0d79497401c3c\
    8dfb2edea7cac80fa3e8a9b7ea0cc635be97181f0024130213031301c02cc030c02bc02fcca9cca8c024c028c023c027009f009e006b0067\
    00ff0100018f0000001a00180000155472616e736665722e5865744875622e68662e636f000b000403000102000a00160014001d0017001e\
    0019001801000101010201030104002300000016000000170000000d002a0028040305030603080708080809080a080b0804080508060401\
    05010601030303010302040205020602002b00050403040303002d00020101003300260024001d00206dee851cd89072959d307ab74d23a6\
    3f6f781481923a302580496e4b2664ca35001500d80000000000000000000000000000000000000000000000000000000000000000000000\
    0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000\
    0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000\
    0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000\
    00000000000000000000000000";

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn tls(sni: Option<&str>, ech: bool, alpn: &[&str]) -> Hello {
    let alpn = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    Hello::Tls { sni: sni.map(str::to_owned), ech, alpn }
}

/// One record's hello in records of `len` bytes.
fn fragmented(hello: &[u8], len: usize) -> Vec<u8> {
    let records = hello[RECORD_HEADER..].chunks(len);
    records.flat_map(|part| [&[22, 3, 1], &(part.len() as u16).to_be_bytes()[..], part].concat()).collect()
}

/// A hello with these extensions and nothing else to see.
fn hello_with(extensions: &[(u16, &[u8])]) -> Vec<u8> {
    let extensions: Vec<u8> = extensions
        .iter()
        .flat_map(|(kind, body)| [&kind.to_be_bytes()[..], &(body.len() as u16).to_be_bytes(), body].concat())
        .collect();
    let mut body = [&[3, 3][..], &[7; 32], &[0], &[0, 2, 0x13, 1], &[1, 0]].concat();
    body.extend_from_slice(&(extensions.len() as u16).to_be_bytes());
    body.extend_from_slice(&extensions);
    let message = [&[1, 0][..], &(body.len() as u16).to_be_bytes(), &body].concat();
    [&[22, 3, 1][..], &(message.len() as u16).to_be_bytes(), &message].concat()
}

const NAME: (u16, &[u8]) = (SERVER_NAME, b"\x00\x08\x00\x00\x05hf.co");

#[test]
fn real_clients_are_understood() {
    assert_eq!(parse(&bytes(CURL)), tls(Some("cdn-lfs.huggingface.co"), false, &["h2", "http/1.1"]));
    assert_eq!(parse(&bytes(OPENSSL)), tls(Some("cdn-lfs-us-1.hf.co"), false, &[]));
    assert_eq!(parse(&bytes(PYTHON)), tls(Some("transfer.xethub.hf.co"), false, &[]));
}

#[test]
fn what_follows_the_hello_does_not_matter() {
    let early_data = [bytes(CURL), b"\x17\x03\x03\x00\x05early".to_vec()].concat();
    assert_eq!(parse(&early_data), parse(&bytes(CURL)));
}

#[test]
fn a_hello_may_be_spread_over_records() {
    for len in [1, 3, 4, 5, 100, 511] {
        assert_eq!(parse(&fragmented(&bytes(CURL), len)), parse(&bytes(CURL)), "records of {len} bytes");
    }
}

#[test]
fn every_cut_asks_for_more_bytes_and_never_for_too_many() {
    for hello in [bytes(CURL), fragmented(&bytes(CURL), 1), fragmented(&bytes(PYTHON), 50)] {
        for cut in 0..hello.len() {
            match parse(&hello[..cut]) {
                Hello::Incomplete { needs } => assert!(cut < needs && needs <= hello.len(), "{needs} at {cut}"),
                other => panic!("{other:?} after {cut} bytes"),
            }
        }
    }
}

#[test]
fn whoever_follows_the_needs_gets_there() {
    let hello = fragmented(&bytes(CURL), 60);
    let mut have = 0;
    let mut rounds = 0;
    while let Hello::Incomplete { needs } = parse(&hello[..have]) {
        have = needs;
        rounds += 1;
    }
    assert_eq!(have, hello.len());
    assert!(rounds <= 2 * hello.len().div_ceil(60) + 2, "{rounds} rounds");
}

#[test]
fn other_protocols_are_told_by_their_first_byte() {
    for start in
        [&b"G"[..], b"GET / HTTP/1.1\r\n\r\n", b"SSH-2.0-x", b"\x16\x02", b"\x16\x03\x01\x00\x04\x02\x00\x00\x00"]
    {
        assert_eq!(parse(start), Hello::NotTls, "{start:?}");
    }
}

#[test]
fn lengths_beyond_the_bound_are_not_waited_for() {
    assert_eq!(parse(b"\x16\x03\x01\x40\x01"), Hello::NotTls, "a record longer than a record can be");
    assert_eq!(parse(b"\x16\x03\x01\x00\x00"), Hello::NotTls, "an empty record");
    assert_eq!(parse(b"\x16\x03\x01\x20\x00\x01\x00\x40\x00"), Hello::NotTls, "a message over 16 KiB");
    let drip = [22, 3, 1, 0, 1, 1, 22, 3, 1, 0, 1, 0, 22, 3, 1, 0, 1, 0x3f, 22, 3, 1, 0, 1, 0].to_vec();
    let drip = [drip, [22, 3, 1, 0, 1, 0].repeat(MAX_HELLO / 6)].concat();
    assert_eq!(parse(&drip), Hello::NotTls, "one byte a record, for ever");
}

#[test]
fn encrypted_client_hello_is_reported_beside_the_outer_name() {
    assert_eq!(parse(&hello_with(&[NAME, (ENCRYPTED_CLIENT_HELLO, &[0; 40])])), tls(Some("hf.co"), true, &[]));
    assert_eq!(parse(&hello_with(&[(ENCRYPTED_CLIENT_HELLO, &[])])), tls(None, true, &[]));
}

#[test]
fn a_repeated_extension_makes_a_hello_malformed() {
    assert_eq!(parse(&hello_with(&[NAME])), tls(Some("hf.co"), false, &[]));
    assert_eq!(parse(&hello_with(&[NAME, NAME])), Hello::NotTls);
}

#[test]
fn names_that_no_host_can_have_are_no_names() {
    for body in
        [&b"\x00\x05\x00\x00\x02a\x00"[..], b"\x00\x03\x00\x00\x00", b"\x00\x05\x00\x00\x02\xc3\xa4", b"\x00\x00"]
    {
        assert_eq!(parse(&hello_with(&[(SERVER_NAME, body)])), tls(None, false, &[]), "{body:?}");
    }
}

#[test]
fn lengths_that_do_not_add_up_make_a_hello_malformed() {
    assert_eq!(parse(&hello_with(&[(SERVER_NAME, b"\x00\x08\x00\x00\x06hf.co")])), Hello::NotTls);
    assert_eq!(parse(&hello_with(&[(ALPN, b"\x00\x03\x09h2")])), Hello::NotTls);
}

#[test]
fn a_hello_without_extensions_is_tls_without_a_name() {
    let body = [&[3, 3][..], &[7; 32], &[0], &[0, 2, 0, 0x2f], &[1, 0]].concat();
    let message = [&[1, 0, 0, body.len() as u8][..], &body].concat();
    assert_eq!(parse(&[&[22, 3, 1, 0, message.len() as u8][..], &message].concat()), tls(None, false, &[]));
}

proptest! {
    #[test]
    fn noise_never_panics_and_needs_only_grow(noise in prop::collection::vec(any::<u8>(), 0..600)) {
        let framed = [&[22, 3, 1, 2, 0, 1, 0, 1, 0xfc][..], &noise].concat();
        for input in [&noise, &framed] {
            if let Hello::Incomplete { needs } = parse(input) {
                prop_assert!(needs > input.len() && needs <= MAX_HELLO);
            }
        }
    }

    #[test]
    fn a_flipped_byte_never_panics(at in 0_usize..512, value: u8, record in 1_usize..600) {
        let mut hello = fragmented(&bytes(CURL), record);
        let at = at % hello.len();
        hello[at] = value;
        if let Hello::Incomplete { needs } = parse(&hello) {
            prop_assert!(needs > hello.len());
        }
    }
}
