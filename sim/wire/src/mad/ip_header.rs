//! The header that librdmacm puts before the consumer's private data (IBA A11).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::private_data;
use crate::chunk;

/// The IP addresses of a connection, in front of the private data of a REQ or SIDR_REQ.
///
/// Both addresses should be of one family; if they are not, both travel as IPv6, the IPv4 one mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IpHeader {
    /// The sender's address.
    pub source: IpAddr,
    /// The receiver's address.
    pub destination: IpAddr,
    /// The sender's port; the receiver's is in the service id.
    pub source_port: u16,
}

impl IpHeader {
    /// Length in bytes: of a REQ's 92 bytes of private data it leaves 56 for the consumer.
    pub const LEN: usize = 36;

    /// Splits private data into the header and the consumer's part. `None` if it is too short or has
    /// another version or IP version: then whoever sent it did not use librdmacm.
    pub fn parse(private_data: &[u8]) -> Option<(IpHeader, &[u8])> {
        let (header, user) = private_data.split_first_chunk::<{ IpHeader::LEN }>()?;
        let address: fn(&[u8; IpHeader::LEN], usize) -> IpAddr = match (header[0], header[1] >> 4) {
            (0, 4) => |header, at| Ipv4Addr::from(chunk::<4>(header, at + 12)).into(),
            (0, 6) => |header, at| Ipv6Addr::from(chunk::<16>(header, at)).into(),
            _ => return None,
        };
        let source_port = u16::from_be_bytes([header[2], header[3]]);
        Some((IpHeader { source: address(header, 4), destination: address(header, 20), source_port }, user))
    }

    /// The header on the wire.
    pub fn emit(&self) -> [u8; IpHeader::LEN] {
        let mut bytes = [0; IpHeader::LEN];
        bytes[2..4].copy_from_slice(&self.source_port.to_be_bytes());
        if let (IpAddr::V4(source), IpAddr::V4(destination)) = (self.source, self.destination) {
            bytes[1] = 4 << 4;
            bytes[16..20].copy_from_slice(&source.octets());
            bytes[32..36].copy_from_slice(&destination.octets());
        } else {
            let v6 = |address| match address {
                IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                IpAddr::V6(v6) => v6.octets(),
            };
            bytes[1] = 6 << 4;
            bytes[4..20].copy_from_slice(&v6(self.source));
            bytes[20..36].copy_from_slice(&v6(self.destination));
        }
        bytes
    }

    /// Private data of `N` bytes: the header, then the consumer's `user` bytes, then zeros. `None` if they
    /// do not fit.
    pub fn with_user_data<const N: usize>(&self, user: &[u8]) -> Option<[u8; N]> {
        let mut data: [u8; N] = private_data(&self.emit())?;
        data.get_mut(IpHeader::LEN..IpHeader::LEN.checked_add(user.len())?)?.copy_from_slice(user);
        Some(data)
    }
}

impl fmt::Display for IpHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{} > {}", self.source, self.source_port, self.destination)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv4_address_is_in_the_last_four_bytes() {
        let header =
            IpHeader { source: [10, 0, 0, 1].into(), destination: [10, 0, 0, 2].into(), source_port: 0x1234 };
        let mut expected = [0; IpHeader::LEN];
        expected[1..4].copy_from_slice(&[0x40, 0x12, 0x34]);
        expected[16..20].copy_from_slice(&[10, 0, 0, 1]);
        expected[32..36].copy_from_slice(&[10, 0, 0, 2]);
        assert_eq!(header.emit(), expected);
        assert_eq!(IpHeader::parse(&expected), Some((header, &[][..])));
    }

    #[test]
    fn user_data_follows_up_to_56_bytes_of_a_req() {
        let header =
            IpHeader { source: "::1".parse().unwrap(), destination: "::2".parse().unwrap(), source_port: 7 };
        let data: [u8; 92] = header.with_user_data(&[0xAA; 56]).unwrap();
        assert_eq!(IpHeader::parse(&data), Some((header, &[0xAA; 56][..])));
        assert_eq!(header.with_user_data::<92>(&[0xAA; 57]), None);
        assert_eq!(header.with_user_data::<35>(&[]), None);
    }

    #[test]
    fn other_versions_are_refused() {
        assert_eq!(IpHeader::parse(&[0; 35]), None);
        assert_eq!(IpHeader::parse(&[0; 36]), None);
        let mut bytes = [0; 36];
        (bytes[0], bytes[1]) = (1, 0x40);
        assert_eq!(IpHeader::parse(&bytes), None);
    }
}
