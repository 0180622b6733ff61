//! The scheduler's core under any events; see `src/cluster.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pondhawk_fuzz::cluster::run(bytes));
