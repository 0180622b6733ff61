//! Piece tables after damage; see `src/piece_table.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pondhawk_fuzz::piece_table::run(bytes));
