//! What can go wrong with another peer, and whether it is to blame.

use std::{fmt, io, net::SocketAddr, time::Duration};

use quinn::ConnectionError;

use super::{PeerId, code};
use crate::store::StoreError;

/// A peer misbehaved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blame {
    /// Which.
    pub peer: PeerId,
    /// How.
    pub kind: BlameKind,
}

/// How a peer misbehaved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlameKind {
    /// A whole piece that does not hash to its digest.
    WrongBytes,
    /// Bytes that are no frame, or a piece of another length.
    Garbage,
    /// It accepted and then said nothing until the deadline.
    Silent,
    /// It does not have what it was asked for.
    Missing,
}

impl fmt::Display for Blame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            BlameKind::WrongBytes => "sent bytes with the wrong digest",
            BlameKind::Garbage => "sent garbage",
            BlameKind::Silent => "said nothing until the deadline",
            BlameKind::Missing => "does not have the piece",
        };
        write!(f, "peer {} {what}", self.peer)
    }
}

/// Why a shard has no endpoint.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The UDP socket.
    #[error("QUIC on {at}: {source}")]
    Socket {
        /// The address to bind.
        at: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// This peer's certificate, key or CA.
    #[error("this peer's swarm certificate: {0}")]
    Identity(String),
}

/// Why there is no link to a peer.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message of each variant says what its fields are")]
pub enum DialError {
    /// Its certificate is not of this cluster, is expired, or names another peer: blames the peer.
    #[error("peer {peer} at {addr} is not who it should be: {why}")]
    NotTrusted { peer: PeerId, addr: SocketAddr, why: String },
    /// It does not accept our certificate: expired, denied, or another cluster's.
    #[error("peer {peer} at {addr} refused this peer's certificate: {why}")]
    RefusedUs { peer: PeerId, addr: SocketAddr, why: String },
    /// No answer in time.
    #[error("peer {peer} at {addr} did not answer in time")]
    Silent { peer: PeerId, addr: SocketAddr },
    /// It speaks another language: blames the peer.
    #[error("peer {peer} at {addr} answered with garbage")]
    Garbage { peer: PeerId, addr: SocketAddr },
    /// The connection failed otherwise.
    #[error("peer {peer} at {addr}: {why}")]
    Failed { peer: PeerId, addr: SocketAddr, why: String },
    /// It failed a moment ago and is left alone for a while.
    #[error("peer {peer} at {addr} failed before; tried again in {wait:?}")]
    Backoff { peer: PeerId, addr: SocketAddr, wait: Duration },
    /// A scheduler of this node denies it.
    #[error("peer {peer} is denied by the cluster's operator (`pondhawk-scheduler denied` lists who is)")]
    Denied { peer: PeerId },
    /// As many links as may be.
    #[error("no link to {peer}: this shard has as many as it may")]
    TooMany { peer: PeerId },
}

impl DialError {
    /// Whose fault a failed connection is, as far as TLS alerts tell (RFC 9001 section 4.8).
    pub(super) fn explain(error: &ConnectionError, peer: &PeerId, addr: SocketAddr) -> Self {
        let (peer, why) = (peer.clone(), error.to_string());
        let crypto = |code: u64| (0x100..0x200).contains(&code);
        match error {
            ConnectionError::TransportError(error) if crypto(error.code.into()) => Self::NotTrusted { peer, addr, why },
            ConnectionError::ConnectionClosed(close) if crypto(close.error_code.into()) => {
                Self::RefusedUs { peer, addr, why }
            }
            ConnectionError::ApplicationClosed(close)
                if [code::NAMELESS, code::EXPIRED, code::DENIED].contains(&close.error_code) =>
            {
                Self::RefusedUs { peer, addr, why }
            }
            ConnectionError::TimedOut => Self::Silent { peer, addr },
            _ => Self::Failed { peer, addr, why },
        }
    }
}

/// Why a piece, or the news of a task, did not come.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The peer misbehaved.
    #[error("{0}")]
    Blamed(Blame),
    /// The peer asks to be left alone: blames nobody.
    #[error("peer {0} is busy")]
    Busy(PeerId),
    /// The link broke: blames nobody.
    #[error("link to {peer}: {why}")]
    Down {
        /// The peer.
        peer: PeerId,
        /// What happened.
        why: String,
    },
    /// This peer's disk.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The caller stopped it. Nothing of it is still being written.
    #[error("stopped")]
    Stopped,
    /// The caller asked for a piece that the task does not have.
    #[error("the task has no piece {0}")]
    NoSuchPiece(u32),
}

impl FetchError {
    /// The peer that misbehaved, if one did.
    pub fn blame(&self) -> Option<&Blame> {
        match self {
            Self::Blamed(blame) => Some(blame),
            _ => None,
        }
    }
}
