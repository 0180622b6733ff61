//! A client's connection, plain or TLS, as the HTTP loop sees it.

use std::{fs::File, io, net::Shutdown, ops::Range, sync::Arc, time::Duration};

use tokio::time::{Instant, timeout};

use crate::{
    limits,
    tls::{Distrust, TlsError, TlsStream},
    uring::{Buf, Pool, SendFile, SendFileError, Socket, file},
};

/// What happened to a client's connection.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The client's socket failed, or the client left.
    #[error("client: {0}")]
    Client(#[source] io::Error),
    /// The client closed its connection while the origin was still to answer.
    #[error("client: left before the answer was there")]
    Left,
    /// The client spoke TLS wrongly.
    #[error("client: {0}")]
    Tls(#[from] TlsError),
    /// The client took or sent nothing for too long.
    #[error("client: nothing moved for {0:?}")]
    Stalled(Duration),
    /// The shard had no buffers to spare.
    #[error("node: no buffer came free for {0:?}")]
    Buffers(Duration),
    /// The store's file could not be read. The connection is intact, and the client has everything before `at`.
    #[error("disk: {source}")]
    Disk {
        /// Offset in the file.
        at: u64,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A client's connection and what it sent ahead.
pub struct Transport {
    wire: Wire,
    /// Bytes that have arrived and belong to no request yet.
    pub pending: Vec<u8>,
    pool: Pool,
    stall: Duration,
}

enum Wire {
    Plain(Socket),
    Tls(Box<TlsStream>),
}

/// Room made for each read of heads.
const READ_LEN: usize = 4096;

impl Transport {
    /// A plain connection. Clients that take nothing for `stall` are cut.
    pub fn plain(socket: Socket, pool: Pool, stall: Duration) -> Self {
        Self { wire: Wire::Plain(socket), pending: Vec::new(), pool, stall }
    }

    /// A connection whose handshake is done.
    pub fn tls(stream: TlsStream, pool: Pool, stall: Duration) -> Self {
        Self { wire: Wire::Tls(Box::new(stream)), pending: Vec::new(), pool, stall }
    }

    /// Waits until something can be read, without holding a buffer.
    pub async fn readable(&self) -> Result<(), TransportError> {
        match &self.wire {
            Wire::Plain(socket) => socket.readable().await,
            Wire::Tls(stream) if stream.session().has_buffered() => Ok(()),
            Wire::Tls(stream) => stream.socket().readable().await,
        }
        .map_err(TransportError::Client)
    }

    /// Resolves once the client has closed or reset its connection, within [`limits::CLIENT_LOOK`]; takes no bytes. A client that
    /// closes only its sending half counts as gone: HTTP has no use for a half-closed connection (as nginx and hyper have it).
    pub async fn left(&self) {
        let socket = match &self.wire {
            Wire::Plain(socket) => socket,
            Wire::Tls(stream) => stream.socket(),
        };
        loop {
            // First the pause: an answer that comes at once costs no system call.
            tokio::time::sleep(limits::CLIENT_LOOK).await;
            if socket.peer_left() {
                return;
            }
        }
    }

    /// Appends what arrives to `pending`; 0 is the end.
    pub async fn recv(&mut self) -> Result<usize, TransportError> {
        match &mut self.wire {
            Wire::Plain(socket) => {
                self.pending.reserve(READ_LEN);
                let (result, pending) = socket.recv(std::mem::take(&mut self.pending)).await;
                self.pending = pending;
                result.map_err(TransportError::Client)
            }
            Wire::Tls(stream) => Ok(stream.recv(&mut self.pending).await?),
        }
    }

    /// Sends bytes of our own making: heads, chunk frames, passed-through bodies.
    pub async fn send(&mut self, bytes: Vec<u8>) -> Result<(), TransportError> {
        let stall = self.stall;
        let sending = async {
            match &mut self.wire {
                Wire::Plain(socket) => socket.send_all(bytes).await.0.map_err(TransportError::Client),
                Wire::Tls(stream) => Ok(stream.send(&bytes).await?),
            }
        };
        timeout(stall, sending).await.unwrap_or(Err(TransportError::Stalled(stall)))
    }

    /// Sends a stretch of a file: from the page cache where the socket is plain, with one encryption where it is not.
    pub async fn send_file(&mut self, file: &Arc<File>, span: Range<u64>) -> Result<(), TransportError> {
        match &mut self.wire {
            Wire::Plain(socket) => {
                let send = SendFile { socket, file, pool: &self.pool, stall: self.stall };
                send.send(span).await.map_err(|error| match error {
                    SendFileError::Stalled => TransportError::Stalled(self.stall),
                    SendFileError::File { at, source } => TransportError::Disk { at, source },
                    SendFileError::Socket(error) => TransportError::Client(error),
                })
            }
            Wire::Tls(stream) => send_file_tls(stream, &self.pool, self.stall, file, span).await,
        }
    }

    /// Whether the client's leaving says that it does not trust the node's certificate.
    pub fn distrust(&self) -> Option<Distrust> {
        match &self.wire {
            Wire::Plain(_) => None,
            Wire::Tls(stream) => stream.distrust(),
        }
    }

    /// Where the client is.
    pub fn peer_addr(&self) -> std::net::SocketAddr {
        match &self.wire {
            Wire::Plain(socket) => socket.peer_addr(),
            Wire::Tls(stream) => stream.socket().peer_addr(),
        }
    }

    /// The socket of a plain connection and what was read ahead, for a protocol that is not HTTP.
    ///
    /// # Panics
    /// On a TLS connection: tunnels within tunnels are refused before.
    pub fn into_socket(self) -> (Socket, Vec<u8>) {
        match self.wire {
            Wire::Plain(socket) => (socket, self.pending),
            Wire::Tls(_) => unreachable!("route() takes CONNECT on plain connections only"),
        }
    }

    /// Ends the connection in an orderly way: what was sent arrives even if the client is still sending. Closing with input
    /// unread would make the kernel reset the connection and drop the end of the reply (RFC 9112 section 9.6).
    pub async fn close(self) {
        let socket = match self.wire {
            Wire::Plain(socket) => {
                socket.shutdown(Shutdown::Write);
                socket
            }
            Wire::Tls(stream) => {
                let socket = stream.socket().clone();
                stream.close().await;
                socket
            }
        };
        let drained = async {
            let mut left = limits::LINGER_BYTES;
            while left > 0 {
                match socket.recv(Vec::with_capacity(READ_LEN)).await.0 {
                    Ok(n @ 1..) => left = left.saturating_sub(n),
                    _ => break,
                }
            }
        };
        // A client that goes on sending for longer gets its reset.
        let _ = timeout(limits::LINGER, drained).await;
        socket.shutdown(Shutdown::Both);
    }

    /// Breaks the connection off in the middle of a reply, so that no client takes what it has for the whole.
    pub fn cut(self) {
        let socket = match &self.wire {
            Wire::Plain(socket) => socket,
            Wire::Tls(stream) => stream.socket(),
        };
        socket.abort();
    }
}

/// A client that takes longer than this for one buffer is slow: its later stretches are [`SLOW_STRIDE`] long.
const SLOW: Duration = Duration::from_millis(500);
/// Short enough to fit at once into a socket that says it is writable.
const SLOW_STRIDE: usize = 32 << 10;

/// A client that keeps up is served with two buffers of its own; one that does not holds none while it is waited for, so
/// that slow readers leave the shard's buffers to the others.
async fn send_file_tls(
    stream: &mut TlsStream,
    pool: &Pool,
    stall: Duration,
    file: &Arc<File>,
    span: Range<u64>,
) -> Result<(), TransportError> {
    let mut offset = send_fast_tls(stream, pool, stall, file, span.clone()).await?;
    while offset < span.end {
        let writable = timeout(stall, stream.socket().writable()).await;
        writable.map_err(|_| TransportError::Stalled(stall))?.map_err(TransportError::Client)?;
        let (plain, mut out) = lease_pair(pool, stall).await?;
        let most = stream.max_plain(out.len()).min(plain.len()).min(SLOW_STRIDE) as u64;
        let n = usize::try_from((span.end - offset).min(most)).expect("at most a buffer");
        let (result, plain) = file::read_exact_at(file, plain, 0..n, offset).await;
        result.map_err(|source| TransportError::Disk { at: offset, source })?;
        let encrypted = stream.encrypt(&plain[..n], &mut out)?;
        drop(plain);
        let sent = timeout(stall, stream.socket().send_buf(out, 0..encrypted)).await;
        sent.map_err(|_| TransportError::Stalled(stall))?.0.map_err(TransportError::Client)?;
        offset += n as u64;
    }
    Ok(())
}

/// One read, one encryption, one send for each stretch; the next read is under way while the last send is. How far it
/// came: to the end, unless the client turned out to be slow.
async fn send_fast_tls(
    stream: &mut TlsStream,
    pool: &Pool,
    stall: Duration,
    file: &Arc<File>,
    span: Range<u64>,
) -> Result<u64, TransportError> {
    let (mut plain, mut out) = lease_pair(pool, stall).await?;
    let stride = stream.max_plain(out.len()).min(plain.len()) as u64;
    let stretch = |offset: u64| 0..usize::try_from((span.end - offset).min(stride)).expect("at most a buffer");
    let mut offset = span.start;
    if offset < span.end {
        let (result, read) = file::read_exact_at(file, plain, stretch(offset), offset).await;
        plain = read;
        result.map_err(|source| TransportError::Disk { at: offset, source })?;
    }
    while offset < span.end {
        let ready = stretch(offset);
        offset += ready.len() as u64;
        let encrypted = stream.encrypt(&plain[ready], &mut out)?;
        let socket = stream.socket();
        let begun = Instant::now();
        let send = timeout(stall, socket.send_buf(out, 0..encrypted));
        let (sent, (result, read)) = tokio::join!(send, file::read_exact_at(file, plain, stretch(offset), offset));
        plain = read;
        let (sent, buf) = sent.map_err(|_| TransportError::Stalled(stall))?;
        out = buf;
        sent.map_err(TransportError::Client)?;
        result.map_err(|source| TransportError::Disk { at: offset, source })?;
        if begun.elapsed() >= SLOW {
            break;
        }
    }
    Ok(offset)
}

/// Not for ever: other clients of this shard hold what there is.
async fn lease_pair(pool: &Pool, patience: Duration) -> Result<(Buf, Buf), TransportError> {
    timeout(patience, pool.lease_pair()).await.map_err(|_| TransportError::Buffers(patience))
}
