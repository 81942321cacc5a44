//! The table of registrations, and access to the memory behind them.

use std::io;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::region::entry::{Access, AccessError, Entry, Slot};
use crate::{Block, copy};

/// Why memory was not registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    /// The key, or its place in the table, is taken: draw another one.
    #[error("the key is taken")]
    KeyTaken,
    /// The key 0 is never valid.
    #[error("0 is not a key")]
    InvalidKey,
    /// As many regions are registered as the table was made for.
    #[error("as many regions are registered as this device allows")]
    Full,
    /// The range is not within the block, or its addresses would pass 2^64.
    #[error("the range is outside the memory, or its addresses pass the end of the address space")]
    OutOfBounds,
}

/// Why a [`Span`] could not be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum SpanError {
    /// The region of the span is not registered any more.
    #[error("the region is gone")]
    Stale,
    /// The buffer is not as long as the span, or an atomic's span is not 8 bytes long.
    #[error("the span has another length")]
    Length,
    /// An atomic needs memory at a multiple of 8.
    #[error("the memory is not aligned to 8 bytes")]
    Misaligned,
    /// Nobody has a right to write to the region, not even its owner.
    #[error("the region is read-only")]
    ReadOnly,
}

/// A range of registered memory that has passed [`RegionTable::check`].
///
/// Plain data: it holds nothing alive. Each use checks again that the very registration it was made
/// from is still there, so a span that outlives its region is an error, never a stray access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Span {
    generation: u64,
    offset: u64,
    home: u32,
    len: u32,
}

impl Span {
    /// No bytes of no region: always usable, never stale.
    ///
    /// A zero-length RDMA request is served without a look at its key (IBA C9-88), so there is
    /// nothing to check and nothing to hold: use this in its place.
    pub const EMPTY: Span = Span { generation: 0, offset: 0, home: 0, len: 0 };

    /// The number of bytes.
    #[expect(clippy::len_without_is_empty, reason = "a length in the sense of a work request")]
    pub fn len(self) -> u32 {
        self.len
    }

    /// Where the span starts, in bytes from the start of its region.
    pub fn offset(self) -> u64 {
        self.offset
    }

    /// The `len` bytes that start `offset` bytes into this span, if they are all inside it.
    pub fn sub(self, offset: u32, len: u32) -> Option<Span> {
        let room = self.len.checked_sub(offset)?;
        (len <= room).then(|| Span { offset: self.offset + u64::from(offset), len, ..self })
    }
}

/// Whose memory a region was.
#[derive(Clone, Debug)]
pub enum Owner {
    /// A block that the table held a share of.
    Block(Arc<Block>),
    /// Memory of the program, registered by [`RegionTable::register_raw`].
    Foreign,
}

/// Where the bytes of a registration are, in this process. Private, so that nothing a peer may have
/// written to shared memory decides what address is accessed.
struct Home {
    generation: u64,
    base: NonNull<u8>,
    len: usize,
    writable: bool,
    owner: Owner,
}

// SAFETY: the pointer is to memory that the `Owner` keeps, or that the caller of `register_raw` promised
// to keep, for use from any thread; the table makes only racy copies and atomic accesses there.
unsafe impl Send for Home {}
// SAFETY: as for `Send`.
unsafe impl Sync for Home {}

/// The registered memory of a NIC: keys, rights, bounds, and the accesses that they allow.
///
/// The table has a fixed size and is mapped directly by the low bits of the key, with one place for
/// each: no probing, no tombstones. Keys are drawn at random, so a caller whose key is refused
/// ([`RegisterError::KeyTaken`]) draws again; the table is at least twice as large as the limit, so half
/// of the draws succeed even when it is full.
pub struct RegionTable {
    slots: Block,
    mask: u32,
    limit: u32,
    generation: u64,
    homes: Vec<Option<Home>>,
    free_homes: Vec<u32>,
}

impl RegionTable {
    /// The largest limit: 2^20. Beyond it, random 32-bit keys would leave little to guess.
    pub const MAX_LIMIT: u32 = 1 << 20;

    /// Makes a table for up to `limit` regions.
    ///
    /// # Errors
    /// `InvalidInput` if `limit` is zero or above [`MAX_LIMIT`](RegionTable::MAX_LIMIT); otherwise what
    /// the system says to an allocation.
    pub fn new(limit: u32) -> io::Result<Self> {
        if limit == 0 || limit > Self::MAX_LIMIT {
            let reason = "a table of no or too many regions";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        let size = (2 * limit).next_power_of_two();
        let mut table = RegionTable {
            slots: Block::new_read_only_to_others(size as usize * size_of::<Slot>())?,
            mask: size - 1,
            limit,
            generation: 0,
            homes: Vec::new(),
            free_homes: Vec::new(),
        };
        // All of it now, so that no registration allocates.
        table.homes.try_reserve_exact(limit as usize).map_err(out_of_memory)?;
        table.free_homes.try_reserve_exact(limit as usize).map_err(out_of_memory)?;
        Ok(table)
    }

    /// The most regions that can be registered at a time.
    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// The number of regions registered.
    pub fn len(&self) -> u32 {
        (self.homes.len() - self.free_homes.len()) as u32
    }

    /// Whether no region is registered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Registers `range` of a block, of which the table keeps a share until it is deregistered.
    ///
    /// `iova` is the address that the first byte has in work requests and packets.
    ///
    /// # Errors
    /// See [`RegisterError`]; nothing is registered then.
    pub fn register(
        &mut self,
        key: u32,
        pd: u32,
        access: Access,
        iova: u64,
        memory: Arc<Block>,
        range: Range<usize>,
    ) -> Result<(), RegisterError> {
        if range.start > range.end || range.end > memory.len() {
            return Err(RegisterError::OutOfBounds);
        }
        // SAFETY: `range.start` is at most the length of the block, so this stays inside it or one past it.
        let base = unsafe { memory.as_ptr().add(range.start) };
        let base = NonNull::new(base).ok_or(RegisterError::OutOfBounds)?;
        let place = (memory.id(), range.start as u64);
        self.insert(key, pd, access, iova, base, range.len(), place, Owner::Block(memory))
    }

    /// Registers memory that somebody else owns: the buffers of a C program.
    ///
    /// # Errors
    /// See [`RegisterError`]; nothing is registered then.
    ///
    /// # Safety
    /// Until it is deregistered, or the table is dropped, `len` bytes at `ptr` must be valid for reads from
    /// any thread, and for writes if `access` has any right to write (`LOCAL_WRITE`, `REMOTE_WRITE`,
    /// `REMOTE_ATOMIC`). Nobody may hold a reference (`&` or `&mut`) to bytes that the NIC
    /// writes meanwhile.
    pub unsafe fn register_raw(
        &mut self,
        key: u32,
        pd: u32,
        access: Access,
        iova: u64,
        ptr: *mut u8,
        len: usize,
    ) -> Result<(), RegisterError> {
        let base = NonNull::new(ptr).ok_or(RegisterError::OutOfBounds)?;
        if len > isize::MAX as usize || ptr.addr().checked_add(len).is_none() {
            return Err(RegisterError::OutOfBounds);
        }
        self.insert(key, pd, access, iova, base, len, (0, 0), Owner::Foreign)
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one record")]
    fn insert(
        &mut self,
        key: u32,
        pd: u32,
        access: Access,
        iova: u64,
        base: NonNull<u8>,
        len: usize,
        (block, block_offset): (u64, u64),
        owner: Owner,
    ) -> Result<(), RegisterError> {
        if key == 0 {
            return Err(RegisterError::InvalidKey);
        }
        // The last byte has an address; the end of the region may be 2^64 itself.
        if iova.checked_add((len as u64).saturating_sub(1)).is_none() {
            return Err(RegisterError::OutOfBounds);
        }
        if self.len() == self.limit {
            return Err(RegisterError::Full);
        }
        if !self.slot(key).is_free() {
            return Err(RegisterError::KeyTaken);
        }
        let generation = self.generation + 1;
        self.generation = generation;
        let writing = Access::LOCAL_WRITE | Access::REMOTE_WRITE | Access::REMOTE_ATOMIC;
        let home = Home { generation, base, len, writable: access.intersects(writing), owner };
        let index = match self.free_homes.pop() {
            Some(index) => {
                self.homes[index as usize] = Some(home);
                index
            }
            None => {
                self.homes.push(Some(home));
                self.homes.len() as u32 - 1
            }
        };
        let entry =
            Entry { generation, key, pd, access, home: index, iova, len: len as u64, block, block_offset };
        self.slot(key).store(&entry);
        Ok(())
    }

    /// Removes a region. Its key is unknown and its spans are stale from here on.
    ///
    /// Returns whose memory it was, so that the caller decides where the last share of a block goes
    /// (unmapping memory takes time); `None` if no region has this key.
    pub fn deregister(&mut self, key: u32) -> Option<Owner> {
        let entry = self.slot(key).load().filter(|entry| entry.key == key)?;
        let place = self.homes.get_mut(entry.home as usize)?;
        let home = place.take_if(|home| home.generation == entry.generation)?;
        self.slot(key).clear();
        self.free_homes.push(entry.home);
        Some(home.owner)
    }

    /// Checks that the owner of domain `pd` may access `len` bytes at address `va` of region `key`, and that
    /// the region has all rights in `need` (none are needed for reading by the NIC's own user).
    ///
    /// An access of no bytes is checked like any other; one just behind the last byte is inside. For
    /// requests whose key does not count when they have no bytes, see [`Span::EMPTY`].
    ///
    /// # Errors
    /// The first of: unknown key, wrong domain, missing right, out of bounds.
    #[inline]
    pub fn check(&self, key: u32, pd: u32, va: u64, len: u32, need: Access) -> Result<Span, AccessError> {
        let entry = self.slot(key).load().ok_or(AccessError::UnknownKey)?;
        let offset = entry.check(key, pd, va, len, need)?;
        Ok(Span { generation: entry.generation, offset, home: entry.home, len })
    }

    /// Copies the bytes of the span to `dst`, which must be as long.
    ///
    /// # Errors
    /// [`SpanError::Stale`] or [`SpanError::Length`]; nothing was copied then.
    #[inline]
    pub fn copy_out(&self, span: Span, dst: &mut [u8]) -> Result<(), SpanError> {
        let src = self.resolve(span, dst.len())?.0;
        // SAFETY: `resolve` has found these bytes inside a live registration, whose memory is valid while it
        // lasts, and `&self` keeps it from being deregistered meanwhile. `dst` is a live `&mut`, so by
        // the contract of `Block::slice_mut` and `register_raw` it is no registered memory.
        unsafe { copy::copy_out(dst, src) };
        Ok(())
    }

    /// Copies the bytes of the span to `dst`, which must be as long, and continues the CRC-32 `crc` over
    /// what arrived there. See [`copy::copy_out_crc`].
    ///
    /// # Errors
    /// [`SpanError::Stale`] or [`SpanError::Length`]; nothing was copied then.
    #[inline]
    pub fn copy_out_crc(&self, span: Span, dst: &mut [u8], crc: u32) -> Result<u32, SpanError> {
        let src = self.resolve(span, dst.len())?.0;
        // SAFETY: as in `copy_out`.
        Ok(unsafe { copy::copy_out_crc(dst, src, crc) })
    }

    /// Copies `src` to the bytes of the span, which must be as many; the last becomes visible last.
    ///
    /// # Errors
    /// [`SpanError::Stale`], [`SpanError::Length`] or [`SpanError::ReadOnly`]; nothing was copied then.
    #[inline]
    pub fn copy_in(&self, span: Span, src: &[u8]) -> Result<(), SpanError> {
        let dst = self.resolve_to_write(span, src.len())?;
        // SAFETY: as in `copy_out`, with `resolve_to_write` for the right to write.
        unsafe { copy::copy_in(dst, src) };
        Ok(())
    }

    /// Adds to the 64-bit word that the span is, wrapping, in this machine's byte order; returns
    /// what it was before. Atomic with respect to all other atomics on this host.
    ///
    /// # Errors
    /// See [`SpanError`]; nothing was changed then.
    pub fn fetch_add(&self, span: Span, add: u64) -> Result<u64, SpanError> {
        Ok(self.word(span)?.fetch_add(add, Ordering::SeqCst))
    }

    /// Stores `swap` in the 64-bit word that the span is, if it equals `compare`; returns what it was
    /// before. Atomic with respect to all other atomics on this host.
    ///
    /// # Errors
    /// See [`SpanError`]; nothing was changed then.
    pub fn compare_swap(&self, span: Span, compare: u64, swap: u64) -> Result<u64, SpanError> {
        let word = self.word(span)?;
        let (Ok(before) | Err(before)) =
            word.compare_exchange(compare, swap, Ordering::SeqCst, Ordering::SeqCst);
        Ok(before)
    }

    /// Stores `value` in the 64-bit word that the span is, in this machine's byte order. Whoever reads it
    /// sees all eight bytes of it or none.
    ///
    /// # Errors
    /// See [`SpanError`]; nothing was changed then.
    pub fn store(&self, span: Span, value: u64) -> Result<(), SpanError> {
        self.word(span)?.store(value, Ordering::SeqCst);
        Ok(())
    }

    fn word(&self, span: Span) -> Result<&AtomicU64, SpanError> {
        let ptr = self.resolve_to_write(span, 8)?;
        if !ptr.addr().is_multiple_of(8) {
            return Err(SpanError::Misaligned);
        }
        // SAFETY: eight aligned bytes inside a live and writable registration, which `&self` keeps from
        // being deregistered; all who may race with it use atomic or assembly accesses.
        Ok(unsafe { AtomicU64::from_ptr(ptr.cast()) })
    }

    /// The address of a span of `len` bytes that is still inside its live registration.
    #[inline]
    fn resolve(&self, span: Span, len: usize) -> Result<(*mut u8, bool), SpanError> {
        if span.len as usize != len {
            return Err(SpanError::Length);
        }
        if span.generation == 0 {
            // `Span::EMPTY`: a dangling pointer is good for no bytes.
            return Ok((NonNull::dangling().as_ptr(), true));
        }
        let home = self.homes.get(span.home as usize).and_then(Option::as_ref).ok_or(SpanError::Stale)?;
        // Bounds again: a span is made from the shared entry, an address only from what is private.
        let room = (home.len as u64).checked_sub(span.offset).ok_or(SpanError::Stale)?;
        if home.generation != span.generation || u64::from(span.len) > room {
            return Err(SpanError::Stale);
        }
        // SAFETY: `offset + len` is at most the length of the registration, so this stays inside its memory
        // or one past it.
        Ok((unsafe { home.base.as_ptr().add(span.offset as usize) }, home.writable))
    }

    #[inline]
    fn resolve_to_write(&self, span: Span, len: usize) -> Result<*mut u8, SpanError> {
        match self.resolve(span, len)? {
            (ptr, true) => Ok(ptr),
            (_, false) => Err(SpanError::ReadOnly),
        }
    }

    fn slot(&self, key: u32) -> &Slot {
        let index = (key & self.mask) as usize;
        // SAFETY: the block holds `mask + 1` slots, page-aligned, of zero bytes at first, which is a valid
        // `Slot`; it is only ever accessed through the atomics of `Slot`, and lives as long as `self`.
        unsafe { &*self.slots.as_ptr().cast::<Slot>().add(index) }
    }
}

fn out_of_memory(_: std::collections::TryReserveError) -> io::Error {
    io::ErrorKind::OutOfMemory.into()
}

#[cfg(test)]
mod tests;
