//! A connection that can be broken off on purpose, after what was written has left.

use std::{
    collections::HashSet,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::server::TlsStream;

use super::pace::Pacer;

/// What responses know of the connection they go out on.
#[derive(Debug, Default)]
pub(super) struct Connection {
    pub(super) pacer: Pacer,
    /// Labels of the objects asked for.
    pub(super) labels: Mutex<HashSet<String>>,
    reset: AtomicBool,
    flush: Mutex<Flush>,
}

#[derive(Debug, Default)]
struct Flush {
    waiting: Option<Waker>,
    done: bool,
}

impl Connection {
    /// Ready once all that was written before the first call has been handed to the kernel.
    pub(super) fn poll_flushed(&self, cx: &Context<'_>) -> Poll<()> {
        let mut flush = self.flush.lock().expect("no holder panics");
        if flush.waiting.is_some() && flush.done {
            *flush = Flush::default();
            return Poll::Ready(());
        }
        flush.done &= flush.waiting.is_some();
        flush.waiting = Some(cx.waker().clone());
        Poll::Pending
    }

    /// The connection ends with RST when it is dropped.
    pub(super) fn end_with_reset(&self) {
        self.reset.store(true, Ordering::Relaxed);
    }

    fn flushed(&self) {
        let mut flush = self.flush.lock().expect("no holder panics");
        if let Some(waker) = &flush.waiting {
            waker.wake_by_ref();
            flush.done = true;
        }
    }
}

/// The stream below hyper.
#[derive(Debug)]
pub(super) struct Wire {
    stream: Stream,
    connection: Arc<Connection>,
}

#[derive(Debug)]
enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Wire {
    pub(super) fn plain(stream: TcpStream, connection: Arc<Connection>) -> Self {
        Self { stream: Stream::Plain(stream), connection }
    }

    pub(super) fn tls(mut stream: TlsStream<TcpStream>, connection: Arc<Connection>) -> Self {
        // More records in one writev than the default of 64 KiB gives.
        stream.get_mut().1.set_buffer_limit(Some(256 << 10));
        Self { stream: Stream::Tls(Box::new(stream)), connection }
    }

    fn tcp(&self) -> &TcpStream {
        match &self.stream {
            Stream::Plain(stream) => stream,
            Stream::Tls(stream) => stream.get_ref().0,
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if self.connection.reset.load(Ordering::Relaxed) {
            // A socket closed with a linger time of zero sends RST (socket(7)); if it fails the client sees a FIN instead.
            let _ = rustix::net::sockopt::set_socket_linger(self.tcp(), Some(Duration::ZERO));
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        };
        if matches!(flushed, Poll::Ready(Ok(()))) {
            self.connection.flushed();
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
