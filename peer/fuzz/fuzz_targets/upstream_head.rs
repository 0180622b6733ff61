//! Answers of an upstream proxy; see `src/upstream_head.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pondhawk_fuzz::upstream_head::run(bytes));
