//! Answers of the Hub with their URLs turned to the node; see `src/mirror_rewrite.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pondhawk_fuzz::mirror_rewrite::run(bytes));
