//! File to plain socket without a copy in user space.
//!
//! sendfile(2) on a non-blocking socket, with the ring's poll where the socket is full, measured best of all ways (see
//! ARCHITECTURE.md). It reads the page cache synchronously, so it must only see pages that are there: `RWF_NOWAIT`
//! probes ask first, and a cold stretch goes through the ring into a pool buffer, and from there to the socket.

use std::{fs::File, io, ops::Range, sync::Arc, time::Duration};

use rustix::io::{Errno, ReadWriteFlags};
use tokio::time::timeout;

use super::{Pool, Socket, file};

/// Bytes between two looks at whether the pages are there, and at the deadline.
const STRIDE: u64 = 512 << 10;

/// How a stretch of a file goes to a socket.
#[derive(Debug)]
pub struct SendFile<'a> {
    /// Where to.
    pub socket: &'a Socket,
    /// Where from.
    pub file: &'a Arc<File>,
    /// The shard's buffers, for cold stretches.
    pub pool: &'a Pool,
    /// How long the socket may take no byte at all.
    pub stall: Duration,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("buf_len", &self.buf_len()).finish_non_exhaustive()
    }
}

/// Why a stretch of a file was not sent to its end.
#[derive(Debug, thiserror::Error)]
pub enum SendFileError {
    /// The client took no byte for as long as `stall`.
    #[error("the socket took nothing in time")]
    Stalled,
    /// The socket failed.
    #[error(transparent)]
    Socket(io::Error),
    /// The file could not be read, or is shorter than the stretch. The socket is intact and has everything before `at`.
    #[error("byte {at} of the file cannot be read: {source}")]
    File {
        /// Offset in the file.
        at: u64,
        /// What the kernel said.
        source: io::Error,
    },
}

impl SendFile<'_> {
    /// Sends the file's bytes in `span`.
    ///
    /// # Errors
    /// Tells apart whether the client, its socket or the file is at fault: only after the last can the reply go on from elsewhere.
    pub async fn send(&self, span: Range<u64>) -> Result<(), SendFileError> {
        let mut offset = span.start;
        while offset < span.end {
            let stride = (span.end - offset).min(STRIDE);
            let in_file = |source| SendFileError::File { at: offset, source };
            let warm = self.warm(offset).map_err(in_file)? && self.warm(offset + stride - 1).map_err(in_file)?;
            offset += if warm {
                self.send_warm(offset..offset + stride).await?
            } else {
                self.send_cold(offset..span.end).await?
            };
        }
        Ok(())
    }

    /// Whether the page of byte `offset` is in the page cache.
    fn warm(&self, offset: u64) -> io::Result<bool> {
        let mut byte = [0];
        match rustix::io::preadv2(self.file, &mut [io::IoSliceMut::new(&mut byte)], offset, ReadWriteFlags::NOWAIT) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => Ok(true),
            Err(Errno::AGAIN) => Ok(false),
            // A file system without RWF_NOWAIT: where it is no memory, the ring's workers do the waiting.
            Err(Errno::OPNOTSUPP) => Ok(file::in_memory(self.file)),
            Err(error) => Err(error.into()),
        }
    }

    async fn send_warm(&self, span: Range<u64>) -> Result<u64, SendFileError> {
        let _nonblocking = self.socket.nonblocking().map_err(SendFileError::Socket)?;
        let mut offset = span.start;
        while offset < span.end {
            let count = usize::try_from(span.end - offset).unwrap_or(usize::MAX);
            match rustix::fs::sendfile(self.socket, self.file, Some(&mut offset), count) {
                Ok(0) => {
                    return Err(SendFileError::File { at: offset, source: io::ErrorKind::UnexpectedEof.into() });
                }
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => within(self.stall, self.socket.writable()).await?,
                // A page that was dropped since `warm` looked. No socket gives this error (sendfile(2), tcp(7)).
                Err(error @ Errno::IO) => return Err(SendFileError::File { at: offset, source: error.into() }),
                Err(error) => return Err(SendFileError::Socket(error.into())),
            }
        }
        // A reply of a fast reader never waits on the socket: other connections of the shard get their turn here.
        tokio::task::yield_now().await;
        Ok(span.end - span.start)
    }

    async fn send_cold(&self, span: Range<u64>) -> Result<u64, SendFileError> {
        let buf = self.pool.lease().await;
        let wanted = usize::try_from(span.end - span.start).unwrap_or(usize::MAX).min(buf.len());
        let (result, buf) = file::read_at(self.file, buf, 0..wanted, span.start).await;
        let some = |read| if read == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(read) };
        let read = result.and_then(some).map_err(|source| SendFileError::File { at: span.start, source })?;
        within(self.stall, async { self.socket.send_buf(buf, 0..read).await.0 }).await?;
        Ok(read as u64)
    }
}

async fn within<T>(limit: Duration, future: impl Future<Output = io::Result<T>>) -> Result<T, SendFileError> {
    timeout(limit, future).await.map_err(|_| SendFileError::Stalled)?.map_err(SendFileError::Socket)
}
