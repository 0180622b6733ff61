//! Frames between nodes; see `src/wire_frame.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pondhawk_fuzz::wire_frame::run(bytes));
