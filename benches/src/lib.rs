//! The load generator, and the Hub-shaped origin and the lab that tests, demo and benchmarks run on.

#![deny(unsafe_code)]

pub mod chart;
pub mod clients;
pub mod crowd;
#[cfg(feature = "sim")]
pub mod events;
pub mod hub;
pub mod lab;
pub mod load;
#[cfg(feature = "sim")]
pub mod scenario;
#[cfg(feature = "sim")]
pub mod sim;
pub mod soak;
pub mod stage;
pub mod transfer;
