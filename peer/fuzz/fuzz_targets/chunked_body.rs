//! Chunked request bodies; see `src/chunked_body.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pondhawk_fuzz::chunked_body::run(bytes));
