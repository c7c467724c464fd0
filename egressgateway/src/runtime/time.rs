//! Waiting, chance and whole seconds.

use std::time::Duration;

use tokio::time::Instant;

/// Waits until a time; for ever without one.
pub(super) async fn wait_until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Between a half and the whole of a duration.
pub(super) fn jitter(full: Duration) -> Duration {
    full / 2 + full / 2 * fastrand::u32(..1024) / 1024
}

/// A duration in the whole seconds of a Lease, at least one.
pub(super) fn whole_seconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_nanos().div_ceil(1_000_000_000))
        .unwrap_or(i32::MAX)
        .max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_differ_from_each_other() {
        let delays: std::collections::BTreeSet<_> =
            (0..32).map(|_| jitter(Duration::from_secs(1))).collect();
        assert!(delays.len() > 8, "{delays:?}");
    }

    #[test]
    fn a_lease_lasts_whole_seconds_and_never_none() {
        assert_eq!(whole_seconds(Duration::from_millis(300)), 1);
        assert_eq!(whole_seconds(Duration::from_millis(1500)), 2);
        assert_eq!(whole_seconds(Duration::ZERO), 1);
    }
}
