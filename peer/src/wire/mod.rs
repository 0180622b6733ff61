//! QUIC between peers: what they say to each other, who they are, and the endpoint they meet at.
//!
//! Links are directed: the peer that wants pieces dials ([`Links`]), the one that has them serves ([`Endpoint::serve`]).
//! The connection's first stream carries [`frame::Frame`]s both ways (who has what); each piece travels on a stream of its
//! own. Both sides prove with a certificate of the swarm's CA who they are.

mod announce;
mod blame;
mod callers;
pub mod denials;
mod endpoint;
mod expiry;
mod fetch;
mod follow;
pub mod frame;
mod holdings;
mod identity;
mod link;
mod links;
pub mod meter;
pub mod rate;
mod serve;
pub mod shares;
mod socket;
mod stop;
mod transport;
mod upload;
mod uploads;

pub use blame::{Blame, BlameKind, DialError, FetchError, WireError};
pub use endpoint::{Endpoint, Options, Refusal};
pub use follow::{Follow, Have};
pub use identity::{Identity, PeerId, PeerIdError};
pub use link::{Link, LinkStatus};
pub use links::Links;
pub use serve::Library;
pub use stop::Stop;
pub use uploads::Uploads;

use std::time::Duration;

use quinn::VarInt;

/// A peer that sends, or takes, less than a buffer in this time is given up.
const PROGRESS: Duration = Duration::from_secs(5);

/// Application error codes of connections and streams, and the texts that go with them.
mod code {
    use super::VarInt;

    /// Nothing is wrong: shutting down, or nobody needs the link.
    pub(super) const DONE: VarInt = VarInt::from_u32(0);
    /// The other end sent bytes that are no message.
    pub(super) const GARBAGE: VarInt = VarInt::from_u32(1);
    /// The other end's certificate names no peer.
    pub(super) const NAMELESS: VarInt = VarInt::from_u32(2);
    /// The other end's certificate has expired since the handshake.
    pub(super) const EXPIRED: VarInt = VarInt::from_u32(3);
    /// The other end said nothing, or took nothing, for too long.
    pub(super) const SILENT: VarInt = VarInt::from_u32(4);
    /// More is asked for on one link, or by one peer, than there is room for.
    pub(super) const TOO_MUCH: VarInt = VarInt::from_u32(5);
    /// The other end is denied by a scheduler.
    pub(super) const DENIED: VarInt = VarInt::from_u32(7);
    /// A stream: the piece could not be read from disk.
    pub(super) const READ_FAILED: VarInt = VarInt::from_u32(6);
}
