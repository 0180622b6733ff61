//! The piece table's bytes: header and slots [pure]. DESIGN.md has the format.

use crate::task::{Layout, TaskId};

/// Bytes in the header.
pub const HEADER_LEN: usize = 64;
/// Bytes in a slot: divides every sector size, so that a slot never spans two sectors.
pub const SLOT_LEN: usize = 64;

const MAGIC: &[u8; 8] = b"PONDPIEC";
const VERSION: u32 = 1;
const CHECKED_LEN: usize = 48;
const BLOCK: u64 = 4096;

const _: () = assert!(CHECKED_LEN + 16 == SLOT_LEN && HEADER_LEN == SLOT_LEN);

/// Bytes in the piece table of a task.
pub fn table_len(layout: Layout) -> u64 {
    slot_offset(layout.pieces())
}

/// Where the slot of piece `index` starts.
pub fn slot_offset(index: u32) -> u64 {
    HEADER_LEN as u64 + u64::from(index) * SLOT_LEN as u64
}

/// What a complete task takes from the quota: data and table in whole 4 KiB blocks.
pub fn cost(layout: Layout) -> u64 {
    table_cost(layout) + in_blocks(layout.len())
}

/// What a task takes from the quota before a byte of it is there.
pub fn table_cost(layout: Layout) -> u64 {
    in_blocks(table_len(layout))
}

/// So many bytes in whole 4 KiB blocks.
pub fn in_blocks(len: u64) -> u64 {
    len.next_multiple_of(BLOCK)
}

/// The header of the table of task `id`.
pub fn encode_header(id: &TaskId, layout: Layout) -> [u8; HEADER_LEN] {
    let mut out = [0; HEADER_LEN];
    out[..8].copy_from_slice(MAGIC);
    out[8..12].copy_from_slice(&VERSION.to_le_bytes());
    out[12..16].copy_from_slice(&layout.piece_len().to_le_bytes());
    out[16..24].copy_from_slice(&layout.len().to_le_bytes());
    out[24..40].copy_from_slice(&id.0[..16]);
    seal(id, &mut out);
    out
}

/// Slot of piece `index`, whose bytes hash to `digest`.
pub fn encode_slot(id: &TaskId, index: u32, digest: &[u8; 32]) -> [u8; SLOT_LEN] {
    let mut out = [0; SLOT_LEN];
    out[..32].copy_from_slice(digest);
    out[32..36].copy_from_slice(&index.to_le_bytes());
    seal(id, &mut out);
    out
}

/// The pieces that a table's bytes name, with their digests; `None` if it isn't the table of this task.
///
/// Slots that are zero, torn, or belong elsewhere are left out, as are those that a short file lacks.
pub fn decode_table(id: &TaskId, layout: Layout, bytes: &[u8]) -> Option<Vec<(u32, [u8; 32])>> {
    let (header, slots) = bytes.split_at_checked(HEADER_LEN)?;
    if header != encode_header(id, layout) {
        return None;
    }
    let found = (0..layout.pieces()).zip(slots.chunks_exact(SLOT_LEN));
    Some(found.filter_map(|(index, slot)| Some((index, decode_slot(id, index, slot)?))).collect())
}

fn decode_slot(id: &TaskId, index: u32, slot: &[u8]) -> Option<[u8; 32]> {
    // The common case of a table being filled: no need to hash it.
    if slot.iter().all(|&byte| byte == 0) {
        return None;
    }
    let digest: [u8; 32] = slot[..32].try_into().ok()?;
    (slot == encode_slot(id, index, &digest)).then_some(digest)
}

fn seal(id: &TaskId, record: &mut [u8; SLOT_LEN]) {
    let sum = blake3::keyed_hash(&id.0, &record[..CHECKED_LEN]);
    record[CHECKED_LEN..].copy_from_slice(&sum.as_bytes()[..16]);
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: TaskId = TaskId([7; 32]);

    fn table(layout: Layout, pieces: &[(u32, [u8; 32])]) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(table_len(layout)).unwrap()];
        bytes[..HEADER_LEN].copy_from_slice(&encode_header(&ID, layout));
        for (index, digest) in pieces {
            let at = usize::try_from(slot_offset(*index)).unwrap();
            bytes[at..at + SLOT_LEN].copy_from_slice(&encode_slot(&ID, *index, digest));
        }
        bytes
    }

    #[test]
    fn a_table_gives_back_exactly_the_slots_written() {
        let layout = Layout::for_len(5 << 20).unwrap();
        let pieces = [(0, [1; 32]), (3, [0; 32]), (4, [9; 32])];
        assert_eq!(decode_table(&ID, layout, &table(layout, &pieces)), Some(pieces.to_vec()));
    }

    #[test]
    fn a_slot_of_another_task_or_another_place_does_not_count() {
        let layout = Layout::for_len(3 << 20).unwrap();
        let mut bytes = table(layout, &[(0, [1; 32])]);
        bytes.copy_within(64..128, 128);
        bytes[192..256].copy_from_slice(&encode_slot(&TaskId([8; 32]), 2, &[1; 32]));
        assert_eq!(decode_table(&ID, layout, &bytes), Some(vec![(0, [1; 32])]));
        assert_eq!(decode_table(&TaskId([8; 32]), layout, &bytes), None);
        assert_eq!(decode_table(&ID, Layout::for_len(4 << 20).unwrap(), &bytes), None);
    }

    #[test]
    fn a_short_table_loses_only_the_slots_it_lacks() {
        let layout = Layout::for_len(3 << 20).unwrap();
        let bytes = table(layout, &[(0, [1; 32]), (2, [2; 32])]);
        assert_eq!(decode_table(&ID, layout, &bytes[..255]), Some(vec![(0, [1; 32])]));
        assert_eq!(decode_table(&ID, layout, &bytes[..63]), None);
        assert_eq!(decode_table(&ID, layout, &[]), None);
    }

    proptest::proptest! {
        #[test]
        fn a_slot_with_any_bit_flipped_does_not_decode(bit in 0..SLOT_LEN * 8, digest: [u8; 32]) {
            let mut slot = encode_slot(&ID, 5, &digest);
            assert_eq!(decode_slot(&ID, 5, &slot), Some(digest));
            slot[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode_slot(&ID, 5, &slot), None);
        }
    }
}
