//! When the next packet may leave.

use std::num::NonZeroU64;
use std::time::Duration;

use crate::congestion::Congestion;
use crate::time::Time;

/// How far ahead of their time packets are handed out: they wait below, and one wake-up serves all.
const HORIZON: Duration = Duration::from_micros(50);

/// Bytes of a datagram around its payload, about.
pub(crate) const OVERHEAD: u32 = 58;

/// What limits the packets of a queue pair in time: congestion control, and a pacer that keeps to
/// its rate and to the configured one. Requests and READ responses share it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outflow {
    pub(crate) congestion: Congestion,
    limit: Option<NonZeroU64>,
    /// The last packet: when it leaves, and its bytes. What follows it waits at the rate of its own
    /// time, not at the one that was right when this packet was sent.
    last_at: Time,
    last_bytes: u64,
}

impl Outflow {
    pub(crate) fn new(congestion: Congestion, limit: Option<NonZeroU64>) -> Self {
        Outflow { congestion, limit, last_at: Time::ZERO, last_bytes: 0 }
    }

    /// When a packet may leave, or else when to ask again.
    #[inline]
    pub(crate) fn ready(&self, now: Time) -> Result<Time, Time> {
        // Without a rate there is only the order of packets to keep.
        let Some(rate) = self.rate() else {
            return Ok(self.last_at.max(now));
        };
        let pause_ns = (self.last_bytes * 1_000_000_000).div_ceil(rate.get());
        let next = self.last_at + Duration::from_nanos(pause_ns);
        if next <= now + HORIZON {
            Ok(next.max(now))
        } else {
            Err(Time::from_nanos(next.as_nanos() - HORIZON.as_nanos() as u64))
        }
    }

    /// Accounts for a packet with so much payload that leaves at `at`.
    #[inline]
    pub(crate) fn sent(&mut self, now: Time, at: Time, payload: u32) {
        let bytes = payload + OVERHEAD;
        self.last_at = at;
        self.last_bytes = u64::from(bytes);
        self.congestion.on_sent(now, bytes as usize);
    }

    /// Whether there is a rate to keep to.
    #[inline]
    pub(crate) fn is_paced(&self) -> bool {
        self.rate().is_some()
    }

    /// The lower of the two rates.
    #[inline]
    fn rate(&self) -> Option<NonZeroU64> {
        match (self.limit, self.congestion.rate_bytes_per_second()) {
            (Some(limit), Some(rate)) => Some(limit.min(rate)),
            (limit, rate) => limit.or(rate),
        }
    }
}
