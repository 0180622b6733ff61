//! The Hub's answers to the command line; see `src/hub_answer.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pondhawk_fuzz::hub_answer::run(bytes));
