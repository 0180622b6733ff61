//! Request heads; see `src/request_head.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pondhawk_fuzz::request_head::run(bytes));
