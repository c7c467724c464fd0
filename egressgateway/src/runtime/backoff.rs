use std::{
    hash::{BuildHasher, Hasher, RandomState},
    time::Duration,
};

/// Delays that double up to a limit, each shortened at random by up to a half, so that daemons which failed together do not
/// come back together.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    limit: Duration,
    next: Duration,
}

impl Backoff {
    /// Delays from `first` up to `limit`.
    #[must_use]
    pub fn new(first: Duration, limit: Duration) -> Self {
        Self { first, limit, next: first }
    }

    /// The next delay.
    pub fn delay(&mut self) -> Duration {
        let full = self.next.min(self.limit);
        self.next = full.saturating_mul(2);
        shortened(full)
    }

    /// Starts over: something worked.
    pub fn succeeded(&mut self) {
        self.next = self.first;
    }
}

impl Default for Backoff {
    /// From 200 milliseconds up to 30 seconds.
    fn default() -> Self {
        Self::new(Duration::from_millis(200), Duration::from_secs(30))
    }
}

impl Iterator for Backoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(self.delay())
    }
}

impl kube::runtime::utils::Backoff for Backoff {
    fn reset(&mut self) {
        self.succeeded();
    }
}

/// Between a half and the whole of a duration. Hash keys are the only randomness that the standard library has, and enough here.
pub(super) fn shortened(full: Duration) -> Duration {
    let random = RandomState::new().build_hasher().finish();
    let part = u32::try_from(random % 1024).unwrap_or_default();
    full / 2 + full / 2 * part / 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_limit_and_start_over_after_success() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(400));
        let within = |delay: Duration, full: u64| delay <= Duration::from_millis(full) && delay >= Duration::from_millis(full / 2);
        assert!(within(backoff.delay(), 100));
        assert!(within(backoff.delay(), 200));
        assert!(within(backoff.delay(), 400));
        assert!(within(backoff.delay(), 400));
        backoff.succeeded();
        assert!(within(backoff.delay(), 100));
    }

    #[test]
    fn delays_differ_from_each_other() {
        let delays: std::collections::BTreeSet<_> = (0..32).map(|_| shortened(Duration::from_secs(1))).collect();
        assert!(delays.len() > 8, "{delays:?}");
    }
}
