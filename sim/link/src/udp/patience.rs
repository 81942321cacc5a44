//! How a program that polls in vain passes the time, where processors are few.

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use anyverbs_nic::Time;

/// Polls in vain between two yields at most.
const INTERVAL_MAX: u32 = 8;

/// A yield that takes longer let somebody else run.
const BRIEF: Duration = Duration::from_micros(1);

/// Yields the processor to whoever waits for it, and seldom where nobody does.
///
/// With one or two processors the peer, or the thread that feeds it, often waits for this one: not to yield costs nine
/// tenths of the time of a ping-pong then. Where nobody waits, a yield costs 0.1 to 0.4 us of 5. How long a yield took
/// tells which it is.
#[derive(Debug)]
pub(super) struct Patience {
    interval: AtomicU32,
    /// Polls in vain until the next yield.
    left: AtomicU32,
}

impl Patience {
    pub(super) fn new() -> Self {
        Patience { interval: AtomicU32::new(1), left: AtomicU32::new(1) }
    }

    /// Called after a poll in vain. Several threads may share it: what they spoil is a guess.
    pub(super) fn relax(&self, now: impl Fn() -> Time) {
        let left = self.left.load(Ordering::Relaxed).saturating_sub(1);
        self.left.store(left, Ordering::Relaxed);
        if left > 0 {
            std::hint::spin_loop();
            return;
        }
        let before = now();
        thread::yield_now();
        self.learn(now().since(before));
    }

    /// Chooses the next interval after a yield that took so long.
    fn learn(&self, took: Duration) {
        let interval = match took < BRIEF {
            true => (self.interval.load(Ordering::Relaxed) * 2).min(INTERVAL_MAX),
            false => 1,
        };
        self.interval.store(interval, Ordering::Relaxed);
        self.left.store(interval, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yields_become_rare_where_they_are_brief_and_come_back_where_they_are_not() {
        let patience = Patience::new();
        for expected in [2, 4, 8, 8] {
            patience.learn(Duration::from_nanos(300));
            assert_eq!(patience.interval.load(Ordering::Relaxed), expected);
        }
        patience.learn(Duration::from_micros(50));
        assert_eq!(patience.interval.load(Ordering::Relaxed), 1);
        for _ in 0..3 * INTERVAL_MAX {
            patience.relax(|| Time::ZERO);
            assert!(patience.left.load(Ordering::Relaxed) > 0, "there is always a next yield");
        }
    }
}
