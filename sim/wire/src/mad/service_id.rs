//! Service ids: what a listener listens on.

use std::fmt;

/// A port space of librdmacm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PortSpace {
    /// Connected queue pairs.
    Tcp,
    /// Datagrams.
    Udp,
    /// IP over InfiniBand.
    Ipoib,
    /// InfiniBand's own.
    Ib,
}

impl PortSpace {
    const ALL: [PortSpace; 4] = [PortSpace::Tcp, PortSpace::Udp, PortSpace::Ipoib, PortSpace::Ib];

    /// The number by which the kernel knows the port space.
    pub const fn value(self) -> u16 {
        match self {
            PortSpace::Tcp => 0x0106,
            PortSpace::Udp => 0x0111,
            PortSpace::Ipoib => 0x0002,
            PortSpace::Ib => 0x013F,
        }
    }
}

/// The service that a REQ or SIDR_REQ is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceId(pub u64);

impl ServiceId {
    /// The service of a port: the port space, then the port, in the low 32 bits (IBA A11).
    pub const fn new(space: PortSpace, port: u16) -> ServiceId {
        ServiceId((space.value() as u64) << 16 | port as u64)
    }

    /// The port space, if it is one of librdmacm.
    pub fn port_space(self) -> Option<PortSpace> {
        PortSpace::ALL.into_iter().find(|space| self.0 >> 16 == u64::from(space.value()))
    }

    /// The port, if the service id is one of librdmacm.
    pub fn port(self) -> Option<u16> {
        self.port_space().map(|_| (self.0 & 0xFFFF) as u16)
    }
}

impl fmt::Display for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.port_space() {
            Some(PortSpace::Tcp) => "tcp",
            Some(PortSpace::Udp) => "udp",
            Some(PortSpace::Ipoib) => "ipoib",
            Some(PortSpace::Ib) => "ib",
            None => return write!(f, "{:#018x}", self.0),
        };
        write!(f, "{name}:{}", self.0 & 0xFFFF)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_the_kernel() {
        assert_eq!(ServiceId::new(PortSpace::Tcp, 0x1234).0, 0x0106_1234);
        assert_eq!(ServiceId::new(PortSpace::Udp, 0x1234).0, 0x0111_1234);
        assert_eq!(ServiceId(0x0106_0050).port(), Some(80));
        assert_eq!(ServiceId(0x1_0106_0050).port(), None);
        assert_eq!(ServiceId(0x0106_0050).to_string(), "tcp:80");
        assert_eq!(ServiceId(1).to_string(), "0x0000000000000001");
    }
}
