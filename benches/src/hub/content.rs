//! Where an object's bytes come from.
//!
//! Seeded content needs no memory: the 64-bit word at index w is a mix of seed and w (splitmix64), so any offset can be
//! generated alone. Generating costs about 0.2 s a GiB; a [`BlockCache`] takes that away for what fits into it.

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use aws_lc_rs::digest;
use bytes::Bytes;

use super::xet::XorbBytes;

/// The bytes of a file on the hub.
#[derive(Clone, Debug)]
pub enum Content {
    /// Held in memory.
    Bytes(Bytes),
    /// Generated on the fly, the same for the same seed: [`seeded`] gives any part of it.
    Seeded {
        /// Bytes.
        len: u64,
        /// Any number; different seeds give unrelated bytes.
        seed: u64,
    },
    /// Read from disk as it is asked for; must not change while the hub runs.
    Path(PathBuf),
}

impl Content {
    /// Content from a string or vector held in memory.
    pub fn bytes(bytes: impl Into<Bytes>) -> Self {
        Self::Bytes(bytes.into())
    }

    /// Generated content of `len` bytes.
    pub fn seeded(len: u64, seed: u64) -> Self {
        Self::Seeded { len, seed }
    }
}

/// Bytes `offset .. offset + len` of the seeded content of this seed.
pub fn seeded(seed: u64, offset: u64, len: usize) -> Vec<u8> {
    let skip = (offset % 8) as usize;
    let mut out = vec![0; (skip + len).next_multiple_of(8)];
    for (word, index) in out.chunks_exact_mut(8).zip(offset / 8..) {
        word.copy_from_slice(&mix(seed, index).to_le_bytes());
    }
    out.truncate(skip + len);
    if skip > 0 {
        out.drain(..skip);
    }
    out
}

/// splitmix64's output function over a counter (Steele, Lea, Flood 2014).
fn mix(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

const BLOCK: u64 = 1 << 20;

/// Generated blocks kept in memory, first come stays, up to a total.
///
/// There is no eviction: files are read from front to back, where evicting the oldest would leave no hits at all.
#[derive(Debug)]
pub(super) struct BlockCache {
    limit: u64,
    blocks: Mutex<HashMap<(u64, u64), Bytes>>,
}

impl BlockCache {
    pub(super) fn new(limit: u64) -> Self {
        Self { limit, blocks: Mutex::default() }
    }

    fn chunk(&self, seed: u64, offset: u64, max: usize) -> Bytes {
        let index = offset / BLOCK;
        let within = (offset % BLOCK) as usize;
        let len = max.min(BLOCK as usize - within);
        match self.block(seed, index) {
            Some(block) => block.slice(within..within + len),
            None => seeded(seed, offset, len).into(),
        }
    }

    fn block(&self, seed: u64, index: u64) -> Option<Bytes> {
        {
            let blocks = self.blocks.lock().expect("no holder panics");
            if let Some(block) = blocks.get(&(seed, index)) {
                return Some(block.clone());
            }
            if (blocks.len() as u64 + 1) * BLOCK > self.limit {
                return None;
            }
        }
        let block = Bytes::from(seeded(seed, index * BLOCK, BLOCK as usize));
        let mut blocks = self.blocks.lock().expect("no holder panics");
        if (blocks.len() as u64 + 1) * BLOCK <= self.limit {
            blocks.insert((seed, index), block.clone());
        }
        Some(block)
    }
}

/// Content opened for serving.
#[derive(Debug)]
pub(super) struct Source {
    kind: Kind,
    len: u64,
}

#[derive(Debug)]
enum Kind {
    Bytes(Bytes),
    Seeded { seed: u64, cache: Arc<BlockCache> },
    File(File),
    Xorb(XorbBytes),
}

impl Source {
    pub(super) fn open(content: Content, cache: &Arc<BlockCache>) -> io::Result<Self> {
        Ok(match content {
            Content::Bytes(bytes) => Self { len: bytes.len() as u64, kind: Kind::Bytes(bytes) },
            Content::Seeded { len, seed } => Self { len, kind: Kind::Seeded { seed, cache: Arc::clone(cache) } },
            Content::Path(path) => {
                let file = File::open(path)?;
                Self { len: file.metadata()?.len(), kind: Kind::File(file) }
            }
        })
    }

    pub(super) fn of_xorb(xorb: XorbBytes) -> Self {
        Self { len: xorb.len(), kind: Kind::Xorb(xorb) }
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// At least one and at most `max` bytes at `offset`, which lies inside; `generation` > 0 is the object as it is
    /// after that many changes: every byte differs.
    pub(super) fn chunk(&self, offset: u64, max: usize, generation: u8) -> io::Result<Bytes> {
        let max = (max as u64).min(self.len.saturating_sub(offset)) as usize;
        let bytes = match &self.kind {
            Kind::Bytes(bytes) => bytes.slice(offset as usize..offset as usize + max),
            Kind::Seeded { seed, cache } => cache.chunk(*seed, offset, max),
            Kind::File(file) => {
                let mut buffer = vec![0; max];
                file.read_exact_at(&mut buffer, offset)?;
                buffer.into()
            }
            Kind::Xorb(xorb) => xorb.chunk(offset, max)?,
        };
        Ok(if generation == 0 { bytes } else { bytes.iter().map(|byte| byte ^ generation).collect() })
    }

    /// SHA-256 of the whole.
    pub(super) fn sha256(&self) -> io::Result<[u8; 32]> {
        let mut context = digest::Context::new(&digest::SHA256);
        let mut at = 0;
        while at < self.len {
            let chunk = self.chunk(at, 256 << 10, 0)?;
            context.update(&chunk);
            at += chunk.len() as u64;
        }
        Ok(context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_part_of_seeded_content_can_be_made_alone() {
        let whole = seeded(7, 0, 4096);
        for (offset, len) in [(0, 1), (1, 7), (5, 100), (8, 16), (4095, 1), (1000, 0)] {
            assert_eq!(seeded(7, offset as u64, len), whole[offset..offset + len]);
        }
        assert_ne!(seeded(8, 0, 4096), whole);
    }

    #[test]
    fn a_full_cache_gives_the_same_bytes_as_none() {
        let small = BlockCache::new(BLOCK);
        let none = BlockCache::new(0);
        for offset in [0, BLOCK - 10, BLOCK, BLOCK + 3, 5 * BLOCK] {
            assert_eq!(small.chunk(1, offset, 100), none.chunk(1, offset, 100));
        }
        assert_eq!(small.blocks.lock().unwrap().len(), 1);
    }

    #[test]
    fn a_file_on_disk_hashes_like_its_bytes() {
        let cache = Arc::new(BlockCache::new(0));
        let mut file = tempfile::NamedTempFile::new().unwrap();
        io::Write::write_all(&mut file, b"abc").unwrap();
        let source = Source::open(Content::Path(file.path().into()), &cache).unwrap();
        assert_eq!(source.len(), 3);
        let digest = digest::digest(&digest::SHA256, b"abc");
        assert_eq!(source.sha256().unwrap().as_slice(), digest.as_ref());
    }
}
