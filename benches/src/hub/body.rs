//! The body of an object's response: paced, counted, and broken where a fault says so.

use std::{
    collections::VecDeque,
    io,
    ops::Range,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use hyper::body::{Body, Frame};
use tokio::time::{Sleep, sleep};

use super::{Shared, catalogue::Object, gzip::Gzip, pace::FRAME, wire::Connection};

/// What a response will send.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) object: Arc<Object>,
    pub(super) generation: u8,
    pub(super) range: Range<u64>,
    pub(super) end: End,
    pub(super) stall: Option<(u64, Duration)>,
    /// Offsets in the object.
    pub(super) corrupt: Vec<u64>,
    pub(super) gzip: bool,
}

/// How the body ends; the numbers are bytes of body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Whole,
    Cut(u64),
    Reset(u64),
}

#[derive(Debug)]
pub(super) struct ObjectBody {
    plan: Plan,
    shared: Arc<Shared>,
    connection: Arc<Connection>,
    sent: u64,
    /// Bytes booked on the rate limits and not yet sent.
    booked: u64,
    wait: Option<Pin<Box<Sleep>>>,
    breaking: bool,
    gzip: Option<Gzip>,
    ready: VecDeque<Bytes>,
}

/// A reset discards what the client's kernel has not been sent; this leaves it the time on a local link.
const BEFORE_RESET: Duration = Duration::from_millis(20);

impl ObjectBody {
    pub(super) fn new(plan: Plan, shared: Arc<Shared>, connection: Arc<Connection>) -> Self {
        shared.stats.body_started(&plan.object.label);
        let gzip = plan.gzip.then(Gzip::default);
        Self { plan, shared, connection, sent: 0, booked: 0, wait: None, breaking: false, gzip, ready: VecDeque::new() }
    }

    /// Bytes of content up to which may be sent now: the end, a break, a pause, whichever comes first.
    fn stop(&self) -> u64 {
        let whole = self.plan.range.end - self.plan.range.start;
        let end = match self.plan.end {
            End::Whole => whole,
            End::Cut(after) | End::Reset(after) => after,
        };
        self.plan.stall.map_or(end, |(after, _)| end.min(after.max(self.sent)))
    }

    fn produce(&mut self, max: u64) -> io::Result<()> {
        let offset = self.plan.range.start + self.sent;
        let mut bytes = self.plan.object.source.chunk(offset, max as usize, self.plan.generation)?;
        let span = offset..offset + bytes.len() as u64;
        for bad in self.plan.corrupt.iter().filter(|bad| span.contains(bad)) {
            let mut changed = bytes.to_vec();
            changed[(bad - offset) as usize] ^= 0xff;
            bytes = changed.into();
        }
        self.sent += bytes.len() as u64;
        self.booked = self.booked.saturating_sub(bytes.len() as u64);
        match &mut self.gzip {
            Some(gzip) => self.ready.extend(gzip.frames(bytes)),
            None => self.ready.push_back(bytes),
        }
        Ok(())
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(bytes)));
            }
            if let Some(wait) = &mut self.wait {
                ready!(wait.as_mut().poll(cx));
                self.wait = None;
            }
            let left = self.stop() - self.sent;
            if left > 0 {
                let frame = left.min(self.shared.limits.frame());
                if self.booked == 0 {
                    self.booked = frame;
                    let delay = self.shared.limits.reserve(&self.connection.pacer, frame);
                    if !delay.is_zero() {
                        self.wait = Some(Box::pin(sleep(delay)));
                        continue;
                    }
                }
                let frame = left.min(self.booked).min(FRAME);
                if let Err(error) = self.produce(frame) {
                    return Poll::Ready(Some(Err(error)));
                }
            } else if let Some((after, pause)) = self.plan.stall.take() {
                if self.sent >= after {
                    self.wait = Some(Box::pin(sleep(pause)));
                }
            } else if self.plan.end == End::Whole {
                return Poll::Ready(self.gzip.take().map(|gzip| Ok(gzip.trailer())));
            } else if !self.breaking {
                ready!(self.connection.poll_flushed(cx));
                self.breaking = true;
                self.wait = matches!(self.plan.end, End::Reset(_)).then(|| Box::pin(sleep(BEFORE_RESET)));
            } else {
                return Poll::Ready(Some(Err(self.break_off())));
            }
        }
    }

    /// hyper drops the connection when the body fails.
    fn break_off(&self) -> io::Error {
        if matches!(self.plan.end, End::Reset(_)) {
            self.connection.end_with_reset();
        }
        io::Error::other("the connection is broken off on purpose")
    }
}

impl Body for ObjectBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = self.get_mut();
        let next = ready!(this.poll_next(cx));
        if let Some(Ok(bytes)) = &next {
            this.shared.stats.sent(&this.plan.object.label, bytes.len() as u64);
        }
        Poll::Ready(next.map(|bytes| bytes.map(Frame::data)))
    }
}

impl Drop for ObjectBody {
    fn drop(&mut self) {
        self.shared.stats.body_ended(&self.plan.object.label);
    }
}
