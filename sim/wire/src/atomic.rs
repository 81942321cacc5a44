//! The atomic extended transport header (IBA 9.3.4).

use std::fmt;

use crate::chunk;

/// The operands of COMPARE_SWAP and FETCH_ADD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AtomicEth {
    /// Remote virtual address, a multiple of eight.
    pub va: u64,
    /// Remote key.
    pub rkey: u32,
    /// The value to swap in, or to add.
    pub swap_add: u64,
    /// The value to compare with; unused by FETCH_ADD.
    pub compare: u64,
}

impl AtomicEth {
    /// Length in bytes.
    pub const LEN: usize = 28;

    /// Reads a header.
    pub fn parse(bytes: &[u8; AtomicEth::LEN]) -> AtomicEth {
        AtomicEth {
            va: u64::from_be_bytes(chunk(bytes, 0)),
            rkey: u32::from_be_bytes(chunk(bytes, 8)),
            swap_add: u64::from_be_bytes(chunk(bytes, 12)),
            compare: u64::from_be_bytes(chunk(bytes, 20)),
        }
    }

    /// The header on the wire.
    pub fn emit(&self) -> [u8; AtomicEth::LEN] {
        let mut bytes = [0; AtomicEth::LEN];
        bytes[..8].copy_from_slice(&self.va.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.rkey.to_be_bytes());
        bytes[12..20].copy_from_slice(&self.swap_add.to_be_bytes());
        bytes[20..].copy_from_slice(&self.compare.to_be_bytes());
        bytes
    }
}

impl fmt::Display for AtomicEth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AtomicEth { va, rkey, swap_add, compare } = self;
        write!(f, "va {va:#x} rkey {rkey:#010x} swap_add {swap_add:#x} compare {compare:#x}")
    }
}
