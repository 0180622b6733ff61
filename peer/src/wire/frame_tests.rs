//! Frames there and back, and bytes that are none.

use proptest::prelude::*;

use super::*;

fn frames() -> impl Strategy<Value = Frame> {
    let task = any::<[u8; 32]>().prop_map(TaskId);
    let pieces = prop_oneof![
        Just(Pieces::All),
        (0..1_000_000u32, proptest::collection::vec(any::<u8>(), 0..64)).prop_map(|(first, bits)| Pieces::Bits {
            first,
            count: bits.len() as u32 * 8,
            bits
        }),
    ];
    let range = (0..u32::MAX - 9, 1..9u32).prop_map(|(start, len)| start..start + len);
    prop_oneof![
        any::<u16>().prop_map(|version| Frame::Hello { version }),
        (task.clone(), any::<u64>(), pieces).prop_map(|(task, len, pieces)| Frame::Have { task, len, pieces }),
        (task.clone(), proptest::collection::vec(range, 0..20))
            .prop_map(|(task, ranges)| Frame::HaveDelta { task, ranges }),
        task.clone().prop_map(|task| Frame::Forget { task }),
        any::<u32>().prop_map(|millis| Frame::Throttle { millis }),
        (task.clone(), any::<u64>()).prop_map(|(task, len)| Frame::Follow { task, len }),
        task.clone().prop_map(|task| Frame::Unfollow { task }),
        (task, 1..u128::MAX, 1..u64::MAX).prop_map(|(task, trace, span)| Frame::Trace {
            task,
            context: Context { trace: trace.to_be_bytes(), span: span.to_be_bytes() },
        }),
    ]
}

fn drain(decoder: &mut Decoder, into: &mut Vec<Frame>) -> Result<(), FrameError> {
    while let Some(frame) = decoder.next_frame()? {
        into.push(frame);
    }
    Ok(())
}

proptest! {
    #[test]
    fn frames_come_back_whole_however_the_stream_is_cut(
        sent in proptest::collection::vec(frames(), 0..8),
        unknown in proptest::collection::vec(any::<u8>(), 0..40),
        cut in 1..100usize,
    ) {
        let mut bytes = Vec::new();
        for frame in &sent {
            frame.encode(&mut bytes);
            bytes.extend((unknown.len() as u32 + 1).to_be_bytes());
            bytes.push(200);
            bytes.extend(&unknown);
        }
        let (mut decoder, mut got) = (Decoder::default(), Vec::new());
        for part in bytes.chunks(cut) {
            decoder.feed(part);
            drain(&mut decoder, &mut got).unwrap();
        }
        prop_assert_eq!(got, sent);
    }

    #[test]
    fn no_bytes_make_the_decoder_panic_or_hoard(bytes in proptest::collection::vec(any::<u8>(), 0..600), kind in 0..11u8) {
        let mut framed = (bytes.len() as u32 + 1).to_be_bytes().to_vec();
        framed.push(kind);
        framed.extend(&bytes);
        for input in [&bytes, &framed] {
            let (mut decoder, mut got) = (Decoder::default(), Vec::new());
            decoder.feed(input);
            let _ = drain(&mut decoder, &mut got);
            for frame in got {
                let mut again = Vec::new();
                frame.encode(&mut again);
                prop_assert!(again.len() <= MAX_FRAME + 4);
            }
        }
    }

    #[test]
    fn heads_of_pieces_come_back(task: [u8; 32], piece: u32, from: u32, len: u32) {
        let request = Request { task: TaskId(task), piece, from };
        prop_assert_eq!(Request::decode(&request.encode()), Ok(request));
        for response in [Response::Bytes(len), Response::Missing, Response::Busy] {
            prop_assert_eq!(Response::decode(response.encode()), Ok(response));
        }
    }

    #[test]
    fn a_bitmap_arrives_as_it_was(held in proptest::collection::btree_set(0..200_000u32, 0..50)) {
        let mut words = vec![0; 3125];
        held.iter().for_each(|&piece| words[piece as usize / 64] |= 1u64 << (piece % 64));
        let frames = Frame::have(TaskId([1; 32]), 5, 200_000, &words);
        let pieces = frames.iter().flat_map(|frame| match frame {
            Frame::Have { pieces, .. } => pieces.iter(200_000).collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        });
        prop_assert_eq!(pieces.collect::<Vec<_>>(), held.into_iter().collect::<Vec<_>>());
    }
}

#[test]
fn a_frame_longer_than_the_bound_is_refused_from_its_length_alone() {
    let mut decoder = Decoder::default();
    decoder.feed(&(MAX_FRAME as u32 + 1).to_be_bytes());
    assert_eq!(decoder.next_frame(), Err(FrameError::Length(MAX_FRAME as u32 + 1)));
}
