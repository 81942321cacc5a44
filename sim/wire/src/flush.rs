//! The FLUSH extended transport header (IBA A19).

use std::fmt;

/// How far, and over what, a FLUSH reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feth {
    /// Placement type, four bits: [`GLOBAL`](Feth::GLOBAL), [`PERSISTENT`](Feth::PERSISTENT), and two
    /// reserved. Higher bits are not sent.
    pub placement: u8,
    /// The range that is flushed.
    pub selectivity: Selectivity,
}

impl Feth {
    /// Length in bytes.
    pub const LEN: usize = 4;

    /// Placement: visible to everyone who may look at the responder's memory.
    pub const GLOBAL: u8 = 1;
    /// Placement: survives the loss of power.
    pub const PERSISTENT: u8 = 2;

    /// Reads a header; reserved bits are ignored.
    pub const fn parse(bytes: &[u8; Feth::LEN]) -> Feth {
        let low = bytes[3];
        Feth { placement: low & 0xF, selectivity: Selectivity::from_bits(low >> 4) }
    }

    /// The header on the wire.
    pub const fn emit(&self) -> [u8; Feth::LEN] {
        [0, 0, 0, self.selectivity.to_bits() << 4 | self.placement & 0xF]
    }
}

/// What a FLUSH is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Selectivity {
    /// The range of the RETH.
    Range,
    /// The whole memory region of the RETH's R_Key.
    Region,
    /// Reserved: 2 or 3, higher bits are not sent.
    Reserved(u8),
}

impl Selectivity {
    const fn from_bits(bits: u8) -> Selectivity {
        match bits & 3 {
            0 => Selectivity::Range,
            1 => Selectivity::Region,
            bits => Selectivity::Reserved(bits),
        }
    }

    const fn to_bits(self) -> u8 {
        match self {
            Selectivity::Range => 0,
            Selectivity::Region => 1,
            Selectivity::Reserved(bits) => bits & 3,
        }
    }
}

impl fmt::Display for Feth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "placement {:#x} ", self.placement & 0xF)?;
        match self.selectivity {
            Selectivity::Range => f.write_str("range"),
            Selectivity::Region => f.write_str("region"),
            Selectivity::Reserved(bits) => write!(f, "selectivity {}", bits & 3),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_where_the_specification_puts_them() {
        let feth = Feth { placement: Feth::PERSISTENT, selectivity: Selectivity::Region };
        assert_eq!(feth.emit(), [0, 0, 0, 0x12]);
        for low in 0..0x40 {
            assert_eq!(Feth::parse(&[0, 0, 0, low]).emit(), [0, 0, 0, low]);
        }
    }
}
