//! A shard's UDP socket, with batches that the kernel takes, as large as it takes them.
//!
//! quinn builds batches of at most ten datagrams for UDP GSO. With jumbo frames ten are more than the 64 KiB that the
//! kernel takes at once, and every send would fail; with small ones they are 14 KiB, and system calls, skbs and wake-ups of
//! the receiver cost as much as four times larger ones would. So [`Joined`] bounds the batches in one case and joins them in
//! the other.

use std::{
    future::poll_fn,
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr, UdpSocket},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll, Waker},
};

use quinn::{
    AsyncUdpSocket, Runtime, TokioRuntime, UdpPoller,
    udp::{EcnCodepoint, RecvMeta, Transmit},
};
use rustix::net::sockopt;

/// What the socket may queue while the shard does something else: at 10 Gbit/s 4 MiB are 3 ms.
const SOCKET_BUFFER: usize = 4 << 20;
/// What one UDP GSO send may carry: the largest IP packet less its headers.
const LARGEST_BATCH: usize = u16::MAX as usize - super::transport::HEADERS as usize;

/// Binds a socket for packets of at most `payload` bytes. Must be called inside the shard's runtime.
pub(super) fn open(listen: SocketAddr, payload: u16) -> io::Result<Arc<dyn AsyncUdpSocket>> {
    let socket = UdpSocket::bind(listen)?;
    // Without CAP_NET_ADMIN the system's own bound holds, and bursts are lost sooner.
    let _ = sockopt::set_socket_recv_buffer_size_force(&socket, SOCKET_BUFFER);
    let _ = sockopt::set_socket_send_buffer_size_force(&socket, SOCKET_BUFFER);
    Ok(Joined::over(TokioRuntime.wrap_udp_socket(socket)?, payload))
}

/// Holds a full batch back until the shard has polled its other tasks once, and appends what they add for the same
/// receiver. A batch that can't grow, and every single datagram (an acknowledgement), leaves at once.
#[derive(Debug)]
struct Joined {
    inner: Arc<dyn AsyncUdpSocket>,
    segments: usize,
    waiting: Mutex<Waiting>,
}

/// A batch that may still grow.
#[derive(Debug, Default)]
struct Waiting {
    bytes: Vec<u8>,
    head: Option<Head>,
    /// Something was appended since the flusher looked.
    grew: bool,
    /// What the last send of the flusher ended with, for the next caller.
    failed: Option<io::Error>,
    flusher: Option<Waker>,
}

/// What all datagrams of a batch have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Head {
    destination: SocketAddr,
    ecn: Option<EcnCodepoint>,
    src_ip: Option<IpAddr>,
    segment: usize,
}

impl Joined {
    fn over(inner: Arc<dyn AsyncUdpSocket>, payload: u16) -> Arc<Self> {
        let segments = LARGEST_BATCH / usize::from(payload);
        let joined = Arc::new(Self { inner, segments, waiting: Mutex::default() });
        tokio::spawn(flush_when_idle(Arc::downgrade(&joined), Arc::clone(&joined.inner).create_io_poller()));
        joined
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what waits, if anything. It waits on where the socket would block.
    fn flush(&self, waiting: &mut Waiting) -> io::Result<()> {
        let Some(head) = waiting.head else { return Ok(()) };
        let segment_size = (waiting.bytes.len() > head.segment).then_some(head.segment);
        let Head { destination, ecn, src_ip, .. } = head;
        let sent = self.inner.try_send(&Transmit { destination, ecn, contents: &waiting.bytes, segment_size, src_ip });
        if !matches!(&sent, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
            waiting.clear();
        }
        sent
    }

    /// Whether a batch of `len` bytes can still grow by a datagram.
    fn has_room(&self, len: usize, segment: usize) -> bool {
        len.is_multiple_of(segment) && len / segment < self.max_transmit_segments()
    }

    /// Appends to what waits, if it belongs there.
    fn append(&self, waiting: &mut Waiting, head: Head, contents: &[u8]) -> bool {
        let Some(waits) = waiting.head else { return false };
        let len = waiting.bytes.len() + contents.len();
        let fits = len.div_ceil(waits.segment) <= self.max_transmit_segments() && len <= LARGEST_BATCH;
        if fits && waits.joins(head, contents.len()) {
            waiting.bytes.extend_from_slice(contents);
            waiting.grew = true;
            return true;
        }
        false
    }
}

impl Head {
    fn of(transmit: &Transmit<'_>) -> Self {
        Self {
            destination: transmit.destination,
            ecn: transmit.ecn,
            src_ip: transmit.src_ip,
            segment: transmit.segment_size.unwrap_or(transmit.contents.len()),
        }
    }

    /// Whether datagrams of `other` can follow: as long as ours, or one that is shorter and ends the batch.
    fn joins(self, other: Self, len: usize) -> bool {
        let fits = other.segment == self.segment || (len == other.segment && len < self.segment);
        fits && Self { segment: self.segment, ..other } == self
    }
}

impl Waiting {
    fn clear(&mut self) {
        self.head = None;
        self.bytes.clear();
    }

    fn wake(&self) {
        if let Some(flusher) = &self.flusher {
            flusher.wake_by_ref();
        }
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        // The flusher sees that nobody is left.
        self.waiting().wake();
    }
}

/// Sends what waits once a whole round of the shard's tasks has added nothing.
async fn flush_when_idle(joined: Weak<Joined>, mut poller: Pin<Box<dyn UdpPoller>>) {
    poll_fn(|cx| {
        let Some(joined) = joined.upgrade() else { return Poll::Ready(()) };
        let mut waiting = joined.waiting();
        waiting.flusher = Some(cx.waker().clone());
        if std::mem::take(&mut waiting.grew) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        loop {
            match joined.flush(&mut waiting) {
                Ok(()) => return Poll::Pending,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => waiting.failed = Some(error),
            }
            match poller.as_mut().poll_writable(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) | Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await;
}

impl AsyncUdpSocket for Joined {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let mut waiting = self.waiting();
        if let Some(error) = waiting.failed.take() {
            return Err(error);
        }
        let head = Head::of(transmit);
        if self.append(&mut waiting, head, transmit.contents) {
            if !self.has_room(waiting.bytes.len(), waiting.head.map_or(1, |head| head.segment)) {
                // Accepted: where the socket would block, the flusher tries again.
                return match self.flush(&mut waiting) {
                    Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
                    _ => Ok(()),
                };
            }
            return Ok(());
        }
        self.flush(&mut waiting)?;
        if transmit.segment_size.is_none() || !self.has_room(transmit.contents.len(), head.segment) {
            drop(waiting);
            return self.inner.try_send(transmit);
        }
        waiting.head = Some(head);
        waiting.bytes.extend_from_slice(transmit.contents);
        waiting.grew = true;
        waiting.wake();
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.inner.poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments().min(self.segments)
    }

    /// Sizes the receive buffers: a batch of jumbo frames is no longer than one of small ones.
    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments().min(self.segments + 1)
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

#[cfg(test)]
#[path = "socket_tests.rs"]
mod tests;
