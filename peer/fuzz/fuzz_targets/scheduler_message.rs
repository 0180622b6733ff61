//! Messages of peers to the scheduler, as bytes of protobuf; see `src/scheduler_message.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pondhawk_fuzz::scheduler_message::run(bytes));
