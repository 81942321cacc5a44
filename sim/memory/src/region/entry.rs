//! One registration, or one bound window, as plain data, and the check of an access against it.

use std::sync::atomic::{AtomicU64, Ordering, fence};

bitflags::bitflags! {
    /// What a registration or a window allows, with the values of `ibv_access_flags`. Reading by the owner
    /// is always allowed.
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
        /// Memory windows may be bound to the region (C10-73).
        const MW_BIND = 1 << 4;
        /// Addresses are offsets from the first byte: it has the address 0.
        const ZERO_BASED = 1 << 5;
        /// Pages need not be pinned. No effect: here they never are, the system brings them when they are
        /// touched.
        const ON_DEMAND = 1 << 6;
        /// The memory is of huge pages. No effect: that is the system's affair.
        const HUGETLB = 1 << 7;
        /// Peers may wait until what they wrote is visible to all (FLUSH).
        const FLUSH_GLOBAL = 1 << 8;
        /// Peers may wait until what they wrote survives the loss of power (FLUSH). No effect: no memory
        /// here does, and every such FLUSH is refused.
        const FLUSH_PERSISTENT = 1 << 9;
        /// Writes may become visible in another order. No effect: they never do.
        const RELAXED_ORDERING = 1 << 20;
    }
}

impl Access {
    /// The rights to change memory.
    pub(super) const WRITING: Access =
        Access::LOCAL_WRITE.union(Access::REMOTE_WRITE).union(Access::REMOTE_ATOMIC);

    /// What a window can be bound with: the rights of peers, and the base of its addresses.
    pub(super) const OF_WINDOWS: Access = Access::REMOTE_WRITE
        .union(Access::REMOTE_READ)
        .union(Access::REMOTE_ATOMIC)
        .union(Access::ZERO_BASED)
        .union(Access::FLUSH_GLOBAL)
        .union(Access::FLUSH_PERSISTENT);
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
    /// The window is bound to another queue pair.
    #[error("the window is bound to another queue pair")]
    WrongQueuePair,
    /// The region does not allow this kind of access.
    #[error("the region does not allow this access")]
    NotPermitted,
    /// The access is not wholly inside the region.
    #[error("the access is outside the region")]
    OutOfBounds,
}

/// What a key stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Kind {
    /// A memory region.
    Region = 0,
    /// A region of device memory.
    DeviceMemory = 1,
    /// The region without memory.
    Null = 2,
    /// A window that is not bound: it only keeps its place.
    Unbound = 3,
    /// A window of type 1 that is bound.
    Window1 = 4,
    /// A window of type 2 that is bound to a queue pair.
    Window2 = 5,
}

impl Kind {
    /// Anything that nobody stored grants nothing.
    fn from_word(word: u32) -> Kind {
        use Kind::*;
        [Region, DeviceMemory, Null, Unbound, Window1, Window2].get(word as usize).copied().unwrap_or(Unbound)
    }
}

/// Who wants to use a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum User {
    /// The NIC, for a work request that names it.
    Local,
    /// A peer, through the queue pair with this number.
    Remote(u32),
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
    pub(super) kind: Kind,
    /// The queue pair that a window of type 2 is bound to.
    pub(super) qpn: u32,
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
        user: User,
    ) -> Result<u64, AccessError> {
        if self.generation == 0 || self.key != key {
            return Err(AccessError::UnknownKey);
        }
        // The key of a window is for peers only (IBA 10.6.7.2).
        let known = match self.kind {
            Kind::Region | Kind::DeviceMemory | Kind::Null => true,
            Kind::Unbound => false,
            Kind::Window1 | Kind::Window2 => user != User::Local,
        };
        if !known {
            return Err(AccessError::UnknownKey);
        }
        if self.pd != pd {
            return Err(AccessError::WrongDomain);
        }
        if self.kind == Kind::Window2 && user != User::Remote(self.qpn) {
            return Err(AccessError::WrongQueuePair);
        }
        if !self.access.contains(need) {
            return Err(AccessError::NotPermitted);
        }
        if self.kind == Kind::Null {
            // Every address is as good.
            return Ok(0);
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

// One line, so that a look-up by another process is one miss.
const _: () = assert!(size_of::<Slot>() == 64);

impl Slot {
    pub(super) fn load(&self) -> Option<Entry> {
        let generation = self.generation.load(Ordering::Acquire);
        if generation == 0 {
            return None;
        }
        let word = |n: usize| self.rest[n].load(Ordering::Relaxed);
        let (key, pd) = halves(word(0));
        let (access, home) = halves(word(1));
        let (kind, qpn) = halves(word(6));
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
            kind: Kind::from_word(kind),
            qpn,
        };
        // The loads above come before the one below.
        fence(Ordering::Acquire);
        (self.generation.load(Ordering::Relaxed) == generation).then_some(entry)
    }

    pub(super) fn is_free(&self) -> bool {
        self.generation.load(Ordering::Relaxed) == 0
    }

    /// The key that was stored here last, also if the slot is free again; 0 if none ever was.
    pub(super) fn last_key(&self) -> u32 {
        halves(self.rest[0].load(Ordering::Relaxed)).0
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
            whole(entry.kind as u32, entry.qpn),
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
