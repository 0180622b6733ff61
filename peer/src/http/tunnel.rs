//! CONNECT: hosts that the node serves are terminated here, all others reached untouched (RFC 9110 section 9.3.6).

use std::{rc::Rc, sync::Arc};

use tokio::time::Instant;

use super::{
    connection::{self, Exchange},
    forward::party_of,
    response,
    route::Arrival,
    transport::Transport,
};
use crate::{
    expiring::Expiring,
    intercept::{
        listener::{Look, look},
        passthrough::join,
    },
    metrics::{Direction, HandshakeFailure, Outcome, PassReason, Way},
    shard::Shard,
    tls::{AcceptError, Distrust, TlsStream},
    uring::Socket,
};

const ESTABLISHED: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";
/// What is terminated: the port of https.
const HTTPS: u16 = 443;
/// Clients remembered as not trusting the node.
const MAX_DISTRUSTING: usize = 1024;

/// Clients that did not trust the node's certificate: their tunnels are passed on for a while.
#[derive(Debug)]
pub struct Distrusting(Expiring<()>);

impl Default for Distrusting {
    fn default() -> Self {
        Self(Expiring::new(MAX_DISTRUSTING))
    }
}

/// Serves a CONNECT to its end.
pub async fn serve(exchange: Exchange, mut transport: Transport, host: String, port: u16) {
    let node = Arc::clone(&exchange.shard.node);
    let client = client_of(&exchange, &transport);
    let terminate =
        exchange.front().serves(&host) && port == HTTPS && node.distrusting.0.get(&client, Instant::now()).is_none();
    if !terminate {
        return pass(exchange, transport, &host, port).await;
    }
    if transport.send(ESTABLISHED.to_vec()).await.is_err() {
        return;
    }
    node.metrics.request(exchange.way, Outcome::Passed);
    let via: Vec<Vec<u8>> = exchange.head.get_all("via").map(<[u8]>::to_vec).collect();
    let (socket, pending) = transport.into_socket();
    let (first, what) = look(&socket, pending, node.tls.suffixes()).await;
    match what {
        Look::Ours(name) => terminated(Rc::clone(&exchange.shard), socket, first, name, client, &via).await,
        Look::NotOurs(reason) => {
            node.metrics.passthrough(reason);
            joined(&exchange.shard, &socket, first, (&host, port), &via).await;
        }
        Look::Gone => {}
    }
}

/// By what can be told apart: the machine and the program.
fn client_of(exchange: &Exchange, transport: &Transport) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(transport.peer_addr().ip().to_string().as_bytes());
    hasher.update(exchange.head.get("user-agent").unwrap_or_default());
    hasher.finalize().into()
}

async fn terminated(shard: Rc<Shard>, socket: Socket, first: Vec<u8>, name: String, client: [u8; 32], via: &[Vec<u8>]) {
    let node = Arc::clone(&shard.node);
    let deadline = Instant::now() + node.config.limits.handshake_timeout.get();
    let distrust = match TlsStream::accept(socket.clone(), first, Arc::clone(&node.tls.config), deadline).await {
        Ok(stream) => {
            let transport = Transport::tls(stream, shard.pool.clone(), node.config.limits.send_stall.get());
            let arrival = Arrival::Terminated { name: name.clone(), way: Way::Connect };
            // Only an alert says it plainly; here no connection was taken from a client that did not ask for us.
            let left = Box::pin(connection::serve(Rc::clone(&shard), transport, arrival, || {})).await;
            left.filter(|distrust| matches!(distrust, Distrust::Alert(_)))
        }
        Err(AcceptError::NotOurs { why, read }) => {
            tracing::debug!(host = name, %why, "a handshake that we cannot answer is passed on");
            node.metrics.passthrough(PassReason::NotTls);
            return joined(&shard, &socket, read, (&name, HTTPS), via).await;
        }
        Err(AcceptError::ClientDistrusts(distrust)) => Some(distrust),
        Err(error) => {
            tracing::debug!(host = name, %error, "no handshake");
            None
        }
    };
    if let Some(distrust) = distrust {
        node.metrics.handshake_failure(HandshakeFailure::Untrusted);
        let how_long = node.config.intercept.bypass_for.get();
        node.distrusting.0.insert(client, (), Instant::now(), how_long);
        tracing::warn!(
            client = %socket.peer_addr().ip(), host = name, ?distrust, ?how_long,
            "a client of the proxy does not trust this node's certificate authority; its tunnels are passed on for now. \
             Run `pondhawk ca install`, or give it the variables that `pondhawk ca env` prints"
        );
    }
}

/// Passes a tunnel on, once its far end is there: a client whose tunnel cannot be had is told so.
async fn pass(exchange: Exchange, mut transport: Transport, host: &str, port: u16) {
    let node = &exchange.shard.node;
    let server = match node.origin.tunnel(host, port, exchange.head.get_all("via")).await.map(Socket::new) {
        Ok(Ok(server)) => server,
        Ok(Err(error)) => {
            tracing::warn!(%error, "a tunnel's socket cannot be used");
            return;
        }
        Err(error) => {
            let about = exchange.about(0);
            let status = error.status().as_u16();
            let party = party_of(&error);
            let answer = response::error_reply(status, party, &error.to_string(), &[], false, &about);
            node.metrics.request(exchange.way, if status < 500 { Outcome::Refused } else { Outcome::Error });
            // The connection ends either way.
            let _ = transport.send(answer).await;
            return transport.close().await;
        }
    };
    node.metrics.request(exchange.way, Outcome::Passed);
    node.metrics.passthrough(PassReason::Tunnel);
    if transport.send(ESTABLISHED.to_vec()).await.is_ok() {
        let (socket, pending) = transport.into_socket();
        spliced(&exchange.shard, &socket, pending, &server).await;
    }
}

/// Joins a client that was promised a tunnel already to its far end.
async fn joined(shard: &Shard, client: &Socket, first: Vec<u8>, (host, port): (&str, u16), via: &[Vec<u8>]) {
    match shard.node.origin.tunnel(host, port, via.iter().map(Vec::as_slice)).await.map(Socket::new) {
        Ok(Ok(server)) => spliced(shard, client, first, &server).await,
        Ok(Err(error)) => tracing::debug!(%error, "a tunnel's socket cannot be used"),
        Err(error) => {
            client.abort();
            tracing::debug!(%error, "a tunnel has no far end");
        }
    }
}

async fn spliced(shard: &Shard, client: &Socket, first: Vec<u8>, server: &Socket) {
    match join(client, first, server).await {
        Ok(moved) => {
            shard.node.metrics.passed(Direction::Up, moved.forth);
            shard.node.metrics.passed(Direction::Down, moved.back);
        }
        Err(error) => {
            client.abort();
            tracing::debug!(%error, "a tunnel broke");
        }
    }
}
