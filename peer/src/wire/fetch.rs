//! Fetches one piece from a peer into the store; it counts only if its digest is right.

use std::{cell::Cell, sync::Arc};

use quinn::{RecvStream, VarInt};
use tokio::time::timeout;

use super::{
    Blame, BlameKind, FetchError, Link, PROGRESS, Stop,
    frame::{Request, Response},
};
use crate::{store::Held, uring::Pool};

/// The code of a stream that the fetching side stops.
const STOPPED: VarInt = VarInt::from_u32(0);

impl Link {
    /// Fetches `piece`, whose BLAKE3 is `digest`, and commits it; nothing of it is served before. The piece's bytes.
    ///
    /// `moved` grows as bytes come. Where `stop` is set the future ends with [`FetchError::Stopped`], after its write under
    /// way is complete; so two writers are never at one piece as long as the future is not dropped. A piece that was
    /// whole when it was stopped is committed all the same.
    pub async fn fetch_piece(
        &self,
        held: &Arc<Held>,
        piece: u32,
        digest: [u8; 32],
        pool: &Pool,
        stop: &Stop,
        moved: &Cell<u64>,
    ) -> Result<u64, FetchError> {
        let fetch = Fetch { link: self, held, piece, stop, moved };
        let _turn = fetch.unless_stopped(self.pieces.acquire()).await?.expect("never closed");
        let _user = held.user();
        self.traffic.begin();
        let fetched = fetch.run(blake3::Hash::from_bytes(digest), pool).await;
        self.traffic.end();
        fetched
    }
}

/// One piece on its way.
struct Fetch<'a> {
    link: &'a Link,
    held: &'a Arc<Held>,
    piece: u32,
    stop: &'a Stop,
    moved: &'a Cell<u64>,
}

impl Fetch<'_> {
    async fn run(&self, digest: blake3::Hash, pool: &Pool) -> Result<u64, FetchError> {
        let bytes = self.held.meta.layout.bytes_of(self.piece);
        if bytes.is_empty() {
            return Err(FetchError::NoSuchPiece(self.piece));
        }
        let len = usize::try_from(bytes.end - bytes.start).expect("a piece is at most 16 MiB");
        let mut recv = self.ask().await?;
        let received = match self.answer(&mut recv, len).await {
            Ok(()) => self.receive(&mut recv, len, pool).await,
            Err(error) => Err(error),
        };
        if received.is_err() {
            // Fails only where the stream is over already.
            let _ = recv.stop(STOPPED);
        }
        if received? != digest {
            return Err(self.blame(BlameKind::WrongBytes));
        }
        self.held.commit(self.piece, digest).await?;
        Ok(len as u64)
    }

    async fn ask(&self) -> Result<RecvStream, FetchError> {
        let request = Request { task: self.held.meta.id, piece: self.piece, from: 0 };
        let ask = async {
            let (mut send, recv) = self.link.connection.open_bi().await.map_err(|error| self.down(&error))?;
            send.write_all(&request.encode()).await.map_err(|error| self.down(&error))?;
            // Fails only where the peer has stopped the stream; then reading says why.
            let _ = send.finish();
            Ok(recv)
        };
        self.in_time(ask).await?
    }

    async fn answer(&self, recv: &mut RecvStream, len: usize) -> Result<(), FetchError> {
        let mut head = [0; Response::LEN];
        self.fill(recv, &mut head).await?;
        match Response::decode(head) {
            Ok(Response::Bytes(promised)) if promised as usize == len => Ok(()),
            Ok(Response::Missing) => Err(self.blame(BlameKind::Missing)),
            Ok(Response::Busy) => Err(FetchError::Busy(self.link.peer().clone())),
            Ok(Response::Bytes(_)) | Err(_) => Err(self.garbage()),
        }
    }

    /// Writes all of the piece to the store, and gives its digest.
    async fn receive(&self, recv: &mut RecvStream, len: usize, pool: &Pool) -> Result<blake3::Hash, FetchError> {
        let mut hasher = blake3::Hasher::new();
        let mut buf = self.unless_stopped(pool.lease()).await?;
        let mut at = 0;
        while at < len {
            let part = buf.len().min(len - at);
            self.fill(recv, &mut buf[..part]).await?;
            self.moved.set(self.moved.get() + part as u64);
            self.link.traffic.add(part);
            hasher.update(&buf[..part]);
            let offset = u32::try_from(at).expect("a piece is at most 16 MiB");
            let (written, returned) = self.held.write(self.piece, offset, buf, part).await;
            written?;
            buf = returned;
            at += part;
        }
        Ok(hasher.finalize())
    }

    async fn fill(&self, recv: &mut RecvStream, buf: &mut [u8]) -> Result<(), FetchError> {
        match self.in_time(recv.read_exact(buf)).await? {
            Ok(()) => Ok(()),
            Err(quinn::ReadExactError::FinishedEarly(_)) => Err(self.garbage()),
            Err(quinn::ReadExactError::ReadError(error)) => Err(self.down(&error)),
        }
    }

    async fn in_time<T>(&self, work: impl Future<Output = T>) -> Result<T, FetchError> {
        let done = self.unless_stopped(timeout(PROGRESS, work)).await?;
        done.map_err(|_| self.blame(BlameKind::Silent))
    }

    async fn unless_stopped<T>(&self, work: impl Future<Output = T>) -> Result<T, FetchError> {
        if self.stop.is_set() {
            return Err(FetchError::Stopped);
        }
        tokio::select! {
            biased;
            () = self.stop.wait() => Err(FetchError::Stopped),
            done = work => Ok(done),
        }
    }

    /// What comes on this link is no answer: nothing else that comes on it is worth more.
    fn garbage(&self) -> FetchError {
        self.link.condemn(BlameKind::Garbage, "you sent a malformed answer to a request");
        self.blame(BlameKind::Garbage)
    }

    fn blame(&self, kind: BlameKind) -> FetchError {
        FetchError::Blamed(Blame { peer: self.link.peer().clone(), kind })
    }

    fn down(&self, error: &dyn std::error::Error) -> FetchError {
        let why = error.to_string();
        self.link.end().unwrap_or_else(|| FetchError::Down { peer: self.link.peer().clone(), why })
    }
}
