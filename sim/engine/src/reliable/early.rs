//! Packets that came early: kept until those before them have come.
//!
//! They are executed in the order of their PSNs, as if they had just arrived, so that every rule about
//! order holds: a WRITE is never seen before the WRITE that was sent before it. Only the Middle packets
//! of the WRITE in progress are placed at once, since their place is known and the order of bytes within
//! a message is nobody's to rely on (o9-20); its Last packet waits, since programs poll the last byte.

use std::collections::VecDeque;

use anyverbs_wire::{Ext, Gap, Missing, Operation, Repr};

use crate::qp::Mtu;

/// A packet that was kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kept {
    pub(super) operation: Operation,
    pub(super) packet: Repr,
    pub(super) payload: u32,
    /// Where its payload is kept; `None` if there is none, or it has been placed.
    pub(super) buffer: Option<u32>,
    pub(super) placed: bool,
}

impl Kept {
    /// The PSNs that it takes.
    fn psns(&self, mtu: Mtu) -> usize {
        match self.packet.ext {
            Ext::Reth(reth) if self.operation == Operation::ReadRequest => mtu.packets(reth.len) as usize,
            _ => 1,
        }
    }
}

/// A number of packets as it is told: more than fit are told as fewer, which is no lie that does harm.
fn half(packets: usize) -> u16 {
    u16::try_from(packets).unwrap_or(u16::MAX)
}

/// Early packets, by how far they are ahead of the expected one.
#[derive(Debug)]
pub(super) struct EarlyPackets {
    /// Place 0 is the expected packet. Empty, and without memory, until a packet comes early.
    ring: VecDeque<Option<Kept>>,
    kept: usize,
    limit: usize,
    /// How far ahead, counted from the start, the last early packet was.
    last: u64,
}

impl EarlyPackets {
    pub(super) fn new(limit: u32) -> Self {
        EarlyPackets { ring: VecDeque::new(), kept: 0, limit: limit as usize, last: 0 }
    }

    /// Whether the packet `ahead` of the expected one can be kept, and is not there yet.
    pub(super) fn has_room(&self, ahead: u32) -> bool {
        (ahead as usize) < self.limit && !matches!(self.ring.get(ahead as usize), Some(Some(_)))
    }

    /// Keeps a packet for which there is room.
    pub(super) fn keep(&mut self, ahead: u32, packet: Kept) {
        let ahead = ahead as usize;
        if self.ring.capacity() == 0 {
            self.ring.reserve_exact(self.limit);
        }
        if self.ring.len() <= ahead {
            self.ring.resize(ahead + 1, None);
        }
        self.ring[ahead] = Some(packet);
        self.kept += 1;
    }

    /// Whether the expected packet is here.
    #[inline]
    pub(super) fn has_turn(&self) -> bool {
        self.kept > 0 && matches!(self.ring.front(), Some(Some(_)))
    }

    /// Whether the packet `ahead` of the expected one is behind a gap that was not there before.
    pub(super) fn opens_gap(&self, ahead: u32) -> bool {
        ahead as usize > self.ring.len().max(1)
    }

    /// What is missing, if something waits behind a gap.
    pub(super) fn missing(&self, mtu: Mtu) -> Option<Missing> {
        if !self.has_gap() {
            return None;
        }
        let mut missing = Missing::default();
        let mut count = 0;
        let mut seen = 0;
        for (ahead, kept) in self.ring.iter().enumerate() {
            let Some(kept) = kept else { continue };
            if ahead > seen {
                // The last few count: of those before them the first is named, and they were told before.
                if count == Missing::GAPS {
                    missing.gaps.rotate_left(1);
                    count -= 1;
                }
                missing.gaps[count] = Gap { start: half(seen), len: half(ahead - seen) };
                count += 1;
            }
            seen = seen.max(ahead + kept.psns(mtu));
        }
        missing.seen = half(seen);
        Some(missing)
    }

    /// Whether packets wait behind a gap.
    pub(super) fn has_gap(&self) -> bool {
        self.kept > 0 && !self.has_turn()
    }

    /// Takes the expected packet, if it is here.
    pub(super) fn take(&mut self) -> Option<Kept> {
        let kept = self.ring.front_mut()?.take()?;
        self.kept -= 1;
        Some(kept)
    }

    /// The expected packet is now the one `psns` further on; what lies between is given to `drop`.
    #[inline]
    pub(super) fn advance(&mut self, psns: u32, drop: impl FnMut(Kept)) {
        if self.ring.is_empty() {
            return;
        }
        self.discard(psns as usize, drop);
    }

    /// Drops everything.
    pub(super) fn clear(&mut self, drop: impl FnMut(Kept)) {
        self.discard(usize::MAX, drop);
    }

    fn discard(&mut self, places: usize, mut drop: impl FnMut(Kept)) {
        let places = places.min(self.ring.len());
        let kept = &mut self.kept;
        for packet in self.ring.drain(..places).flatten() {
            *kept -= 1;
            drop(packet);
        }
    }

    /// Notes where an early packet is, and says whether the sender went back to it: a sender that goes
    /// on sends packets of ever higher PSNs.
    pub(super) fn goes_back(&mut self, position: u64) -> bool {
        let back = position <= self.last;
        self.last = position;
        back
    }
}
