//! Spans: ranges that passed a check, and the accesses through them.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::copy;
use crate::region::table::RegionTable;

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
    pub(super) generation: u64,
    pub(super) offset: u64,
    pub(super) home: u32,
    pub(super) len: u32,
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

impl RegionTable {
    /// Copies the bytes of the span to `dst`, which must be as long.
    ///
    /// # Errors
    /// [`SpanError::Stale`] or [`SpanError::Length`]; nothing was copied then.
    #[inline]
    pub fn copy_out(&self, span: Span, dst: &mut [u8]) -> Result<(), SpanError> {
        match self.resolve(span, dst.len())?.0 {
            // SAFETY: `resolve` has found these bytes inside a live registration, whose memory is valid while
            // it lasts, and `&self` keeps it from being deregistered meanwhile. `dst` is a live `&mut`, so by
            // the contracts of `Block::slice_mut`, `ForeignMemory` and `register_raw` it is no registered
            // memory.
            Some(src) => unsafe { copy::copy_out(dst, src) },
            None => dst.fill(0),
        }
        Ok(())
    }

    /// Copies the bytes of the span to `dst`, which must be as long, and continues the CRC-32 `crc` over
    /// what arrived there. See [`copy::copy_out_crc`].
    ///
    /// # Errors
    /// [`SpanError::Stale`] or [`SpanError::Length`]; nothing was copied then.
    #[inline]
    pub fn copy_out_crc(&self, span: Span, dst: &mut [u8], crc: u32) -> Result<u32, SpanError> {
        match self.resolve(span, dst.len())?.0 {
            // SAFETY: as in `copy_out`.
            Some(src) => Ok(unsafe { copy::copy_out_crc(dst, src, crc) }),
            None => {
                dst.fill(0);
                let mut hasher = crc32fast::Hasher::new_with_initial(crc);
                hasher.update(dst);
                Ok(hasher.finalize())
            }
        }
    }

    /// Copies `src` to the bytes of the span, which must be as many; the last becomes visible last.
    ///
    /// # Errors
    /// [`SpanError::Stale`], [`SpanError::Length`] or [`SpanError::ReadOnly`]; nothing was copied then.
    #[inline]
    pub fn copy_in(&self, span: Span, src: &[u8]) -> Result<(), SpanError> {
        if let Some(dst) = self.resolve_to_write(span, src.len())? {
            // SAFETY: as in `copy_out`, with `resolve_to_write` for the right to write.
            unsafe { copy::copy_in(dst, src) };
        }
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
        // Peers have no right to the region without memory, and nobody else uses atomics.
        let ptr = self.resolve_to_write(span, 8)?.ok_or(SpanError::ReadOnly)?;
        if !ptr.addr().is_multiple_of(8) {
            return Err(SpanError::Misaligned);
        }
        // SAFETY: eight aligned bytes inside a live and writable registration, which `&self` keeps from
        // being deregistered; all who may race with it use atomic or assembly accesses.
        Ok(unsafe { AtomicU64::from_ptr(ptr.cast()) })
    }

    /// The address of a span of `len` bytes that is still inside its live registration, or window, and whether
    /// it may be written; no address if there is no memory behind it.
    #[inline]
    fn resolve(&self, span: Span, len: usize) -> Result<(Option<*mut u8>, bool), SpanError> {
        if span.len as usize != len {
            return Err(SpanError::Length);
        }
        if span.generation == 0 {
            // `Span::EMPTY`.
            return Ok((None, true));
        }
        let home = self.homes.get(span.home as usize).and_then(Option::as_ref).ok_or(SpanError::Stale)?;
        if home.generation != span.generation {
            return Err(SpanError::Stale);
        }
        let Some(base) = home.base else { return Ok((None, home.writable)) };
        // Bounds again: a span is made from the shared entry, an address only from what is private.
        let room = (home.len as u64).checked_sub(span.offset).ok_or(SpanError::Stale)?;
        if u64::from(span.len) > room {
            return Err(SpanError::Stale);
        }
        // SAFETY: `offset + len` is at most the length of the registration, so this stays inside its memory
        // or one past it.
        Ok((Some(unsafe { base.as_ptr().add(span.offset as usize) }), home.writable))
    }

    #[inline]
    fn resolve_to_write(&self, span: Span, len: usize) -> Result<Option<*mut u8>, SpanError> {
        match self.resolve(span, len)? {
            (ptr, true) => Ok(ptr),
            (_, false) => Err(SpanError::ReadOnly),
        }
    }
}
