//! The 24-bit numbers of the transport.

use std::fmt;

const MASK: u32 = 0x00FF_FFFF;

/// A packet sequence number: 24 bits, wrapping.
///
/// There is deliberately no ordering: which of two numbers comes first is a question of
/// [`distance`](Psn::distance) (IBA 9.7.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Psn(u32);

impl Psn {
    /// The number made of the low 24 bits of `value`.
    pub const fn new(value: u32) -> Psn {
        Psn(value & MASK)
    }

    /// The number, below 2^24.
    pub const fn value(self) -> u32 {
        self.0
    }

    /// The number `packets` later, wrapping.
    #[allow(clippy::should_implement_trait)] // `+ u32` would suggest ordinary arithmetic
    pub const fn add(self, packets: u32) -> Psn {
        Psn::new(self.0.wrapping_add(packets))
    }

    /// The number `packets` earlier, wrapping.
    #[allow(clippy::should_implement_trait)]
    pub const fn sub(self, packets: u32) -> Psn {
        Psn::new(self.0.wrapping_sub(packets))
    }

    /// How many packets `self` is after `from`: negative when it is before, in -2^23 .. 2^23.
    pub const fn distance(self, from: Psn) -> i32 {
        ((self.0.wrapping_sub(from.0) << 8) as i32) >> 8
    }
}

impl fmt::Display for Psn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A queue-pair number, or a shared receive queue's number: 24 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Qpn(u32);

impl Qpn {
    /// The general services interface, to which connection-manager MADs go.
    pub const GSI: Qpn = Qpn(1);
    /// The destination of every multicast packet.
    pub const MULTICAST: Qpn = Qpn(MASK);

    /// The number made of the low 24 bits of `value`.
    pub const fn new(value: u32) -> Qpn {
        Qpn(value & MASK)
    }

    /// The number, below 2^24.
    pub const fn value(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Qpn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#08x}", self.0)
    }
}

/// The three bytes of a 24-bit number, most significant first.
pub(crate) const fn be24(value: u32) -> [u8; 3] {
    let [_, a, b, c] = value.to_be_bytes();
    [a, b, c]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_is_signed_over_the_wrap() {
        assert_eq!(Psn::new(1).distance(Psn::new(MASK)), 2);
        assert_eq!(Psn::new(MASK).distance(Psn::new(1)), -2);
        assert_eq!(Psn::new(5).distance(Psn::new(5)), 0);
        assert_eq!(Psn::new(0x7F_FFFF).distance(Psn::new(0)), 0x7F_FFFF);
        assert_eq!(Psn::new(0x80_0000).distance(Psn::new(0)), -0x80_0000);
    }

    #[test]
    fn arithmetic_wraps_at_24_bits() {
        assert_eq!(Psn::new(MASK).add(1), Psn::new(0));
        assert_eq!(Psn::new(0).sub(1), Psn::new(MASK));
        assert_eq!(Psn::new(0xFF00_0001).value(), 1);
        assert_eq!(Psn::new(3).add(u32::MAX), Psn::new(2));
        assert_eq!(Qpn::new(u32::MAX), Qpn::MULTICAST);
    }
}
