//! The way in: eBPF redirection, the listener behind it, and the splice past it.
//!
//! [`redirect`] attaches the programs of `peer-ebpf` and keeps their maps; [`resolver`] teaches them the configured
//! names' addresses; [`client_hello`] tells from a connection's first bytes whether it is one we want; [`bypass`] names
//! those whose connections are left alone.

pub mod bypass;
pub mod client_hello;
pub mod listener;
pub mod local;
pub(crate) mod passthrough;
pub mod redirect;
pub mod resolver;

pub use bypass::{Source, Trust};
pub use client_hello::Hello;
pub use redirect::{BUILT_WITH, Flow, InterceptError, Interceptor, Mode, Options};
