//! Two sockets joined back to back, bytes moved by splice(2) through a pipe.
//!
//! io_uring's own SPLICE goes to a worker thread each time and measured slower than the system call on non-blocking
//! sockets; sockmap redirection loses what is queued at the end of a stream.

use std::{io, net::Shutdown, os::fd::OwnedFd};

use rustix::{
    io::Errno,
    pipe::{PipeFlags, SpliceFlags},
};

use super::Socket;

/// A pipe's capacity; the kernel gives less where fs.pipe-user-pages-soft says so, which only costs speed.
const PIPE_LEN: usize = 1 << 20;

/// What went through, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spliced {
    /// From the first socket to the second.
    pub forth: u64,
    /// From the second socket to the first.
    pub back: u64,
}

/// Moves bytes both ways until both directions have ended. The end of one is passed on as a half-close and leaves the
/// other open. Idle connections are kept as long as both ends answer TCP keepalives.
///
/// # Errors
/// The first error of either direction; both ends are reset then.
pub async fn splice_both(a: &Socket, b: &Socket) -> io::Result<Spliced> {
    let _modes = (a.nonblocking()?, b.nonblocking()?);
    let result = tokio::try_join!(pump(a, b), pump(b, a));
    match result {
        Ok((forth, back)) => Ok(Spliced { forth, back }),
        Err(error) => {
            a.abort();
            b.abort();
            Err(error)
        }
    }
}

async fn pump(from: &Socket, to: &Socket) -> io::Result<u64> {
    let (drain, fill) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    // Best effort, as PIPE_LEN says.
    let _ = rustix::pipe::fcntl_setpipe_size(&fill, PIPE_LEN);
    let mut moved = 0;
    loop {
        let filled = match splice(from, &fill, PIPE_LEN) {
            Ok(0) => break,
            Ok(filled) => filled,
            Err(Errno::AGAIN) => {
                from.readable().await?;
                continue;
            }
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        empty(&drain, to, filled).await?;
        moved += filled as u64;
        tokio::task::yield_now().await;
    }
    to.shutdown(Shutdown::Write);
    Ok(moved)
}

async fn empty(drain: &OwnedFd, to: &Socket, filled: usize) -> io::Result<()> {
    let mut left = filled;
    while left > 0 {
        match splice(drain, to, left) {
            Ok(moved) => left -= moved,
            Err(Errno::AGAIN) => to.writable().await?,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn splice(from: impl std::os::fd::AsFd, to: impl std::os::fd::AsFd, len: usize) -> Result<usize, Errno> {
    rustix::pipe::splice(from, None, to, None, len, SpliceFlags::MOVE | SpliceFlags::NONBLOCK)
}
