//! A listening socket on the ring.

use std::{
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::Arc,
};

use io_uring::{opcode, types};
use socket2::{Domain, Protocol, Type};

use super::{Socket, op};

/// Connections that wait for an accept, beside the kernel's own cap (net.core.somaxconn).
const BACKLOG: i32 = 4096;

/// accept4(2)'s SOCK_CLOEXEC.
const CLOEXEC: i32 = 0o2_000_000;

/// One shard's share of a listening port: every shard binds its own with SO_REUSEPORT and the kernel spreads connections.
#[derive(Debug)]
pub struct Listener {
    listener: Arc<TcpListener>,
}

impl Listener {
    /// Binds and listens. SO_REUSEADDR too, so that a restart right after serving finds its port free.
    ///
    /// With SO_REUSEPORT a second node of the same user would share the port in silence: the store's lock is what
    /// refuses it.
    pub fn bind(addr: SocketAddr) -> io::Result<Self> {
        let socket = socket2::Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        if addr.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.bind(&addr.into())?;
        socket.listen(BACKLOG)?;
        Ok(Self { listener: Arc::new(socket.into()) })
    }

    /// The address that is bound: the port that the kernel chose where 0 was asked for.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// The next connection that still stands. Errors are of the listener or the process, never of one client.
    pub async fn accept(&self) -> io::Result<Socket> {
        loop {
            // A client that has already reset its connection must not look like a want of descriptors.
            if let Ok(socket) = Socket::new(self.accept_one().await?) {
                return Ok(socket);
            }
        }
    }

    async fn accept_one(&self) -> io::Result<TcpStream> {
        let entry =
            opcode::Accept::new(types::Fd(self.listener.as_raw_fd()), std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: no memory; the descriptor travels with the operation.
        let (result, _) = unsafe { op::submit(Arc::clone(&self.listener), entry.flags(CLOEXEC).build()) }.await;
        let fd = result?.cast_signed();
        // SAFETY: the kernel has just made this descriptor for us, and nothing else knows it.
        Ok(TcpStream::from(unsafe { OwnedFd::from_raw_fd(fd) }))
    }
}
