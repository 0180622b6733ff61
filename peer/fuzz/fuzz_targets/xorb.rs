//! Xorbs; see `src/xorb.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pondhawk_fuzz::xorb::run(bytes));
