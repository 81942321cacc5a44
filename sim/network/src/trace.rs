//! What happened in a run, in numbers, and in one number that covers every datagram.

use std::fmt;
use std::net::IpAddr;

use anyverbs_nic::Time;

use crate::hash::SipHasher;
use crate::host::Datagram;

/// What happened on a network since it was made.
///
/// `sent = delivered + dropped + in_flight`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Trace {
    /// A hash of every datagram that was sent, delivered or dropped: what happened, when, from where
    /// to where, with which ECN bits, and its bytes. Equal on every machine and with every build
    /// for one seed and one version of the programs.
    pub hash: u64,
    /// Datagrams that hosts sent. Of one to a multicast group, each member's copy counts.
    pub sent: u64,
    /// Datagrams that came into the receive queue of their host.
    pub delivered: u64,
    /// Datagrams that were lost: to an address where no host is, larger than the limit, or into a
    /// receive queue that was full.
    pub dropped: u64,
    /// Datagrams that were still under way.
    pub in_flight: u64,
    /// Events that the scheduler took: arrivals, timers, programs that woke up.
    pub events: u64,
    /// The virtual time at the end.
    pub end: Time,
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Trace { hash, sent, delivered, dropped, in_flight, events, end } = self;
        write!(
            f,
            "trace {hash:016x}, end {end:?}, {events} events, datagrams: {sent} sent, \
             {delivered} delivered, {dropped} dropped, {in_flight} in flight"
        )
    }
}

/// What happened to a datagram.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fate {
    Sent = 1,
    Delivered = 2,
    Dropped = 3,
}

/// Collects what a [`Trace`] tells.
#[derive(Debug)]
pub(crate) struct Recorder {
    hasher: SipHasher,
    sent: u64,
    delivered: u64,
    dropped: u64,
    pub(crate) events: u64,
}

impl Recorder {
    pub(crate) fn new() -> Self {
        // ASCII "anyverbs" and "trace v1": another format of what is hashed is another key.
        let hasher = SipHasher::new([0x616e_7976_6572_6273, 0x7472_6163_6520_7631]);
        Recorder { hasher, sent: 0, delivered: 0, dropped: 0, events: 0 }
    }

    pub(crate) fn note(&mut self, fate: Fate, at: Time, to: IpAddr, datagram: &Datagram) {
        match fate {
            Fate::Sent => self.sent += 1,
            Fate::Delivered => self.delivered += 1,
            Fate::Dropped => self.dropped += 1,
        }
        let [port_low, port_high] = datagram.source_port.to_le_bytes();
        self.hasher.write(&[fate as u8, datagram.ecn, port_low, port_high]);
        self.hasher.write_u64(at.as_nanos());
        write_address(&mut self.hasher, datagram.source);
        write_address(&mut self.hasher, to);
        self.hasher.write_u64(datagram.bytes.len() as u64);
        self.hasher.write(&datagram.bytes);
    }

    pub(crate) fn trace(&self, end: Time, in_flight: u64) -> Trace {
        Trace {
            hash: self.hasher.finish(),
            sent: self.sent,
            delivered: self.delivered,
            dropped: self.dropped,
            in_flight,
            events: self.events,
            end,
        }
    }
}

/// Feeds an address to a hash, with its family, so that no two addresses look alike.
pub(crate) fn write_address(hasher: &mut SipHasher, address: IpAddr) {
    match address {
        IpAddr::V4(v4) => {
            hasher.write(&[4]);
            hasher.write(&v4.octets());
        }
        IpAddr::V6(v6) => {
            hasher.write(&[6]);
            hasher.write(&v6.octets());
        }
    }
}
