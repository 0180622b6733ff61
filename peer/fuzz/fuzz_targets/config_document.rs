//! Configuration files and settings; see `src/config_document.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pondhawk_fuzz::config_document::run(bytes));
