//! See `egressgateway_fuzz::TARGETS`.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| egressgateway_fuzz::run("route_messages", bytes));

#[cfg(not(fuzzing))]
fn main() {}
