//! The way in: eBPF redirection, the listener behind it, and the splice past it.
//!
//! [`redirect`] attaches the programs of `peer-ebpf` and keeps their maps; [`resolver`] teaches them the configured
//! names' addresses; [`client_hello`] tells from a connection's first bytes whether it is one we want; [`bypass`] names
//! those whose connections are left alone; [`proof`] decides where a connection that is not ours may be passed on to;
//! [`reach`] reports the network namespaces that cannot reach the node.

pub mod bypass;
pub mod client_hello;
pub mod listener;
pub mod local;
pub(crate) mod passthrough;
pub mod proof;
pub mod reach;
pub mod redirect;
pub mod resolver;
pub mod served;
pub mod warnings;

pub use bypass::{Source, Trust};
pub use client_hello::Hello;
pub use proof::DestinationProofs;
pub use redirect::{BUILT_WITH, Flow, InterceptError, Interceptor, Mode, Options};
pub use served::ServedHosts;
pub use warnings::Warnings;
