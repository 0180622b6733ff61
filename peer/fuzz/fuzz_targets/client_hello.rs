//! ClientHello; see `src/client_hello.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pondhawk_fuzz::client_hello::run(bytes));
