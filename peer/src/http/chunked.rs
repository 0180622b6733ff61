//! Chunked request bodies [pure] (RFC 9112 §7.1): where their data lies and where they end.

use std::ops::Range;

/// Bytes of chunk extensions allowed in one body: they carry nothing for us, only cost.
pub const MAX_EXTENSION_BYTES: usize = 16 << 10;
/// Bytes of trailer fields allowed in one body; trailers are dropped (RFC 9110 §6.5.1).
pub const MAX_TRAILER_BYTES: usize = 8 << 10;

/// What one call of [`Chunked::decode`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// Bytes of the input dealt with; at least one unless the input is empty or the body is over.
    pub consumed: usize,
    /// The body's data among them; may be empty.
    pub data: Range<usize>,
    /// The body is over; what follows `consumed` is the next request.
    pub done: bool,
}

/// The client's chunked body breaks the grammar or a bound. The text is meant for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChunkedError {
    /// The grammar.
    #[error("the chunked request body is malformed")]
    Malformed,
    /// [`MAX_EXTENSION_BYTES`] or [`MAX_TRAILER_BYTES`].
    #[error("the chunked request body has too many extensions or trailers")]
    TooLarge,
}

/// A decoder for one body.
#[derive(Clone, Debug)]
pub struct Chunked {
    state: State,
    extensions: usize,
    trailers: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Size {
        value: u64,
        digits: u8,
    },
    /// White space after the size: only an extension or the line's end may follow.
    Space(u64),
    Extension(u64),
    SizeLf(u64),
    Data(u64),
    DataCr,
    DataLf,
    TrailerStart,
    Trailer,
    TrailerLf,
    EndLf,
    Done,
}

impl Default for Chunked {
    fn default() -> Self {
        Self::new()
    }
}

impl Chunked {
    /// At the start of a body.
    pub fn new() -> Self {
        Self { state: State::Size { value: 0, digits: 0 }, extensions: 0, trailers: 0 }
    }

    /// Deals with input up to the end of the next run of data. Call it with what is left until `consumed` is all or
    /// `done`.
    pub fn decode(&mut self, input: &[u8]) -> Result<Decoded, ChunkedError> {
        let mut at = 0;
        while at < input.len() && self.state != State::Done {
            if let State::Data(left) = self.state {
                let end = at + usize::try_from(left).unwrap_or(usize::MAX).min(input.len() - at);
                let left = left - (end - at) as u64;
                self.state = if left == 0 { State::DataCr } else { State::Data(left) };
                return Ok(Decoded { consumed: end, data: at..end, done: false });
            }
            self.state = self.step(input[at])?;
            at += 1;
        }
        Ok(Decoded { consumed: at, data: at..at, done: self.state == State::Done })
    }

    fn step(&mut self, byte: u8) -> Result<State, ChunkedError> {
        match (self.state, byte) {
            (State::Size { value, digits }, _) => size_step(value, digits, byte),
            (State::Space(size), b' ' | b'\t') => self.extension(State::Space(size)),
            (State::Space(size), b';') => self.extension(State::Extension(size)),
            (State::Space(size) | State::Extension(size), b'\r') => Ok(State::SizeLf(size)),
            (State::Extension(size), b'\t' | b' '..=b'~' | 0x80..) => self.extension(State::Extension(size)),
            (State::SizeLf(0), b'\n') => Ok(State::TrailerStart),
            (State::SizeLf(size), b'\n') => Ok(State::Data(size)),
            (State::DataCr, b'\r') => Ok(State::DataLf),
            (State::DataLf, b'\n') => Ok(State::Size { value: 0, digits: 0 }),
            (State::TrailerStart, b'\r') => Ok(State::EndLf),
            (State::TrailerStart, b'!'..=b'~') => self.trailer(State::Trailer),
            (State::Trailer, b'\r') => Ok(State::TrailerLf),
            (State::Trailer, b'\t' | b' '..=b'~' | 0x80..) => self.trailer(State::Trailer),
            (State::TrailerLf, b'\n') => Ok(State::TrailerStart),
            (State::EndLf, b'\n') => Ok(State::Done),
            _ => Err(ChunkedError::Malformed),
        }
    }

    fn extension(&mut self, next: State) -> Result<State, ChunkedError> {
        self.extensions += 1;
        if self.extensions > MAX_EXTENSION_BYTES { Err(ChunkedError::TooLarge) } else { Ok(next) }
    }

    fn trailer(&mut self, next: State) -> Result<State, ChunkedError> {
        self.trailers += 1;
        if self.trailers > MAX_TRAILER_BYTES { Err(ChunkedError::TooLarge) } else { Ok(next) }
    }
}

/// Sixteen digits fill a `u64` exactly, so the shift never loses any.
fn size_step(value: u64, digits: u8, byte: u8) -> Result<State, ChunkedError> {
    if let Some(digit) = char::from(byte).to_digit(16) {
        let value = value << 4 | u64::from(digit);
        return if digits < 16 { Ok(State::Size { value, digits: digits + 1 }) } else { Err(ChunkedError::Malformed) };
    }
    match byte {
        _ if digits == 0 => Err(ChunkedError::Malformed),
        b'\r' => Ok(State::SizeLf(value)),
        b' ' | b'\t' => Ok(State::Space(value)),
        b';' => Ok(State::Extension(value)),
        _ => Err(ChunkedError::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The data and the bytes consumed, or `None` while the body goes on; fed `step` bytes at a time.
    fn whole(input: &[u8], step: usize) -> Result<Option<(Vec<u8>, usize)>, ChunkedError> {
        let (mut decoder, mut data, mut at) = (Chunked::new(), Vec::new(), 0);
        while at < input.len() {
            let window = &input[at..(at + step).min(input.len())];
            let decoded = decoder.decode(window)?;
            data.extend_from_slice(&window[decoded.data.clone()]);
            at += decoded.consumed;
            if decoded.done {
                return Ok(Some((data, at)));
            }
            assert!(decoded.consumed > 0);
        }
        Ok(None)
    }

    #[test]
    fn a_body_ends_at_its_last_chunk_and_leaves_what_follows() {
        let body = b"5;a=\"b\"\r\nhello\r\n6 ;x\r\n world\r\n00\r\nTrailer: x\r\n\r\nGET";
        assert_eq!(whole(body, 1000), Ok(Some((b"hello world".to_vec(), body.len() - 3))));
        assert_eq!(whole(&body[..body.len() - 5], 1000), Ok(None));
    }

    #[test]
    fn what_another_reader_might_take_differently_is_refused() {
        for bad in [
            "\r\n",
            "x\r\n",
            "5\nhello",
            "5\r\nhelloX",
            "5\r\nhello\n",
            "-1\r\n",
            "0x5\r\n",
            "5 5\r\n",
            " 5\r\n",
            "5\rx",
            "10000000000000000\r\n",
            "00000000000000005\r\n",
            "0\r\n\n",
            "0\r\n x: y\r\n\r\n",
            "5;a\nb\r\n",
            "0\r\nA: \0\r\n\r\n",
        ] {
            assert_eq!(whole(bad.as_bytes(), 1000), Err(ChunkedError::Malformed), "{bad:?}");
        }
    }

    #[test]
    fn extensions_and_trailers_are_bounded_over_the_whole_body() {
        let many = "1;aaaaaaaaaaaaaaaa\r\nx\r\n".repeat(MAX_EXTENSION_BYTES / 16 + 1);
        assert_eq!(whole(many.as_bytes(), 1 << 20), Err(ChunkedError::TooLarge));
        let trailers = format!("0\r\n{}", "A: bcd\r\n".repeat(MAX_TRAILER_BYTES / 6 + 1));
        assert_eq!(whole(trailers.as_bytes(), 1 << 20), Err(ChunkedError::TooLarge));
    }

    proptest! {
        #[test]
        fn what_was_chunked_comes_back_however_it_is_cut(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..6),
            step in 1usize..50,
        ) {
            let mut body = Vec::new();
            for chunk in &chunks {
                body.extend_from_slice(format!("{:X}\r\n", chunk.len()).as_bytes());
                body.extend_from_slice(chunk);
                body.extend_from_slice(b"\r\n");
            }
            body.extend_from_slice(b"0\r\n\r\n");
            let len = body.len();
            body.extend_from_slice(b"5\r\n");
            prop_assert_eq!(whole(&body, step), Ok(Some((chunks.concat(), len))));
        }

        #[test]
        fn no_bytes_panic_and_cuts_change_nothing(
            input in proptest::collection::vec(
                prop_oneof![any::<u8>(), Just(b'\r'), Just(b'\n'), Just(b'0'), Just(b'2'), Just(b';')],
                0..60,
            ),
            step in 1usize..9,
        ) {
            prop_assert_eq!(whole(&input, step), whole(&input, 1000));
        }
    }
}
