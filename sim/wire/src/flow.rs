//! The addresses of a packet.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The UDP destination port of RoCEv2 (IBA A17).
pub const UDP_PORT: u16 = 4791;

/// Who sends to whom: the addresses of the IP and UDP headers that the ICRC covers. The destination port
/// is always [`UDP_PORT`].
///
/// Both addresses should be of one family. Where they are not, or one of them is an IPv4 address mapped to
/// IPv6, the flow counts as IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// UDP source port: entropy for multipath, one per queue pair or process.
    pub source_port: u16,
}

/// Both addresses of a flow in their common family.
pub(crate) enum Addresses {
    V4(Ipv4Addr, Ipv4Addr),
    V6(Ipv6Addr, Ipv6Addr),
}

impl Flow {
    /// The flow of the answer: the addresses exchanged, from `source_port`.
    pub const fn reversed(&self, source_port: u16) -> Flow {
        Flow { source: self.destination, destination: self.source, source_port }
    }

    /// Whether packets of this flow have an IPv4 header.
    pub const fn is_ipv4(&self) -> bool {
        self.source.is_ipv4() && self.destination.is_ipv4()
    }

    pub(crate) fn addresses(&self) -> Addresses {
        let v6 = |address| match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => Addresses::V4(source, destination),
            (source, destination) => Addresses::V6(v6(source), v6(destination)),
        }
    }
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{} > {}", self.source, self.source_port, self.destination)
    }
}
