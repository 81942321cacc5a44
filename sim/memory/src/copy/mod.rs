//! Copies between private memory and racy memory.
//!
//! The racy side may be read and written by anybody while it is copied. It is accessed bytewise
//! atomically in meaning: each byte that arrives was in the source at some time during the copy, and
//! no byte read decides what is accessed next.
//!
//! Both directions order themselves as a message passed through memory does:
//! - [`copy_in`] is a release: what this thread wrote earlier is visible before it. And its **last byte
//!   becomes visible last**: a program may poll the final byte of an RDMA WRITE, or a naturally
//!   aligned integer of up to 8 bytes at its end, and find all of the rest there. Such an integer is
//!   written whole.
//! - [`copy_out`] is an acquire: what this thread reads later is at least as new.
//!
//! On x86-64 the copies are assembly, elsewhere relaxed atomic accesses. Formally, Rust has no
//! racing accesses of different sizes, nor any that races with a program that uses plain stores; that
//! is why the fast path is assembly, whose meaning the machine gives, and why the portable one is as
//! close as the language comes. `rep movsb` is avoided on purpose: where the destination is 1 to 31
//! bytes past the source modulo 4096, it runs at 3 GB/s instead of 80 (AMD Zen 3 and 4).

#[cfg(all(target_arch = "x86_64", not(miri)))]
mod fused;
mod portable;
#[cfg(all(target_arch = "x86_64", not(miri)))]
mod x86_64;

#[cfg(not(all(target_arch = "x86_64", not(miri))))]
use portable as kernel;
#[cfg(all(target_arch = "x86_64", not(miri)))]
use x86_64 as kernel;

use std::sync::atomic::{AtomicU64, Ordering, fence};

/// Copied and summed in one go, so that the CRC finds the bytes in the first-level cache.
/// Smaller pieces pay more often for starting a CRC, larger ones wait for the second level.
const PIECE: usize = 8192;

/// Fills `dst` from racy memory at `src`.
///
/// # Safety
/// `src` must be valid for reads of `dst.len()` bytes during the call (others may write to them) and must
/// not overlap `dst`. It must not come from a `&[u8]`: the bytes are read as atomics.
#[inline]
pub unsafe fn copy_out(dst: &mut [u8], src: *const u8) {
    // SAFETY: the caller's promise is what the kernel asks for.
    unsafe { kernel::load(dst, src) };
    fence(Ordering::Acquire);
}

/// Copies `src` to racy memory at `dst`; its last byte becomes visible last.
///
/// # Safety
/// `dst` must be valid for writes of `src.len()` bytes during the call (others may read and write them)
/// and must not overlap `src`.
#[inline]
pub unsafe fn copy_in(dst: *mut u8, src: &[u8]) {
    fence(Ordering::Release);
    // The last aligned word that is written to, as far as it is: 1 to 8 bytes.
    let end = dst.addr().wrapping_add(src.len());
    let last = (end.wrapping_sub(1) % 8 + 1).min(src.len());
    let (body, last) = src.split_at(src.len() - last);
    // SAFETY: the caller vouches for all of `src.len()` bytes at `dst`: first the body's, then the rest.
    // The latter are stored after the former by release. If they are eight, they end, and so start, at a
    // multiple of 8.
    unsafe {
        kernel::store(dst, body);
        let dst = dst.add(body.len());
        match <[u8; 8]>::try_from(last) {
            Ok(word) => AtomicU64::from_ptr(dst.cast()).store(u64::from_ne_bytes(word), Ordering::Release),
            Err(_) => portable::store_pieces(dst, last, Ordering::Release),
        }
    }
}

/// Fills `dst` from racy memory at `src`, and continues the CRC-32 `crc` over what arrived in `dst`.
///
/// The source is read once; the CRC is of the bytes in `dst`, whatever happens to the source.
/// `crc` is a finished CRC-32 (0 for no bytes yet), as is the result.
///
/// # Safety
/// As [`copy_out`].
#[inline]
pub unsafe fn copy_out_crc(dst: &mut [u8], src: *const u8, crc: u32) -> u32 {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    if let Some(way) = fused::Way::of(dst.len()) {
        // SAFETY: the caller vouches for all of `dst.len()` bytes at `src`, and the processor has this way.
        return unsafe { copy_out_crc_by(way, dst, src, crc) };
    }
    // SAFETY: the caller's promise is what is asked for.
    unsafe { copy_out_then_crc(dst, src, crc) }
}

/// [`copy_out_crc`] by a pass over the whole blocks, and piecewise for the rest.
///
/// # Safety
/// As [`copy_out`], and the processor must have this way.
#[cfg(all(target_arch = "x86_64", not(miri)))]
#[inline]
unsafe fn copy_out_crc_by(way: fused::Way, dst: &mut [u8], src: *const u8, mut crc: u32) -> u32 {
    let (blocks, rest) = dst.split_at_mut(way.share(dst.len()));
    // SAFETY: `blocks` and `rest` together are the bytes that the caller vouches for, and the first are a share.
    unsafe {
        if !blocks.is_empty() {
            crc = way.run(blocks, src, crc);
        }
        if rest.is_empty() {
            fence(Ordering::Acquire);
            return crc;
        }
        copy_out_then_crc(rest, src.add(blocks.len()), crc)
    }
}

/// [`copy_out_crc`] as a copy, and a CRC over what the copy has just put into the cache.
///
/// # Safety
/// As [`copy_out`].
#[inline]
unsafe fn copy_out_then_crc(dst: &mut [u8], src: *const u8, crc: u32) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(crc);
    let mut src = src;
    for piece in dst.chunks_mut(PIECE) {
        // SAFETY: `src` has advanced by the pieces before this one, so this piece is inside the range that
        // the caller vouches for; stepping to its end is at most one past the range.
        unsafe {
            copy_out(piece, src);
            src = src.add(piece.len());
        }
        hasher.update(piece);
    }
    hasher.finalize()
}

#[cfg(test)]
mod tests;
