//! Many durations, in a few words.

use std::{fmt, time::Duration};

/// Heads of the columns that a distribution fills.
pub(crate) const HEADS: &str = "p50 | p90 | p99 | longest";

/// At least one duration. Written: the smallest that 50, 90, 99 and 100 per cent of all do not
/// exceed, in milliseconds, as cells of a table.
#[derive(Clone, Debug)]
pub(crate) struct Distribution(Vec<Duration>);

impl Distribution {
    pub(crate) fn of(durations: impl IntoIterator<Item = Duration>) -> Self {
        let mut sorted: Vec<Duration> = durations.into_iter().collect();
        sorted.sort();
        Self(sorted)
    }

    fn percentile(&self, percent: usize) -> Duration {
        let rank = (self.0.len() * percent).div_ceil(100).max(1);
        self.0.get(rank - 1).copied().unwrap_or_default()
    }
}

impl fmt::Display for Distribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cells =
            [50, 90, 99, 100].map(|percent| format!("{} ms", self.percentile(percent).as_millis()));
        f.write_str(&cells.join(" | "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let of = |milliseconds: &[u64]| {
            Distribution::of(milliseconds.iter().copied().map(Duration::from_millis)).to_string()
        };
        assert_eq!(of(&[7]), "7 ms | 7 ms | 7 ms | 7 ms");
        assert_eq!(of(&[3, 1, 2, 4]), "2 ms | 4 ms | 4 ms | 4 ms");
        let hundred: Vec<u64> = (1..=100).collect();
        assert_eq!(of(&hundred), "50 ms | 90 ms | 99 ms | 100 ms");
    }
}
