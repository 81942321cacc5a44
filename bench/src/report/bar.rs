//! The progress bar: on standard error, and only if that is a terminal.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::plan::{Measure, RowSpec};
use crate::session::Progress;
use crate::units;

/// Steps of the bar.
const STEPS: u64 = 1000;

/// A bar that is drawn between slices, never while something is measured.
pub(crate) struct Bar {
    bar: ProgressBar,
    start: Instant,
}

impl Bar {
    /// A bar for a run that starts now.
    pub(crate) fn new(visible: bool) -> Self {
        let target = if visible { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(STEPS), target);
        if let Ok(style) = ProgressStyle::with_template("{bar:24} {percent:>3} %  {prefix}  {msg}") {
            bar.set_style(style);
        }
        Bar { bar, start: Instant::now() }
    }
}

impl Progress for Bar {
    fn begins(&mut self, spec: &RowSpec) {
        let what = match spec.measure {
            Measure::Latency => "latency",
            Measure::Bandwidth => "bandwidth",
        };
        self.bar.set_message(format!("{what} {} {}", spec.action.name(), units::size(spec.size)));
    }

    fn advanced(&mut self, share: f64) {
        let elapsed = self.start.elapsed();
        let left = elapsed.mul_f64(((1.0 - share) / share.max(1e-3)).max(0.0));
        self.bar.set_prefix(format!("{:>6} left", units::duration(Duration::from_secs(left.as_secs()))));
        self.bar.set_position((share * STEPS as f64) as u64);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
