//! Clients on the Unix socket: told by its path rather than caught.
//!
//! hf_xet with `HF_XET_CLIENT_UNIX_SOCKET_PATH` opens every connection for a CAS or transfer host there, and speaks on it what
//! it would speak to the host: TLS where the URL is https, plain HTTP in origin form where it is http. Both are answered: the
//! first as an intercepted connection, the second as one to the proxy port.

use std::{rc::Rc, sync::Arc};

use tokio::time::Instant;

use super::listener::{Look, look};
use crate::{
    http::{connection, route::Arrival, transport::Transport},
    metrics::{PassReason, Way},
    shard::Shard,
    tls::TlsStream,
    uring::Socket,
};

/// Serves one connection to its end.
pub async fn local(shard: Rc<Shard>, socket: Socket) {
    let settings = &shard.node.config.limits;
    let (stall, handshake) = (settings.send_stall.get(), settings.handshake_timeout.get());
    let (first, what) = look(&socket, Vec::new(), shard.node.tls.suffixes()).await;
    let (transport, arrival) = match what {
        // A client that says nothing yet has the patience of one on the proxy port.
        Look::NotOurs(PassReason::NotTls | PassReason::Silent) => {
            let mut transport = Transport::plain(socket, shard.pool.clone(), stall);
            transport.pending = first;
            (transport, Arrival::Proxy)
        }
        Look::Ours(name) => {
            let config = Arc::clone(&shard.node.tls.config);
            match TlsStream::accept(socket, first, config, Instant::now() + handshake).await {
                Ok(stream) => {
                    let transport = Transport::tls(stream, shard.pool.clone(), stall);
                    (transport, Arrival::Terminated { name, way: Way::Proxy })
                }
                Err(error) => return tracing::debug!(host = name, %error, "no handshake on the Unix socket"),
            }
        }
        Look::NotOurs(reason) => {
            tracing::debug!(?reason, "not for one of intercept.hosts, on the Unix socket: closed");
            return socket.abort();
        }
        Look::Gone => return,
    };
    // Nobody is sent around the node: whoever comes here was told to.
    let _ = connection::serve(shard, transport, arrival, || {}).await;
}
