//! The download machine under any scheduler, links, readers and origin; see `src/download.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pondhawk_fuzz::download::run(bytes));
