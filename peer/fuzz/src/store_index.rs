//! The store's index after damage of its file: it opens, empty if need be, or says that the disk failed. It never panics.

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

use arbitrary::{Result, Unstructured};
use tempfile::TempDir;

/// Changes to one file at most.
const MAX_CHANGES: usize = 16;

/// Runs the target: where the bytes of an index are changed, and to what.
pub fn run(bytes: &[u8]) {
    // Input that ends early has done what it says.
    let _ = damage(&mut Unstructured::new(bytes));
}

fn damage(input: &mut Unstructured<'_>) -> Result<()> {
    let (dir, whole) = fresh();
    let mut file = whole.clone();
    for _ in 0..input.int_in_range(1..=MAX_CHANGES)? {
        match input.int_in_range(0..=3)? {
            0 => {
                let at = input.choose_index(file.len().max(1))?;
                if let Some(byte) = file.get_mut(at) {
                    *byte = input.arbitrary()?;
                }
            }
            // The header's two commit slots are where a byte matters most.
            1 => {
                let at = input.int_in_range(0..=511)?;
                if let Some(byte) = file.get_mut(at) {
                    *byte ^= input.int_in_range(1..=255)?;
                }
            }
            2 => file.truncate(input.choose_index(file.len() + 1)?),
            _ => {
                let (from, at) = (input.choose_index(file.len().max(1))?, input.choose_index(file.len().max(1))?);
                let len = input.int_in_range(1..=4096)?.min(file.len().saturating_sub(from.max(at)));
                file.copy_within(from..from + len, at);
            }
        }
        if input.is_empty() {
            break;
        }
    }
    let (path, aside) = (dir.path().join("damaged.redb"), dir.path().join("aside.redb"));
    fs::write(&path, &file).expect("the disk takes it");
    pondhawk::fuzz::open_index(&path, &aside).expect("a damaged index is put aside");
    Ok(())
}

/// An index of one epoch, as bytes.
fn fresh() -> &'static (TempDir, Vec<u8>) {
    static FRESH: OnceLock<(TempDir, Vec<u8>)> = OnceLock::new();
    FRESH.get_or_init(|| {
        let dir = tempfile::tempdir_in(memory()).expect("a directory");
        let path = dir.path().join("fresh.redb");
        pondhawk::fuzz::open_index(&path, &dir.path().join("aside.redb")).expect("a new index");
        let bytes = fs::read(path).expect("it was just made");
        (dir, bytes)
    })
}

/// Where files cost no disk.
fn memory() -> PathBuf {
    let shared = PathBuf::from("/dev/shm");
    if shared.is_dir() { shared } else { std::env::temp_dir() }
}
