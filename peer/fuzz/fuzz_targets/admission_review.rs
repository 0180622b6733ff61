//! Questions of the API server about pods; see `src/admission_review.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pondhawk_fuzz::admission_review::run(bytes));
