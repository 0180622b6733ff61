//! Pondhawk's node, in the order of a request's life: see ARCHITECTURE.md.

#![deny(unsafe_code)]

pub mod authorize;
pub mod fetch;
pub mod http;
pub mod intercept;
pub mod preheat;
pub mod reply;
pub mod store;
pub mod swarm;
pub mod task;
pub mod tls;
pub mod uring;
pub mod wire;

pub mod admin;
pub mod cli;
pub mod config;
pub mod connections;
pub mod expiring;
pub mod flight;
#[doc(hidden)]
pub mod fuzz;
pub mod limits;
pub mod metrics;
pub mod node;
pub mod question;
pub mod replaceable;
pub mod shard;
pub mod trace;
