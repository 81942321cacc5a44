//! Congestion control: how much a queue pair may have on its way, and how fast it may send.
//!
//! Every law is a state machine that is fed events with their times. None of them reads a clock,
//! allocates, or depends on how often it is asked: an answer is a function of the events alone.
//!
//! | [`Control`] | bounds | learns from | what the network must do |
//! |---|---|---|---|
//! | `Static` | the window | nothing | have buffers for every window at once, or pause the senders |
//! | `Dcqcn` | the rate ([`Dcqcn`]) | congestion notification packets | mark packets (ECN) of long queues |
//! | `Delay` | the window ([`Delay`]) | measured round trips | nothing |
//!
//! ```text
//!             sender                     switch                    receiver
//!  Congestion: window, rate --> packet --> queue --> ECN mark --> NotificationPoint
//!         ^                                                            |
//!         '------------- acknowledgement (round trip), CNP ------------'
//! ```
//!
//! The receiver's half of DCQCN, the [`NotificationPoint`], is the same for every `Control`: what a
//! peer makes of a notification is for the peer to know.

mod dcqcn;
mod delay;
mod notification;

use std::num::NonZeroU64;
use std::time::Duration;

use crate::time::Time;

pub use dcqcn::{Dcqcn, DcqcnParameters};
pub use delay::{Delay, DelayParameters};
pub use notification::NotificationPoint;

/// The two ECN bits of the IP header: the sender does not take part (RFC 3168, section 5).
pub const NOT_ECT: u8 = 0b00;

/// The two ECN bits of the IP header: this packet may be marked.
pub const ECT_0: u8 = 0b10;

/// The two ECN bits of the IP header: this packet met congestion.
pub const CE: u8 = 0b11;

/// Which law a queue pair obeys, with the law's parameters.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Control {
    /// The window alone, as configured.
    #[default]
    Static,
    /// A rate, by the network's marks.
    Dcqcn(DcqcnParameters),
    /// A window, by measured round trips.
    Delay(DelayParameters),
}

/// The congestion state of a queue pair.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Congestion {
    window: u32,
    law: Law,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Law {
    Static,
    Dcqcn(Dcqcn),
    Delay(Delay),
}

impl Congestion {
    /// The state of a queue pair that has not sent yet.
    ///
    /// `window` is the most packets that it may ever have unacknowledged (0 is taken as 1), and
    /// `packet_bytes` the size of a full packet on the wire.
    pub fn new(control: &Control, window: u32, packet_bytes: u32) -> Self {
        let window = window.max(1);
        let law = match control {
            Control::Static => Law::Static,
            Control::Dcqcn(parameters) => Law::Dcqcn(Dcqcn::new(parameters)),
            Control::Delay(parameters) => Law::Delay(Delay::new(parameters, window, packet_bytes)),
        };
        Congestion { window, law }
    }

    /// The reaction point, if this is DCQCN.
    pub fn dcqcn(&self) -> Option<&Dcqcn> {
        match &self.law {
            Law::Dcqcn(dcqcn) => Some(dcqcn),
            _ => None,
        }
    }

    /// The state of the delay-based law, if this is that.
    pub fn delay(&self) -> Option<&Delay> {
        match &self.law {
            Law::Delay(delay) => Some(delay),
            _ => None,
        }
    }

    // ---- Answers ----------------------------------------------------------------------------

    /// How many packets may be unacknowledged, at least 1.
    #[inline]
    pub fn window_packets(&self) -> u32 {
        match &self.law {
            Law::Static | Law::Dcqcn(_) => self.window,
            Law::Delay(delay) => delay.window_packets(),
        }
    }

    /// How many bytes of datagrams may leave in a second; `None` if only the window counts.
    #[inline]
    pub fn rate_bytes_per_second(&self) -> Option<NonZeroU64> {
        match &self.law {
            Law::Static => None,
            Law::Dcqcn(dcqcn) => Some(dcqcn.rate_bytes_per_second()),
            Law::Delay(delay) => delay.rate_bytes_per_second(),
        }
    }

    /// After how many packets to ask for an acknowledgement at the latest, so that the window opens
    /// in steps while it is in use; `None` if the law does not mind.
    #[inline]
    pub fn ack_interval(&self) -> Option<u32> {
        match &self.law {
            Law::Static | Law::Dcqcn(_) => None,
            Law::Delay(_) => Some((self.window_packets() / 4).max(1)),
        }
    }

    /// Whether it needs a round trip measured for every kind of request.
    #[inline]
    pub fn wants_round_trips(&self) -> bool {
        matches!(self.law, Law::Delay(_))
    }

    /// The two ECN bits for the IP header of packets that leave.
    pub fn ecn(&self) -> u8 {
        if matches!(self.law, Law::Dcqcn(_)) { ECT_0 } else { NOT_ECT }
    }

    /// When [`on_timer`](Self::on_timer) is due. `None` at rest: an idle queue pair comes to rest.
    pub fn next_deadline(&self) -> Option<Time> {
        match &self.law {
            Law::Static | Law::Delay(_) => None,
            Law::Dcqcn(dcqcn) => dcqcn.next_deadline(),
        }
    }

    // ---- Events -----------------------------------------------------------------------------

    /// A datagram of `bytes` was handed out.
    #[inline]
    pub fn on_sent(&mut self, now: Time, bytes: usize) {
        if let Law::Dcqcn(dcqcn) = &mut self.law {
            dcqcn.on_sent(now, bytes as u64);
        }
    }

    /// `packets` were newly acknowledged.
    ///
    /// `round_trip` is a measurement that ended with this acknowledgement, never of a packet that
    /// was sent twice. `ecn_echo` says that the acknowledgement itself reports congestion (BECN).
    pub fn on_ack(&mut self, now: Time, round_trip: Option<Duration>, packets: u32, ecn_echo: bool) {
        match &mut self.law {
            Law::Static => {}
            Law::Dcqcn(dcqcn) => {
                if ecn_echo {
                    dcqcn.on_cnp(now);
                }
            }
            Law::Delay(delay) => delay.on_ack(now, round_trip, packets),
        }
    }

    /// A congestion notification packet arrived. Returns whether the law obeys such packets.
    pub fn on_cnp(&mut self, now: Time) -> bool {
        match &mut self.law {
            Law::Static | Law::Delay(_) => false,
            Law::Dcqcn(dcqcn) => {
                dcqcn.on_cnp(now);
                true
            }
        }
    }

    /// The peer reported a gap, so that something was lost.
    ///
    /// DCQCN does not listen: it marks long before it drops, and a lost packet is mostly a
    /// corrupted one.
    pub fn on_loss(&mut self, now: Time) {
        if let Law::Delay(delay) = &mut self.law {
            delay.on_loss(now);
        }
    }

    /// The retransmit timer fired. That may be the loss of every notification, too, so DCQCN takes
    /// it as one.
    pub fn on_timeout(&mut self, now: Time) {
        match &mut self.law {
            Law::Static => {}
            Law::Dcqcn(dcqcn) => dcqcn.on_cnp(now),
            Law::Delay(delay) => delay.on_timeout(now),
        }
    }

    /// Does what is due by now.
    pub fn on_timer(&mut self, now: Time) {
        if let Law::Dcqcn(dcqcn) = &mut self.law {
            dcqcn.on_timer(now);
        }
    }
}

/// `interval` after `at`; never, if that is beyond the end of time.
fn after(at: Time, interval: Duration) -> Option<Time> {
    let ns = u64::try_from(interval.as_nanos()).ok()?;
    at.as_nanos().checked_add(ns).map(Time::from_nanos)
}
