//! When signed URLs end; see `src/url_expiry.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pondhawk_fuzz::url_expiry::run(bytes));
