//! Address handles: where datagrams go.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crate::error::NicError;
use crate::limits::Ticket;
use crate::region::Pd;

/// What an address handle is made of (`ibv_ah_attr`). The port has one GID, its address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AhAttributes {
    /// The GID of the destination, or of a multicast group.
    pub destination: IpAddr,
    /// The flow label, 20 bits; part of what the source port is drawn from.
    pub flow_label: u32,
    /// The hop limit, as far as the link lets the NIC choose it.
    pub hop_limit: u8,
    /// The traffic class, as far as the link lets the NIC choose it.
    pub traffic_class: u8,
}

impl AhAttributes {
    /// For a destination, the rest as hosts choose it.
    pub fn new(destination: IpAddr) -> Self {
        AhAttributes { destination, flow_label: 0, hop_limit: 64, traffic_class: 0 }
    }

    /// For the sender of a datagram, from the first 40 bytes of its receive buffer
    /// (`ibv_init_ah_from_wc`). `None` if they are no global routing header.
    pub fn from_grh(grh: &[u8; GRH_LEN]) -> Option<Self> {
        let word = |at: usize| u32::from_be_bytes([grh[at], grh[at + 1], grh[at + 2], grh[at + 3]]);
        match (grh[0] >> 4, grh[20] >> 4) {
            (6, _) => {
                let mut source = [0; 16];
                source.copy_from_slice(&grh[8..24]);
                let first = word(0);
                Some(AhAttributes {
                    destination: Ipv6Addr::from(source).into(),
                    flow_label: first & 0x000f_ffff,
                    hop_limit: 64,
                    traffic_class: (first >> 20) as u8,
                })
            }
            (0, 4) => {
                let destination = Ipv4Addr::from_bits(word(32)).into();
                Some(AhAttributes { traffic_class: grh[21], ..AhAttributes::new(destination) })
            }
            _ => None,
        }
    }
}

/// Bytes in front of a datagram in its receive buffer.
pub const GRH_LEN: usize = 40;

/// The header area in front of a received datagram: an IPv6 header is a global routing header; an IPv4 header
/// stands in the last 20 bytes (IBA A17.4.5.2).
pub(crate) fn grh(source: IpAddr, destination: IpAddr, ecn: u8, datagram: usize) -> [u8; GRH_LEN] {
    const UDP: u8 = 17;
    const UDP_HEADER: usize = 8;
    let mut grh = [0; GRH_LEN];
    let len = datagram + UDP_HEADER;
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let header = &mut grh[20..];
            header[0] = 0x45;
            header[1] = ecn;
            header[2..4].copy_from_slice(&((len + 20) as u16).to_be_bytes());
            header[6] = 0x40;
            header[8] = 64;
            header[9] = UDP;
            header[12..16].copy_from_slice(&source.octets());
            header[16..20].copy_from_slice(&destination.octets());
            let sum: u32 = header.chunks_exact(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
            let folded = (sum & 0xffff) + (sum >> 16);
            header[10..12].copy_from_slice(&(!folded as u16).to_be_bytes());
        }
        (source, destination) => {
            let octets = |address| match address {
                IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                IpAddr::V6(v6) => v6.octets(),
            };
            grh[0] = 0x60;
            grh[1] = ecn << 4;
            grh[4..6].copy_from_slice(&(len as u16).to_be_bytes());
            grh[6] = UDP;
            grh[7] = 64;
            grh[8..24].copy_from_slice(&octets(source));
            grh[24..40].copy_from_slice(&octets(destination));
        }
    }
    grh
}

#[derive(Debug)]
struct Inner {
    attributes: AhAttributes,
    pd: u32,
    _ticket: Ticket,
}

/// An address handle (`ibv_ah`): where datagrams go. Clones are handles to the same one.
#[derive(Clone, Debug)]
pub struct Ah(Arc<Inner>);

impl PartialEq for Ah {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Ah {}

impl Ah {
    pub(crate) fn create(pd: &Pd, attributes: AhAttributes) -> Result<Ah, NicError> {
        let own = pd.nic().attributes().gid;
        let given = attributes.destination;
        if given.is_ipv4() != own.is_ipv4() {
            return Err(NicError::AddressFamily { peer: given, own });
        }
        if given.is_unspecified() {
            return Err(NicError::Destination { given, reason: "it is the address of no host" });
        }
        let ticket = pd.nic().limits().ah.take()?;
        Ok(Ah(Arc::new(Inner { attributes, pd: pd.number(), _ticket: ticket })))
    }

    /// What it was made of (`ibv_query_ah`).
    pub fn attributes(&self) -> &AhAttributes {
        &self.0.attributes
    }

    pub(crate) fn pd_number(&self) -> u32 {
        self.0.pd
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sender_is_read_back_from_the_header_area() {
        for (source, destination) in [("10.0.0.7", "10.0.0.8"), ("2001:db8::7", "ff02::8")] {
            let source: IpAddr = source.parse().unwrap();
            let header = grh(source, destination.parse().unwrap(), 2, 100);
            let attributes = AhAttributes::from_grh(&header).unwrap();
            assert_eq!((attributes.destination, attributes.traffic_class), (source, 2));
            if source.is_ipv4() {
                // The checksum of a header with its checksum in it is zero.
                let sum: u32 =
                    header[20..].chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
                assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
            }
        }
        assert_eq!(AhAttributes::from_grh(&[0; GRH_LEN]), None);
        assert_eq!(AhAttributes::from_grh(&[0xff; GRH_LEN]), None);
    }
}
