//! What the owner of a device decides for its connection manager.

use std::time::Duration;

use anyverbs_wire::mad::timeout;

use crate::qp::Mtu;

/// The longest time that a peer may name, as a code: 68.7 s, which is also what the kernel's rdma_cm promises
/// in its MRAs. Without a bound, one message could hold a table entry for hours.
const LONGEST: u8 = 24;

/// Settings of a [`ConnectionManager`](super::ConnectionManager).
///
/// Times that travel are codes of [`timeout`]: 4.096 us x 2^code. The defaults are those of the kernel's
/// rdma_cm.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    /// GUID of the device. With a queue-pair number it tells peers which of our connections is stale.
    pub ca_guid: u64,
    /// The largest path MTU that the device can use.
    pub max_mtu: Mtu,
    /// Time that either side has for an answer, a code: 20 is 4.3 s.
    pub response_timeout: u8,
    /// How often a message without an answer is sent again, 0..=15.
    pub max_retries: u8,
    /// The longest that a packet lives in the network, a code: 16 is 268 ms.
    pub packet_lifetime: u8,
    /// Time that our device takes to acknowledge, a code.
    pub target_ack_delay: u8,
    /// Time that our MRAs promise for a consumer that is slow, a code: 24 is 68.7 s.
    pub service_timeout: u8,
    /// How long a request for a service that nobody listens on is held before it is rejected: a program that
    /// closes a listener and opens the next one is silent in between.
    pub hold_unclaimed: Duration,
    /// How long a request of ours that was rejected for want of a listener is repeated before the consumer is
    /// told.
    pub retry_refused: Duration,
    /// The most significant bits of all communication ids, by which MADs find the process they belong to.
    pub comm_id_prefix: u32,
    /// How many bits that is, 0..=16.
    pub comm_id_prefix_bits: u8,
    /// What may be used at once.
    pub limits: Limits,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            ca_guid: 0,
            max_mtu: Mtu::B4096,
            response_timeout: 20,
            max_retries: 15,
            packet_lifetime: 16,
            target_ack_delay: 0,
            service_timeout: 24,
            hold_unclaimed: Duration::from_secs(1),
            retry_refused: Duration::ZERO,
            comm_id_prefix: 0,
            comm_id_prefix_bits: 0,
            limits: Limits::default(),
        }
    }
}

/// Bounds of everything that peers can make grow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Services listened on.
    pub listeners: usize,
    /// Connections in any state, timewait included. A request beyond is rejected: no resources.
    pub connections: usize,
    /// The same, with one address. A request beyond is rejected, too.
    pub connections_per_source: usize,
    /// Resolutions (SIDR) in progress, ours and peers'.
    pub resolutions: usize,
    /// Requests of peers that are not yet established. One beyond is dropped; its sender repeats it.
    pub requests: usize,
    /// The same, from one source address.
    pub requests_per_source: usize,
    /// Requests held for a service that nobody listens on. One beyond is rejected at once.
    pub held: usize,
    /// Answers kept for repetition. One beyond replaces the oldest.
    pub answers: usize,
    /// Messages a second that belong to no connection: new requests, and others that would be answered.
    /// 0 is without limit.
    pub rate: u32,
    /// How many of them may come at once.
    pub burst: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            listeners: 1024,
            connections: 65_536,
            connections_per_source: 65_536,
            resolutions: 4096,
            requests: 8192,
            requests_per_source: 1024,
            held: 64,
            answers: 1024,
            rate: 20_000,
            burst: 4096,
        }
    }
}

impl Config {
    /// How long to wait for an answer of a side that takes the time of `code`: that, and the way there and
    /// back (IBA 12.7.34 for the same sum at the transport).
    pub(super) fn response(&self, code: u8) -> Duration {
        bounded(code) + bounded(self.packet_lifetime) * 2
    }

    /// The acknowledgement timeout of a path to a device that takes the time of `delay` to acknowledge, as a
    /// code (IBA 12.7.34): twice the packet lifetime and the delay. One more doubles it, so it is rounded up
    /// only if the smaller of the two is at least half of the larger.
    pub(super) fn ack_timeout(&self, delay: u8) -> u8 {
        let round_trip = self.packet_lifetime.min(30) + 1;
        let (longer, shorter) = (round_trip.max(delay), round_trip.min(delay));
        (longer + u8::from(shorter + 1 >= longer)).min(31)
    }

    /// Retries as they travel: four bits.
    pub(super) fn retries(&self) -> u8 {
        self.max_retries.min(15)
    }
}

/// The time of a code that a peer chose, not too long.
pub(super) fn bounded(code: u8) -> Duration {
    timeout(code.min(LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_acknowledgement_timeout_is_rounded_up_only_when_it_matters() {
        let config = Config::default();
        assert_eq!(config.ack_timeout(0), 17);
        assert_eq!(config.ack_timeout(15), 17);
        assert_eq!(config.ack_timeout(16), 18);
        assert_eq!(config.ack_timeout(17), 18);
        assert_eq!(config.ack_timeout(18), 19);
        assert_eq!(config.ack_timeout(19), 19);
        assert_eq!(config.ack_timeout(31), 31);
        assert_eq!(Config { packet_lifetime: 255, ..config }.ack_timeout(255), 31);
    }

    #[test]
    fn what_a_peer_names_is_bounded() {
        assert_eq!(bounded(31), timeout(24));
        assert_eq!(bounded(20), timeout(20));
    }
}
