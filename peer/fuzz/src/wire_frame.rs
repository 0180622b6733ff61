//! Frames between nodes: the same however the stream is cut, bounded, and equal to themselves after another encoding.

use pondhawk::wire::frame::{Decoder, Frame, FrameError, MAX_FRAME, Pieces, Request, Response};

/// Pieces that a set of a frame is looked at for.
const PIECES: u32 = 1 << 17;

/// Runs the target.
pub fn run(bytes: &[u8]) {
    let whole = decode(bytes, bytes.len().max(1));
    for step in [1, 3, 64] {
        assert_eq!(decode(bytes, step), whole, "in parts of {step} bytes");
    }
    for frame in &whole.0 {
        check_frame(frame);
    }
    check_heads(bytes);
}

fn decode(bytes: &[u8], step: usize) -> (Vec<Frame>, Option<FrameError>) {
    let mut decoder = Decoder::default();
    let mut frames = Vec::new();
    for part in bytes.chunks(step) {
        decoder.feed(part);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
    }
    (frames, None)
}

fn check_frame(frame: &Frame) {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    assert!(bytes.len() <= MAX_FRAME + 4);
    assert_eq!(decode(&bytes, bytes.len()), (vec![frame.clone()], None));
    if let Frame::Have { pieces, .. } = frame {
        let named: Vec<u32> = pieces.iter(PIECES).collect();
        assert!(named.is_sorted() && named.iter().all(|piece| *piece < PIECES));
        if let Pieces::Bits { first, count, .. } = pieces {
            assert!(named.iter().all(|piece| (*first..first.saturating_add(*count)).contains(piece)));
        }
    }
}

fn check_heads(bytes: &[u8]) {
    if let Some(head) = bytes.first_chunk::<{ Request::LEN }>()
        && let Ok(request) = Request::decode(head)
    {
        assert_eq!(&request.encode(), head);
    }
    if let Some(head) = bytes.first_chunk::<{ Response::LEN }>()
        && let Ok(response) = Response::decode(*head)
    {
        assert_eq!(&response.encode(), head);
    }
}
