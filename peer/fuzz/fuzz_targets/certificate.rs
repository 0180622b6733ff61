//! Certificates and requests for them; see `src/certificate.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pondhawk_fuzz::certificate::run(bytes));
