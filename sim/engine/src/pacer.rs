//! When the next packet may leave.

use std::num::NonZeroU64;
use std::time::Duration;

use crate::time::Time;

/// How far ahead of their time packets are handed out: they wait below, and one wake-up serves all.
const HORIZON: Duration = Duration::from_micros(50);

/// Spaces packets so that a queue pair does not exceed its rate.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pacer {
    bytes_per_second: Option<NonZeroU64>,
    next: Time,
}

impl Pacer {
    pub(crate) fn new(bytes_per_second: Option<NonZeroU64>) -> Self {
        Pacer { bytes_per_second, next: Time::ZERO }
    }

    /// When a packet may leave, or else when to ask again.
    pub(crate) fn ready(&self, now: Time) -> Result<Time, Time> {
        if self.bytes_per_second.is_none() || self.next <= now + HORIZON {
            Ok(self.next.max(now))
        } else {
            Err(Time::from_nanos(self.next.as_nanos() - HORIZON.as_nanos() as u64))
        }
    }

    /// Accounts for a packet of `bytes` that leaves at `at`.
    pub(crate) fn sent(&mut self, at: Time, bytes: usize) {
        if let Some(rate) = self.bytes_per_second {
            let ns = bytes as u128 * 1_000_000_000 / u128::from(rate.get());
            self.next = at + Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX));
        }
    }
}
