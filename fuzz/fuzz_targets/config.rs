//! Fuzz target `config`; its check is in `src/lib.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| spid_fuzz::config(data));
