//! What this process keeps of a registration or a window beside its public entry.

use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::Block;
use crate::region::foreign::ForeignMemory;
use crate::region::table::RegisterError;
use crate::region::window::WindowState;

/// Memory to register.
#[derive(Clone, Debug)]
pub enum Memory {
    /// A range of a block.
    Block(Arc<Block>, Range<usize>),
    /// Memory of the program.
    Foreign(Arc<ForeignMemory>),
}

/// Whose memory a region was.
#[derive(Clone, Debug)]
pub enum Owner {
    /// A block that the table held a share of.
    Block(Arc<Block>),
    /// Memory of the program, of which the table held a share.
    Shared(Arc<ForeignMemory>),
    /// Memory of the program, registered by [`RegionTable::register_raw`](crate::RegionTable::register_raw).
    Foreign,
    /// There was none: the null region.
    Nobody,
}

/// Where the bytes of a registration are, in this process. Private, so that nothing a peer may have
/// written to shared memory decides what address is accessed.
pub(super) struct Home {
    /// What spans of it carry; another one after each change.
    pub(super) generation: u64,
    /// No address: reads give zeroes, and writes are forgotten.
    pub(super) base: Option<NonNull<u8>>,
    pub(super) len: usize,
    pub(super) writable: bool,
    /// The key that it has at present.
    pub(super) key: u32,
    pub(super) body: Body,
}

/// What it is.
pub(super) enum Body {
    Region {
        owner: Owner,
        /// The memory may be written, whatever the present rights are.
        memory_writable: bool,
        /// Windows that are bound to it.
        windows: u32,
    },
    Window(WindowState),
}

// SAFETY: the pointer is to memory that the `Owner` of the region keeps, or that the caller of `register_raw`
// promised to keep, for use from any thread; the table makes only racy copies and atomic accesses there.
unsafe impl Send for Home {}
// SAFETY: as for `Send`.
unsafe impl Sync for Home {}

/// Memory, checked, as a registration needs it.
pub(super) struct Place {
    pub(super) base: Option<NonNull<u8>>,
    pub(super) len: usize,
    pub(super) writable: bool,
    /// [`Block::id`] and the offset in it; zeroes for memory that is no block.
    pub(super) block: u64,
    pub(super) block_offset: u64,
    pub(super) owner: Owner,
}

impl Place {
    pub(super) fn new(memory: Memory) -> Result<Place, RegisterError> {
        match memory {
            Memory::Block(memory, range) => {
                if range.start > range.end || range.end > memory.len() {
                    return Err(RegisterError::OutOfBounds);
                }
                // SAFETY: `range.start` is at most the length of the block, so this stays inside it or one
                // past it.
                let base = unsafe { memory.as_ptr().add(range.start) };
                let (block, block_offset) = (memory.id(), range.start as u64);
                let (base, owner) = (NonNull::new(base), Owner::Block(memory));
                Ok(Place { base, len: range.len(), writable: true, block, block_offset, owner })
            }
            Memory::Foreign(memory) => Ok(Place {
                base: Some(memory.base()),
                len: memory.len(),
                writable: memory.is_writable(),
                block: 0,
                block_offset: 0,
                owner: Owner::Shared(memory),
            }),
        }
    }

    pub(super) fn null() -> Place {
        let owner = Owner::Nobody;
        Place { base: None, len: usize::MAX, writable: true, block: 0, block_offset: 0, owner }
    }
}
