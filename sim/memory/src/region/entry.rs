//! One registration as plain data, and the check of an access against it.

use std::sync::atomic::{AtomicU64, Ordering, fence};

bitflags::bitflags! {
    /// What a registration allows, with the values of `ibv_access_flags`. Reading by the owner is
    /// always allowed.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct Access: u32 {
        /// The owner's NIC may write: receives, RDMA READ responses, results of atomics.
        const LOCAL_WRITE = 1;
        /// Peers may write.
        const REMOTE_WRITE = 2;
        /// Peers may read.
        const REMOTE_READ = 4;
        /// Peers may use atomics.
        const REMOTE_ATOMIC = 8;
        /// Peers may wait until what they wrote is visible to all (FLUSH).
        const FLUSH_GLOBAL = 1 << 8;
    }
}

/// Why an access to registered memory is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum AccessError {
    /// No region has this key (any more).
    #[error("no region has this key")]
    UnknownKey,
    /// The region is of another protection domain.
    #[error("the region is of another protection domain")]
    WrongDomain,
    /// The region does not allow this kind of access.
    #[error("the region does not allow this access")]
    NotPermitted,
    /// The access is not wholly inside the region.
    #[error("the access is outside the region")]
    OutOfBounds,
}

/// A registration: offsets and numbers, meaningful to every process that maps the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Unique among all registrations of the table; 0 is no registration.
    pub(super) generation: u64,
    pub(super) key: u32,
    pub(super) pd: u32,
    pub(super) access: Access,
    /// Where the table's own process keeps what it knows of the memory.
    pub(super) home: u32,
    /// The address that the first byte has in work requests and packets.
    pub(super) iova: u64,
    pub(super) len: u64,
    /// [`Block::id`](crate::Block::id) of the memory; 0 for memory that is not a block.
    pub(super) block: u64,
    /// Where in the block the first byte is.
    pub(super) block_offset: u64,
}

impl Entry {
    /// Checks an access, and gives its offset from the start of the region.
    ///
    /// Both the packet path and the shared-memory path ask here and nowhere else.
    pub(super) fn check(
        &self,
        key: u32,
        pd: u32,
        va: u64,
        len: u32,
        need: Access,
    ) -> Result<u64, AccessError> {
        if self.generation == 0 || self.key != key {
            return Err(AccessError::UnknownKey);
        }
        if self.pd != pd {
            return Err(AccessError::WrongDomain);
        }
        if !self.access.contains(need) {
            return Err(AccessError::NotPermitted);
        }
        // Never `va + len`: both come from a peer, and the sum may wrap.
        let offset = va.checked_sub(self.iova).ok_or(AccessError::OutOfBounds)?;
        let room = self.len.checked_sub(offset).ok_or(AccessError::OutOfBounds)?;
        if u64::from(len) > room {
            return Err(AccessError::OutOfBounds);
        }
        Ok(offset)
    }
}

/// An [`Entry`] in shared memory: one cache line, of which the generation guards the rest.
///
/// One process writes, any number read. The writer sets the generation to 0, then the rest, then the
/// new generation; generations never come back, so a reader that finds the same one before and
/// after has read one entry and no mixture.
#[derive(Default)]
#[repr(C, align(64))]
pub(super) struct Slot {
    generation: AtomicU64,
    rest: [AtomicU64; 7],
}

impl Slot {
    pub(super) fn load(&self) -> Option<Entry> {
        let generation = self.generation.load(Ordering::Acquire);
        if generation == 0 {
            return None;
        }
        let word = |n: usize| self.rest[n].load(Ordering::Relaxed);
        let (key, pd) = halves(word(0));
        let (access, home) = halves(word(1));
        let entry = Entry {
            generation,
            key,
            pd,
            access: Access::from_bits_truncate(access),
            home,
            iova: word(2),
            len: word(3),
            block: word(4),
            block_offset: word(5),
        };
        // The loads above come before the one below.
        fence(Ordering::Acquire);
        (self.generation.load(Ordering::Relaxed) == generation).then_some(entry)
    }

    pub(super) fn is_free(&self) -> bool {
        self.generation.load(Ordering::Relaxed) == 0
    }

    /// Only the table's own process stores, one thread at a time.
    pub(super) fn store(&self, entry: &Entry) {
        self.clear();
        let words = [
            whole(entry.key, entry.pd),
            whole(entry.access.bits(), entry.home),
            entry.iova,
            entry.len,
            entry.block,
            entry.block_offset,
        ];
        for (place, word) in self.rest.iter().zip(words) {
            place.store(word, Ordering::Relaxed);
        }
        self.generation.store(entry.generation, Ordering::Release);
    }

    pub(super) fn clear(&self) {
        self.generation.store(0, Ordering::Relaxed);
        // Whoever reads what is stored after this finds the generation gone.
        fence(Ordering::Release);
    }
}

fn whole(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

fn halves(word: u64) -> (u32, u32) {
    (word as u32, (word >> 32) as u32)
}
