//! A file's chunks, how they are packed, and the bytes of a xorb made as they are asked for.

use std::{
    io::{self, Write},
    ops::Range,
    sync::Arc,
};

use bytes::Bytes;
use lz4_flex::frame::FrameEncoder;

use super::{
    XetShape,
    hash::{self, Hash},
};
use crate::hub::content::Source;

const CHUNK: u64 = 64 << 10;
const HEADER: usize = 8;

/// How a chunk is stored, by the number in its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    None = 0,
    Lz4 = 1,
    /// Every fourth byte together, then LZ4.
    Grouped = 2,
}

#[derive(Clone, Copy, Debug)]
struct Chunk {
    hash: Hash,
    /// In the file.
    at: u64,
    len: u32,
    scheme: Scheme,
    /// In the xorb, with the header.
    place: u64,
    stored: u32,
}

/// A xorb: a run of the file's chunks.
#[derive(Clone, Debug)]
pub(in crate::hub) struct Xorb {
    pub(in crate::hub) name: String,
    chunks: Range<usize>,
    pub(in crate::hub) len: u64,
}

/// A file in Xet's storage.
#[derive(Debug)]
pub(in crate::hub) struct XetFile {
    pub(in crate::hub) name: String,
    pub(in crate::hub) xorbs: Vec<Xorb>,
    source: Arc<Source>,
    chunks: Arc<[Chunk]>,
    shape: XetShape,
}

/// A run of chunks of one xorb, as a reconstruction names it.
#[derive(Debug)]
pub(super) struct Term<'a> {
    pub(super) xorb: &'a Xorb,
    /// Numbers of chunks in the xorb.
    pub(super) chunks: Range<usize>,
    /// Bytes in the xorb.
    pub(super) bytes: Range<u64>,
    /// Bytes of the file in it.
    pub(super) unpacked: u64,
}

impl XetFile {
    /// Reads the whole file once.
    pub(in crate::hub) fn new(source: Source, shape: XetShape) -> io::Result<Self> {
        let (mut chunks, mut xorbs) = (Vec::<Chunk>::new(), Vec::new());
        let (mut at, mut place, mut first) = (0, 0, 0);
        while at < source.len() {
            let data = read(&source, at, CHUNK.min(source.len() - at))?;
            let (scheme, packed) = pack(&data);
            let (len, stored) = (data.len() as u32, (HEADER + packed.len()) as u32);
            chunks.push(Chunk { hash: hash::chunk(&data), at, len, scheme, place, stored });
            at += u64::from(len);
            place += u64::from(stored);
            if chunks.len() - first == shape.xorb_chunks.max(1) as usize || at == source.len() {
                let name = hash::text(&hash::root(chunks[first..].iter().map(Chunk::leaf)));
                xorbs.push(Xorb { name, chunks: first..chunks.len(), len: place });
                (place, first) = (0, chunks.len());
            }
        }
        let name = hash::text(&hash::file(chunks.iter().map(Chunk::leaf)));
        Ok(Self { name, xorbs, source: Arc::new(source), chunks: chunks.into(), shape })
    }

    pub(super) fn len(&self) -> u64 {
        self.source.len()
    }

    /// The bytes of one of its xorbs.
    pub(in crate::hub) fn bytes_of(&self, xorb: &Xorb) -> XorbBytes {
        let chunks = Arc::clone(&self.chunks);
        XorbBytes { source: Arc::clone(&self.source), chunks, range: xorb.chunks.clone(), len: xorb.len }
    }

    /// What makes these bytes of the file, and how much of the first term comes before them.
    pub(super) fn terms(&self, wanted: &Range<u64>) -> (u64, Vec<Term<'_>>) {
        let first = self.chunks.partition_point(|chunk| chunk.at + u64::from(chunk.len) <= wanted.start);
        let end = self.chunks.partition_point(|chunk| chunk.at < wanted.end);
        let before = self.chunks.get(first).map_or(0, |chunk| wanted.start - chunk.at);
        let most = self.shape.term_chunks.max(1) as usize;
        let mut terms = Vec::new();
        for xorb in &self.xorbs {
            let cuts = xorb.chunks.clone().step_by(most);
            let runs = cuts.map(|cut| cut.max(first)..(cut + most).min(xorb.chunks.end).min(end));
            terms.extend(runs.filter(|run| !run.is_empty()).map(|run| self.term(xorb, run)));
        }
        (before, terms)
    }

    fn term<'a>(&self, xorb: &'a Xorb, run: Range<usize>) -> Term<'a> {
        let chunks = &self.chunks[run.clone()];
        let end = chunks.last().map_or(0, |last| last.place + u64::from(last.stored));
        Term {
            xorb,
            chunks: run.start - xorb.chunks.start..run.end - xorb.chunks.start,
            bytes: chunks.first().map_or(0, |chunk| chunk.place)..end,
            unpacked: chunks.iter().map(|chunk| u64::from(chunk.len)).sum(),
        }
    }
}

impl Chunk {
    fn leaf(&self) -> (Hash, u64) {
        (self.hash, self.len.into())
    }
}

/// A xorb as it is served: its chunks with their headers.
#[derive(Debug)]
pub(in crate::hub) struct XorbBytes {
    source: Arc<Source>,
    chunks: Arc<[Chunk]>,
    range: Range<usize>,
    len: u64,
}

impl XorbBytes {
    pub(in crate::hub) fn len(&self) -> u64 {
        self.len
    }

    /// At least one and at most `max` bytes at `offset`, which lies inside.
    pub(in crate::hub) fn chunk(&self, offset: u64, max: usize) -> io::Result<Bytes> {
        let chunks = &self.chunks[self.range.clone()];
        let index = chunks.partition_point(|chunk| chunk.place + u64::from(chunk.stored) <= offset);
        let chunk = &chunks[index];
        let data = read(&self.source, chunk.at, chunk.len.into())?;
        let packed = packed(chunk.scheme, &data);
        let mut stored = Vec::with_capacity(HEADER + packed.len());
        stored.extend(header(chunk.scheme, packed.len(), data.len()));
        stored.extend(packed);
        let start = (offset - chunk.place) as usize;
        let end = stored.len().min(start.saturating_add(max));
        Ok(Bytes::from(stored).slice(start..end))
    }
}

fn read(source: &Source, at: u64, len: u64) -> io::Result<Vec<u8>> {
    let mut data = Vec::with_capacity(len as usize);
    while (data.len() as u64) < len {
        let part = source.chunk(at + data.len() as u64, len as usize - data.len(), 0)?;
        data.extend_from_slice(&part);
    }
    Ok(data)
}

/// Version, length stored, scheme, length unpacked; numbers of three bytes, the lowest first.
fn header(scheme: Scheme, packed: usize, len: usize) -> [u8; HEADER] {
    let (p, l) = ((packed as u32).to_le_bytes(), (len as u32).to_le_bytes());
    [0, p[0], p[1], p[2], scheme as u8, l[0], l[1], l[2]]
}

/// The shortest form.
fn pack(data: &[u8]) -> (Scheme, Vec<u8>) {
    let forms = [Scheme::None, Scheme::Lz4, Scheme::Grouped].map(|scheme| (scheme, packed(scheme, data)));
    forms.into_iter().min_by_key(|(_, packed)| packed.len()).expect("there are three")
}

fn packed(scheme: Scheme, data: &[u8]) -> Vec<u8> {
    match scheme {
        Scheme::None => data.to_vec(),
        Scheme::Lz4 => compressed(data),
        Scheme::Grouped => {
            let grouped: Vec<u8> = (0..4).flat_map(|first| data.iter().skip(first).step_by(4)).copied().collect();
            compressed(&grouped)
        }
    }
}

fn compressed(data: &[u8]) -> Vec<u8> {
    let mut encoder = FrameEncoder::new(Vec::new());
    encoder.write_all(data).expect("memory takes everything");
    encoder.finish().expect("memory takes everything")
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use lz4_flex::frame::FrameDecoder;

    use super::*;
    use crate::hub::content::{BlockCache, Content, Source};

    fn open(content: Content) -> Source {
        Source::open(content, &Arc::new(BlockCache::new(0))).unwrap()
    }

    fn whole(file: &XetFile, xorb: &Xorb) -> Vec<u8> {
        let bytes = file.bytes_of(xorb);
        let mut all = Vec::new();
        while (all.len() as u64) < bytes.len() {
            all.extend_from_slice(&bytes.chunk(all.len() as u64, 10_000).unwrap());
        }
        all
    }

    #[test]
    fn terms_cover_what_is_asked_for_and_no_xorb_twice() {
        let file = XetFile::new(open(Content::seeded(1_000_000, 3)), XetShape { xorb_chunks: 6, term_chunks: 4 });
        let file = file.unwrap();
        assert_eq!(file.xorbs.len(), 3);
        let (before, terms) = file.terms(&(100_000..1_000_000));
        assert_eq!(before, 100_000 - 65_536);
        assert_eq!(terms.iter().map(|term| term.unpacked).sum::<u64>(), 1_000_000 - 65_536);
        assert_eq!(terms.iter().map(|term| term.chunks.clone()).collect::<Vec<_>>(), [1..4, 4..6, 0..4, 4..6, 0..4]);
        assert_eq!(terms[1].bytes.end, file.xorbs[0].len);
    }

    #[test]
    fn compressible_chunks_are_stored_in_lz4_and_unpack_to_the_file() {
        let text = "a line that repeats itself\n".repeat(10_000).into_bytes();
        let file = XetFile::new(open(Content::bytes(text.clone())), XetShape::default()).unwrap();
        let (stored, mut at, mut unpacked) = (whole(&file, &file.xorbs[0]), 0, Vec::new());
        assert!(stored.len() < text.len() / 10);
        while at < stored.len() {
            let len = u32::from_le_bytes([stored[at + 1], stored[at + 2], stored[at + 3], 0]) as usize;
            assert_eq!(stored[at + 4], 1);
            FrameDecoder::new(&stored[at + 8..at + 8 + len]).read_to_end(&mut unpacked).unwrap();
            at += 8 + len;
        }
        assert!(unpacked == text);
    }
}
