//! One run of a download: a body from the origin into consecutive pieces of the store.
//!
//! While one buffer is written the next is filled. A piece's bytes are hashed in order as they are handed to the disk, may be
//! served once their write is done, and count when the whole piece is committed.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};

use super::{
    body::OriginBody,
    download::{Event, Fetch, LinkId, RunId},
    driver::Shared,
    origin::{Expected, Origin, OriginError, OriginRequest},
    share::Fetched,
};
use crate::{
    store::{Held, StoreError},
    trace::{Span, Trunk},
    uring::{Buf, Pool},
    wire::{Link, PeerId},
};

/// A buffer that is not full is written after this much silence, so that a slow origin's first bytes reach readers.
const FLUSH_AFTER: Duration = Duration::from_millis(2);
/// For a free buffer: replies give theirs back all the time.
const BUFFER_DEADLINE: Duration = Duration::from_secs(30);

/// What runs of one download share.
pub(super) struct Tools {
    pub(super) held: Arc<Held>,
    pub(super) origin: Arc<Origin>,
    pub(super) pool: Pool,
    pub(super) reporter: mpsc::Sender<Report>,
    /// Of pieces whose run stopped in the middle; at most one a parked run.
    pub(super) partials: RefCell<HashMap<u32, Partial>>,
    /// An answer with all of the object, of which nothing has been read yet.
    pub(super) open: RefCell<Option<OriginBody>>,
    pub(super) shared: Arc<Shared>,
    /// The download's span.
    pub(super) trace: Trunk,
}

/// A piece up to where it is written.
pub(super) struct Partial {
    written: u32,
    hasher: blake3::Hasher,
}

/// What a run tells the driver.
pub(super) enum Report {
    Event(Event),
    /// A piece from the origin is held; its BLAKE3.
    Done {
        run: RunId,
        piece: u32,
        digest: [u8; 32],
    },
    Failed(RunId, RunError),
    /// A peer can be asked.
    LinkUp(LinkId, Rc<Link>, Span),
    LinkDown(LinkId),
    /// A peer was asked for a piece.
    Fetched {
        link: LinkId,
        peer: PeerId,
        piece: u32,
        result: Fetched,
    },
}

#[derive(Debug, thiserror::Error)]
pub(super) enum RunError {
    #[error(transparent)]
    Origin(#[from] OriginError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// One request and where its bytes go.
pub(super) struct Run {
    pub(super) tools: Rc<Tools>,
    pub(super) request: Rc<OriginRequest>,
    pub(super) expected: Rc<Expected>,
    /// Set by the driver: end after the piece under way.
    pub(super) trimmed: Rc<Cell<bool>>,
    pub(super) fetch: Fetch,
    /// It ends with the run, also with one that is cancelled.
    pub(super) span: RefCell<Span>,
}

impl Run {
    /// Runs, and reports how it ended.
    pub(super) async fn report(self) {
        let run = self.fetch.run;
        let report = match self.fetch().await {
            Ok(()) => Report::Event(Event::RunEnded { run }),
            Err(error) => {
                self.tell(&error);
                Report::Failed(run, error)
            }
        };
        drop(self.span.take());
        // The driver is gone only if nobody wants to know.
        let _ = self.tools.reporter.send(report).await;
    }

    fn tell(&self, error: &RunError) {
        let mut span = self.span.borrow_mut();
        if let RunError::Origin(error) = error
            && let Some(answer) = error.answer()
        {
            span.set("http.response.status_code", u64::from(answer.status.as_u16()));
        }
        span.fail(|| error.to_string());
    }

    async fn fetch(&self) -> Result<(), RunError> {
        let mut sink = Sink::new(self);
        let got = self.receive(&mut sink).await;
        let kept = sink.settle().await;
        // A store that fails is worse than an origin that does.
        kept.and(got)
    }

    async fn receive(&self, sink: &mut Sink<'_>) -> Result<(), RunError> {
        let layout = self.tools.held.meta.layout;
        let start = layout.bytes_of(sink.piece).start + u64::from(sink.offset);
        let end = layout.bytes_of(self.fetch.pieces.end - 1).end;
        let (mut body, mut skip) = if let Some(open) = self.open_body(start) {
            (open, 0)
        } else if self.fetch.whole {
            (self.tools.origin.get_whole(&self.request, &self.expected).await?, start)
        } else {
            (self.tools.origin.get_range(&self.request, start..end, &self.expected).await?, 0)
        };
        // Nothing else is a body.
        let status = if self.fetch.whole && self.request.window.is_none() { 200_u64 } else { 206 };
        self.span.borrow_mut().set("http.response.status_code", status);
        while !sink.is_done() {
            let Some(mut data) = self.next(&mut body, sink).await? else {
                return Err(OriginError::Cut { at: self.request.label(), received: sink.offset.into() }.into());
            };
            self.tools.shared.from_origin.fetch_add(data.len() as u64, Ordering::Relaxed);
            self.span.borrow_mut().add(0, data.len() as u64);
            if self.tools.origin.pace(data.len() as u64).await {
                body.was_paused();
            }
            let passed = skip.min(data.len() as u64);
            skip -= passed;
            drop(data.split_to(usize::try_from(passed).unwrap_or(data.len())));
            if sink.take(data).await? {
                body.was_paused();
            }
        }
        Ok(())
    }

    /// The answer that is there already, for a run that begins where it does.
    fn open_body(&self, start: u64) -> Option<OriginBody> {
        let mut open = self.tools.open.borrow_mut().take().filter(|_| start == 0 && self.request.window.is_none())?;
        open.set_idle(self.tools.origin.idle_timeout());
        Some(open.expect_len(self.tools.held.meta.layout.len()))
    }

    /// The next bytes; what is buffered is written if they let themselves be waited for.
    async fn next(&self, body: &mut OriginBody, sink: &mut Sink<'_>) -> Result<Option<Bytes>, RunError> {
        if sink.has_unwritten() {
            match timeout(FLUSH_AFTER, body.chunk()).await {
                Ok(data) => return Ok(data?),
                Err(_) => sink.flush().await?,
            }
        }
        Ok(body.chunk().await?)
    }
}

/// Cuts a stream of bytes into buffers and pieces.
struct Sink<'a> {
    run: &'a Run,
    piece: u32,
    /// Bytes of the piece received so far.
    offset: u32,
    hasher: blake3::Hasher,
    buf: Option<Buf>,
    filled: usize,
    writing: Option<JoinHandle<Result<(), StoreError>>>,
    broken: bool,
    stopped: bool,
}

impl<'a> Sink<'a> {
    /// At the place where the fetch begins: in the middle of a piece only if what is before it was hashed.
    fn new(run: &'a Run) -> Self {
        let piece = run.fetch.pieces.start;
        let partial =
            run.tools.partials.borrow_mut().remove(&piece).filter(|partial| partial.written == run.fetch.from);
        let partial = partial.unwrap_or_else(|| Partial { written: 0, hasher: blake3::Hasher::new() });
        Self {
            run,
            piece,
            offset: partial.written,
            hasher: partial.hasher,
            buf: None,
            filled: 0,
            writing: None,
            broken: false,
            stopped: false,
        }
    }

    fn is_done(&self) -> bool {
        self.stopped || self.piece >= self.run.fetch.pieces.end
    }

    fn has_unwritten(&self) -> bool {
        self.filled > 0
    }

    fn piece_len(&self) -> u32 {
        let bytes = self.run.tools.held.meta.layout.bytes_of(self.piece);
        u32::try_from(bytes.end - bytes.start).expect("a piece is at most 16 MiB")
    }

    /// Takes bytes in; whether it had to wait for a buffer or the disk. What comes after the end is dropped.
    async fn take(&mut self, mut data: Bytes) -> Result<bool, RunError> {
        let mut waited = false;
        while !data.is_empty() && !self.is_done() {
            let missing = (self.piece_len() - self.offset) as usize;
            if self.run.tools.held.bitmap().get(self.piece) {
                let n = missing.min(data.len());
                drop(data.split_to(n));
                self.offset += u32::try_from(n).expect("within a piece");
            } else {
                waited |= self.buf.is_none();
                let n = self.fill(&data, missing).await?;
                drop(data.split_to(n));
            }
            if self.offset == self.piece_len() {
                self.end_piece().await?;
            } else if self.buf.as_ref().is_some_and(|buf| buf.len() == self.filled) {
                self.flush().await?;
            }
        }
        Ok(waited)
    }

    async fn fill(&mut self, data: &[u8], missing: usize) -> Result<usize, RunError> {
        if self.buf.is_none() {
            let busy = |_| OriginError::Busy { at: self.run.request.label() };
            self.buf = Some(timeout(BUFFER_DEADLINE, self.run.tools.pool.lease()).await.map_err(busy)?);
        }
        let buf = self.buf.as_mut().expect("leased above");
        let n = data.len().min(missing).min(buf.len() - self.filled);
        buf[self.filled..self.filled + n].copy_from_slice(&data[..n]);
        self.filled += n;
        self.offset += u32::try_from(n).expect("within a piece");
        Ok(n)
    }

    async fn end_piece(&mut self) -> Result<(), RunError> {
        if self.filled > 0 {
            self.flush().await?;
        } else {
            self.written().await?;
            let event = Event::PieceDone { run: self.run.fetch.run, piece: self.piece };
            // As in Run::report.
            let _ = self.run.tools.reporter.send(Report::Event(event)).await;
        }
        self.run.span.borrow_mut().add(1, 0);
        self.piece += 1;
        self.offset = 0;
        self.hasher.reset();
        self.stopped = self.run.trimmed.get();
        Ok(())
    }

    /// Hands the buffer to the disk, after the write before it is done.
    async fn flush(&mut self) -> Result<(), RunError> {
        self.written().await?;
        let Some(buf) = self.buf.take() else { return Ok(()) };
        let n = std::mem::take(&mut self.filled);
        self.hasher.update(&buf[..n]);
        let write = Write {
            tools: Rc::clone(&self.run.tools),
            run: self.run.fetch.run,
            piece: self.piece,
            end: self.offset,
            digest: (self.offset == self.piece_len()).then(|| self.hasher.finalize()),
        };
        self.writing = Some(tokio_uring::spawn(write.carry_out(buf, n)));
        Ok(())
    }

    /// Waits for the write under way. The store bounds its own waits.
    async fn written(&mut self) -> Result<(), RunError> {
        let Some(writing) = self.writing.take() else { return Ok(()) };
        let result = writing.await.unwrap_or(Err(StoreError::Closed));
        self.broken |= result.is_err();
        Ok(result?)
    }

    /// Writes what is there and keeps the state of an unfinished piece for the run that goes on with it.
    async fn settle(mut self) -> Result<(), RunError> {
        if self.broken {
            return Ok(());
        }
        self.flush().await?;
        self.written().await?;
        if self.offset > 0 && !self.is_done() {
            let partial = Partial { written: self.offset, hasher: self.hasher };
            self.run.tools.partials.borrow_mut().insert(self.piece, partial);
        }
        Ok(())
    }
}

/// One write and what follows from it.
struct Write {
    tools: Rc<Tools>,
    run: RunId,
    piece: u32,
    /// Bytes of the piece that are there after it.
    end: u32,
    digest: Option<blake3::Hash>,
}

impl Write {
    async fn carry_out(self, buf: Buf, n: usize) -> Result<(), StoreError> {
        let held = &self.tools.held;
        let at = self.end - u32::try_from(n).expect("within a piece");
        let (result, buf) = held.write(self.piece, at, buf, n).await;
        drop(buf);
        result?;
        held.advance(self.piece, self.end);
        let report = match self.digest {
            Some(digest) => {
                held.commit(self.piece, digest).await?;
                Report::Done { run: self.run, piece: self.piece, digest: digest.into() }
            }
            None => Report::Event(Event::Progress { run: self.run, piece: self.piece, valid: self.end }),
        };
        // As in Run::report.
        let _ = self.tools.reporter.send(report).await;
        Ok(())
    }
}
