//! Other tools' configuration; see `src/config_import.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pondhawk_fuzz::config_import::run(bytes));
