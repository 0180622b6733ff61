//! The scheduler: tells peers about each other and hands out leases on origins.
//!
//! [`cluster`] decides (pure), [`authority`] holds the CA of the cluster and its join tokens.

#![deny(unsafe_code)]

pub mod authority;
pub mod cluster;
