//! Piece tables after damage: only slots that were written are read, each with its digest.

use std::collections::BTreeMap;

use arbitrary::{Result, Unstructured};
use pondhawk::store::layout::{SLOT_LEN, decode_table, encode_header, encode_slot, slot_offset, table_len};
use pondhawk::task::{Layout, TaskId};

const ID: TaskId = TaskId([7; 32]);
/// 1 MiB each.
const PIECES: u64 = 24;

/// Runs the target: raw bytes as a table, and a table that is written and damaged as the bytes say.
pub fn run(bytes: &[u8]) {
    let layout = Layout::for_len(PIECES << 20).expect("a short task");
    if let Some(found) = decode_table(&ID, layout, bytes) {
        assert!(found.len() as u64 <= PIECES);
    }
    // Input that ends early has done what it says.
    let _ = damage(&mut Unstructured::new(bytes), layout);
}

fn damage(input: &mut Unstructured<'_>, layout: Layout) -> Result<()> {
    let mut table = vec![0; usize::try_from(table_len(layout)).expect("a short table")];
    table[..SLOT_LEN].copy_from_slice(&encode_header(&ID, layout));
    let mut written: BTreeMap<u32, [u8; 32]> = BTreeMap::new();
    for _ in 0..input.int_in_range(0..=PIECES)? {
        let piece = input.int_in_range(0..=layout.pieces() - 1)?;
        let digest = [input.arbitrary()?; 32];
        write(&mut table, piece, &encode_slot(&ID, piece, &digest));
        written.insert(piece, digest);
    }
    assert_eq!(decode_table(&ID, layout, &table), Some(written.clone().into_iter().collect()));
    while !input.is_empty() {
        match input.int_in_range(0..=2)? {
            0 => {
                let at = input.choose_index(table.len())?;
                table[at] ^= input.int_in_range(1..=255)?;
            }
            1 => {
                // A slot of another task, or of this one in the wrong place.
                let (from, at) =
                    (input.int_in_range(0..=layout.pieces())?, input.int_in_range(0..=layout.pieces() - 1)?);
                let id = TaskId([input.arbitrary()?; 32]);
                let slot = encode_slot(&id, from, &[1; 32]);
                write(&mut table, at, &slot);
                if id == ID && from == at {
                    written.insert(at, [1; 32]);
                }
            }
            _ => table.truncate(input.choose_index(table.len() + 1)?.max(table.len() / 2)),
        }
        if let Some(found) = decode_table(&ID, layout, &table) {
            assert!(found.iter().all(|(piece, digest)| written.get(piece) == Some(digest)), "a slot nobody wrote");
        }
    }
    Ok(())
}

fn write(table: &mut [u8], piece: u32, slot: &[u8; SLOT_LEN]) {
    let at = usize::try_from(slot_offset(piece)).expect("a short table");
    if let Some(room) = table.get_mut(at..at + SLOT_LEN) {
        room.copy_from_slice(slot);
    }
}
