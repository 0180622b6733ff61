//! Xorbs: checked alike however they arrive; what is built as the format says is well-formed, and proven by no wrong hash.

use std::io::Write as _;

use arbitrary::{Result, Unstructured};
use lz4_flex::frame::{FrameEncoder, FrameInfo};
use pondhawk::task::xorb::{Claim, Right, Wrong, XorbCheck};

/// Bytes that a chunk of a built xorb unpacks to at most.
const MAX_BUILT: usize = 4096;
/// Chunks of a built xorb at most.
const MAX_CHUNKS: usize = 40;

/// Runs the target: the first byte chooses between raw bytes and a built xorb.
pub fn run(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    if kind % 2 == 0 {
        check_raw(bytes);
    } else {
        // Input that ends early builds nothing.
        let _ = check_built(&mut Unstructured::new(bytes));
    }
}

fn check_raw(bytes: &[u8]) {
    let claim = Claim { hash: [0; 32], first: 0, total: Some(bytes.len() as u64) };
    let whole = check(claim, bytes, bytes.len().max(1));
    for step in [1, 13] {
        assert_eq!(check(claim, bytes, step), whole, "in parts of {step} bytes");
    }
    assert_ne!(whole, Ok(Right::Proven), "a hash of zeroes has been found");
}

/// The verdict on bytes that come in parts, with what was left of each fed again.
fn check(claim: Claim, bytes: &[u8], step: usize) -> std::result::Result<Right, Wrong> {
    let mut check = XorbCheck::new(claim);
    let mut have = 0;
    while have < bytes.len() {
        have = (have + step).min(bytes.len());
        let fed = usize::try_from(check.fed()).expect("no more than was given");
        check.feed(&bytes[fed..have])?;
        assert!(check.fed() as usize >= fed && check.fed() as usize <= have);
    }
    check.finish()
}

fn check_built(input: &mut Unstructured<'_>) -> Result<()> {
    let mut xorb = Vec::new();
    for _ in 0..input.int_in_range(1..=MAX_CHUNKS)? {
        let data = chunk_data(input)?;
        let scheme = input.int_in_range(0..=2)?;
        let stored = match scheme {
            0 => data.clone(),
            1 => packed(&data),
            _ => packed(&grouped(&data)),
        };
        let [s0, s1, s2, _] = u32::try_from(stored.len()).unwrap_or(0).to_le_bytes();
        let [l0, l1, l2, _] = u32::try_from(data.len()).unwrap_or(0).to_le_bytes();
        xorb.extend([0, s0, s1, s2, scheme, l0, l1, l2]);
        xorb.extend(stored);
    }
    let part = Claim { hash: [1; 32], first: 1, total: None };
    assert_eq!(check(part, &xorb, 977), Ok(Right::WellFormed));
    let whole = Claim { hash: [1; 32], first: 0, total: Some(xorb.len() as u64) };
    assert_eq!(check(whole, &xorb, 4096), Err(Wrong::Root));
    Ok(())
}

/// From one byte on, compressible or not.
fn chunk_data(input: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let len = input.int_in_range(1..=MAX_BUILT)?;
    let pattern = input.bytes(input.len().min(16))?;
    Ok(pattern.iter().chain([&7]).copied().cycle().take(len).collect())
}

fn packed(data: &[u8]) -> Vec<u8> {
    let mut encoder = FrameEncoder::with_frame_info(FrameInfo::new(), Vec::new());
    encoder.write_all(data).expect("memory takes everything");
    encoder.finish().expect("memory takes everything")
}

/// The first group has the first byte of every four, and so on.
fn grouped(data: &[u8]) -> Vec<u8> {
    (0..4).flat_map(|first| data.iter().skip(first).step_by(4).copied()).collect()
}
