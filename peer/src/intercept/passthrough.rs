//! Connections that turned out not to be ours: on to where they were going, byte for byte.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use tokio::{net::TcpSocket, time::timeout};

use crate::{
    limits,
    uring::{Socket, Spliced, splice_both},
};

/// Why a connection could not be passed on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PassError {
    /// The original destination did not take the connection.
    #[error("connecting to {0}: {1}")]
    Connect(SocketAddr, #[source] io::Error),
    /// The original destination did not answer in [`limits::PASS_CONNECT_WAIT`].
    #[error("connecting to {0}: no answer")]
    ConnectTimeout(SocketAddr),
    /// One of the two ends broke off.
    #[error("{0}")]
    Broken(#[source] io::Error),
}

/// Connects to `destination` and joins `client` to it; `already` are the bytes that the client has sent so far.
///
/// `mark` keeps our own connection from being redirected to us again.
pub(super) async fn pass_through(
    client: &Socket,
    already: Vec<u8>,
    destination: SocketAddr,
    mark: u32,
) -> Result<Spliced, PassError> {
    join(client, already, &connect(destination, mark).await?).await
}

/// Joins a client to its server until both have ended; `already` are the bytes that the client has sent so far. On an error
/// the client is the caller's to reset.
pub(crate) async fn join(client: &Socket, already: Vec<u8>, server: &Socket) -> Result<Spliced, PassError> {
    let sent_ahead = already.len() as u64;
    if !already.is_empty() {
        let ahead = timeout(limits::PASS_CONNECT_WAIT, server.send_all(already)).await;
        ahead.map_err(|_| PassError::Broken(io::ErrorKind::TimedOut.into()))?.0.map_err(PassError::Broken)?;
    }
    let spliced = splice_both(client, server).await.map_err(PassError::Broken)?;
    Ok(Spliced { forth: spliced.forth + sent_ahead, ..spliced })
}

async fn connect(destination: SocketAddr, mark: u32) -> Result<Socket, PassError> {
    // A v4-mapped destination came from a v6 socket; the connection itself is IPv4.
    let destination = SocketAddr::new(destination.ip().to_canonical(), destination.port());
    let failed = |error| PassError::Connect(destination, error);
    let socket = match destination.ip() {
        IpAddr::V4(_) => TcpSocket::new_v4(),
        IpAddr::V6(_) => TcpSocket::new_v6(),
    }
    .map_err(failed)?;
    socket2::SockRef::from(&socket).set_mark(mark).map_err(failed)?;
    let connecting = timeout(limits::PASS_CONNECT_WAIT, socket.connect(destination)).await;
    let stream = connecting.map_err(|_| PassError::ConnectTimeout(destination))?.map_err(failed)?;
    stream.into_std().and_then(Socket::new).map_err(failed)
}
