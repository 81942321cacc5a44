//! What two ends of a connection agree on.

use anyverbs_wire::mad::{self, Ece};
use anyverbs_wire::{Psn, Qpn};

use crate::qp::Mtu;

/// The default partition, full membership (IBA 10.9.1.2).
const DEFAULT_PKEY: u16 = 0xffff;

/// The transport service of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Transport {
    /// Reliable connection.
    Rc,
    /// Unreliable connection.
    Uc,
    /// Extended reliable connection: from an initiator, which asks, to a target (IBA A14).
    Xrc,
}

impl Transport {
    /// The extended transport type of XRC.
    const XRC: u8 = 1;

    /// The two fields of a REQ.
    pub(super) const fn to_wire(self) -> (mad::Transport, u8) {
        match self {
            Transport::Rc => (mad::Transport::Rc, 0),
            Transport::Uc => (mad::Transport::Uc, 0),
            Transport::Xrc => (mad::Transport::Extended, Transport::XRC),
        }
    }

    /// `None` if it is none that a connection can have.
    pub(super) const fn from_wire(transport: mad::Transport, extended: u8) -> Option<Transport> {
        match (transport, extended) {
            (mad::Transport::Rc, _) => Some(Transport::Rc),
            (mad::Transport::Uc, _) => Some(Transport::Uc),
            (mad::Transport::Extended, Transport::XRC) => Some(Transport::Xrc),
            _ => None,
        }
    }
}

/// What a REQ proposes, in the words of whoever holds this: resources and depth are *ours* on both sides,
/// swapped on the way (IBA 12.7). Queue pair, PSN and what a queue pair can do are the asker's.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Terms {
    /// The transport service.
    pub transport: Transport,
    /// The asker's queue pair: the other side's `dest_qpn`.
    pub qpn: Qpn,
    /// The asker's first PSN: the other side's `rq_psn`.
    pub starting_psn: Psn,
    /// The path MTU.
    pub path_mtu: Mtu,
    /// The partition.
    pub pkey: u16,
    /// READs and atomics that we accept at once: for who asks what it can, for who is asked what the asker
    /// wants. Our `max_dest_rd_atomic`.
    pub responder_resources: u8,
    /// READs and atomics that we have outstanding: for who asks what it wants, for who is asked the most that
    /// the asker can accept. Our `max_rd_atomic`.
    pub initiator_depth: u8,
    /// The `retry_cnt` of the side that is asked: 0..=7.
    pub retry_count: u8,
    /// The `rnr_retry` of the side that is asked: 0..=6; 7 is without end.
    pub rnr_retry_count: u8,
    /// The asker does end-to-end flow control.
    pub flow_control: bool,
    /// The asker's queue pair is on a shared receive queue.
    pub srq: bool,
    /// What the asker's device can do beyond the specification, if it says so.
    pub capabilities: Option<Capabilities>,
}

impl Terms {
    /// A reliable connection with one READ or atomic at once each way.
    pub const fn new(qpn: Qpn, starting_psn: Psn, path_mtu: Mtu) -> Self {
        Terms {
            transport: Transport::Rc,
            qpn,
            starting_psn,
            path_mtu,
            pkey: DEFAULT_PKEY,
            responder_resources: 1,
            initiator_depth: 1,
            retry_count: 7,
            rnr_retry_count: 7,
            flow_control: true,
            srq: false,
            capabilities: None,
        }
    }
}

/// What a device can do beyond the specification, told in the bits for enhanced connection establishment
/// ([`Ece`]), which take no private data away.
///
/// ```text
///               31            16 15                        1 0
///   options    |       tag      |      reserved, zero       |E|    E: keeps early packets
/// ```
///
/// The vendor id is "VRB", an OUI of the locally administered kind, which no vendor can own. The tag differs
/// between REQ and REP, since librdmacm repeats the vendor id of any REQ in its REP with options of its own: a
/// vendor id alone would be taken for an answer. A REP says nothing unless the REQ did. Peers that know nothing
/// of this look at none of it, and then both ends have to find out in band.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Capabilities {
    /// Packets that arrive ahead of a gap are kept, so that only what was lost has to be sent again.
    pub keeps_early_packets: bool,
}

/// "VRB".
const VENDOR_ID: u32 = 0x56_5242;
const KEEPS_EARLY_PACKETS: u32 = 1;

/// Which message has the capabilities.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Tag {
    Req = 0x4156,
    Rep = 0x6176,
}

impl Capabilities {
    pub(super) fn to_wire(capabilities: Option<Capabilities>, tag: Tag) -> Ece {
        capabilities.map_or(Ece::default(), |told| Ece {
            vendor_id: VENDOR_ID,
            options: (tag as u32) << 16 | if told.keeps_early_packets { KEEPS_EARLY_PACKETS } else { 0 },
        })
    }

    /// Bits that are reserved do not count.
    pub(super) fn from_wire(ece: Ece, tag: Tag) -> Option<Capabilities> {
        (ece.vendor_id == VENDOR_ID && ece.options >> 16 == tag as u32)
            .then_some(Capabilities { keeps_early_packets: ece.options & KEEPS_EARLY_PACKETS != 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transports_travel() {
        for transport in [Transport::Rc, Transport::Uc, Transport::Xrc] {
            let (wire, extended) = transport.to_wire();
            assert_eq!(Transport::from_wire(wire, extended), Some(transport));
        }
        assert_eq!(Transport::from_wire(mad::Transport::Rd, 0), None);
        assert_eq!(Transport::from_wire(mad::Transport::Extended, 0), None);
        assert_eq!(Transport::from_wire(mad::Transport::Extended, 2), None);
    }

    #[test]
    fn capabilities_travel_in_their_own_message_only() {
        for keeps_early_packets in [false, true] {
            let told = Some(Capabilities { keeps_early_packets });
            for (tag, other) in [(Tag::Req, Tag::Rep), (Tag::Rep, Tag::Req)] {
                let ece = Capabilities::to_wire(told, tag);
                assert_eq!(Capabilities::from_wire(ece, tag), told);
                assert_eq!(Capabilities::from_wire(ece, other), None);
                assert_eq!(Capabilities::from_wire(Ece { vendor_id: 0x15b3, ..ece }, tag), None);
                let reserved = Ece { options: ece.options | 0xfffe, ..ece };
                assert_eq!(Capabilities::from_wire(reserved, tag), told);
            }
        }
        assert_eq!(Capabilities::to_wire(None, Tag::Req), Ece::default());
        assert_eq!(Capabilities::from_wire(Ece::default(), Tag::Req), None);
    }

    /// The vendor id is locally administered and no group: bits 1 and 0 of its first octet.
    #[test]
    fn the_vendor_id_belongs_to_nobody() {
        assert_eq!(VENDOR_ID >> 16 & 3, 2);
        assert_eq!(VENDOR_ID.to_be_bytes()[1..], *b"VRB");
    }
}
