//! The retransmit timer: measured round-trip time below, the `timeout` attribute above.

use std::time::Duration;

use crate::time::Time;

/// No timer is shorter, since a peer may share its processor with us.
const FLOOR: Duration = Duration::from_millis(1);

/// The retransmit timer of a requester.
///
/// It fires early, at a timeout estimated from measured round trips (RFC 6298) and doubled each
/// time, because a probe is cheap; the queue pair gives up only when nothing has moved for
/// `retry_cnt + 1` times the `timeout` attribute (IBA 9.7.6.1.3).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeout {
    /// The `timeout` attribute as a time; `None` means never.
    ceiling: Option<Duration>,
    retry_cnt: u32,
    smoothed: Option<Duration>,
    variation: Duration,
    /// How long an answer takes at most, by these two, but not less than the floor.
    estimate: Option<Duration>,
    backoff: u32,
    last_progress: Time,
    deadline: Option<Time>,
    /// The packet whose acknowledgement gives the next sample.
    sample: Option<(u64, Time)>,
}

impl Timeout {
    /// A timer from the attributes `timeout` (4.096 us x 2^timeout, 0: infinite) and `retry_cnt`.
    pub(crate) fn new(timeout: u8, retry_cnt: u8) -> Self {
        let ceiling = (timeout != 0).then(|| Duration::from_nanos(4096u64 << timeout.min(31)));
        Timeout {
            ceiling,
            retry_cnt: u32::from(retry_cnt),
            smoothed: None,
            variation: Duration::ZERO,
            estimate: None,
            backoff: 0,
            last_progress: Time::ZERO,
            deadline: None,
            sample: None,
        }
    }

    pub(crate) fn deadline(&self) -> Option<Time> {
        self.deadline
    }

    /// A packet that asks for an acknowledgement leaves for the first time.
    pub(crate) fn sample_from(&mut self, position: u64, at: Time) {
        self.sample.get_or_insert((position, at));
    }

    /// Everything before `una` is acknowledged, and something of it is so newly. Returns the round
    /// trip if one was measured.
    pub(crate) fn progress(&mut self, una: u64, now: Time) -> Option<Duration> {
        self.last_progress = now;
        self.backoff = 0;
        let (_, sent) = self.sample.take_if(|(position, _)| *position < una)?;
        self.measure(now - sent);
        Some(now - sent)
    }

    /// Packets are sent again: their acknowledgements say nothing about time (Karn's rule).
    pub(crate) fn forget_sample(&mut self) {
        self.sample = None;
    }

    /// Single packets are sent again. As long as no round trip was measured, one that is too long by the
    /// time of a repair is better than none: without any the timer is as long as the attribute allows.
    pub(crate) fn doubt_sample(&mut self) {
        if self.smoothed.is_some() {
            self.forget_sample();
        }
    }

    /// A round trip of a packet that was sent again: better than none at all.
    pub(crate) fn measure_first(&mut self, rtt: Duration) {
        if self.smoothed.is_none() {
            self.measure(rtt);
        }
    }

    fn measure(&mut self, rtt: Duration) {
        match self.smoothed {
            None => {
                self.smoothed = Some(rtt);
                self.variation = rtt / 2;
            }
            Some(smoothed) => {
                self.variation = (self.variation * 3 + smoothed.abs_diff(rtt)) / 4;
                self.smoothed = Some((smoothed * 7 + rtt) / 8);
            }
        }
        self.estimate = self.round_trip_bound().map(|bound| bound.max(FLOOR));
    }

    /// How long the answer to a packet takes, at most, if nothing is lost; `None` if that was not
    /// measured yet.
    pub(crate) fn round_trip_bound(&self) -> Option<Duration> {
        self.smoothed.map(|smoothed| smoothed + self.variation * 4)
    }

    /// Starts the timer anew: packets are outstanding.
    pub(crate) fn arm(&mut self, now: Time) {
        self.deadline = self.ceiling.map(|ceiling| {
            // While responses come this is done for each of them.
            let estimate = self.estimate.map_or(ceiling, |estimate| estimate.min(ceiling));
            match self.backoff {
                0 => now + estimate,
                backoff => now + estimate.saturating_mul(1 << backoff.min(16)).min(ceiling),
            }
        });
    }

    /// Starts the timer if it does not run.
    pub(crate) fn arm_if_idle(&mut self, now: Time) {
        if self.deadline.is_none() {
            self.arm(now);
        }
    }

    pub(crate) fn disarm(&mut self) {
        self.deadline = None;
    }

    /// Starts the count of time without progress anew: nothing was outstanding, or the peer is
    /// there, but not ready.
    pub(crate) fn excuse(&mut self, now: Time) {
        self.last_progress = now;
    }

    /// Whether the timer has fired; if so it backs off, and the caller sends again and arms it.
    pub(crate) fn fired(&mut self, now: Time) -> bool {
        let fired = self.deadline.is_some_and(|deadline| deadline <= now);
        if fired {
            self.deadline = None;
            self.backoff += 1;
        }
        fired
    }

    /// Whether nothing has moved for so long, and after so many tries, that the queue pair has to
    /// give up. Time alone does not count: a process that was stopped for long has tried nothing.
    pub(crate) fn exhausted(&self, now: Time) -> bool {
        let tried = self.backoff > self.retry_cnt;
        tried
            && self.ceiling.is_some_and(|ceiling| now - self.last_progress >= ceiling * (self.retry_cnt + 1))
    }
}
