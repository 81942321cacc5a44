//! The RDMA extended transport header (IBA 9.3.3).

use std::fmt;

use crate::chunk;

/// Names the remote memory of a WRITE, READ, FLUSH or ATOMIC WRITE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reth {
    /// Remote virtual address.
    pub va: u64,
    /// Remote key.
    pub rkey: u32,
    /// Length in bytes of the whole operation, over all its packets.
    pub len: u32,
}

impl Reth {
    /// Length in bytes of the header.
    pub const LEN: usize = 16;

    /// Reads a header.
    pub fn parse(bytes: &[u8; Reth::LEN]) -> Reth {
        Reth {
            va: u64::from_be_bytes(chunk(bytes, 0)),
            rkey: u32::from_be_bytes(chunk(bytes, 8)),
            len: u32::from_be_bytes(chunk(bytes, 12)),
        }
    }

    /// The header on the wire.
    pub fn emit(&self) -> [u8; Reth::LEN] {
        let mut bytes = [0; Reth::LEN];
        bytes[..8].copy_from_slice(&self.va.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.rkey.to_be_bytes());
        bytes[12..].copy_from_slice(&self.len.to_be_bytes());
        bytes
    }
}

impl fmt::Display for Reth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "va {:#x} rkey {:#010x} dma {}", self.va, self.rkey, self.len)
    }
}
