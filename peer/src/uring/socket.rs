//! A connected TCP or Unix socket on the ring.

use std::{
    io,
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream},
    ops::Range,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    sync::Arc,
    time::Duration,
};

use io_uring::{opcode, types};
use rustix::event::PollFlags;

use super::{Buf, op};

/// A connected socket in blocking mode: the ring arms its own poll where it has to wait.
///
/// Clones are the same socket. No operation has a deadline of its own: put one around it, and [`Socket::shutdown`] when it
/// passes, so that what is under way in the kernel ends too.
#[derive(Clone, Debug)]
pub struct Socket {
    stream: Arc<TcpStream>,
    peer: SocketAddr,
    local: SocketAddr,
    unix: bool,
}

impl Socket {
    /// Takes over a connected stream; turns Nagle off and keepalive on, so that a dead peer is noticed.
    pub fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        let keepalive = socket2::TcpKeepalive::new()
            .with_time(Duration::from_secs(60))
            .with_interval(Duration::from_secs(15))
            .with_retries(4);
        socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
        let (peer, local) = (stream.peer_addr()?, stream.local_addr()?);
        Ok(Self { stream: Arc::new(stream), peer, local, unix: false })
    }

    /// Takes over a connected Unix stream socket, whatever std calls its descriptor. It has no addresses: both are 0.0.0.0:0.
    pub(super) fn unix(stream: TcpStream) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        let nowhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        Ok(Self { stream: Arc::new(stream), peer: nowhere, local: nowhere, unix: true })
    }

    /// Whether it is a Unix socket.
    pub fn is_unix(&self) -> bool {
        self.unix
    }

    /// The other end.
    pub fn peer_addr(&self) -> SocketAddr {
        self.peer
    }

    /// This end.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Ends one or both directions; operations under way on them complete.
    pub fn shutdown(&self, how: Shutdown) {
        // ENOTCONN is all that can happen: the other side was faster.
        let _ = self.stream.shutdown(how);
    }

    /// Sends RST at once and drops what is unsent: the other end must not take what it has for the whole. Operations under
    /// way complete with an error.
    ///
    /// A Unix socket knows no RST: there the other end sees that the stream is over too early.
    ///
    /// Connecting to AF_UNSPEC is how Linux spells it (connect(2)); a close with SO_LINGER would wait for those operations.
    pub fn abort(&self) {
        if self.unix {
            return self.shutdown(Shutdown::Both);
        }
        // Whatever fails here leaves a connection that was over already.
        let _ = rustix::net::connect_unspec(&*self.stream);
    }

    /// Whether the other end has closed or reset already, perhaps behind bytes that are still to be read. Does not wait.
    pub fn peer_left(&self) -> bool {
        let signs = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        let mut fds = [rustix::event::PollFd::new(&*self.stream, signs)];
        let at_once = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        // A poll that fails tells nothing; the next operation will.
        rustix::event::poll(&mut fds, Some(&at_once)).is_ok_and(|ready| ready > 0)
    }

    /// Waits until a read would find bytes, the end of the stream, or an error; holds no buffer meanwhile.
    pub async fn readable(&self) -> io::Result<()> {
        self.poll(PollFlags::IN).await
    }

    /// Waits until a write would not block.
    pub async fn writable(&self) -> io::Result<()> {
        self.poll(PollFlags::OUT).await
    }

    async fn poll(&self, flags: PollFlags) -> io::Result<()> {
        let entry = opcode::PollAdd::new(self.fd(), u32::from(flags.bits())).build();
        // SAFETY: no memory; the descriptor travels with the operation.
        unsafe { op::submit(Arc::clone(&self.stream), entry) }.await.0.map(drop)
    }

    /// Appends what arrives to `bytes`, into its spare capacity; 0 is the end of the stream.
    ///
    /// A vector without spare capacity is `InvalidInput`: it could not be told from the end of the stream.
    pub async fn recv(&self, bytes: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        let mut bytes = bytes;
        let spare = bytes.spare_capacity_mut();
        if spare.is_empty() {
            return (Err(io::ErrorKind::InvalidInput.into()), bytes);
        }
        let len = u32::try_from(spare.len()).unwrap_or(u32::MAX);
        let entry = opcode::Recv::new(self.fd(), spare.as_mut_ptr().cast(), len).build();
        // SAFETY: the entry points into `bytes`' heap memory, which does not move with the vector.
        let (result, (mut bytes, _)) = unsafe { op::submit((bytes, Arc::clone(&self.stream)), entry) }.await;
        let result = result.map(|n| n as usize);
        if let Ok(received) = result {
            // SAFETY: the kernel wrote `received` bytes, at most `len`, right after the initialised part.
            unsafe { bytes.set_len(bytes.len() + received) };
        }
        (result, bytes)
    }

    /// Sends all of `bytes`.
    pub async fn send_all(&self, bytes: Vec<u8>) -> (io::Result<()>, Vec<u8>) {
        let span = 0..bytes.len();
        self.send_span(bytes, span).await
    }

    /// Sends all of `span` of the buffer.
    pub async fn send_buf(&self, buf: Buf, span: Range<usize>) -> (io::Result<()>, Buf) {
        self.send_span(buf, span).await
    }

    async fn send_span<B>(&self, bytes: B, span: Range<usize>) -> (io::Result<()>, B)
    where
        B: std::ops::Deref<Target = [u8]> + StableMemory + Unpin + 'static,
    {
        let mut bytes = bytes;
        let mut done = 0;
        while done < span.len() {
            let rest = &bytes[span.start + done..span.end];
            let len = u32::try_from(rest.len()).unwrap_or(u32::MAX);
            let flags = (rustix::net::SendFlags::NOSIGNAL.bits() | MSG_WAITALL).cast_signed();
            let entry = opcode::Send::new(self.fd(), rest.as_ptr(), len).flags(flags).build();
            // SAFETY: the entry points into the memory of `bytes`, which does not move with it (`StableMemory`).
            let (result, data) = unsafe { op::submit((bytes, Arc::clone(&self.stream)), entry) }.await;
            bytes = data.0;
            match result {
                Ok(sent) => done += sent as usize,
                Err(error) if op::interrupted(&error) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if let Err(error) = self.writable().await {
                        return (Err(error), bytes);
                    }
                }
                Err(error) => return (Err(error), bytes),
            }
        }
        (Ok(()), bytes)
    }

    /// Switches O_NONBLOCK until the guard drops, for the system calls that have no ring operation worth using.
    pub(super) fn nonblocking(&self) -> io::Result<NonBlocking> {
        self.stream.set_nonblocking(true)?;
        Ok(NonBlocking(Arc::clone(&self.stream)))
    }

    fn fd(&self) -> types::Fd {
        types::Fd(self.stream.as_raw_fd())
    }
}

/// send(2)'s MSG_WAITALL: io_uring then goes on after a short send by itself, which rustix has no name for on sends.
const MSG_WAITALL: u32 = 0x100;

/// Memory that stays where it is when its owner moves.
trait StableMemory {}
impl StableMemory for Vec<u8> {}
impl StableMemory for Buf {}

/// The socket is non-blocking while this lives.
pub(super) struct NonBlocking(Arc<TcpStream>);

impl Drop for NonBlocking {
    fn drop(&mut self) {
        // Only EBADF could come, and the descriptor is alive.
        let _ = self.0.set_nonblocking(false);
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
