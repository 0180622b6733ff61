//! What peers say to each other, as bytes [pure].
//!
//! A control frame is `length: u32` (of what follows), `kind: u8`, body; integers are big-endian. A frame of a kind that
//! is not known is skipped, so that later versions can add some. A piece's stream is one [`Request`] one way, then one
//! [`Response`] and the piece's bytes the other way.

use std::ops::Range;

use pondhawk_scheduler::trace::Context;

use crate::task::TaskId;

/// The protocol that [`Frame::Hello`] names; [`ALPN`] changes when peers of two versions can't talk at all.
pub const VERSION: u16 = 1;
/// The protocol's name in the TLS handshake (RFC 7301).
pub const ALPN: &[u8] = b"pondhawk/1";
/// Bytes of a control frame after its length: 64 KiB.
pub const MAX_FRAME: usize = 64 << 10;
/// Pieces that one [`Frame::Have`] describes; tasks with more take several.
pub const MAX_BITS: u32 = 65_536;
/// Ranges in one [`Frame::HaveDelta`].
pub const MAX_RANGES: usize = 4_096;

const HELLO: u8 = 1;
const HAVE: u8 = 2;
const HAVE_ALL: u8 = 3;
const HAVE_DELTA: u8 = 4;
const FORGET: u8 = 5;
const THROTTLE: u8 = 6;
const FOLLOW: u8 = 7;
const UNFOLLOW: u8 = 8;
const TRACE: u8 = 9;

/// One message of the control stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// The first frame each way.
    Hello {
        /// The highest version that the sender speaks; both use the lower one.
        version: u16,
    },
    /// The sender has these pieces of the task, at least.
    Have {
        /// The task.
        task: TaskId,
        /// Its length in bytes, from which the layout follows.
        len: u64,
        /// Which pieces.
        pieces: Pieces,
    },
    /// The sender has these pieces more.
    HaveDelta {
        /// The task.
        task: TaskId,
        /// Runs of pieces, none empty; at most [`MAX_RANGES`].
        ranges: Vec<Range<u32>>,
    },
    /// The sender no longer has the task.
    Forget {
        /// The task.
        task: TaskId,
    },
    /// Ask the sender for nothing for a while.
    Throttle {
        /// How long, in milliseconds.
        millis: u32,
    },
    /// Say which pieces of the task you have, now and from now on. From the peer that dialled only.
    Follow {
        /// The task.
        task: TaskId,
        /// Its length in bytes.
        len: u64,
    },
    /// No more of that. From the peer that dialled only.
    Unfollow {
        /// The task.
        task: TaskId,
    },
    /// What you serve of a task that I follow is a part of this trace, if you record any. From the peer that dialled only;
    /// version 0.1.0 skips it.
    Trace {
        /// The task.
        task: TaskId,
        /// The span that it is a part of.
        context: Context,
    },
}

/// Which pieces of a task a peer has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pieces {
    /// Every one.
    All,
    /// Some of a run of at most [`MAX_BITS`] pieces.
    Bits {
        /// The run's first piece.
        first: u32,
        /// Its length in pieces.
        count: u32,
        /// Bit `n % 8` (from the lowest) of byte `n / 8` tells of piece `first + n`; `count.div_ceil(8)` bytes.
        bits: Vec<u8>,
    },
}

impl Pieces {
    /// The pieces it names, below `pieces`.
    pub fn iter(&self, pieces: u32) -> impl Iterator<Item = u32> + '_ {
        let run = match self {
            Self::All => 0..pieces,
            Self::Bits { first, count, .. } => *first..first.saturating_add(*count).min(pieces),
        };
        run.filter(move |piece| match self {
            Self::All => true,
            Self::Bits { first, bits, .. } => {
                let bit = piece - first;
                bits.get(bit as usize / 8).is_some_and(|byte| byte & (1 << (bit % 8)) != 0)
            }
        })
    }
}

/// Bytes that are no frame: the peer that sent them is broken or hostile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Longer than [`MAX_FRAME`], or empty.
    #[error("a frame of {0} bytes")]
    Length(u32),
    /// A known kind with a body that is not one.
    #[error("a malformed frame of kind {0}")]
    Malformed(u8),
    /// A stream's head that is not one.
    #[error("a malformed head of a piece")]
    Head,
    /// A frame that has no meaning from this peer now.
    #[error("a frame that was not expected")]
    Unexpected,
    /// Pieces that the task does not have, or another length of it.
    #[error("pieces that the task does not have")]
    OutOfTask,
}

impl Frame {
    /// What to announce of a task of `pieces` pieces, whose bits are `words`: nothing if no piece is held, one frame a run of
    /// [`MAX_BITS`] pieces otherwise.
    pub fn have(task: TaskId, len: u64, pieces: u32, words: &[u64]) -> Vec<Self> {
        if words.iter().map(|word| word.count_ones()).sum::<u32>() == pieces {
            return vec![Self::Have { task, len, pieces: Pieces::All }];
        }
        let runs = (0..pieces).step_by(MAX_BITS as usize).zip(words.chunks(MAX_BITS as usize / 64));
        let some = runs.filter(|(_, words)| words.iter().any(|word| *word != 0));
        some.map(|(first, words)| Self::Have { task, len, pieces: bits_of(words, first, pieces) }).collect()
    }

    /// Appends the frame, its length first.
    ///
    /// # Panics
    /// If it breaks a bound that its fields' documentation states.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend([0; 4]);
        match self {
            Self::Hello { version } => {
                out.push(HELLO);
                out.extend(version.to_be_bytes());
            }
            Self::Have { task, len, pieces } => encode_have(task, *len, pieces, out),
            Self::HaveDelta { task, ranges } => {
                assert!(ranges.len() <= MAX_RANGES, "{} ranges in a frame", ranges.len());
                out.push(HAVE_DELTA);
                out.extend(task.0);
                for range in ranges {
                    out.extend(range.start.to_be_bytes());
                    out.extend(range.end.to_be_bytes());
                }
            }
            Self::Forget { task } => {
                out.push(FORGET);
                out.extend(task.0);
            }
            Self::Throttle { millis } => {
                out.push(THROTTLE);
                out.extend(millis.to_be_bytes());
            }
            Self::Follow { task, len } => {
                out.push(FOLLOW);
                out.extend(task.0);
                out.extend(len.to_be_bytes());
            }
            Self::Unfollow { task } => {
                out.push(UNFOLLOW);
                out.extend(task.0);
            }
            Self::Trace { task, context } => {
                out.push(TRACE);
                out.extend(task.0);
                out.extend(context.to_bytes());
            }
        }
        let len = u32::try_from(out.len() - start - 4).expect("frames are bounded");
        out[start..start + 4].copy_from_slice(&len.to_be_bytes());
    }

    /// The frame of one kind and body; `None` for a kind that is not known.
    fn decode(kind: u8, body: &[u8]) -> Result<Option<Self>, FrameError> {
        let mut body = Body(body);
        let frame = match kind {
            // Later versions may append to it.
            HELLO => return body.u16().map(|version| Some(Self::Hello { version })).ok_or(FrameError::Malformed(kind)),
            HAVE | HAVE_ALL => decode_have(kind, &mut body),
            HAVE_DELTA => decode_delta(&mut body),
            FORGET => body.task().map(|task| Self::Forget { task }),
            THROTTLE => body.u32().map(|millis| Self::Throttle { millis }),
            FOLLOW => body.task().zip(body.u64()).map(|(task, len)| Self::Follow { task, len }),
            UNFOLLOW => body.task().map(|task| Self::Unfollow { task }),
            TRACE => body.task().zip(body.context()).map(|(task, context)| Self::Trace { task, context }),
            _ => return Ok(None),
        };
        match frame {
            Some(frame) if body.0.is_empty() => Ok(Some(frame)),
            _ => Err(FrameError::Malformed(kind)),
        }
    }
}

/// Cuts a control stream into frames.
#[derive(Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    used: usize,
}

impl Decoder {
    /// More bytes of the stream. Take all frames out between two calls: then it never keeps more than one frame and what
    /// was fed last.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.used);
        self.used = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next frame that is known; `None` until more is fed. After an error the stream has no meaning.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        loop {
            let mut rest = Body(&self.bytes[self.used..]);
            let Some(len) = rest.u32() else { return Ok(None) };
            if len == 0 || len as usize > MAX_FRAME {
                return Err(FrameError::Length(len));
            }
            let Some(frame) = rest.take(len as usize) else { return Ok(None) };
            self.used += 4 + frame.len();
            if let Some(frame) = Frame::decode(frame[0], &frame[1..])? {
                return Ok(Some(frame));
            }
        }
    }
}

/// The head of a piece's stream: which bytes are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The task.
    pub task: TaskId,
    /// The piece.
    pub piece: u32,
    /// The first byte of the piece that is wanted.
    pub from: u32,
}

impl Request {
    /// Bytes of every request.
    pub const LEN: usize = 41;

    /// The request as it is sent.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut out = [1; Self::LEN];
        out[1..33].copy_from_slice(&self.task.0);
        out[33..37].copy_from_slice(&self.piece.to_be_bytes());
        out[37..].copy_from_slice(&self.from.to_be_bytes());
        out
    }

    /// The request that a peer sent.
    pub fn decode(bytes: &[u8; Self::LEN]) -> Result<Self, FrameError> {
        let mut body = Body(&bytes[1..]);
        let fields = (body.task(), body.u32(), body.u32());
        match (bytes[0], fields) {
            (1, (Some(task), Some(piece), Some(from))) => Ok(Self { task, piece, from }),
            _ => Err(FrameError::Head),
        }
    }
}

/// How a request is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Response {
    /// So many bytes follow: the piece from the byte asked for to its end.
    Bytes(u32),
    /// The piece is not here.
    Missing,
    /// Too much is asked of the peer now.
    Busy,
}

impl Response {
    /// Bytes of every response.
    pub const LEN: usize = 5;

    /// The response as it is sent.
    pub fn encode(self) -> [u8; Self::LEN] {
        let (status, len) = match self {
            Self::Bytes(len) => (0, len),
            Self::Missing => (1, 0),
            Self::Busy => (2, 0),
        };
        let len = len.to_be_bytes();
        [status, len[0], len[1], len[2], len[3]]
    }

    /// The response that a peer sent.
    pub fn decode(bytes: [u8; Self::LEN]) -> Result<Self, FrameError> {
        let len = u32::from_be_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]);
        match (bytes[0], len) {
            (0, len) => Ok(Self::Bytes(len)),
            (1, 0) => Ok(Self::Missing),
            (2, 0) => Ok(Self::Busy),
            _ => Err(FrameError::Head),
        }
    }
}

fn encode_have(task: &TaskId, len: u64, pieces: &Pieces, out: &mut Vec<u8>) {
    out.push(if matches!(pieces, Pieces::All) { HAVE_ALL } else { HAVE });
    out.extend(task.0);
    out.extend(len.to_be_bytes());
    if let Pieces::Bits { first, count, bits } = pieces {
        assert!(*count <= MAX_BITS && bits.len() == count.div_ceil(8) as usize, "{count} pieces in a frame");
        out.extend(first.to_be_bytes());
        out.extend(count.to_be_bytes());
        out.extend(bits);
    }
}

fn decode_have(kind: u8, body: &mut Body<'_>) -> Option<Frame> {
    let (task, len) = (body.task()?, body.u64()?);
    if kind == HAVE_ALL {
        return Some(Frame::Have { task, len, pieces: Pieces::All });
    }
    let (first, count) = (body.u32()?, body.u32()?);
    if count > MAX_BITS || first.checked_add(count).is_none() {
        return None;
    }
    let bits = body.take(count.div_ceil(8) as usize)?.to_vec();
    Some(Frame::Have { task, len, pieces: Pieces::Bits { first, count, bits } })
}

fn decode_delta(body: &mut Body<'_>) -> Option<Frame> {
    let task = body.task()?;
    let mut ranges = Vec::new();
    while !body.0.is_empty() {
        let range = body.u32()?..body.u32()?;
        if range.is_empty() || ranges.len() == MAX_RANGES {
            return None;
        }
        ranges.push(range);
    }
    Some(Frame::HaveDelta { task, ranges })
}

fn bits_of(words: &[u64], first: u32, pieces: u32) -> Pieces {
    let count = (pieces - first).min(MAX_BITS);
    let mut bits: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    bits.truncate(count.div_ceil(8) as usize);
    Pieces::Bits { first, count, bits }
}

/// Reads fields off the front of a body.
struct Body<'a>(&'a [u8]);

impl<'a> Body<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    fn task(&mut self) -> Option<TaskId> {
        self.array().map(TaskId)
    }

    fn context(&mut self) -> Option<Context> {
        self.take(Context::LEN).and_then(Context::from_bytes)
    }
}

const _: () = assert!(MAX_BITS as usize / 8 + 64 < MAX_FRAME);
const _: () = assert!(MAX_RANGES * 8 + 64 < MAX_FRAME);

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
