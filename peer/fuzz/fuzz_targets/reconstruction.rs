//! Reconstructions; see `src/reconstruction.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pondhawk_fuzz::reconstruction::run(bytes));
