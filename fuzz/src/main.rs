//! Feeds the target that the environment variable `EGRESSGATEWAY_FUZZ_TARGET` names.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
static TARGET: std::sync::LazyLock<String> =
    std::sync::LazyLock::new(|| std::env::var("EGRESSGATEWAY_FUZZ_TARGET").unwrap_or_default());

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| egressgateway_fuzz::run(&TARGET, bytes));

#[cfg(not(fuzzing))]
fn main() {}
