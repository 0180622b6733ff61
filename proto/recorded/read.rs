//! What an older version said, for the tests of those who have to understand it.

use prost::Message;

/// The messages of version 0.1.0's `who` in their order, by kind.
pub(crate) fn recorded<M: Message + Default>(who: &str) -> Vec<(&'static str, M)> {
    let lines = include_str!("0.1.0.txt").lines();
    let said = lines.filter_map(|line| line.strip_prefix(who)?.strip_prefix(' '));
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    let message = |line: &'static str| {
        let (kind, hex) = line.split_once(' ').unwrap();
        let bytes: Vec<u8> = hex.as_bytes().chunks(2).map(byte).collect();
        (kind, M::decode(&bytes[..]).unwrap())
    };
    said.map(message).collect()
}
