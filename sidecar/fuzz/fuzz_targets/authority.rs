//! libFuzzer around `targets::authority`.

#![no_main]

#[path = "../targets.rs"]
#[allow(dead_code, reason = "the others have binaries of their own")]
mod targets;

libfuzzer_sys::fuzz_target!(|input: &[u8]| targets::authority(input));
