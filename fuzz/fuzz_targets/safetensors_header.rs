//! Feeds the fuzzer's bytes to [`bodies::safetensors_header`], whose assertions are what is tested.

#![no_main]

#[path = "../bodies.rs"]
#[allow(dead_code, reason = "one target of five")]
mod bodies;

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::safetensors_header(data));
