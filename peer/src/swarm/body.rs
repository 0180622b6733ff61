//! The body of an origin's answer: counted, with a deadline on silence, giving its connection back at its end.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, timeout_at},
};

use crate::metrics::{Metrics, Source};

use super::{
    connect::Place,
    error::OriginError,
    pool::{Pool, Sender},
};

/// 64 KiB: a rest of a body up to this length is read for the sake of its connection.
const MAX_DISCARDED: u64 = 64 << 10;
/// How long such a rest may keep silent.
const DISCARD_WAIT: Duration = Duration::from_secs(2);

/// The body of an answer whose head served as a probe: a download that takes it needs no request for these bytes.
#[derive(Clone, Default)]
pub struct OpenBody(Arc<Mutex<Option<OriginBody>>>);

impl OpenBody {
    /// From its first byte.
    pub fn new(body: OriginBody) -> Self {
        Self(Arc::new(Mutex::new(Some(body))))
    }

    /// The body, once.
    pub fn take(&self) -> Option<OriginBody> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl std::fmt::Debug for OpenBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OpenBody")
    }
}

/// A streaming body. Dropped early, it takes its connection with it.
pub struct OriginBody {
    incoming: Incoming,
    lent: Option<Lent>,
    at: String,
    idle: Duration,
    deadline: Instant,
    received: u64,
    counter: Arc<Metrics>,
    expected: Option<u64>,
}

/// What a body holds on to until its last byte.
pub(super) struct Lent {
    pub(super) pool: Arc<Pool>,
    pub(super) place: Place,
    pub(super) sender: Sender,
    pub(super) permit: Option<OwnedSemaphorePermit>,
    /// Whether the request had no body. An origin may answer without having read one, and would then take its rest for the
    /// next client's request.
    pub(super) reusable: bool,
}

impl Lent {
    fn give_back(self) {
        drop(self.permit);
        if self.reusable {
            self.pool.give_back(self.place, self.sender);
        }
    }
}

impl OriginBody {
    pub(super) fn new(incoming: Incoming, lent: Lent, at: String, idle: Duration, counter: Arc<Metrics>) -> Self {
        let deadline = Instant::now() + idle;
        let mut body = Self { incoming, lent: Some(lent), at, idle, deadline, received: 0, counter, expected: None };
        body.release_if_done();
        body
    }

    /// From now on exactly `len` bytes are right: fewer are a cut, more are malformed.
    pub(super) fn expect_len(mut self, len: u64) -> Self {
        self.expected = Some(len);
        self
    }

    /// From now on silence may last as long as this.
    pub(super) fn set_idle(&mut self, idle: Duration) {
        self.idle = idle;
        self.was_paused();
    }

    /// Reads the rest of a short body, so that its connection can be used again; a long one is dropped with its connection.
    pub async fn discard(mut self) {
        self.set_idle(DISCARD_WAIT);
        let short = self.len().is_some_and(|len| len <= MAX_DISCARDED);
        while short && matches!(self.chunk().await, Ok(Some(_))) {}
    }

    /// The length that the origin announced, if it did.
    pub fn len(&self) -> Option<u64> {
        self.incoming.size_hint().exact()
    }

    /// Whether it is known that nothing follows.
    pub fn is_empty(&self) -> bool {
        self.incoming.is_end_stream()
    }

    /// The next bytes, `None` at the end. May be dropped and called again: nothing is lost and the deadline on silence,
    /// which runs from the last bytes that came, stays.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, OriginError> {
        loop {
            let silent = |_| OriginError::Timeout { at: self.at.clone(), waiting: "for the body" };
            let frame = timeout_at(self.deadline, self.incoming.frame()).await.map_err(silent)?;
            match frame {
                None => return self.finish(),
                Some(Err(error)) => return Err(self.broken(&error)),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data()
                        && !data.is_empty()
                    {
                        return self.count(data).map(Some);
                    }
                }
            }
        }
    }

    /// Restarts the clock: for a caller that did not ask for bytes for a while by its own choice.
    pub fn was_paused(&mut self) {
        self.deadline = Instant::now() + self.idle;
    }

    fn count(&mut self, data: Bytes) -> Result<Bytes, OriginError> {
        self.received += data.len() as u64;
        self.counter.received(Source::Origin, data.len() as u64);
        self.was_paused();
        if self.expected.is_some_and(|expected| self.received > expected) {
            return Err(OriginError::Malformed { at: self.at.clone(), what: "more bytes than announced" });
        }
        self.release_if_done();
        Ok(data)
    }

    fn finish(&mut self) -> Result<Option<Bytes>, OriginError> {
        if let Some(lent) = self.lent.take() {
            lent.give_back();
        }
        match self.expected {
            Some(expected) if self.received < expected => Err(self.cut()),
            _ => Ok(None),
        }
    }

    /// Callers that know the length stop asking at the last byte: the connection must not be lost for that.
    fn release_if_done(&mut self) {
        if self.incoming.is_end_stream()
            && let Some(lent) = self.lent.take()
        {
            lent.give_back();
        }
    }

    fn broken(&self, error: &hyper::Error) -> OriginError {
        match error.is_parse() {
            true => OriginError::Malformed { at: self.at.clone(), what: "bad chunk" },
            false => self.cut(),
        }
    }

    fn cut(&self) -> OriginError {
        OriginError::Cut { at: self.at.clone(), received: self.received }
    }
}
