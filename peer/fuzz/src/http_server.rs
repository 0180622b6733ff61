//! How hyper's server reads the bytes of a connection, without a runtime and without a socket.

use std::cell::RefCell;
use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Body as _, Incoming};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::service::service_fn;
use hyper::{Request, Response};

/// Rounds of polling after which hyper counts as stuck: a request takes two or three.
const MAX_POLLS: usize = 64;
/// Header lines that hyper takes, as many as the node does.
const MAX_HEADERS: usize = 128;

/// A request as hyper read it.
pub(crate) struct Reading {
    pub(crate) head: http::request::Parts,
    /// The body's length if it is known in advance.
    pub(crate) exact: Option<u64>,
    /// Whether there is no body at all.
    pub(crate) is_bodiless: bool,
    /// The body, if it was well-formed to its end.
    pub(crate) body: Option<Bytes>,
}

/// All requests on a connection that carries these bytes and is then closed.
pub(crate) fn read(bytes: &[u8]) -> Vec<Reading> {
    let readings = RefCell::new(Vec::new());
    let service = service_fn(|request: Request<Incoming>| {
        let readings = &readings;
        async move {
            let (head, body) = request.into_parts();
            let (exact, is_bodiless) = (body.size_hint().exact(), body.is_end_stream());
            let body = body.collect().await.ok().map(http_body_util::Collected::to_bytes);
            readings.borrow_mut().push(Reading { head, exact, is_bodiless, body });
            Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
        }
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    // The bytes end before the answer, which is no reason to give the request up.
    builder.max_headers(MAX_HEADERS).half_close(true);
    poll(builder.serve_connection(Recording(bytes), service));
    readings.into_inner()
}

/// Runs a connection to its end.
fn poll(connection: impl Future) {
    let mut connection = pin!(connection);
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..MAX_POLLS {
        if connection.as_mut().poll(&mut context).is_ready() {
            return;
        }
    }
    panic!("hyper waits although everything has been sent");
}

/// Gives the bytes and then the end, and takes every answer.
struct Recording<'a>(&'a [u8]);

impl Read for Recording<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, mut into: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let (now, later) = self.0.split_at(into.remaining().min(self.0.len()));
        into.put_slice(now);
        self.0 = later;
        Poll::Ready(Ok(()))
    }
}

impl Write for Recording<'_> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
