//! Fuzz target `token`; its check is in `src/lib.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| spid_fuzz::token(data));
