//! Sends one piece to another peer, from the store's file.

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use quinn::{RecvStream, SendStream};
use tokio::time::timeout;

use super::{
    Library, PROGRESS, code,
    frame::{Frame, FrameError, Request, Response},
    serve::{ABANDONED, Served, TURNED_AWAY},
    uploads::{BLOCK, Refused, Upload},
};
use crate::{store::Held, uring::file};

/// A peer that takes no block of a piece for this long has its stream reset, and its memory is free for others. The line
/// may be shared by all uploads, so it is more than what the receiver waits.
const STALL: Duration = Duration::from_secs(10);

/// Answers the request on one stream. An error is the other peer's: its link has no meaning.
pub(super) async fn answer<L: Library>(
    link: &Served<L>,
    mut send: SendStream,
    mut recv: RecvStream,
) -> Result<(), FrameError> {
    let mut head = [0; Request::LEN];
    let request = match timeout(PROGRESS, recv.read_exact(&mut head)).await {
        Ok(Ok(())) => Request::decode(&head)?,
        Ok(Err(quinn::ReadExactError::FinishedEarly(_))) => return Err(FrameError::Head),
        // The caller changed its mind, or the link is over: nobody waits for an answer.
        Ok(Err(_)) | Err(_) => {
            link.waste(ABANDONED);
            return Ok(());
        }
    };
    // Kept until the piece is sent: its span ends with the last one, though the other peer has all and follows no more.
    let followed = link.followed(&request.task);
    followed.iter().for_each(|followed| followed.served(0, 0));
    let Some(held) = link.find(request.task).await.filter(|held| held.bitmap().get(request.piece)) else {
        link.waste(ABANDONED);
        respond(&mut send, Response::Missing).await;
        return Ok(());
    };
    let _user = held.user();
    match link.service.uploads.enter(&link.peer) {
        Ok(upload) => {
            match send_piece(link, &upload, &mut send, &held, request).await {
                Ok(bytes) => followed.iter().for_each(|followed| followed.served(1, bytes)),
                // Fails only if the stream is over, which is what it is for.
                Err(_) => {
                    link.waste(ABANDONED);
                    drop(send.reset(code::READ_FAILED));
                }
            }
        }
        Err(refused) => {
            link.waste(TURNED_AWAY);
            respond(&mut send, Response::Busy).await;
            if let Refused::Backlog(wait) = refused {
                let millis = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
                link.say(&[Frame::Throttle { millis }]).await;
            }
        }
    }
    Ok(())
}

/// A whole answer in one word.
async fn respond(send: &mut SendStream, response: Response) {
    // Where it cannot be said the stream or the link is gone, and nobody waits for it.
    let _ = timeout(PROGRESS, send.write_all(&response.encode())).await;
    let _ = send.finish();
}

async fn send_piece<L: Library>(
    link: &Served<L>,
    upload: &Upload,
    send: &mut SendStream,
    held: &Arc<Held>,
    request: Request,
) -> io::Result<u64> {
    let bytes = held.meta.layout.bytes_of(request.piece);
    let mut at = (bytes.start + u64::from(request.from)).min(bytes.end);
    let len = u32::try_from(bytes.end - at).map_err(io::Error::other)?;
    let mut next = Bytes::copy_from_slice(&Response::Bytes(len).encode());
    while !next.is_empty() {
        let (sent, following) = tokio::join!(write(upload, send, next), read(link, upload, held, at, bytes.end));
        let () = sent?;
        next = following?;
        at += next.len() as u64;
    }
    send.finish().map_err(io::Error::other)?;
    Ok(len.into())
}

/// Hands bytes to the connection, which keeps them until they are acknowledged.
async fn write(upload: &Upload, send: &mut SendStream, bytes: Bytes) -> io::Result<()> {
    let len = bytes.len();
    upload.pace(len).await;
    timeout(STALL, send.write_chunk(bytes)).await.map_err(io::Error::from)?.map_err(io::Error::from)?;
    upload.sent(len);
    Ok(())
}

/// The ring reads into memory that the connection then takes over: no copy in between. Empty at the piece's end.
async fn read<L: Library>(link: &Served<L>, upload: &Upload, held: &Arc<Held>, at: u64, end: u64) -> io::Result<Bytes> {
    let len = usize::try_from(end - at).map_or(BLOCK, |left| left.min(BLOCK));
    if len == 0 {
        return Ok(Bytes::new());
    }
    let mut block = upload.block(&link.blocks).await;
    let (result, bytes) = file::fill_from(held.file(), std::mem::take(&mut block.bytes), len, at).await;
    (block.bytes, block.filled) = (bytes, len);
    result.map(|()| Bytes::from_owner(block))
}
