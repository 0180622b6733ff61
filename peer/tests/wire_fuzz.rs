//! The decoder of peers' frames under mutated streams, cut anywhere. Deterministic: a failing round names its seed.
//!
//! A coverage-guided fuzzer needs a nightly compiler; this takes its place with streams that begin valid, so that mutations
//! reach the fields behind the lengths and kinds.

#![expect(clippy::unwrap_used, reason = "a panic is how a test reports")]

use pondhawk::{
    task::TaskId,
    wire::frame::{Decoder, Frame, FrameError, MAX_BITS, MAX_FRAME, MAX_RANGES, Pieces, Request, Response},
};

const ROUNDS: u64 = 60_000;

/// Numbers that follow from a seed (xorshift64*).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.roll() % bound as u64) as usize
    }

    fn task(&mut self) -> TaskId {
        TaskId([self.roll() as u8; 32])
    }

    fn frame(&mut self) -> Frame {
        let task = self.task();
        match self.below(9) {
            0 => Frame::Hello { version: self.roll() as u16 },
            1 => Frame::Have { task, len: self.roll(), pieces: Pieces::All },
            2 | 3 => {
                let count = self.below(700) as u32;
                let bits = (0..count.div_ceil(8)).map(|_| self.roll() as u8).collect();
                let first = self.roll() as u32 / 2;
                Frame::Have { task, len: self.roll(), pieces: Pieces::Bits { first, count, bits } }
            }
            4 => {
                let starts: Vec<u32> = (0..self.below(40)).map(|_| self.roll() as u32 / 2).collect();
                Frame::HaveDelta { task, ranges: starts.into_iter().map(|start| start..start + 1).collect() }
            }
            5 => Frame::Forget { task },
            6 => Frame::Throttle { millis: self.roll() as u32 },
            7 => Frame::Follow { task, len: self.roll() },
            _ => Frame::Unfollow { task },
        }
    }

    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..self.below(6) {
            let at = self.below(bytes.len().max(1));
            match (self.below(5), bytes.is_empty()) {
                (_, true) | (0, _) => bytes.insert(at.min(bytes.len()), self.roll() as u8),
                (1, _) => drop(bytes.remove(at)),
                (2, _) => bytes[at] ^= 1 << self.below(8),
                (3, _) => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][self.below(5)],
                _ => {
                    let end = (at + self.below(64)).min(bytes.len());
                    let copy = bytes[at..end].to_vec();
                    let to = self.below(bytes.len());
                    bytes.splice(to..to, copy);
                }
            }
        }
    }
}

/// A frame keeps every bound that its documentation states, and is the same after another trip.
fn check(frame: &Frame) {
    match frame {
        Frame::Have { pieces: Pieces::Bits { first, count, bits }, .. } => {
            assert!(*count <= MAX_BITS && bits.len() == count.div_ceil(8) as usize);
            assert!(first.checked_add(*count).is_some());
        }
        Frame::HaveDelta { ranges, .. } => {
            assert!(ranges.len() <= MAX_RANGES && ranges.iter().all(|range| range.start < range.end));
        }
        _ => {}
    }
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    assert!(bytes.len() <= MAX_FRAME + 4);
    let mut decoder = Decoder::default();
    decoder.feed(&bytes);
    assert_eq!(decoder.next_frame().unwrap().as_ref(), Some(frame));
}

/// All frames of a stream that is cut into parts of these sizes, and how it ends.
fn decode(bytes: &[u8], mut part: impl FnMut() -> usize) -> (Vec<Frame>, Result<(), FrameError>) {
    let (mut decoder, mut frames, mut rest) = (Decoder::default(), Vec::new(), bytes);
    while !rest.is_empty() {
        let (now, later) = rest.split_at(part().clamp(1, rest.len()));
        decoder.feed(now);
        rest = later;
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Err(error)),
            }
        }
    }
    (frames, Ok(()))
}

#[test]
fn mutated_streams_give_frames_within_bounds_or_one_error_however_they_are_cut() {
    let (mut clean, mut broken) = (0, 0);
    for seed in 1..=ROUNDS {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut bytes = Vec::new();
        for _ in 0..=dice.below(4) {
            dice.frame().encode(&mut bytes);
        }
        dice.mutate(&mut bytes);
        let whole = decode(&bytes, || usize::MAX);
        let cut = 1 + dice.below(300);
        assert_eq!(decode(&bytes, || 1 + dice.below(cut)), whole, "seed {seed}");
        whole.0.iter().for_each(check);
        if whole.1.is_ok() { clean += 1 } else { broken += 1 }
    }
    assert!(clean > ROUNDS / 10 && broken > ROUNDS / 10, "both kinds are met: {clean} {broken}");
}

#[test]
fn heads_of_any_bytes_decode_to_what_they_encode_or_are_refused() {
    let mut dice = Dice(77);
    let mut known = 0;
    for _ in 0..ROUNDS {
        let mut head = Request { task: dice.task(), piece: dice.roll() as u32, from: dice.roll() as u32 }.encode();
        let at = dice.below(head.len());
        head[at] = dice.roll() as u8;
        match Request::decode(&head) {
            Ok(request) => assert_eq!(request.encode(), head),
            Err(error) => assert_eq!(error, FrameError::Head),
        }
        let answer = [dice.below(4) as u8, 0, 0, dice.below(2) as u8, dice.below(2) as u8];
        if let Ok(response) = Response::decode(answer) {
            assert_eq!(response.encode(), answer);
            known += 1;
        }
    }
    assert!(known > 0);
}
