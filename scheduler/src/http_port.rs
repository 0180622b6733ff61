//! A port for few and small requests: the page's, the webhook's, and the admin port of a node.

use std::collections::HashMap;
use std::convert::Infallible;
use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::port_slots::{SlotId, SlotTable, SlotVerdict};

/// A request's head, and the wait for the next one.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Everything on one connection; longer than the longest profile, and a browser that looks for longer connects again by itself.
const CONNECTION_LIFETIME: Duration = Duration::from_secs(600);
/// The longest head of a request.
pub const MAX_HEAD: usize = 16 << 10;
/// The wait after accept() failed, as it does while there are no file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A place among the connections of a port. The connection ends when its place is given to another one.
#[derive(Clone)]
pub struct PortSlot {
    id: SlotId,
    table: Arc<Mutex<OpenSlots>>,
}

/// The places, and how the connections in them are ended.
struct OpenSlots {
    slots: SlotTable,
    ends: HashMap<SlotId, Arc<Notify>>,
}

impl PortSlot {
    /// Marks the connection as busy until the guard drops, so that its place is not given away.
    pub fn request(&self) -> PortRequest {
        lock(&self.table).slots.begin_request(self.id);
        PortRequest(self.clone())
    }
}

/// A request under way on a connection.
pub struct PortRequest(PortSlot);

impl Drop for PortRequest {
    fn drop(&mut self) {
        lock(&self.0.table).slots.end_request(self.0.id);
    }
}

fn lock(table: &Mutex<OpenSlots>) -> MutexGuard<'_, OpenSlots> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives a new connection a place; `None` where every place has a request under way.
fn take_slot(table: &Arc<Mutex<OpenSlots>>, address: IpAddr) -> Option<(PortSlot, Arc<Notify>)> {
    let mut open = lock(table);
    let id = match open.slots.open(address) {
        SlotVerdict::Open(id) => id,
        SlotVerdict::Replace(id, evicted) => {
            if let Some(end) = open.ends.remove(&evicted) {
                end.notify_one();
            }
            id
        }
        SlotVerdict::Full => return None,
    };
    let end = Arc::new(Notify::new());
    open.ends.insert(id, Arc::clone(&end));
    Some((PortSlot { id, table: Arc::clone(table) }, end))
}

/// Accepts connections until the future is dropped, at most `most` at a time: see [`crate::port_slots`] for which ones.
/// `port` is what the log calls it.
pub async fn accept<F>(
    listener: &TcpListener,
    most: usize,
    port: &'static str,
    serve: impl Fn(TcpStream, SocketAddr, PortSlot) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let table = Arc::new(Mutex::new(OpenSlots { slots: SlotTable::new(most), ends: HashMap::new() }));
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "{port}: accept failed");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some((slot, end)) = take_slot(&table, peer.ip()) else {
            tracing::debug!(%peer, "{port}: refused, as all connections have requests under way");
            continue;
        };
        let (table, id) = (Arc::clone(&table), slot.id);
        let served = serve(stream, peer, slot);
        tokio::spawn(async move {
            tokio::select! {
                () = served => {}
                () = end.notified() => tracing::debug!(%peer, "{port}: an idle connection made room for another one"),
            }
            let mut open = lock(&table);
            open.slots.close(id);
            open.ends.remove(&id);
        });
    }
}

/// Answers requests without TLS until the future is dropped: see [`accept`].
pub async fn serve<A, F, B>(listener: &TcpListener, most: usize, port: &'static str, answer: A)
where
    A: Fn(Request<Incoming>, SocketAddr) -> F + Clone + Send + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    accept(listener, most, port, |stream, peer, slot| connection(stream, (peer, slot), port, answer.clone())).await;
}

async fn connection<A, F, B>(stream: TcpStream, (peer, slot): (SocketAddr, PortSlot), port: &'static str, answer: A)
where
    A: Fn(Request<Incoming>, SocketAddr) -> F,
    F: Future<Output = Response<B>>,
    B: Body + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let service = service_fn(move |request| {
        let (under_way, answer) = (slot.request(), answer(request, peer));
        async {
            let answer = answer.await;
            drop(under_way);
            Ok::<_, Infallible>(answer)
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(CONNECTION_LIFETIME, served).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%peer, %error, "{port}: a connection ended"),
        Err(_) => tracing::debug!(%peer, "{port}: a connection was cut after its time"),
    }
}

/// An answer whose body is here.
pub fn typed(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

/// One of text.
pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    typed(status, "text/plain; charset=utf-8", body)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const REQUEST: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: node\r\n\r\n";

    async fn asked(address: SocketAddr) -> (TcpStream, String) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(REQUEST).await.unwrap();
        let mut answer = vec![0; 1024];
        let len = stream.read(&mut answer).await.unwrap();
        (stream, String::from_utf8_lossy(&answer[..len]).into_owned())
    }

    #[tokio::test]
    async fn idle_connections_never_keep_a_health_probe_out() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let answer = |_: Request<Incoming>, _| async { text(StatusCode::OK, "ok\n") };
            serve(&listener, 64, "a port under test", answer).await;
        });
        let mut idle = Vec::new();
        for _ in 0..80 {
            idle.push(asked(address).await.0);
        }
        for _ in 0..8 {
            let (_, answer) = timeout(Duration::from_secs(20), asked(address)).await.expect("a probe is answered");
            assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
        }
    }
}
