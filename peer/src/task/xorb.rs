//! What the bytes of a xorb must be [pure].
//!
//! A xorb is a row of chunks, each with a header that tells its length and how it is packed. A chunk's hash is a keyed
//! BLAKE3 of its unpacked bytes; the xorb's hash is the root of a tree over (hash, length) of all its chunks. A range that
//! is fetched starts and ends between chunks. So:
//!
//! - a range that holds all chunks is proven by the root;
//! - of a part of the chunks it is proven that they unpack to the lengths that they tell and fill the range exactly. Their
//!   content is not: nothing that hf_xet exchanges with the servers names a single chunk's hash. It is what came over the
//!   origin's TLS.

use std::io::Read as _;

use lz4_flex::frame::FrameDecoder;

use super::id::hex;

/// Version, length stored (3 bytes), scheme, length unpacked (3 bytes).
const HEADER: usize = 8;
/// 128 KiB: the longest chunk.
const MAX_CHUNK: usize = 128 << 10;
/// The longest that one is stored.
const MAX_STORED: usize = 2 * MAX_CHUNK;
/// Chunks in a xorb: eight times what is specified, 2.5 MiB of hashes.
const MAX_CHUNKS: usize = 64 << 10;
/// Children of a node of the tree at most.
const MAX_CHILDREN: usize = 9;
/// The specification's key for chunks.
const CHUNK_KEY: [u8; 32] = [
    0x66, 0x97, 0xf5, 0x77, 0x5b, 0x95, 0x50, 0xde, 0x31, 0x35, 0xcb, 0xac, 0xa5, 0x97, 0x18, 0x1c, 0x9d, 0xe4, 0x21,
    0x10, 0x9b, 0xeb, 0x2b, 0x58, 0xb4, 0xd0, 0xb0, 0x4b, 0x93, 0xad, 0xf2, 0x29,
];
/// The specification's key for nodes of the tree.
const NODE_KEY: [u8; 32] = [
    0x01, 0x7e, 0xc5, 0xc7, 0xa5, 0x47, 0x29, 0x96, 0xfd, 0x94, 0x66, 0x66, 0xb4, 0x8a, 0x02, 0xe6, 0x5d, 0xdd, 0x53,
    0x6f, 0x37, 0xc7, 0x6d, 0xd2, 0xf8, 0x63, 0x52, 0xe6, 0x4a, 0x53, 0x71, 0x3f,
];

/// Which bytes of which xorb a task says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The xorb's hash, its bytes in the order of the digits in a path.
    pub hash: [u8; 32],
    /// Offset of the task's first byte in the xorb.
    pub first: u64,
    /// Bytes in the xorb's object, where the origin told; a footer may follow the chunks in it.
    pub total: Option<u64>,
}

/// The bytes are not what the claim says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// No header of a chunk, or of a kind that is not known.
    #[error("no chunk header")]
    Header,
    /// It does not unpack, or not to the length that its header tells.
    #[error("a chunk does not unpack")]
    Chunk,
    /// More chunks than a xorb can have.
    #[error("too many chunks")]
    TooMany,
    /// Whole and well-formed, and of another hash.
    #[error("the chunks are not those of the xorb")]
    Root,
}

/// What is known of bytes that are not wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// All chunks of the xorb, each as its hash says.
    Proven,
    /// Whole chunks, well-formed.
    WellFormed,
}

/// A chunk's hash and unpacked length.
type Leaf = ([u8; 32], u64);

/// Follows a task's bytes.
pub struct XorbCheck {
    claim: Claim,
    chunks: Vec<Leaf>,
    fed: u64,
}

impl XorbCheck {
    /// Nothing fed yet.
    pub fn new(claim: Claim) -> Self {
        Self { claim, chunks: Vec::new(), fed: 0 }
    }

    /// Bytes of whole chunks so far: what is fed next starts there.
    pub fn fed(&self) -> u64 {
        self.fed
    }

    /// Takes the whole chunks that `bytes` begins with. What is left is to be fed again, with more behind it.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), Wrong> {
        let (mut rest, mut unpacked) = (bytes, Vec::new());
        while let Some(header) = Header::parse(rest)? {
            let Some(stored) = rest.get(HEADER..HEADER + header.stored) else { break };
            let data = header.unpack(stored, &mut unpacked)?;
            if self.chunks.len() == MAX_CHUNKS {
                return Err(Wrong::TooMany);
            }
            self.chunks.push((*blake3::keyed_hash(&CHUNK_KEY, data).as_bytes(), header.len as u64));
            self.fed += (HEADER + header.stored) as u64;
            rest = &rest[HEADER + header.stored..];
        }
        Ok(())
    }

    /// After the last byte of the task was fed.
    pub fn finish(self) -> Result<Right, Wrong> {
        if self.chunks.is_empty() {
            return Err(Wrong::Header);
        }
        let proven = self.claim.first == 0 && turned(&root(self.chunks.clone())) == self.claim.hash;
        match (proven, self.is_whole()) {
            (true, _) => Ok(Right::Proven),
            (false, true) => Err(Wrong::Root),
            (false, false) => Ok(Right::WellFormed),
        }
    }

    /// Whether nothing but a footer follows, in the object, the chunks that were fed. A footer's length follows from their
    /// number.
    fn is_whole(&self) -> bool {
        let Some(after) = self.claim.total.and_then(|total| total.checked_sub(self.fed)) else { return false };
        let chunks = self.chunks.len() as u64;
        let footers = [0, 64 + 36 * chunks, 96 + 40 * chunks];
        self.claim.first == 0 && footers.contains(&after)
    }
}

/// A chunk's header.
struct Header {
    stored: usize,
    scheme: u8,
    len: usize,
}

impl Header {
    /// `None`: more bytes are needed.
    fn parse(bytes: &[u8]) -> Result<Option<Self>, Wrong> {
        let Some(&[version, s0, s1, s2, scheme, l0, l1, l2]) = bytes.first_chunk::<HEADER>() else { return Ok(None) };
        let number = |bytes: [u8; 3]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], 0]) as usize;
        let (stored, len) = (number([s0, s1, s2]), number([l0, l1, l2]));
        let known = version == 0 && scheme <= 2 && (1..=MAX_CHUNK).contains(&len) && (1..=MAX_STORED).contains(&stored);
        if known { Ok(Some(Self { stored, scheme, len })) } else { Err(Wrong::Header) }
    }

    /// The chunk's bytes, in `stored` itself or in `room`.
    fn unpack<'a>(&self, stored: &'a [u8], room: &'a mut Vec<u8>) -> Result<&'a [u8], Wrong> {
        let data = match self.scheme {
            0 => stored,
            _ => {
                room.clear();
                let most = self.len as u64 + 1;
                FrameDecoder::new(stored).take(most).read_to_end(room).map_err(|_| Wrong::Chunk)?;
                if self.scheme == 2 {
                    *room = regrouped(room);
                }
                room
            }
        };
        if data.len() == self.len { Ok(data) } else { Err(Wrong::Chunk) }
    }
}

/// Undoes the grouping of every fourth byte: the first group has the first byte of each four, and so on.
fn regrouped(grouped: &[u8]) -> Vec<u8> {
    let mut data = vec![0; grouped.len()];
    let mut rest = grouped;
    for first in 0..4 {
        let (group, others) = rest.split_at((grouped.len() + 3 - first) / 4);
        data.iter_mut().skip(first).step_by(4).zip(group).for_each(|(byte, from)| *byte = *from);
        rest = others;
    }
    data
}

/// The root of the tree.
fn root(mut level: Vec<Leaf>) -> [u8; 32] {
    while level.len() > 1 {
        let mut above = Vec::with_capacity(level.len() / 2 + 1);
        let mut rest = level.as_slice();
        while !rest.is_empty() {
            let (children, others) = rest.split_at(children(rest));
            above.push(node(children));
            rest = others;
        }
        level = above;
    }
    level.first().map_or([0; 32], |(hash, _)| *hash)
}

/// A node ends after its third or a later child whose hash, as a number, four divides; with the ninth at the latest.
fn children(level: &[Leaf]) -> usize {
    let most = level.len().min(MAX_CHILDREN);
    (2..most).find(|&index| level[index].0[24].is_multiple_of(4)).map_or(most, |index| index + 1)
}

/// A line a child: its hash as text, its length.
fn node(children: &[Leaf]) -> Leaf {
    let (mut hasher, mut len) = (blake3::Hasher::new_keyed(&NODE_KEY), 0);
    for (hash, child) in children {
        hasher.update(format!("{} : {child}\n", hex(&turned(hash))).as_bytes());
        len += child;
    }
    (*hasher.finalize().as_bytes(), len)
}

/// Between a digest and its text: each group of eight bytes is turned round.
fn turned(hash: &[u8; 32]) -> [u8; 32] {
    std::array::from_fn(|index| hash[index / 8 * 8 + 7 - index % 8])
}

#[cfg(test)]
#[path = "xorb_tests.rs"]
mod tests;
