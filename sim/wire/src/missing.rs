//! What a responder misses, and what it keeps: a packet of our own (see [`Opcode::MISSING`]).
//!
//! [`Opcode::MISSING`]: crate::Opcode::MISSING

use std::fmt;

/// Packets that are missing, one behind the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Gap {
    /// How far its first packet is behind the packet of the PSN in the BTH.
    pub start: u16,
    /// How many packets it has; 0: there is no such gap.
    pub len: u16,
}

/// What is missing behind the packet of the PSN in the BTH, which is the first one that is: of the gaps, the
/// last few.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Missing {
    /// How far one past the last packet that came is behind the one of the PSN.
    pub seen: u16,
    /// The gaps before it.
    pub gaps: [Gap; Missing::GAPS],
}

impl Missing {
    /// Length in bytes.
    pub const LEN: usize = 28;

    /// How many gaps there is room for.
    pub const GAPS: usize = 6;

    /// Reads a header; reserved bytes are ignored.
    pub fn parse(bytes: &[u8; Missing::LEN]) -> Missing {
        let half = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let mut gaps = [Gap::default(); Missing::GAPS];
        for (gap, at) in gaps.iter_mut().zip((4..Missing::LEN).step_by(4)) {
            *gap = Gap { start: half(at), len: half(at + 2) };
        }
        Missing { seen: half(0), gaps }
    }

    /// The header on the wire.
    pub fn emit(&self) -> [u8; Missing::LEN] {
        let mut bytes = [0; Missing::LEN];
        bytes[..2].copy_from_slice(&self.seen.to_be_bytes());
        for (gap, at) in self.gaps.iter().zip((4..Missing::LEN).step_by(4)) {
            bytes[at..at + 2].copy_from_slice(&gap.start.to_be_bytes());
            bytes[at + 2..at + 4].copy_from_slice(&gap.len.to_be_bytes());
        }
        bytes
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seen {}", self.seen)?;
        for Gap { start, len } in self.gaps.iter().filter(|gap| gap.len > 0) {
            write!(f, " gap {start}+{len}")?;
        }
        Ok(())
    }
}
