//! The datagram extended transport header (IBA 9.3.2).

use std::fmt;

use crate::Qpn;

/// Addresses a datagram: the key that admits it, and the queue pair it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deth {
    /// The receiving queue pair's key.
    pub qkey: u32,
    /// The sending queue pair.
    pub source_qpn: Qpn,
}

impl Deth {
    /// Length in bytes.
    pub const LEN: usize = 8;

    /// Reads a header.
    pub const fn parse(bytes: &[u8; Deth::LEN]) -> Deth {
        let [k0, k1, k2, k3, _, q0, q1, q2] = *bytes;
        Deth {
            qkey: u32::from_be_bytes([k0, k1, k2, k3]),
            source_qpn: Qpn::new(u32::from_be_bytes([0, q0, q1, q2])),
        }
    }

    /// The header on the wire.
    pub const fn emit(&self) -> [u8; Deth::LEN] {
        let [k0, k1, k2, k3] = self.qkey.to_be_bytes();
        let [_, q0, q1, q2] = self.source_qpn.value().to_be_bytes();
        [k0, k1, k2, k3, 0, q0, q1, q2]
    }
}

impl fmt::Display for Deth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "from {} qkey {:#010x}", self.source_qpn, self.qkey)
    }
}
