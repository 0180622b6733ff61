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

impl SendFile<'_> {
    /// Sends the file's bytes in `span`.
    ///
    /// # Errors
    /// `TimedOut`: the client took nothing for `stall`. `UnexpectedEof`: the file is shorter than `span`; the disk is at
    /// fault then. Else what the socket or the disk said.
    pub async fn send(&self, span: Range<u64>) -> io::Result<()> {
        let mut offset = span.start;
        while offset < span.end {
            let stride = (span.end - offset).min(STRIDE);
            let warm = self.warm(offset)? && self.warm(offset + stride - 1)?;
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

    async fn send_warm(&self, span: Range<u64>) -> io::Result<u64> {
        let _nonblocking = self.socket.nonblocking()?;
        let mut offset = span.start;
        while offset < span.end {
            let count = usize::try_from(span.end - offset).unwrap_or(usize::MAX);
            match rustix::fs::sendfile(self.socket, self.file, Some(&mut offset), count) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => within(self.stall, self.socket.writable()).await?,
                Err(error) => return Err(error.into()),
            }
        }
        // A reply of a fast reader never waits on the socket: other connections of the shard get their turn here.
        tokio::task::yield_now().await;
        Ok(span.end - span.start)
    }

    async fn send_cold(&self, span: Range<u64>) -> io::Result<u64> {
        let buf = self.pool.lease().await;
        let wanted = usize::try_from(span.end - span.start).unwrap_or(usize::MAX).min(buf.len());
        let (result, buf) = file::read_at(self.file, buf, 0..wanted, span.start).await;
        let read = result?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        within(self.stall, async { self.socket.send_buf(buf, 0..read).await.0 }).await?;
        Ok(read as u64)
    }
}

async fn within<T>(limit: Duration, future: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(limit, future).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
