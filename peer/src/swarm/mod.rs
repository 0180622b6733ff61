//! The download: a pure machine, the origin client, and the driver between them.

mod address;
mod body;
mod chain;
mod connect;
pub mod download;
pub mod driver;
mod error;
pub mod exchange;
pub mod identity;
pub mod origin;
pub mod own;
mod pool;
pub(crate) mod request;
pub mod retry;
mod run;
mod seats;
pub mod session;
mod share;
pub mod upstream;

pub(crate) use address::is_public;
pub use driver::{DownloadError, DriverOptions, Handle, Offer, ReaderGuard, Status};
pub use origin::{
    Answer, Expected, OpenBody, Origin, OriginBody, OriginError, OriginOptions, OriginRequest, Patience, Probe,
    TrustError,
};
pub(crate) use request::retry_after;
pub use share::Sharing;
