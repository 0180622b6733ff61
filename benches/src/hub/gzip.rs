//! gzip with stored blocks only (RFC 1952, RFC 1951 section 3.2.4): enough for a response with a content encoding.

use bytes::Bytes;

const MAX_STORED: usize = 0xffff;
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];

/// An encoder; frames go out as content comes in.
#[derive(Debug, Default)]
pub(super) struct Gzip {
    started: bool,
    crc: Crc32,
    len: u32,
}

impl Gzip {
    pub(super) fn frames(&mut self, content: Bytes) -> Vec<Bytes> {
        let mut out = Vec::new();
        if !self.started {
            self.started = true;
            out.push(Bytes::from_static(&HEADER));
        }
        self.crc.update(&content);
        self.len = self.len.wrapping_add(content.len() as u32);
        let mut rest = content;
        while !rest.is_empty() {
            let part = rest.split_to(rest.len().min(MAX_STORED));
            out.push(block_header(false, part.len() as u16));
            out.push(part);
        }
        out
    }

    /// The empty last block, checksum and length.
    pub(super) fn trailer(mut self) -> Bytes {
        let mut out = Vec::new();
        out.extend(self.frames(Bytes::new()).into_iter().flatten());
        out.extend_from_slice(&block_header(true, 0));
        out.extend_from_slice(&self.crc.value().to_le_bytes());
        out.extend_from_slice(&self.len.to_le_bytes());
        out.into()
    }
}

fn block_header(last: bool, len: u16) -> Bytes {
    let [a, b] = len.to_le_bytes();
    Bytes::copy_from_slice(&[u8::from(last), a, b, !a, !b])
}

/// CRC-32 (ISO 3309), bit-reflected, a table of one byte.
#[derive(Debug)]
struct Crc32(u32);

impl Default for Crc32 {
    fn default() -> Self {
        Self(!0)
    }
}

impl Crc32 {
    fn update(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = TABLE[usize::from(self.0 as u8 ^ byte)] ^ (self.0 >> 8);
        }
    }

    fn value(&self) -> u32 {
        !self.0
    }
}

const TABLE: [u32; 256] = table();

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut value = index as u32;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 { 0xedb8_8320 ^ (value >> 1) } else { value >> 1 };
            bit += 1;
        }
        table[index] = value;
        index += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_standard_one() {
        let mut crc = Crc32::default();
        crc.update(b"123456789");
        assert_eq!(crc.value(), 0xcbf4_3926);
    }
}
