//! What can go wrong in the store, and who is to blame.

use std::{io, path::PathBuf};

use super::index::IndexError;

/// A failure of the store. Only [`Self::blames_disk`] ones are a fault of this machine's disk.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another peer has the directory.
    #[error("the store {} is in use by process {}", dir.display(), pid.map_or("unknown".to_owned(), |pid| pid.to_string()))]
    Locked {
        /// The store's directory.
        dir: PathBuf,
        /// Who holds it, if it said so.
        pid: Option<u32>,
    },
    /// Written by a newer pondhawk, or not a store.
    #[error("the store {} has format {found}, this pondhawk knows {known}: use a newer one or another directory", dir.display())]
    Version {
        /// The store's directory.
        dir: PathBuf,
        /// What its version file says.
        found: String,
        /// The format of this build.
        known: u32,
    },
    /// Neither quota nor disk has room, even after evicting all that may go. Nobody's fault: pass through.
    #[error("no room for {need} bytes, even without all that is not in use")]
    NoSpace {
        /// Bytes that were asked for.
        need: u64,
    },
    /// The disk or its file system failed.
    #[error("the disk failed to {what}")]
    Disk {
        /// The operation.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The index failed; a disk error or a damaged index.
    #[error("the store's index failed")]
    Index(#[from] IndexError),
    /// The index could not make the task durable, or not in time; its log line says why.
    #[error("the store's index did not record the task")]
    Unrecorded,
    /// The store is closed or closing.
    #[error("the store is closed")]
    Closed,
    /// The task was evicted or removed meanwhile.
    #[error("the task was removed")]
    Removed,
    /// The caller wrote past a piece or named a piece that isn't.
    #[error("piece {piece} has no bytes {at}..{end}")]
    OutOfBounds {
        /// The piece.
        piece: u32,
        /// First byte in the piece.
        at: u64,
        /// End of the bytes in the piece.
        end: u64,
    },
}

impl StoreError {
    /// Whether this machine's disk is to blame.
    pub fn blames_disk(&self) -> bool {
        matches!(self, Self::Disk { .. } | Self::Index(_) | Self::Unrecorded)
    }

    /// Whether there was no room: the download should pass through.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::NoSpace { .. })
    }

    /// For `map_err`: a disk failure in doing `what`.
    pub(super) fn disk(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Disk { what, source }
    }
}

/// Whether a write or reservation failed for want of room.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
