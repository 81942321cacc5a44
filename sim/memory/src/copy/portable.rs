//! The copies in portable Rust: relaxed atomic accesses to the racy side, in words that are aligned
//! there, and plain ones to the private side.

#![cfg_attr(
    all(target_arch = "x86_64", not(miri), not(test)),
    expect(dead_code, reason = "only the ends of copies")
)]

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

const WORD: usize = 8;

/// How many of the first `len` bytes at `ptr` lie before the first aligned word.
fn head_len(ptr: *const u8, len: usize) -> usize {
    (ptr.addr().wrapping_neg() % WORD).min(len)
}

/// Fills `dst` from racy memory.
///
/// # Safety
/// `src` must be valid for reads of `dst.len()` bytes and must not overlap `dst`.
pub(super) unsafe fn load(dst: &mut [u8], src: *const u8) {
    let (head, rest) = dst.split_at_mut(head_len(src, dst.len()));
    let (words, tail) = rest.as_chunks_mut::<WORD>();
    // SAFETY: `src` walks over exactly `dst.len()` bytes, which the caller vouches for. After the head it
    // is a multiple of 8, as an `AtomicU64` needs. It is only loaded from, so the cast writes nothing.
    unsafe {
        let mut src = src;
        load_pieces(head, src);
        src = src.add(head.len());
        for word in words {
            *word = AtomicU64::from_ptr(src.cast_mut().cast()).load(Ordering::Relaxed).to_ne_bytes();
            src = src.add(WORD);
        }
        load_pieces(tail, src);
    }
}

/// Copies `src` to racy memory.
///
/// # Safety
/// `dst` must be valid for writes of `src.len()` bytes and must not overlap `src`.
pub(super) unsafe fn store(dst: *mut u8, src: &[u8]) {
    let (head, rest) = src.split_at(head_len(dst, src.len()));
    let (words, tail) = rest.as_chunks::<WORD>();
    // SAFETY: `dst` walks over exactly `src.len()` bytes, which the caller vouches for. After the head it
    // is a multiple of 8, as an `AtomicU64` needs.
    unsafe {
        let mut dst = dst;
        store_pieces(dst, head, Ordering::Relaxed);
        dst = dst.add(head.len());
        for &word in words {
            AtomicU64::from_ptr(dst.cast()).store(u64::from_ne_bytes(word), Ordering::Relaxed);
            dst = dst.add(WORD);
        }
        store_pieces(dst, tail, Ordering::Relaxed);
    }
}

/// The largest naturally aligned access at `ptr` that `len` bytes allow: 1, 2, 4 or 8.
fn piece_len(ptr: *const u8, len: usize) -> usize {
    let aligned_to = 1 << (ptr.addr() | WORD).trailing_zeros();
    let fits = 1 << len.ilog2();
    aligned_to.min(fits)
}

/// Fills a few bytes in naturally aligned pieces, in ascending order.
///
/// # Safety
/// As [`load`].
unsafe fn load_pieces(dst: &mut [u8], src: *const u8) {
    let (mut dst, mut src) = (dst, src);
    while !dst.is_empty() {
        let (piece, rest) = dst.split_at_mut(piece_len(src, dst.len()));
        let at = src.cast_mut();
        // SAFETY: `piece.len()` bytes at `src` are left of what the caller vouches for, and `src` is a multiple
        // of that length. It is only loaded from.
        unsafe {
            match piece.len() {
                1 => piece[0] = AtomicU8::from_ptr(at).load(Ordering::Relaxed),
                2 => piece
                    .copy_from_slice(&AtomicU16::from_ptr(at.cast()).load(Ordering::Relaxed).to_ne_bytes()),
                4 => piece
                    .copy_from_slice(&AtomicU32::from_ptr(at.cast()).load(Ordering::Relaxed).to_ne_bytes()),
                _ => piece
                    .copy_from_slice(&AtomicU64::from_ptr(at.cast()).load(Ordering::Relaxed).to_ne_bytes()),
            }
            src = src.add(piece.len());
        }
        dst = rest;
    }
}

/// Stores a few bytes in naturally aligned pieces, in ascending order, each with this ordering.
///
/// # Safety
/// As [`store`].
#[inline]
pub(super) unsafe fn store_pieces(dst: *mut u8, src: &[u8], order: Ordering) {
    let (mut dst, mut src) = (dst, src);
    while !src.is_empty() {
        let (piece, rest) = src.split_at(piece_len(dst, src.len()));
        // SAFETY: `piece.len()` bytes at `dst` are left of what the caller vouches for, and `dst` is a multiple
        // of that length.
        unsafe {
            match *piece {
                [a] => AtomicU8::from_ptr(dst).store(a, order),
                [a, b] => AtomicU16::from_ptr(dst.cast()).store(u16::from_ne_bytes([a, b]), order),
                [a, b, c, d] => {
                    AtomicU32::from_ptr(dst.cast()).store(u32::from_ne_bytes([a, b, c, d]), order);
                }
                [a, b, c, d, e, f, g, h] => {
                    let word = u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
                    AtomicU64::from_ptr(dst.cast()).store(word, order);
                }
                _ => {}
            }
            dst = dst.add(piece.len());
        }
        src = rest;
    }
}
