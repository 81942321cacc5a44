//! Delay-based control: a window that keeps the round trip at a target.
//!
//! The law is that of Kumar et al., "Swift: Delay is Simple and Effective for Congestion Control in
//! the Datacenter" (SIGCOMM 2020): below the target the window grows by `increase` a round trip;
//! above it, it shrinks in proportion to the excess, once a round trip. A small window is kept by pacing
//! besides, since whole packets round it too much; so one below a packet is a packet in several
//! round trips.
//!
//! Several flows through one queue agree on its length, not on their shares. What makes the shares
//! equal is that the increase is the same for all while the decrease is by proportion, and that a
//! small window tolerates a longer queue (`flow_scaling`).

use std::num::NonZeroU64;
use std::time::Duration;

use crate::time::Time;

/// The slowest pace is a packet in so much time: an answer that waits for its turn must not be taken for
/// one that was lost.
const PAUSE_MAX: Duration = Duration::from_millis(1);

/// Windows below this many packets are rounded up to whole ones, and paced to make up for it.
const PACED_BELOW: f64 = 16.0;

/// Consecutive timeouts after which the window starts from its smallest.
const TIMEOUTS_MAX: u32 = 5;

/// The windows, in packets, between which `flow_scaling` goes from all to nothing.
const SCALED: [f64; 2] = [0.1, 100.0];

/// The parameters of delay-based control. Shares are in thousandths.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DelayParameters {
    /// The round trip to aim at: the path's own and the queue that is wanted.
    pub target: Duration,
    /// How much longer the target is for the smallest windows, falling with the window's root.
    pub flow_scaling: Duration,
    /// What is added to the window in a round trip, in thousandths of a packet.
    pub increase_thousandths: u32,
    /// How strongly an excess cuts: the share of the window per share of the round trip.
    pub decrease_thousandths: u32,
    /// The largest share of the window that is cut at once.
    pub decrease_max_thousandths: u32,
    /// The smallest window, in thousandths of a packet; at least 1.
    pub window_min_thousandths: u32,
    /// The window to start with, in packets: no network has room for every new flow's largest one.
    pub window_initial: u32,
}

impl DelayParameters {
    /// The usual parameters for a round trip of `target`.
    pub const fn new(target: Duration) -> Self {
        DelayParameters {
            target,
            flow_scaling: target,
            increase_thousandths: 500,
            decrease_thousandths: 800,
            decrease_max_thousandths: 500,
            window_min_thousandths: 10,
            window_initial: 16,
        }
    }
}

/// The state of delay-based control.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Delay {
    parameters: DelayParameters,
    packet_bytes: f64,
    window: f64,
    window_min: f64,
    window_max: f64,
    /// Packets acknowledged since the last round trip was measured.
    acked: u32,
    round_trip: Option<Duration>,
    decreased_at: Option<Time>,
    timeouts: u32,
}

impl Delay {
    /// A flow that has not sent yet, with `window` packets at most, of so many bytes.
    pub fn new(parameters: &DelayParameters, window: u32, packet_bytes: u32) -> Self {
        let window_max = f64::from(window.max(1));
        Delay {
            parameters: *parameters,
            packet_bytes: f64::from(packet_bytes.max(1)),
            window: f64::from(parameters.window_initial.max(1)).min(window_max),
            window_min: share(parameters.window_min_thousandths.max(1)).min(window_max),
            window_max,
            acked: 0,
            round_trip: None,
            decreased_at: None,
            timeouts: 0,
        }
    }

    /// The window, in packets and parts of a packet.
    pub fn window(&self) -> f64 {
        self.window
    }

    /// The round trip that a flow with this window aims at.
    pub fn target(&self) -> Duration {
        let range = self.parameters.flow_scaling.as_nanos() as f64;
        let [small, large] = SCALED.map(|window| 1.0 / window.sqrt());
        let part = (1.0 / self.window.sqrt() - large) / (small - large);
        self.parameters.target + Duration::from_nanos((range * part.clamp(0.0, 1.0)) as u64)
    }

    /// How many packets may be unacknowledged, at least 1.
    pub fn window_packets(&self) -> u32 {
        if self.window < PACED_BELOW { self.window.ceil() as u32 } else { self.window as u32 }
    }

    /// The pace of a small window; `None` for a large one, and before a round trip was measured.
    pub fn rate_bytes_per_second(&self) -> Option<NonZeroU64> {
        let round_trip = self.round_trip.filter(|_| self.window < PACED_BELOW)?;
        let seconds = round_trip.as_nanos().max(1) as f64 / 1e9;
        let slowest = self.packet_bytes / PAUSE_MAX.as_secs_f64();
        NonZeroU64::new((self.window * self.packet_bytes / seconds).max(slowest) as u64)
    }

    /// `packets` were newly acknowledged, and perhaps a round trip was measured with them.
    pub fn on_ack(&mut self, now: Time, round_trip: Option<Duration>, packets: u32) {
        self.timeouts = 0;
        self.acked = self.acked.saturating_add(packets);
        let Some(round_trip) = round_trip else { return };
        let acked = f64::from(std::mem::take(&mut self.acked));
        self.round_trip = Some(round_trip);
        let target = self.target();
        if round_trip < target {
            let increase = share(self.parameters.increase_thousandths) * acked;
            self.set(self.window + increase / self.window.max(1.0));
        } else {
            let excess = (round_trip - target).as_nanos() as f64 / round_trip.as_nanos().max(1) as f64;
            self.cut(now, share(self.parameters.decrease_thousandths) * excess);
        }
    }

    /// Something was lost.
    pub fn on_loss(&mut self, now: Time) {
        self.cut(now, 1.0);
    }

    /// The retransmit timer fired.
    pub fn on_timeout(&mut self, now: Time) {
        self.timeouts = self.timeouts.saturating_add(1);
        if self.timeouts >= TIMEOUTS_MAX {
            self.set(self.window_min);
        } else {
            self.cut(now, 1.0);
        }
    }

    /// Cuts the window by a share of it, once a round trip: the next measurements were under way.
    fn cut(&mut self, now: Time, part: f64) {
        let pause = self.round_trip.unwrap_or_default();
        if self.decreased_at.is_some_and(|at| now - at < pause) {
            return;
        }
        self.decreased_at = Some(now);
        let part = part.min(share(self.parameters.decrease_max_thousandths));
        self.set(self.window * (1.0 - part));
    }

    fn set(&mut self, window: f64) {
        self.window = window.clamp(self.window_min, self.window_max);
    }
}

fn share(thousandths: u32) -> f64 {
    f64::from(thousandths) / 1000.0
}
