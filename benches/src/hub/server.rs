//! Listeners and connections.

use std::{convert::Infallible, io, net::TcpListener as StdListener, sync::Arc, time::Duration};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use super::{
    Shared, routes,
    wire::{Connection, Wire},
};

const MAX_CONNECTIONS: usize = 8192;
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
const IDLE_DEADLINE: Duration = Duration::from_secs(60);
/// Two frames: enough to keep a socket busy, little to be counted as sent when a client leaves.
const WRITE_BUFFER: usize = 512 << 10;

/// A bound socket and what is spoken on it.
pub(super) struct Endpoint {
    pub(super) listener: StdListener,
    pub(super) tls: Option<TlsAcceptor>,
}

/// Serves until `stop` resolves. Runs on the hub's own thread.
pub(super) fn run(
    runtime: &tokio::runtime::Runtime,
    endpoints: Vec<Endpoint>,
    shared: &Arc<Shared>,
    stop: oneshot::Receiver<()>,
) {
    runtime.block_on(async {
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        for endpoint in endpoints {
            tokio::spawn(accept(endpoint, Arc::clone(shared), Arc::clone(&slots)));
        }
        // An error means that the hub was dropped, which is the same.
        let _ = stop.await;
    });
}

async fn accept(endpoint: Endpoint, shared: Arc<Shared>, slots: Arc<Semaphore>) {
    let listener = match TcpListener::from_std(endpoint.listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "cannot listen"),
    };
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(connection(stream, endpoint.tls.clone(), Arc::clone(&shared), slot));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, tls: Option<TlsAcceptor>, shared: Arc<Shared>, slot: OwnedSemaphorePermit) {
    shared.stats.connected();
    let connection = Arc::new(Connection::default());
    match open(stream, tls, &connection).await {
        Ok(wire) => serve(wire, &connection, &shared).await,
        Err(error) => {
            shared.stats.tls_failed();
            tracing::debug!(%error, "handshake failed");
        }
    }
    drop(slot);
}

async fn open(stream: TcpStream, tls: Option<TlsAcceptor>, connection: &Arc<Connection>) -> io::Result<Wire> {
    stream.set_nodelay(true)?;
    match tls {
        None => Ok(Wire::plain(stream, Arc::clone(connection))),
        Some(tls) => {
            let stream = timeout(HANDSHAKE_DEADLINE, tls.accept(stream)).await.map_err(io::Error::other)??;
            Ok(Wire::tls(stream, Arc::clone(connection)))
        }
    }
}

async fn serve(wire: Wire, connection: &Arc<Connection>, shared: &Arc<Shared>) {
    let service = service_fn(|request| async {
        Ok::<_, Infallible>(routes::answer(request, Arc::clone(shared), Arc::clone(connection)).await)
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_DEADLINE)
        .max_buf_size(WRITE_BUFFER)
        .serve_connection(TokioIo::new(wire), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "connection ended early");
    }
}
