//! How slow the machine is that tests run on.

use std::{sync::LazyLock, time::Duration};

/// A number: how many times longer than usual everything may take, such as in an emulated machine.
/// 1 without it.
pub const SLOWNESS: &str = "EGRESSGATEWAY_TEST_SLOWNESS";

static FACTOR: LazyLock<u32> = LazyLock::new(|| {
    let text = std::env::var(SLOWNESS).unwrap_or_else(|_| "1".to_owned());
    text.parse()
        .ok()
        .filter(|factor| *factor > 0)
        .unwrap_or_else(|| panic!("{SLOWNESS} is {text:?}, and must be a number from 1 on"))
});

/// A time to wait on this machine, which is `usual` elsewhere.
///
/// # Panics
/// When [`SLOWNESS`] is set to something else than a number.
#[must_use]
pub fn patient(usual: Duration) -> Duration {
    usual * *FACTOR
}

/// How often to do what is done again and again, where that is `usual` times elsewhere; never less
/// than three times.
///
/// # Panics
/// As [`patient`].
#[must_use]
pub fn fewer(usual: usize) -> usize {
    (usual / *FACTOR as usize).max(3)
}
