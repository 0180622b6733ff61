//! The only unsafe code of the node: ring operations, registered buffers, sockets.
//!
//! All of it but [`PeerCredentials`] runs on a shard, that is inside a tokio-uring runtime. The rule that makes it sound: *the ring
//! owns a buffer until its completion*. An operation takes its buffer by value and gives it back with the result, also on an
//! error; a future dropped early leaves buffer and descriptor with the driver until the kernel is done with them. So a
//! deadline may drop any of these futures; [`Socket::shutdown`] then makes the kernel let go soon.

#![expect(unsafe_code, reason = "this folder is where the node's unsafe code lives; each block states its invariant")]

mod buffer;
mod credentials;
pub mod file;
mod listener;
mod op;
pub mod probe;
mod sendfile;
mod socket;
mod splice;

pub use buffer::{Buf, Pool};
pub use credentials::PeerCredentials;
pub use listener::Listener;
pub use sendfile::{SendFile, SendFileError};
pub use socket::Socket;
pub use splice::{Spliced, splice_both};

#[cfg(test)]
mod tests;
