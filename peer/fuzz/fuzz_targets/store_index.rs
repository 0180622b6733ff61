//! The store's index after damage of its file; see `src/store_index.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pondhawk_fuzz::store_index::run(bytes));
