//! A distribution of times.

use std::time::Duration;

use hdrhistogram::Histogram;

/// The longest time that is told apart, in nanoseconds: longer than any time limit.
const LONGEST_NS: u64 = 120_000_000_000;

/// Times, in an HDR histogram with three significant digits. Recording allocates nothing.
#[derive(Clone, Debug)]
pub(crate) struct Recorder {
    histogram: Histogram<u64>,
    min: u64,
    max: u64,
}

impl Default for Recorder {
    fn default() -> Self {
        Self::new()
    }
}

impl Recorder {
    /// An empty one.
    pub(crate) fn new() -> Self {
        // The bounds are constants that the histogram accepts; were they not, one that resizes itself does.
        let histogram = Histogram::new_with_bounds(1, LONGEST_NS, 3)
            .or_else(|_| Histogram::new(3))
            .unwrap_or_else(|_| unreachable!("three digits are allowed"));
        Recorder { histogram, min: u64::MAX, max: 0 }
    }

    /// Notes one time.
    #[inline]
    pub(crate) fn record(&mut self, time: Duration) {
        let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).clamp(1, LONGEST_NS);
        self.min = self.min.min(ns);
        self.max = self.max.max(ns);
        self.histogram.saturating_record(ns);
    }

    /// How many were noted.
    pub(crate) fn count(&self) -> u64 {
        self.histogram.len()
    }

    /// The time below which `percent` of all lie, in nanoseconds.
    pub(crate) fn percentile(&self, percent: f64) -> u64 {
        self.histogram.value_at_percentile(percent).clamp(self.min.min(self.max), self.max)
    }

    /// The shortest, in nanoseconds; 0 if there is none.
    pub(crate) fn min(&self) -> u64 {
        if self.count() == 0 { 0 } else { self.min }
    }

    /// The longest, in nanoseconds.
    pub(crate) fn max(&self) -> u64 {
        self.max
    }

    /// The mean, in nanoseconds.
    pub(crate) fn mean(&self) -> f64 {
        self.histogram.mean()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_a_known_distribution() {
        let mut recorder = Recorder::new();
        for ns in 1..=10_000 {
            recorder.record(Duration::from_nanos(ns));
        }
        assert_eq!((recorder.count(), recorder.min(), recorder.max()), (10_000, 1, 10_000));
        for (percent, exact) in [(50.0, 5000.0), (99.0, 9900.0), (99.9, 9990.0)] {
            let found = recorder.percentile(percent) as f64;
            assert!((found - exact).abs() <= exact / 1000.0 + 1.0, "p{percent}: {found}");
        }
        assert!(recorder.percentile(100.0) <= recorder.max());
    }

    #[test]
    fn an_empty_one_and_one_beyond_the_bounds() {
        let mut recorder = Recorder::new();
        assert_eq!((recorder.count(), recorder.min(), recorder.percentile(50.0)), (0, 0, 0));
        recorder.record(Duration::from_secs(100_000));
        recorder.record(Duration::ZERO);
        assert_eq!((recorder.count(), recorder.min(), recorder.max()), (2, 1, LONGEST_NS));
    }
}
