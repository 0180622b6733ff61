//! The node's certificate authority and the TLS side of intercepted connections.
//!
//! [`Authority`] is the node's own CA, constrained to the host suffixes the node intercepts. [`LeafCache`] signs one
//! certificate per host under it; in a cluster it also chains to the cluster's root. [`server_config`] joins both for rustls, and [`TlsStream`] runs a connection: the
//! protocol itself is in [`session`], which does no I/O.

pub mod accept;
pub mod authority;
pub mod bundle;
pub mod leaf;
pub(crate) mod pem;
pub mod session;

pub use accept::{AcceptError, Distrust, End, TlsError, TlsStream, server_config};
pub use authority::{Authority, AuthorityError, CaInfo, ChainError, Cluster};
pub use leaf::LeafCache;
pub use pondhawk_scheduler::hosts::{NameError, Suffixes};
