//! Chunks of every scheme, cut and damaged at random.

use std::io::Write as _;

use lz4_flex::frame::FrameEncoder;
use proptest::prelude::*;

use super::*;
use crate::task::id::parse_hex32;

/// A chunk as it is stored.
fn stored(scheme: u8, data: &[u8]) -> Vec<u8> {
    let compressed = |data: &[u8]| {
        let mut encoder = FrameEncoder::new(Vec::new());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    };
    let packed = match scheme {
        0 => data.to_vec(),
        1 => compressed(data),
        _ => compressed(&(0..4).flat_map(|first| data.iter().skip(first).step_by(4)).copied().collect::<Vec<_>>()),
    };
    let (s, l) = ((packed.len() as u32).to_le_bytes(), (data.len() as u32).to_le_bytes());
    [&[0, s[0], s[1], s[2], scheme, l[0], l[1], l[2]], packed.as_slice()].concat()
}

/// A xorb of these chunks: its bytes, and the hash in its name.
fn xorb(chunks: &[(u8, Vec<u8>)]) -> (Vec<u8>, [u8; 32]) {
    let leaves = chunks.iter().map(|(_, data)| (*blake3::keyed_hash(&CHUNK_KEY, data).as_bytes(), data.len() as u64));
    let bytes = chunks.iter().flat_map(|(scheme, data)| stored(*scheme, data)).collect();
    (bytes, turned(&root(leaves.collect())))
}

/// Feeds as the digest thread does: what was not taken comes again with what follows it.
fn check(claim: Claim, bytes: &[u8], step: usize) -> Result<Right, Wrong> {
    let mut check = XorbCheck::new(claim);
    let mut end = 0;
    while end < bytes.len() {
        end = (end + step).min(bytes.len());
        check.feed(&bytes[usize::try_from(check.fed()).unwrap()..end])?;
    }
    if check.fed() == bytes.len() as u64 { check.finish() } else { Err(Wrong::Chunk) }
}

fn chunks() -> impl Strategy<Value = Vec<(u8, Vec<u8>)>> {
    let data = prop_oneof![
        proptest::collection::vec(any::<u8>(), 1..300),
        (any::<u8>(), 1..3000_usize).prop_map(|(byte, len)| vec![byte; len]),
    ];
    proptest::collection::vec((0..3_u8, data), 1..40)
}

fn hex(text: &str) -> [u8; 32] {
    turned(&parse_hex32(text).unwrap())
}

/// Values of the reference implementation.
#[test]
fn trees_are_those_of_the_specification() {
    let a = ("cfc5d07f6f03c29bbf424132963fe08d19a37d5757aaf520bf08119f05cd56d6", 100);
    let b = ("c3e67584b5c4fc2a89837ec39e40f2c8a6bb0b2987ac94cd4b31e5fbdd210a72", 200);
    let c = ("0d2beb91b9196929a5ddec9f6e306924ddf4a24268e3e59fd8464738d525af37", 300);
    let d = ("adf8773496a9b7319b2e50dc98093f344053b17d8ad37100b9c07d9805988784", 400);
    for (leaves, expected) in [
        (vec![a], a.0),
        (vec![a, b, c], "71ec1275fca074724e2dd666921b3277c7cee603e4d025bcab2d4050015be2bc"),
        (vec![a; 4], "89f2ada89ff8c96763c6b25010e6dd76a4c05b1466207633ea559acf2093211b"),
        (vec![a, b, a, b], "90f8313ef12df385d237a067aded02562c35ded12116e32eba401dbc86c38031"),
        (vec![a, b, a, b, c, d], "52c826f99507aa05d0b45e9837fa1709e0485425cfbcb1e80db3905cf98b3ee9"),
    ] {
        let root = root(leaves.iter().map(|(hash, len)| (hex(hash), *len)).collect());
        assert_eq!(root, hex(expected), "{} leaves", leaves.len());
    }
}

#[test]
fn a_whole_xorb_of_another_hash_is_wrong_with_and_without_a_footer() {
    let (bytes, hash) = xorb(&[(0, vec![1; 100]), (1, vec![2; 5000])]);
    let len = bytes.len() as u64;
    let claim = |hash, first, total| Claim { hash, first, total };
    assert_eq!(check(claim(hash, 0, None), &bytes, 64), Ok(Right::Proven));
    for (total, found) in [
        (Some(len), Err(Wrong::Root)),
        (Some(len + 96 + 80), Err(Wrong::Root)),
        (Some(len + 64 + 72), Err(Wrong::Root)),
        (Some(len + 5000), Ok(Right::WellFormed)),
        (None, Ok(Right::WellFormed)),
    ] {
        assert_eq!(check(claim([7; 32], 0, total), &bytes, 1000), found, "{total:?}");
    }
    assert_eq!(check(claim(hash, 9, Some(len + 9)), &bytes, 1000), Ok(Right::WellFormed));
}

#[test]
fn lengths_and_kinds_that_cannot_be_are_refused_before_anything_is_unpacked() {
    for header in [
        [1, 1, 0, 0, 0, 1, 0, 0],
        [0, 1, 0, 0, 3, 1, 0, 0],
        [0, 1, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 1, 0, 0],
        [0, 1, 0, 0, 1, 1, 0, 2],
        [0, 1, 0, 4, 1, 1, 0, 0],
        *b"XETBLOB\0",
    ] {
        assert!(matches!(Header::parse(&header), Err(Wrong::Header)), "{header:?}");
    }
    // A frame that unpacks to far more than it tells.
    let mut bomb = stored(1, &vec![0; MAX_CHUNK]);
    bomb[5..8].copy_from_slice(&[1, 0, 0]);
    let claim = Claim { hash: [0; 32], first: 0, total: None };
    assert_eq!(check(claim, &bomb, 1 << 20), Err(Wrong::Chunk));
}

proptest! {
    #[test]
    fn however_the_bytes_are_cut_a_whole_xorb_is_proven(chunks in chunks(), step in 1..5000_usize) {
        let (bytes, hash) = xorb(&chunks);
        let claim = Claim { hash, first: 0, total: Some(bytes.len() as u64) };
        prop_assert_eq!(check(claim, &bytes, step), Ok(Right::Proven));
    }

    #[test]
    fn a_changed_byte_of_a_whole_xorb_is_found_unless_it_changes_no_content(
        chunks in chunks(), at: prop::sample::Index, flip in 1..=255_u8, step in 1..5000_usize,
    ) {
        let (mut bytes, hash) = xorb(&chunks);
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        let claim = Claim { hash, first: 0, total: Some(bytes.len() as u64) };
        // The same bytes can be packed in more than one way; proven are the unpacked ones.
        if check(claim, &bytes, step) == Ok(Right::Proven) {
            let (mut unpacked, mut rest, mut room) = (Vec::new(), bytes.as_slice(), Vec::new());
            while let Some(header) = Header::parse(rest).unwrap() {
                unpacked.extend_from_slice(header.unpack(&rest[HEADER..HEADER + header.stored], &mut room).unwrap());
                rest = &rest[HEADER + header.stored..];
            }
            prop_assert_eq!(unpacked, chunks.into_iter().flat_map(|(_, data)| data).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_part_that_is_cut_within_a_chunk_is_wrong(chunks in chunks(), cut: prop::sample::Index, step in 1..5000_usize) {
        let (bytes, hash) = xorb(&chunks);
        let mut ends: Vec<usize> = vec![0];
        for (scheme, data) in &chunks {
            ends.push(ends.last().unwrap() + stored(*scheme, data).len());
        }
        let cut = cut.index(bytes.len());
        let claim = Claim { hash, first: 0, total: Some(bytes.len() as u64) };
        prop_assert_eq!(check(claim, &bytes[..cut], step).is_ok(), ends[1..].contains(&cut));
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000), step in 1..100_usize) {
        let _ = check(Claim { hash: [0; 32], first: 0, total: Some(5) }, &bytes, step);
    }
}
