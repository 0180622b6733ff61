//! Join tokens; see `src/join_token.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pondhawk_fuzz::join_token::run(bytes));
