//! Memory that has one owner: the only place of this crate that makes slices of registered memory.
//!
//! A [`Block`] is memory that a NIC, peers and other processes may touch, so a `&[u8]` of it is sound only while
//! none of them does. [`Exclusive`] is the right to make that slice, as a value: it cannot be cloned, the ranges
//! of two of them never overlap, and what gives others access to the memory takes the `Exclusive` away from the
//! program for as long:
//!
//! - a **posted lease** is moved into the slot table of its queue, which never looks at its bytes, and comes out
//!   again when the provider reports the request complete, or has destroyed the queue;
//! - a **window** keeps the `Exclusive` of its memory without looking at it, and gives it back after the
//!   provider has deregistered it. The registration of a pool carries no remote rights.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use anyverbs_memory::Block;

/// The right to read and write a range of a block as ordinary memory.
pub(crate) struct Exclusive {
    block: Arc<Block>,
    start: usize,
    len: usize,
}

impl Exclusive {
    /// Fresh zero-filled memory of `len` bytes.
    ///
    /// # Errors
    /// What the system says when it has no memory.
    pub(crate) fn allocate(len: usize) -> io::Result<Exclusive> {
        let block = Arc::new(Block::new(len)?);
        // A block may be rounded up to whole pages; the owner sees what it asked for.
        let len = len.min(block.len());
        Ok(Exclusive { block, start: 0, len })
    }

    /// Cuts the memory into consecutive pieces of `stride` bytes; what is left over at the end is lost.
    pub(crate) fn divide(self, stride: usize) -> impl Iterator<Item = Exclusive> {
        let pieces = self.len.checked_div(stride).unwrap_or(0);
        // `pieces * stride <= self.len`, so no piece leaves the range that `self` owned, and `self` is consumed.
        (0..pieces).map(move |i| Exclusive {
            block: Arc::clone(&self.block),
            start: self.start + i * stride,
            len: stride,
        })
    }

    /// The block under it, for registering it, and for access that needs no exclusiveness.
    pub(crate) fn block(&self) -> &Arc<Block> {
        &self.block
    }

    /// Where in the block it starts, in bytes.
    pub(crate) fn start(&self) -> usize {
        self.start
    }

    /// Its length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Its first `len` bytes, or all of them if it has fewer.
    pub(crate) fn bytes(&self, len: usize) -> &[u8] {
        // SAFETY: the range lies in the block (checked when it was made, and clamped here). Nobody else touches it
        // while this borrow lives: a program that holds `&self` holds the `Exclusive` itself, so it is neither in a
        // slot table nor in a window (module comment), so no work request names these bytes and no peer has a right
        // to them. Other `Exclusive`s cover other ranges, and writing through this one needs `&mut self`.
        unsafe { self.block.slice(self.range(len)) }
    }

    /// Its first `len` bytes, or all of them if it has fewer, to write.
    pub(crate) fn bytes_mut(&mut self, len: usize) -> &mut [u8] {
        let range = self.range(len);
        // SAFETY: as in `bytes`, and `&mut self` rules out every other slice of this range.
        unsafe { self.block.slice_mut(range) }
    }

    fn range(&self, len: usize) -> Range<usize> {
        self.start..self.start + len.min(self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_disjoint_and_keep_their_block() {
        let whole = Exclusive::allocate(3 * 64 + 10).unwrap();
        let mut pieces: Vec<_> = whole.divide(64).collect();
        assert_eq!(pieces.len(), 3);
        for (i, piece) in pieces.iter_mut().enumerate() {
            let value = u8::try_from(i).unwrap() + 1;
            piece.bytes_mut(usize::MAX).fill(value);
        }
        for (i, piece) in pieces.iter().enumerate() {
            assert_eq!(piece.bytes(64), [u8::try_from(i).unwrap() + 1; 64]);
            assert_eq!(piece.bytes(5).len(), 5);
        }
    }

    #[test]
    fn a_stride_of_zero_gives_no_piece() {
        assert_eq!(Exclusive::allocate(64).unwrap().divide(0).count(), 0);
    }
}
