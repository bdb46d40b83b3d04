//! What it checks stands in `src/lib.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| spid_fuzz::query(data));
