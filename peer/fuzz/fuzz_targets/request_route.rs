//! Where a request leads; see `src/request_route.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pondhawk_fuzz::request_route::run(bytes));
