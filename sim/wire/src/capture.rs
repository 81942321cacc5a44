//! IP and UDP headers: for captures as the network would show them, and for the ICRC as it masks them.

use crate::Flow;
use crate::flow::{Addresses, UDP_PORT};

const IPV4_LEN: usize = 20;
const IPV6_LEN: usize = 40;
const UDP_LEN: usize = 8;
const PROTOCOL_UDP: u8 = 17;

/// The longest that [`encapsulate`] writes.
pub(crate) const MAX_IP_UDP_LEN: usize = IPV6_LEN + UDP_LEN;

/// Writes the IP and UDP headers that a datagram travels behind, for a packet capture, and returns their
/// length: 28 bytes for IPv4, 48 for IPv6.
///
/// IPv4 has the don't-fragment flag and a right header checksum. The UDP checksum is 0, "none", as RoCEv2
/// allows in both families: the ICRC is stronger. `udp_payload_len` is in bytes and includes the ICRC; of
/// lengths that do not fit the headers' fields, only the low 16 bits are written. IPv6 ignores `ip_id`.
pub fn encapsulate(
    flow: &Flow,
    ip_id: u16,
    tos: u8,
    ttl: u8,
    udp_payload_len: usize,
    out: &mut [u8; 48],
) -> usize {
    let class = u32::from(tos) << 20;
    let fields = Fields { tos, ttl, class_and_label: class, udp_checksum: 0 };
    let len = write_headers(flow, ip_id, udp_payload_len, &fields, out);
    if flow.is_ipv4() {
        let checksum = internet_checksum(&out[..IPV4_LEN]);
        out[10..12].copy_from_slice(&checksum.to_be_bytes());
    }
    len
}

/// Writes the headers as the ICRC sees them: whatever switches may change is ones. Returns their length.
///
/// `out` must begin with [`MAX_IP_UDP_LEN`] bytes; the caller's buffer has a constant size.
pub(crate) fn masked_headers<const N: usize>(
    flow: &Flow,
    ip_id: u16,
    udp_payload_len: usize,
    out: &mut [u8; N],
) -> usize {
    const { assert!(N >= MAX_IP_UDP_LEN) };
    let fields = Fields { tos: 0xFF, ttl: 0xFF, class_and_label: 0x0FFF_FFFF, udp_checksum: 0xFFFF };
    let len = write_headers(flow, ip_id, udp_payload_len, &fields, out);
    if flow.is_ipv4() {
        out[10..12].fill(0xFF);
    }
    len
}

/// The fields that the ICRC masks.
struct Fields {
    tos: u8,
    ttl: u8,
    class_and_label: u32,
    udp_checksum: u16,
}

/// Writes the headers, with an IPv4 checksum of 0.
fn write_headers<const N: usize>(
    flow: &Flow,
    ip_id: u16,
    udp_payload_len: usize,
    fields: &Fields,
    out: &mut [u8; N],
) -> usize {
    let udp_len = low_16_bits(udp_payload_len.wrapping_add(UDP_LEN));
    let ip_len = match flow.addresses() {
        Addresses::V4(source, destination) => {
            let total_len = low_16_bits(udp_payload_len.wrapping_add(IPV4_LEN + UDP_LEN));
            out[0] = 0x45;
            out[1] = fields.tos;
            out[2..4].copy_from_slice(&total_len.to_be_bytes());
            out[4..6].copy_from_slice(&ip_id.to_be_bytes());
            out[6..8].copy_from_slice(&[0x40, 0]);
            out[8] = fields.ttl;
            out[9] = PROTOCOL_UDP;
            out[10..12].fill(0);
            out[12..16].copy_from_slice(&source.octets());
            out[16..20].copy_from_slice(&destination.octets());
            IPV4_LEN
        }
        Addresses::V6(source, destination) => {
            out[0..4].copy_from_slice(&(6 << 28 | fields.class_and_label).to_be_bytes());
            out[4..6].copy_from_slice(&udp_len.to_be_bytes());
            out[6] = PROTOCOL_UDP;
            out[7] = fields.ttl;
            out[8..24].copy_from_slice(&source.octets());
            out[24..40].copy_from_slice(&destination.octets());
            IPV6_LEN
        }
    };
    let udp = &mut out[ip_len..ip_len + UDP_LEN];
    udp[0..2].copy_from_slice(&flow.source_port.to_be_bytes());
    udp[2..4].copy_from_slice(&UDP_PORT.to_be_bytes());
    udp[4..6].copy_from_slice(&udp_len.to_be_bytes());
    udp[6..8].copy_from_slice(&fields.udp_checksum.to_be_bytes());
    ip_len + UDP_LEN
}

const fn low_16_bits(len: usize) -> u16 {
    (len & 0xFFFF) as u16
}

/// The internet checksum (RFC 1071) of a header of even length whose checksum field is zero.
fn internet_checksum(header: &[u8]) -> u16 {
    let sum: u32 = header.chunks_exact(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let folded = (sum & 0xFFFF) + (sum >> 16);
    !(((folded & 0xFFFF) + (folded >> 16)) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv4_headers_of_a_capture() {
        // The headers of a congestion notification that a ConnectX-4 Lx sent.
        let flow = Flow { source: [10, 0, 17, 1].into(), destination: [10, 0, 18, 1].into(), source_port: 0 };
        let mut out = [0xEE; 48];
        let len = encapsulate(&flow, 0x718c, 0xc2, 64, 32, &mut out);
        let expected: [u8; 28] = [
            0x45, 0xc2, 0x00, 0x3c, 0x71, 0x8c, 0x40, 0x00, 0x40, 0x11, 0x91, 0x61, 0x0a, 0x00, 0x11, 0x01,
            0x0a, 0x00, 0x12, 0x01, 0x00, 0x00, 0x12, 0xb7, 0x00, 0x28, 0x00, 0x00,
        ];
        assert_eq!(out[..len], expected);
        assert!(out[len..].iter().all(|&byte| byte == 0xEE), "nothing is written past the headers");
    }

    #[test]
    fn ipv6_headers() {
        let flow = Flow {
            source: "fd00::1".parse().unwrap(),
            destination: "fd00::2".parse().unwrap(),
            source_port: 0xC001,
        };
        let mut out = [0; 48];
        assert_eq!(encapsulate(&flow, 7, 0x02, 64, 32, &mut out), 48);
        assert_eq!(out[..8], [0x60, 0x20, 0, 0, 0, 40, 17, 64]);
        assert_eq!((out[8], out[23], out[24], out[39]), (0xfd, 1, 0xfd, 2));
        assert_eq!(out[40..], [0xC0, 0x01, 0x12, 0xb7, 0, 40, 0, 0]);
    }

    #[test]
    fn mixed_families_are_ipv6() {
        let flow = Flow { source: [1, 2, 3, 4].into(), destination: "::1".parse().unwrap(), source_port: 1 };
        let mut out = [0; 48];
        assert_eq!(encapsulate(&flow, 0, 0, 64, 32, &mut out), 48);
        assert_eq!(out[18..24], [0xFF, 0xFF, 1, 2, 3, 4]);
    }
}
