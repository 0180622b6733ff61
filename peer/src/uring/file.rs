//! Files through the ring. A file is shared by the shards as `Arc<File>`; each operation keeps it open.
//!
//! What is in memory already is copied at once, by a system call: the ring would do the same while it submits, or, on a
//! tmpfs, which knows no attempt without waiting, hand it to a worker thread.

use std::{
    fs::File,
    io::{self, IoSliceMut},
    ops::Range,
    os::{fd::AsRawFd, unix::fs::FileExt},
    sync::Arc,
};

use io_uring::{opcode, types};
use rustix::io::{Errno, ReadWriteFlags};

use super::{Buf, op};

/// Of a tmpfs, and of a ramfs (linux/magic.h).
const MEMORY_FILE_SYSTEMS: [u64; 2] = [0x0102_1994, 0x8584_58f6];

/// Whether the file's file system is memory, so that no access to it waits for a disk.
pub(super) fn in_memory(file: &File) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|fs| MEMORY_FILE_SYSTEMS.contains(&(fs.f_type as u64)))
}

/// Reads what is in the page cache; none: that has to be waited for.
fn read_now(file: &File, into: &mut [u8], offset: u64) -> Option<io::Result<usize>> {
    match rustix::io::preadv2(file, &mut [IoSliceMut::new(into)], offset, ReadWriteFlags::NOWAIT) {
        Ok(n) => Some(Ok(n)),
        Err(Errno::OPNOTSUPP) if in_memory(file) => Some(file.read_at(into, offset)),
        Err(Errno::OPNOTSUPP | Errno::AGAIN | Errno::INTR) => None,
        Err(error) => Some(Err(error.into())),
    }
}

/// One read into `span` of the buffer: as many bytes as the kernel gave, 0 at the end of the file.
pub async fn read_at(file: &Arc<File>, buf: Buf, span: Range<usize>, offset: u64) -> (io::Result<usize>, Buf) {
    let mut buf = buf;
    if let Some(result) = read_now(file, &mut buf[span.clone()], offset) {
        return (result, buf);
    }
    loop {
        let entry = buf.read_entry(types::Fd(file.as_raw_fd()), span.clone(), offset);
        // SAFETY: the entry points into `buf`'s memory and names `file`'s descriptor; both travel with it, and neither
        // pool memory nor a boxed slice moves with its handle.
        let (result, data) = unsafe { op::submit((buf, Arc::clone(file)), entry) }.await;
        buf = data.0;
        match result {
            Err(error) if op::interrupted(&error) => {}
            result => return (result.map(|n| n as usize), buf),
        }
    }
}

/// Fills `span` of the buffer from the file; a file that ends sooner is `UnexpectedEof`.
pub async fn read_exact_at(file: &Arc<File>, buf: Buf, span: Range<usize>, offset: u64) -> (io::Result<()>, Buf) {
    let mut buf = buf;
    let mut done = 0;
    while done < span.len() {
        let (result, returned) = read_at(file, buf, span.start + done..span.end, offset + done as u64).await;
        buf = returned;
        match result {
            Ok(0) => return (Err(io::ErrorKind::UnexpectedEof.into()), buf),
            Ok(n) => done += n,
            Err(error) => return (Err(error), buf),
        }
    }
    (Ok(()), buf)
}

/// Fills the first `len` bytes of memory that lives in no pool and may go to another thread afterwards; a file that ends
/// sooner is `UnexpectedEof`.
///
/// # Panics
/// If `bytes` is shorter than `len`.
pub async fn fill_from(file: &Arc<File>, bytes: Vec<u8>, len: usize, offset: u64) -> (io::Result<()>, Vec<u8>) {
    let mut bytes = bytes;
    let mut done = 0;
    while done < len {
        let rest = &mut bytes[done..len];
        match read_now(file, rest, offset + done as u64) {
            Some(Ok(0)) => return (Err(io::ErrorKind::UnexpectedEof.into()), bytes),
            Some(Ok(n)) => {
                done += n;
                continue;
            }
            Some(Err(error)) => return (Err(error), bytes),
            None => {}
        }
        let count = u32::try_from(rest.len()).unwrap_or(u32::MAX);
        let entry = opcode::Read::new(types::Fd(file.as_raw_fd()), rest.as_mut_ptr(), count);
        let entry = entry.offset(offset + done as u64).build();
        // SAFETY: the entry points into `bytes`' heap memory, which does not move with the vector.
        let (result, data) = unsafe { op::submit((bytes, Arc::clone(file)), entry) }.await;
        bytes = data.0;
        match result {
            Ok(0) => return (Err(io::ErrorKind::UnexpectedEof.into()), bytes),
            Ok(n) => done += n as usize,
            Err(error) if op::interrupted(&error) => {}
            Err(error) => return (Err(error), bytes),
        }
    }
    (Ok(()), bytes)
}

/// Writes all of `span`.
pub async fn write_all_at(file: &Arc<File>, buf: Buf, span: Range<usize>, offset: u64) -> (io::Result<()>, Buf) {
    if in_memory(file) {
        return (file.write_all_at(&buf[span], offset), buf);
    }
    let mut buf = buf;
    let mut done = 0;
    while done < span.len() {
        let rest = span.start + done..span.end;
        let entry = buf.write_entry(types::Fd(file.as_raw_fd()), rest, offset + done as u64);
        // SAFETY: as in `read_at`.
        let (result, data) = unsafe { op::submit((buf, Arc::clone(file)), entry) }.await;
        buf = data.0;
        match result {
            Ok(0) => return (Err(io::ErrorKind::WriteZero.into()), buf),
            Ok(n) => done += n as usize,
            Err(error) if op::interrupted(&error) => {}
            Err(error) => return (Err(error), buf),
        }
    }
    (Ok(()), buf)
}

/// Writes all of a small record that lives in no pool.
pub async fn write_small(file: &Arc<File>, bytes: Vec<u8>, offset: u64) -> io::Result<()> {
    let mut bytes = bytes;
    let mut done = 0;
    while done < bytes.len() {
        let rest = &bytes[done..];
        let len = u32::try_from(rest.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let entry = opcode::Write::new(types::Fd(file.as_raw_fd()), rest.as_ptr(), len).offset(offset + done as u64);
        // SAFETY: the entry points into `bytes`' heap memory, which does not move with the vector.
        let (result, data) = unsafe { op::submit((bytes, Arc::clone(file)), entry.build()) }.await;
        bytes = data.0;
        match result {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => done += n as usize,
            Err(error) if op::interrupted(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// fdatasync(2).
pub async fn sync_data(file: &Arc<File>) -> io::Result<()> {
    let entry = opcode::Fsync::new(types::Fd(file.as_raw_fd())).flags(types::FsyncFlags::DATASYNC).build();
    // SAFETY: no memory; the descriptor travels with the operation.
    unsafe { op::submit(Arc::clone(file), entry) }.await.0.map(drop)
}

/// fallocate(2) of these bytes: their blocks are reserved, and the file is at least as long as they need it to be.
pub async fn allocate(file: &Arc<File>, bytes: Range<u64>) -> io::Result<()> {
    let len = bytes.end - bytes.start;
    let entry = opcode::Fallocate::new(types::Fd(file.as_raw_fd()), len).offset(bytes.start).build();
    // SAFETY: no memory; the descriptor travels with the operation.
    unsafe { op::submit(Arc::clone(file), entry) }.await.0.map(drop)
}
