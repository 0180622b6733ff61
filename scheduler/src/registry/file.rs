//! The registry's file in the state directory: read whole, changed under the directory's lock, replaced at once.

use std::fs;
use std::io::{self, Read};
use std::path::Path;

use super::entries::{Bounds, Change, Entries, RegistryRefusal};
use crate::authority::{AuthorityError, file, lock, write};

/// Its name in the state directory; 0600.
pub(crate) const FILE: &str = "peers.json";
/// What is longer was not written here: the bounds of the entries allow less.
const MAX_BYTES: u64 = 64 << 20;

/// What becomes of each change of a batch.
pub(super) type Outcomes = Vec<Result<(), RegistryRefusal>>;

/// Identifies the content of the file without reading it: it is replaced, never written to.
pub(super) type FileStamp = Option<(u64, i64, u64)>;

pub(super) fn stamp(dir: &Path) -> FileStamp {
    use std::os::unix::fs::MetadataExt;
    let found = fs::metadata(dir.join(FILE)).ok()?;
    Some((found.ino(), found.mtime_nsec() ^ found.mtime().rotate_left(32), found.len()))
}

/// What is in the directory; empty where there is no such file.
pub(super) fn read(dir: &Path) -> Result<Entries, AuthorityError> {
    let path = dir.join(FILE);
    let mut text = Vec::new();
    let opened = fs::File::open(&path).and_then(|found| found.take(MAX_BYTES + 1).read_to_end(&mut text));
    match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Entries::default()),
        Err(source) => return Err(file(&path, source)),
        Ok(_) => {}
    }
    let damaged = |why: String| AuthorityError::Registry { path: path.clone(), why };
    if text.len() as u64 > MAX_BYTES {
        return Err(damaged(format!("it is longer than {MAX_BYTES} bytes")));
    }
    serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))
}

/// Makes changes in the directory, at `now` in Unix seconds; gives what is there afterwards, and what became of each.
pub(super) fn change(
    dir: &Path,
    changes: &[Change],
    now: u64,
    bounds: Bounds,
) -> Result<(Entries, Outcomes), AuthorityError> {
    let _turn = lock(dir)?;
    let before = read(dir)?;
    let mut entries = before.clone();
    entries.purge(now);
    let outcomes = changes.iter().map(|change| entries.apply(change, now, bounds)).collect();
    if entries != before {
        let text = serde_json::to_vec(&entries).map_err(|error| file(dir, io::Error::other(error)))?;
        write(&dir.join(FILE), 0o600, &text)?;
    }
    Ok((entries, outcomes))
}
