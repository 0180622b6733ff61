//! The file of proxy users; see `src/proxy_users.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pondhawk_fuzz::proxy_users::run(bytes));
