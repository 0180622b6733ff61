//! Range fields, against a reading of RFC 9110 section 14 that marks single bytes; Content-Range; multipart replies; see `src/range_header.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pondhawk_fuzz::range_header::run(bytes));
