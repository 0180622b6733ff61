//! How a task is cut into pieces.

use std::ops::Range;

/// The length of a task and of its pieces; every piece but the last has the same length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    len: u64,
    piece_len: u32,
}

/// 1 MiB.
pub const MIN_PIECE_LEN: u32 = 1 << 20;
/// 16 MiB.
pub const MAX_PIECE_LEN: u32 = 16 << 20;
/// Pieces grow with the task so that it has about this many of them, until they reach [`MAX_PIECE_LEN`].
pub const AIMED_PIECES: u64 = 1_000;
/// 64 TiB: the longest task, so that a piece's number always fits a `u32`.
pub const MAX_TASK_LEN: u64 = 64 << 40;

impl Layout {
    /// The layout that every peer derives from a task's length alone. `None` past [`MAX_TASK_LEN`].
    pub fn for_len(len: u64) -> Option<Self> {
        if len > MAX_TASK_LEN {
            return None;
        }
        let aimed = (len / AIMED_PIECES).clamp(u64::from(MIN_PIECE_LEN), u64::from(MAX_PIECE_LEN));
        let piece_len = u32::try_from(aimed.next_power_of_two()).ok()?;
        Some(Self { len, piece_len: piece_len.min(MAX_PIECE_LEN) })
    }

    /// Bytes in the task.
    pub fn len(self) -> u64 {
        self.len
    }

    /// Whether the task has no bytes, and so no pieces.
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// Bytes in every piece but the last.
    pub fn piece_len(self) -> u32 {
        self.piece_len
    }

    /// How many pieces there are.
    pub fn pieces(self) -> u32 {
        u32::try_from(self.len.div_ceil(u64::from(self.piece_len))).expect("bounded by MAX_TASK_LEN")
    }

    /// The bytes of the task that piece `index` holds. Empty past the last piece.
    pub fn bytes_of(self, index: u32) -> Range<u64> {
        let start = (u64::from(index) * u64::from(self.piece_len)).min(self.len);
        start..(start + u64::from(self.piece_len)).min(self.len)
    }

    /// The piece that holds byte `offset`.
    pub fn piece_at(self, offset: u64) -> u32 {
        u32::try_from(offset / u64::from(self.piece_len)).expect("bounded by MAX_TASK_LEN")
    }

    /// The pieces that the byte range touches.
    pub fn covering(self, bytes: Range<u64>) -> Range<u32> {
        if bytes.is_empty() {
            return 0..0;
        }
        self.piece_at(bytes.start)..self.piece_at(bytes.end - 1) + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn the_scheduler_counts_the_same_pieces(len in 0..=MAX_TASK_LEN + 1) {
            assert_eq!(pondhawk_scheduler::cluster::pieces_of(len), Layout::for_len(len).map(Layout::pieces));
        }

        #[test]
        fn pieces_tile_the_task_without_gap_or_overlap(len in 0..MAX_TASK_LEN, seed: u32) {
            let layout = Layout::for_len(len).unwrap();
            assert!(layout.piece_len().is_power_of_two());
            if layout.pieces() > 0 {
                let index = seed % layout.pieces();
                let bytes = layout.bytes_of(index);
                assert!(!bytes.is_empty());
                assert_eq!(layout.covering(bytes.clone()), index..index + 1);
                assert_eq!(layout.bytes_of(index + 1).start, bytes.end);
                assert_eq!(layout.bytes_of(layout.pieces() - 1).end, len);
            }
        }
    }

    #[test]
    fn the_piece_length_follows_the_task_up_to_its_bound() {
        let piece_mib = |len| Layout::for_len(len).unwrap().piece_len() >> 20;
        assert_eq!(piece_mib(1), 1);
        assert_eq!(piece_mib(1 << 30), 2);
        assert_eq!(piece_mib(5 << 30), 8);
        assert_eq!(piece_mib(100 << 30), 16);
        assert_eq!(Layout::for_len(MAX_TASK_LEN + 1), None);
    }
}
