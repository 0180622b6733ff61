//! URLs and what they name; see `src/task_identity.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pondhawk_fuzz::task_identity::run(bytes));
