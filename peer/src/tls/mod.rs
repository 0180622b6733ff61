//! The node's certificate authority and the TLS side of intercepted connections.
//!
//! [`Authority`] is the node's own CA, constrained to the host suffixes the node intercepts. [`LeafCache`] signs one
//! certificate per host under it. [`server_config`] joins both for rustls, and [`TlsStream`] runs a connection: the
//! protocol itself is in [`session`], which does no I/O.

pub mod accept;
pub mod authority;
pub mod bundle;
pub mod leaf;
pub mod names;
pub mod session;

pub use accept::{AcceptError, Distrust, End, TlsError, TlsStream, server_config};
pub use authority::{Authority, AuthorityError, CaInfo};
pub use leaf::LeafCache;
pub use names::{NameError, Suffixes};
