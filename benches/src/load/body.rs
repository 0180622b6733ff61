//! Where a response's body ends (RFC 9112, section 6).

/// How a body is delimited, and what of it is still to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// So many bytes are left.
    Length(u64),
    /// In chunks.
    Chunked(Chunk),
    /// Until the connection ends.
    UntilEnd,
}

/// What comes next of a chunked body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chunk {
    /// The line with a chunk's size, of which this is known.
    Size { value: u64, digits: u32, extension: bool },
    /// So many bytes of data.
    Data(u64),
    /// The line break after data.
    DataEnd,
    /// Lines after the last chunk, up to an empty one.
    Trailer { empty: bool },
    /// Nothing.
    Done,
}

const SIZE: Chunk = Chunk::Size { value: 0, digits: 0, extension: false };

/// What a chunk starts with is no size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a chunk without a size")]
pub(super) struct BadChunk;

impl Body {
    pub(super) fn chunked() -> Self {
        Self::Chunked(SIZE)
    }

    /// Whether all of it was there. One that ends with the connection never knows.
    pub(super) fn is_done(&self) -> bool {
        matches!(self, Self::Length(0) | Self::Chunked(Chunk::Done))
    }

    /// Gives the body's own bytes to `sink`; how many of `bytes` belong to it. Fewer than all: the rest comes after the body.
    pub(super) fn take(&mut self, bytes: &[u8], mut sink: impl FnMut(&[u8])) -> Result<usize, BadChunk> {
        match self {
            Self::UntilEnd => {
                sink(bytes);
                Ok(bytes.len())
            }
            Self::Length(left) => {
                let data = &bytes[..bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX))];
                sink(data);
                *left -= data.len() as u64;
                Ok(data.len())
            }
            Self::Chunked(chunk) => {
                let mut used = 0;
                while used < bytes.len() && *chunk != Chunk::Done {
                    if let Chunk::Data(left) = chunk {
                        let len = (bytes.len() - used).min(usize::try_from(*left).unwrap_or(usize::MAX));
                        sink(&bytes[used..used + len]);
                        used += len;
                        *left -= len as u64;
                        if *left == 0 {
                            *chunk = Chunk::DataEnd;
                        }
                    } else {
                        *chunk = chunk.after(bytes[used])?;
                        used += 1;
                    }
                }
                Ok(used)
            }
        }
    }
}

impl Chunk {
    /// What comes after this byte, which is none of the data.
    fn after(self, byte: u8) -> Result<Self, BadChunk> {
        Ok(match (self, byte) {
            (Self::Size { value: 0, digits: 1.., .. }, b'\n') => Self::Trailer { empty: true },
            (Self::Size { value, digits: 1.., .. }, b'\n') => Self::Data(value),
            (Self::DataEnd, b'\n') => SIZE,
            (Self::Trailer { empty: true }, b'\n') => Self::Done,
            (Self::Trailer { .. }, b'\n') => Self::Trailer { empty: true },
            (state, b'\r') => state,
            (Self::Size { value, digits: digits @ 1.., .. }, b';' | b' ' | b'\t') => {
                Self::Size { value, digits, extension: true }
            }
            (state @ Self::Size { extension: true, .. }, _) => state,
            (Self::Size { value, digits, extension: false }, _) => {
                let digit = char::from(byte).to_digit(16).filter(|_| digits < 15).ok_or(BadChunk)?;
                Self::Size { value: value << 4 | u64::from(digit), digits: digits + 1, extension: false }
            }
            (Self::Trailer { .. }, _) => Self::Trailer { empty: false },
            (Self::Data(_) | Self::DataEnd | Self::Done, _) => return Err(BadChunk),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What is taken out of pieces of this size, and what is left behind the body.
    fn taken(mut body: Body, bytes: &[u8], piece: usize) -> Result<(Vec<u8>, usize, bool), BadChunk> {
        let (mut data, mut used) = (Vec::new(), 0);
        for piece in bytes.chunks(piece) {
            if body.is_done() {
                break;
            }
            used += body.take(piece, |bytes| data.extend_from_slice(bytes))?;
        }
        Ok((data, bytes.len() - used, body.is_done()))
    }

    #[test]
    fn a_length_ends_where_it_says() {
        assert_eq!(taken(Body::Length(3), b"abcdef", 100), Ok((b"abc".to_vec(), 3, true)));
        assert_eq!(taken(Body::Length(9), b"abcdef", 2), Ok((b"abcdef".to_vec(), 0, false)));
    }

    #[test]
    fn trailers_and_extensions_are_skipped() {
        let text = b"3;a=b\r\nabc\r\nA \r\n0123456789\r\n0\r\nX: y\r\n\r\nHTTP/1.1";
        assert_eq!(taken(Body::chunked(), text, 1000), Ok((b"abc0123456789".to_vec(), 8, true)));
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [&b"\r\n\r\n"[..], b"x\r\n", b"-1\r\n", b"1\r\nab\r\n", b"fffffffffffffffff\r\n"] {
            assert_eq!(taken(Body::chunked(), text, 1000), Err(BadChunk), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn chunks_add_up_however_they_arrive(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..8), piece in 1_usize..50
        ) {
            let mut wire = Vec::new();
            for chunk in &chunks {
                wire.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                wire.extend_from_slice(chunk);
                wire.extend_from_slice(b"\r\n");
            }
            wire.extend_from_slice(b"0\r\n\r\n");
            prop_assert_eq!(taken(Body::chunked(), &wire, piece), Ok((chunks.concat(), 0, true)));
        }
    }
}
