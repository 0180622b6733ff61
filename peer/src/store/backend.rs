//! What the store asks of a disk: the ring in earnest, one that fails or crashes in tests.

use std::{fs::File, io, ops::Range, sync::Arc};

use rustix::io::Errno;

use crate::uring::{Buf, file};

#[cfg(test)]
pub(super) mod faulty;

/// Data I/O of the store. Opening, renaming and unlinking go through std: they touch no data.
pub(super) trait Backend {
    /// Gives a new file its length, without blocks.
    fn set_len(&self, file: &File, len: u64) -> io::Result<()>;
    /// Reserves the blocks of these bytes.
    async fn allocate(&self, file: &Arc<File>, bytes: Range<u64>) -> io::Result<()>;
    /// Writes all of `buf[span]` at `offset`.
    async fn write(&self, file: &Arc<File>, buf: Buf, span: Range<usize>, offset: u64) -> (io::Result<()>, Buf);
    /// Writes a slot or a header.
    async fn write_small(&self, file: &Arc<File>, bytes: Vec<u8>, offset: u64) -> io::Result<()>;
    /// One read into `buf[span]`: some of it, 0 at the end of the file.
    async fn read(&self, file: &Arc<File>, buf: Buf, span: Range<usize>, offset: u64) -> (io::Result<usize>, Buf);
}

/// The calling shard's ring.
struct Ring;

impl Backend for Ring {
    fn set_len(&self, file: &File, len: u64) -> io::Result<()> {
        file.set_len(len)
    }

    async fn allocate(&self, file: &Arc<File>, bytes: Range<u64>) -> io::Result<()> {
        match file::allocate(file, bytes).await {
            // A file system without fallocate(2): a full disk shows at the write.
            Err(error) if error.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) => Ok(()),
            result => result,
        }
    }

    async fn write(&self, file: &Arc<File>, buf: Buf, span: Range<usize>, offset: u64) -> (io::Result<()>, Buf) {
        file::write_all_at(file, buf, span, offset).await
    }

    async fn write_small(&self, file: &Arc<File>, bytes: Vec<u8>, offset: u64) -> io::Result<()> {
        file::write_small(file, bytes, offset).await
    }

    async fn read(&self, file: &Arc<File>, buf: Buf, span: Range<usize>, offset: u64) -> (io::Result<usize>, Buf) {
        file::read_at(file, buf, span, offset).await
    }
}

/// The disk of one store.
#[derive(Clone)]
pub(super) enum Disk {
    /// Each operation runs on the ring of the thread that asks.
    Ring,
    #[cfg(test)]
    Faulty(Arc<faulty::Faulty>),
}

macro_rules! on_backend {
    ($disk:expr, $backend:ident => $call:expr) => {
        match $disk {
            Disk::Ring => {
                let $backend = &Ring;
                $call
            }
            #[cfg(test)]
            Disk::Faulty(faulty) => {
                let $backend = faulty.as_ref();
                $call
            }
        }
    };
}

impl Backend for Disk {
    fn set_len(&self, file: &File, len: u64) -> io::Result<()> {
        on_backend!(self, backend => backend.set_len(file, len))
    }

    async fn allocate(&self, file: &Arc<File>, bytes: Range<u64>) -> io::Result<()> {
        on_backend!(self, backend => backend.allocate(file, bytes).await)
    }

    async fn write(&self, file: &Arc<File>, buf: Buf, span: Range<usize>, offset: u64) -> (io::Result<()>, Buf) {
        on_backend!(self, backend => backend.write(file, buf, span, offset).await)
    }

    async fn write_small(&self, file: &Arc<File>, bytes: Vec<u8>, offset: u64) -> io::Result<()> {
        on_backend!(self, backend => backend.write_small(file, bytes, offset).await)
    }

    async fn read(&self, file: &Arc<File>, buf: Buf, span: Range<usize>, offset: u64) -> (io::Result<usize>, Buf) {
        on_backend!(self, backend => backend.read(file, buf, span, offset).await)
    }
}
