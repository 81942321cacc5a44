//! Socket addresses and control messages as the kernel lays them out, in safe code.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Room for a `sockaddr_in` or a `sockaddr_in6`.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub(super) struct Name([u8; 28]);

impl Name {
    pub(super) const EMPTY: Name = Name([0; 28]);
    pub(super) const CAPACITY: usize = 28;

    pub(super) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.0.as_mut_ptr()
    }

    /// Writes an address, and gives its length. `scope` is the index of the interface that IPv6
    /// addresses of one network only are meant on.
    pub(super) fn set(&mut self, ip: IpAddr, port: u16, scope: u32) -> usize {
        self.0 = [0; 28];
        self.0[2..4].copy_from_slice(&port.to_be_bytes());
        match ip {
            IpAddr::V4(ip) => {
                self.0[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
                self.0[4..8].copy_from_slice(&ip.octets());
                16
            }
            IpAddr::V6(ip) => {
                self.0[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
                self.0[8..24].copy_from_slice(&ip.octets());
                self.0[24..28].copy_from_slice(&scope.to_ne_bytes());
                28
            }
        }
    }

    /// The address in the first `len` bytes.
    pub(super) fn get(&self, len: usize) -> Option<SocketAddr> {
        let family = i32::from(u16::from_ne_bytes([self.0[0], self.0[1]]));
        let port = u16::from_be_bytes([self.0[2], self.0[3]]);
        match family {
            libc::AF_INET if len >= 16 => {
                let [a, b, c, d] = [self.0[4], self.0[5], self.0[6], self.0[7]];
                Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::new(a, b, c, d)), port))
            }
            libc::AF_INET6 if len >= Self::CAPACITY => {
                let mut octets = [0; 16];
                octets.copy_from_slice(&self.0[8..24]);
                Some(SocketAddr::new(IpAddr::V6(Ipv6Addr::from(octets)), port))
            }
            _ => None,
        }
    }
}

/// A `cmsghdr` is a length (of `size_t`, itself included), a level and a type, aligned like a word.
const HEADER: usize = align(size_of::<usize>() + 8);

const fn align(n: usize) -> usize {
    n.next_multiple_of(size_of::<usize>())
}

/// Room for the control messages of one send or receive.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub(super) struct Control([u8; 96]);

impl Control {
    pub(super) const EMPTY: Control = Control([0; 96]);
    pub(super) const CAPACITY: usize = 96;

    pub(super) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.0.as_mut_ptr()
    }

    /// Writes a message of at most 8 bytes at `at`, and gives where the next one goes.
    fn push(&mut self, at: usize, level: i32, kind: i32, data: &[u8]) -> usize {
        let length = HEADER + data.len();
        let word = size_of::<usize>();
        self.0[at..at + word].copy_from_slice(&length.to_ne_bytes());
        self.0[at + word..at + word + 4].copy_from_slice(&level.to_ne_bytes());
        self.0[at + word + 4..at + word + 8].copy_from_slice(&kind.to_ne_bytes());
        self.0[at + HEADER..at + length].copy_from_slice(data);
        at + align(length)
    }

    /// Writes what a send needs, and gives the length: 0 if it needs nothing.
    pub(super) fn set_send(&mut self, v4: bool, ecn: u8, segment: Option<u16>) -> usize {
        let mut at = 0;
        if ecn != 0 {
            let (level, kind) =
                if v4 { (libc::IPPROTO_IP, libc::IP_TOS) } else { (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) };
            at = self.push(at, level, kind, &i32::from(ecn & 3).to_ne_bytes());
        }
        if let Some(segment) = segment {
            at = self.push(at, libc::SOL_UDP, libc::UDP_SEGMENT, &segment.to_ne_bytes());
        }
        at
    }

    /// Reads what a receive gave, from the first `len` bytes.
    pub(super) fn received(&self, len: usize) -> Notes {
        let mut notes = Notes::default();
        let bytes = &self.0[..len.min(Self::CAPACITY)];
        let word = size_of::<usize>();
        let mut at = 0;
        while let Some(header) = bytes.get(at..at + HEADER) {
            let length = header[..word].try_into().map_or(0, usize::from_ne_bytes);
            let level = header[word..word + 4].try_into().map_or(0, i32::from_ne_bytes);
            let kind = header[word + 4..word + 8].try_into().map_or(0, i32::from_ne_bytes);
            if length < HEADER {
                break;
            }
            let Some(data) = bytes.get(at + HEADER..at.saturating_add(length)) else {
                break;
            };
            match (level, kind) {
                (libc::IPPROTO_IP, libc::IP_TOS) | (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                    notes.ecn = small_int(data) as u8 & 3;
                }
                (libc::SOL_UDP, libc::UDP_GRO) => notes.segment = small_int(data) as usize,
                _ => {}
            }
            at += align(length);
        }
        notes
    }
}

/// A number in a control message: IP_TOS is a byte on receive, the others are an `int`.
fn small_int(data: &[u8]) -> u32 {
    match *data {
        [a, b, c, d, ..] => u32::from_ne_bytes([a, b, c, d]),
        [a, b, ..] => u32::from(u16::from_ne_bytes([a, b])),
        [a] => u32::from(a),
        [] => 0,
    }
}

/// What the control messages of a receive said.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct Notes {
    /// The ECN bits.
    pub(super) ecn: u8,
    /// Bytes of each datagram that was received in one piece with others; 0: it was alone.
    pub(super) segment: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        let mut name = Name::EMPTY;
        for address in ["127.0.0.9:4791", "[2001:db8::7]:49152"] {
            let address: SocketAddr = address.parse().unwrap();
            let len = name.set(address.ip(), address.port(), 7);
            assert_eq!(name.get(len), Some(address));
            assert_eq!(name.get(len - 1), None);
        }
    }

    #[test]
    fn control_messages_are_what_libc_says() {
        // SAFETY arguments do not arise: these functions only compute.
        assert_eq!(HEADER, size_of::<libc::cmsghdr>());
        let mut control = Control::EMPTY;
        assert_eq!(control.set_send(true, 0, None), 0);
        assert_eq!(control.set_send(true, 2, None), HEADER + 8);
        assert_eq!(control.set_send(false, 2, Some(1064)), 2 * (HEADER + 8));
    }

    #[test]
    fn received_messages_are_read_and_nonsense_is_ignored() {
        let mut control = Control::EMPTY;
        let at = control.push(0, libc::IPPROTO_IP, libc::IP_TOS, &[0xFF]);
        let at = control.push(at, libc::SOL_SOCKET, 1, &[1; 8]);
        let end = control.push(at, libc::SOL_UDP, libc::UDP_GRO, &1064_i32.to_ne_bytes());
        assert_eq!(control.received(end), Notes { ecn: 3, segment: 1064 });
        assert_eq!(control.received(at), Notes { ecn: 3, segment: 0 });
        for length in [0, 1, usize::MAX, usize::MAX - 7, 95] {
            control.0[..size_of::<usize>()].copy_from_slice(&usize::to_ne_bytes(length));
            control.received(end);
        }
    }
}
