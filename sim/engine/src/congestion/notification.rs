//! DCQCN's notification point: the receiver that tells a sender of marks.

use std::time::Duration;

use super::{CE, after};
use crate::time::Time;

/// Decides when a receiver of marked packets sends a congestion notification packet (CNP).
///
/// One notification may stand for several marked packets of a queue pair (IBA A17.9.3): at most one
/// leaves per interval, since the sender acts at most once per interval anyway. The first mark is
/// reported at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotificationPoint {
    interval: Duration,
    silent_until: Option<Time>,
}

impl NotificationPoint {
    /// How often a sender hears of marks by default: as often as DCQCN cuts its rate.
    pub const INTERVAL: Duration = Duration::from_micros(50);

    /// A receiver that sends at most one notification per `interval`.
    pub const fn new(interval: Duration) -> Self {
        NotificationPoint { interval, silent_until: None }
    }

    /// A data packet arrived whose IP header has these ECN bits; true if a notification has to be
    /// sent now.
    pub fn on_packet(&mut self, now: Time, ecn: u8) -> bool {
        if ecn & CE != CE || self.silent_until.is_some_and(|until| now < until) {
            return false;
        }
        self.silent_until = Some(after(now, self.interval).unwrap_or(Time::from_nanos(u64::MAX)));
        true
    }
}

impl Default for NotificationPoint {
    fn default() -> Self {
        NotificationPoint::new(NotificationPoint::INTERVAL)
    }
}
