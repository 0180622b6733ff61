//! A listening socket on the ring.

use std::{
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::{
            fs::{FileTypeExt as _, PermissionsExt as _},
            net::{UnixListener, UnixStream},
        },
    },
    path::Path,
    sync::Arc,
};

use io_uring::{opcode, types};
use socket2::{Domain, Protocol, Type};

use super::{Socket, op};

/// Connections that wait for an accept, beside the kernel's own cap (net.core.somaxconn).
const BACKLOG: i32 = 4096;

/// accept4(2)'s SOCK_CLOEXEC.
const CLOEXEC: i32 = 0o2_000_000;

/// One shard's share of a listening port: every shard binds its own with SO_REUSEPORT and the kernel spreads connections. Of a
/// Unix socket, which there is one of, shards have clones.
#[derive(Clone, Debug)]
pub struct Listener {
    // Of a Unix socket too: to the ring and to std a descriptor is a descriptor.
    listener: Arc<TcpListener>,
    unix: bool,
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
        Ok(Self { listener: Arc::new(socket.into()), unix: false })
    }

    /// Listens on a Unix socket, in place of one that an earlier run left there. Everybody may open it who can reach it: who that
    /// is the mode of its directory says.
    pub fn bind_unix(path: &Path) -> io::Result<Self> {
        let left_over = std::fs::symlink_metadata(path).is_ok_and(|it| it.file_type().is_socket());
        if left_over && UnixStream::connect(path).is_err() {
            std::fs::remove_file(path)?;
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
        Ok(Self { listener: Arc::new(OwnedFd::from(listener).into()), unix: true })
    }

    /// The address that is bound: the port that the kernel chose where 0 was asked for.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// The next connection that still stands. Errors are of the listener or the process, never of one client.
    pub async fn accept(&self) -> io::Result<Socket> {
        loop {
            // A client that has already reset its connection must not look like a want of descriptors.
            let accepted = self.accept_one().await?;
            let socket = if self.unix { Socket::unix(accepted) } else { Socket::new(accepted) };
            if let Ok(socket) = socket {
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
