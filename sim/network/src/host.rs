//! One host of the network: its wire, its queues, and what the scheduler knows of its NIC.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Weak;
use std::time::Duration;

use anyverbs_nic::Time;
use anyverbs_nic::link::Progress;
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

use crate::hash::SipHasher;
use crate::state::EventKey;
use crate::trace::write_address;

/// A datagram under way, or in a receive queue.
#[derive(Debug)]
pub(crate) struct Datagram {
    pub(crate) source: IpAddr,
    /// The host's address, or the group that it was sent to.
    pub(crate) destination: IpAddr,
    pub(crate) source_port: u16,
    pub(crate) ecn: u8,
    pub(crate) bytes: Vec<u8>,
}

/// One host.
pub(crate) struct Host {
    pub(crate) address: IpAddr,
    pub(crate) nic: Option<Weak<dyn Progress>>,
    /// When the NIC wants to progress although nothing arrives.
    pub(crate) timer: Option<EventKey>,
    /// When the wire has room again for a NIC that found none.
    pub(crate) room: Option<EventKey>,
    pub(crate) wire: Wire,
    pub(crate) received: VecDeque<Datagram>,
    /// Programs that sleep until something happens here, in the order in which they fell asleep.
    pub(crate) sleepers: Vec<usize>,
    /// Somebody called `wake` when nobody slept.
    pub(crate) wake_pending: bool,
    /// Grows with everything that happens here.
    pub(crate) activity: u64,
    jitter: ChaCha8Rng,
}

impl Host {
    pub(crate) fn new(address: IpAddr, seed: u64, bandwidth_bits_per_s: u64) -> Self {
        Host {
            address,
            nic: None,
            timer: None,
            room: None,
            wire: Wire::new(bandwidth_bits_per_s),
            received: VecDeque::new(),
            sleepers: Vec::new(),
            wake_pending: false,
            activity: 0,
            jitter: stream(seed, address),
        }
    }

    /// The next draw from zero to `max`, both included.
    pub(crate) fn draw_jitter(&mut self, max: Duration) -> Duration {
        let span = u64::try_from(max.as_nanos()).unwrap_or(u64::MAX);
        if span == 0 {
            return Duration::ZERO;
        }
        let scaled = u128::from(self.jitter.next_u64()) * (u128::from(span) + 1);
        Duration::from_nanos((scaled >> 64) as u64)
    }
}

/// The random stream of a host: by its address, so that it does not depend on which other hosts
/// there are, or on who was made first.
fn stream(seed: u64, address: IpAddr) -> ChaCha8Rng {
    let mut hasher = SipHasher::new([0, 0]);
    write_address(&mut hasher, address);
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..24].copy_from_slice(b"anyverbs network");
    let mut rng = ChaCha8Rng::from_seed(key);
    rng.set_stream(hasher.finish());
    rng
}

/// Bits per second beyond which a wire is not told from a faster one.
const BANDWIDTH_MAX: u64 = 1_000_000_000_000_000;

/// Where datagrams leave a host, one after the other.
#[derive(Debug)]
pub(crate) struct Wire {
    bits_per_s: u64,
    /// When the last datagram has left, in nanoseconds times `bits_per_s`: exact, so that no error
    /// adds up when a datagram takes no whole number of nanoseconds. Cannot overflow: the time
    /// fits 64 bits and the bandwidth 50.
    free_at_scaled: u128,
    /// When each datagram that waits or leaves now will have left.
    departures: VecDeque<Time>,
}

impl Wire {
    fn new(bits_per_s: u64) -> Self {
        let bits_per_s = if bits_per_s == 0 { BANDWIDTH_MAX } else { bits_per_s.min(BANDWIDTH_MAX) };
        Wire { bits_per_s, free_at_scaled: 0, departures: VecDeque::new() }
    }

    /// Puts `bytes` bytes on the wire; returns when the last of them has left.
    pub(crate) fn send(&mut self, bytes: usize, now: Time) -> Time {
        let scale = u128::from(self.bits_per_s);
        let start = self.free_at_scaled.max(u128::from(now.as_nanos()) * scale);
        self.free_at_scaled = start.saturating_add(bytes as u128 * 8 * 1_000_000_000);
        let left = Time::from_nanos(u64::try_from(self.free_at_scaled.div_ceil(scale)).unwrap_or(u64::MAX));
        self.departures.push_back(left);
        left
    }

    /// `None` if fewer than `limit` datagrams wait to leave, else when half of them will have left.
    pub(crate) fn full_until(&mut self, limit: usize, now: Time) -> Option<Time> {
        while self.departures.front().is_some_and(|&left| left <= now) {
            self.departures.pop_front();
        }
        if self.departures.len() < limit {
            return None;
        }
        self.departures.get(self.departures.len() / 2).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ns: u64) -> Time {
        Time::from_nanos(ns)
    }

    #[test]
    fn a_wire_adds_up_fractions_of_nanoseconds() {
        // 4158 bytes at 100 Gb/s take 332.64 ns.
        let mut wire = Wire::new(100_000_000_000);
        assert_eq!(wire.send(4158, at(1000)), at(1333));
        assert_eq!(wire.send(4158, at(1000)), at(1666)); // 1665.28
        assert_eq!(wire.send(4158, at(1000)), at(1998)); // 1997.92
        for _ in 3..100 {
            wire.send(4158, at(1000));
        }
        assert_eq!(wire.send(0, at(1000)), at(1000 + 33_264));
        assert_eq!(wire.send(4158, at(50_000)), at(50_333), "an idle wire starts at once");
    }

    #[test]
    fn a_wire_is_full_until_half_of_it_has_left() {
        let mut wire = Wire::new(8_000_000_000); // a byte a nanosecond
        for _ in 0..4 {
            assert_eq!(wire.full_until(4, at(0)), None);
            wire.send(100, at(0));
        }
        assert_eq!(wire.full_until(4, at(0)), Some(at(300)));
        assert_eq!(wire.full_until(4, at(99)), Some(at(300)));
        assert_eq!(wire.full_until(4, at(100)), None);
    }

    #[test]
    fn streams_differ_by_seed_and_by_host() {
        let draws = |seed, address: [u8; 4]| {
            let mut host = Host::new(IpAddr::from(address), seed, 0);
            (0..64).map(|_| host.draw_jitter(Duration::from_nanos(3))).collect::<Vec<_>>()
        };
        let first = draws(1, [10, 0, 0, 1]);
        assert_eq!(first, draws(1, [10, 0, 0, 1]));
        assert_ne!(first, draws(2, [10, 0, 0, 1]));
        assert_ne!(first, draws(1, [10, 0, 0, 2]));
        for ns in 0..=3 {
            assert!(first.contains(&Duration::from_nanos(ns)), "{ns} never drawn");
        }
        assert!(first.iter().all(|&d| d <= Duration::from_nanos(3)));
    }
}
