//! The Hub-shaped origin and the lab that tests, demo and benchmarks run on.

#![deny(unsafe_code)]

pub mod clients;
pub mod hub;
pub mod lab;
#[cfg(feature = "sim")]
pub mod sim;
pub mod stage;
