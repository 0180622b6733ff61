//! The scheduler: tells peers about each other and hands out leases on origins.
//!
//! [`cluster`] decides (pure), [`authority`] holds the CA of the cluster and its join tokens, [`registry`] which key owns which
//! name and who is denied, [`service`] speaks with peers, [`page`] shows people the cluster, [`trust`] is the root that clients trust on every node, [`kube`] keeps what a
//! Kubernetes cluster has to know of them, [`webhook`] brings that root to pods, [`http_port`] is what page and
//! webhook answer by, [`trace`] says where the time of requests went.

#![deny(unsafe_code)]

pub mod authority;
pub mod cluster;
#[doc(hidden)]
pub mod fuzz;
pub mod hosts;
pub mod http_port;
pub mod kube;
pub mod page;
mod port_slots;
pub mod registry;
pub mod service;
pub mod trace;
pub mod trust;
mod validity;
pub mod warning_limit;
pub mod webhook;
