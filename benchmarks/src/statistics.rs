//! Figures of several runs.

use std::time::Duration;

/// Values in ascending order.
#[derive(Clone, Debug)]
pub struct Figures(Vec<f64>);

impl Figures {
    /// Sorts them.
    ///
    /// # Panics
    /// When there are none.
    #[must_use]
    pub fn new(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        assert!(!values.is_empty(), "nothing was measured");
        values.sort_by(f64::total_cmp);
        Self(values)
    }

    /// Milliseconds.
    #[must_use]
    pub fn of_times(times: &[Duration]) -> Self {
        Self::new(times.iter().map(|time| time.as_secs_f64() * 1e3))
    }

    /// The value that so many percent do not exceed: the nearest rank.
    #[must_use]
    pub fn percentile(&self, percent: usize) -> f64 {
        self.0[(self.0.len() * percent).div_ceil(100).max(1) - 1]
    }

    /// The one in the middle.
    #[must_use]
    pub fn median(&self) -> f64 {
        self.percentile(50)
    }

    /// Least, middle and greatest, with so many digits behind the point.
    #[must_use]
    pub fn spread(&self, digits: usize) -> String {
        let [least, middle, most] = [0, 50, 100].map(|percent| self.percentile(percent));
        format!("{least:.digits$} / {middle:.digits$} / {most:.digits$}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let figures = Figures::new((1..=100).rev().map(f64::from));
        let percentiles =
            [0, 1, 50, 99, 100].map(|percent| figures.percentile(percent).to_string());
        assert_eq!(percentiles, ["1", "1", "50", "99", "100"]);
        assert_eq!(Figures::new([3.0, 1.0, 2.0]).spread(1), "1.0 / 2.0 / 3.0");
    }
}
