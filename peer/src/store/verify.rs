//! The digest thread: checks what an unclean stop left, and follows tasks whose whole can be checked.

use std::{
    io,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use crossbeam::{channel::bounded, queue::ArrayQueue};
use tokio::{sync::Notify, task::JoinSet};

use super::held::{Held, Verdict};
use crate::{
    task::proof::{Check, Proof},
    uring::{Buf, Pool},
};

/// Tasks waiting for the thread; past it they are offered again later.
const QUEUE_LEN: usize = 1024;
/// Tasks in hand at once: a few hundred bytes each.
const MAX_JOBS: usize = 1024;
/// Buffers of the thread, and so reads under way.
const BUFFERS: usize = 4;
/// Bytes read and hashed at a time.
const BUF_LEN: usize = 1 << 20;
/// A task without a new piece for this long is let go; its next commit brings it back, and then the hash starts over. A
/// 16 MiB piece at 56 kB/s takes as long.
const IDLE: Duration = Duration::from_secs(300);
/// Entries of the thread's ring.
const RING_ENTRIES: u32 = 16;

/// The way to the digest thread.
pub(super) struct DigestQueue {
    tasks: ArrayQueue<Weak<Held>>,
    wake: Notify,
    stopping: AtomicBool,
    stop: Notify,
}

impl DigestQueue {
    pub(super) fn new() -> Self {
        let stopping = AtomicBool::new(false);
        Self { tasks: ArrayQueue::new(QUEUE_LEN), wake: Notify::new(), stopping, stop: Notify::new() }
    }

    /// Whether there was room.
    pub(super) fn push(&self, held: &Weak<Held>) -> bool {
        let pushed = self.tasks.push(Weak::clone(held)).is_ok();
        self.wake.notify_one();
        pushed
    }

    /// Ends the thread soon: each task gives up after the read under way.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.stop.notify_waiters();
        self.wake.notify_one();
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }
}

/// Starts the thread on a ring of its own; an error says that there can't be one.
pub(super) fn start(queue: Arc<DigestQueue>) -> io::Result<JoinHandle<()>> {
    let (ready, is_ready) = bounded(1);
    let body = move || match tokio_uring::Runtime::new(tokio_uring::builder().entries(RING_ENTRIES)) {
        Ok(runtime) => {
            drop(ready.send(Ok(())));
            runtime.block_on(run(queue));
        }
        Err(error) => drop(ready.send(Err(error))),
    };
    let thread = std::thread::Builder::new().name("pondhawk-digest".into()).spawn(body)?;
    is_ready.recv().map_err(io::Error::other)??;
    Ok(thread)
}

async fn run(queue: Arc<DigestQueue>) {
    let pool = Pool::new(BUFFERS, BUFFERS, BUF_LEN);
    let mut jobs = JoinSet::new();
    while !queue.is_stopping() {
        tokio::select! {
            () = queue.wake.notified() => {}
            Some(_) = jobs.join_next(), if !jobs.is_empty() => {}
        }
        while jobs.len() < MAX_JOBS
            && let Some(next) = queue.tasks.pop()
        {
            if let Some(held) = next.upgrade() {
                jobs.spawn_local(Job { held, pool: pool.clone(), queue: Arc::clone(&queue) }.run());
            }
        }
    }
    while jobs.join_next().await.is_some() {}
}

/// One task in the thread's hands.
struct Job {
    held: Arc<Held>,
    pool: Pool,
    queue: Arc<DigestQueue>,
}

impl Job {
    async fn run(self) {
        let held = &self.held;
        held.state().digesting.fetch_add(1, Ordering::AcqRel);
        self.check().await;
        let fed = match held.meta.proof {
            Some(proof) => self.follow(&proof).await,
            None => 0,
        };
        held.queued.store(false, Ordering::Release);
        // A commit between our last look and the line above found the task still queued.
        if held.verdict() == Verdict::Pending && held.counted_end(fed) > fed && !self.queue.is_stopping() {
            held.nudge();
        }
        held.state().digesting.fetch_sub(1, Ordering::AcqRel);
    }

    /// Counts the pieces that an unclean stop left and whose bytes are what their slots say; erases the other slots.
    async fn check(&self) {
        if self.held.is_checked() {
            return;
        }
        let mut all_known = true;
        for (piece, expected) in self.held.take_unchecked() {
            if self.queue.is_stopping() || self.held.is_removed() {
                return;
            }
            if self.held.bitmap().get(piece) {
                continue;
            }
            match self.hash_piece(piece).await {
                Ok(digest) if digest == expected => self.held.count_found(piece),
                result => {
                    let error = result.err();
                    tracing::warn!(task = %self.held.meta.id, piece, ?error, "a stored piece is not what it was; dropped");
                    self.held.distrust();
                    all_known &= self.held.erase_slot(piece).await.is_ok();
                }
            }
        }
        self.held.set_checked(all_known);
    }

    async fn hash_piece(&self, piece: u32) -> io::Result<[u8; 32]> {
        let bytes = self.held.meta.layout.bytes_of(piece);
        let mut hasher = blake3::Hasher::new();
        let mut at = bytes.start;
        while at < bytes.end {
            let (buf, n) = self.read(at, bytes.end).await?;
            hasher.update(&buf[..n]);
            at += n as u64;
        }
        Ok(hasher.finalize().into())
    }

    /// Checks the held prefix as it grows; sets the verdict at its end, or where it is wrong. Up to where it looked.
    async fn follow(&self, proof: &Proof) -> u64 {
        let mut check = Check::new(proof);
        // A check takes only what it can use; it is shown the rest again when there is more.
        let mut seen = 0;
        let len = self.held.meta.layout.len();
        while self.held.verdict() == Verdict::Pending {
            let (counted, stop) = (self.held.counted(), self.queue.stop.notified());
            if self.queue.is_stopping() || self.held.is_removed() {
                break;
            }
            if check.fed() == len {
                self.held.set_verdict(if check.holds() { Verdict::Verified } else { Verdict::Mismatch });
                return len;
            }
            let end = self.held.counted_end(seen);
            if end > seen {
                seen = self.feed(&mut check, end, len).await;
                continue;
            }
            let progress = async {
                tokio::select! { () = counted => {} () = stop => {} }
            };
            if tokio::time::timeout(IDLE, progress).await.is_err() {
                break;
            }
        }
        seen
    }

    /// Shows the check what follows what it took, up to `end` of the task's `len` bytes; up to where that was.
    async fn feed(&self, check: &mut Check, end: u64, len: u64) -> u64 {
        let start = check.fed();
        let mut seen = end;
        match self.read(start, end).await {
            Ok((buf, n)) => {
                let right = check.feed(&buf[..n]);
                let taken = check.fed() > start;
                seen = if taken { check.fed() } else { start + n as u64 };
                // Of a full buffer, and of the end, something must be of use.
                if !right || !taken && (n == buf.len() || seen == len) {
                    self.held.set_verdict(Verdict::Mismatch);
                }
            }
            Err(error) => {
                tracing::error!(task = %self.held.meta.id, %error, "the disk does not give a stored task back");
                self.held.set_verdict(Verdict::Unreadable);
            }
        }
        // The other tasks' turn.
        tokio::task::yield_now().await;
        seen
    }

    /// The bytes from `at` up to `end`, or as many as a buffer takes.
    async fn read(&self, at: u64, end: u64) -> io::Result<(Buf, usize)> {
        let mut buf = self.pool.lease().await;
        let most = usize::try_from(end - at).unwrap_or(usize::MAX).min(buf.len());
        let mut n = 0;
        while n < most {
            let (result, back) = self.held.read(buf, n..most, at + n as u64).await;
            buf = back;
            n += match result? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                more => more,
            };
        }
        Ok((buf, n))
    }
}
