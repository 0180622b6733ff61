//! Single header fields that clients and origins send; see `src/header_fields.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pondhawk_fuzz::header_fields::run(bytes));
