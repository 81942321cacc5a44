//! The copies against plain indexing: all sizes, alignments, page offsets, both kernels and orders.

use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use super::*;

/// Around each copy, bytes that must not change.
const GUARD: usize = 64;

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|n| (n as u8).wrapping_mul(31).wrapping_add((n >> 8) as u8).wrapping_add(seed)).collect()
}

type Copy = unsafe fn(*mut u8, *const u8, usize);

/// Every way to copy, in one shape.
fn ways() -> Vec<(&'static str, Copy)> {
    unsafe fn out(dst: *mut u8, src: *const u8, len: usize) {
        // SAFETY: the test gives separate and valid buffers.
        unsafe { copy_out(std::slice::from_raw_parts_mut(dst, len), src) }
    }
    unsafe fn into(dst: *mut u8, src: *const u8, len: usize) {
        // SAFETY: as in `out`.
        unsafe { copy_in(dst, std::slice::from_raw_parts(src, len)) }
    }
    unsafe fn out_crc(dst: *mut u8, src: *const u8, len: usize) {
        // SAFETY: as in `out`.
        unsafe {
            let crc = copy_out_crc(std::slice::from_raw_parts_mut(dst, len), src, 0x1234_5678);
            let mut expected = crc32fast::Hasher::new_with_initial(0x1234_5678);
            expected.update(std::slice::from_raw_parts(src, len));
            assert_eq!(crc, expected.finalize());
        }
    }
    unsafe fn portable_out(dst: *mut u8, src: *const u8, len: usize) {
        // SAFETY: as in `out`.
        unsafe { portable::load(std::slice::from_raw_parts_mut(dst, len), src) }
    }
    unsafe fn portable_into(dst: *mut u8, src: *const u8, len: usize) {
        // SAFETY: as in `out`.
        unsafe { portable::store(dst, std::slice::from_raw_parts(src, len)) }
    }
    let mut ways = vec![
        ("copy_out", out as Copy),
        ("copy_in", into),
        ("copy_out_crc", out_crc),
        ("portable load", portable_out),
        ("portable store", portable_into),
    ];
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        /// A pass of one width, whatever the length.
        unsafe fn pass<const WIDE: bool>(dst: *mut u8, src: *const u8, len: usize) {
            let way = if WIDE { fused::Way::Bits512 } else { fused::Way::Bits256 };
            // SAFETY: as in `out`; the way is one that the processor has.
            unsafe {
                let crc = copy_out_crc_by(way, std::slice::from_raw_parts_mut(dst, len), src, 0x1234_5678);
                let mut expected = crc32fast::Hasher::new_with_initial(0x1234_5678);
                expected.update(std::slice::from_raw_parts(src, len));
                assert_eq!(crc, expected.finalize(), "{len} bytes");
            }
        }
        unsafe fn apart(dst: *mut u8, src: *const u8, len: usize) {
            // SAFETY: as in `out`.
            unsafe { copy_out_then_crc(std::slice::from_raw_parts_mut(dst, len), src, 0) };
        }
        ways.push(("copy then CRC", apart as Copy));
        for (name, way, pass) in [
            ("pass of 256 bits", fused::Way::Bits256, pass::<false> as Copy),
            ("pass of 512 bits", fused::Way::Bits512, pass::<true>),
        ] {
            if way.is_had() {
                ways.push((name, pass));
            }
        }
    }
    ways
}

fn check(name: &str, copy: Copy, from: &mut [u8], to: &mut [u8], src_at: usize, dst_at: usize, len: usize) {
    to[dst_at - GUARD..dst_at + len + GUARD].fill(0xA5);
    // SAFETY: both ranges are inside their slices.
    unsafe { copy(to.as_mut_ptr().add(dst_at), from.as_mut_ptr().add(src_at), len) };
    let case = || format!("{name}: {len} bytes from {src_at} to {dst_at}");
    assert!(to[dst_at..dst_at + len] == from[src_at..src_at + len], "wrong bytes, {}", case());
    assert!(to[dst_at - GUARD..dst_at].iter().all(|&b| b == 0xA5), "wrote before, {}", case());
    assert!(to[dst_at + len..dst_at + len + GUARD].iter().all(|&b| b == 0xA5), "wrote behind, {}", case());
}

#[test]
fn every_small_size_at_every_alignment() {
    let mut from = pattern(2048, 7);
    let mut to = vec![0; 2048];
    // The alignments that any kernel tells apart are modulo 32; the cache line and a bit is enough.
    let (sizes, aligns) = if cfg!(miri) { (18, 9) } else { (330, 66) };
    for (name, copy) in ways() {
        for len in 0..sizes {
            for dst_align in 0..aligns {
                check(name, copy, &mut from, &mut to, GUARD, GUARD + dst_align, len);
                check(name, copy, &mut from, &mut to, GUARD + dst_align, GUARD, len);
                check(name, copy, &mut from, &mut to, GUARD + dst_align, GUARD + dst_align, len);
                check(name, copy, &mut from, &mut to, GUARD + 64 - dst_align.min(64), GUARD + dst_align, len);
            }
        }
    }
}

#[cfg_attr(miri, ignore = "slow")]
#[test]
fn long_copies_across_page_offsets() {
    let mut from = pattern(3 * 4096 + 8192, 1);
    let mut to = vec![0; 3 * 4096 + 8192];
    for (name, copy) in ways() {
        for delta in (0..4096).step_by(61).chain(4032..=4096).chain(0..40) {
            for len in [250, 1024, 4096, 4097, 8191] {
                check(name, copy, &mut from, &mut to, GUARD, GUARD + delta, len);
                check(name, copy, &mut from, &mut to, GUARD + delta, GUARD + 3, len);
            }
        }
    }
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
#[test]
fn both_kernels_for_long_copies() {
    let mut from = pattern(2048, 3);
    let mut to = vec![0; 2048];
    for (name, copy) in x86_64::LONG_COPIES {
        if name == "avx" && !is_x86_feature_detected!("avx") {
            continue;
        }
        for len in 128..520 {
            for align in 0..64 {
                check(name, copy, &mut from, &mut to, GUARD + 5, GUARD + align, len);
                check(name, copy, &mut from, &mut to, GUARD + align, GUARD, len);
            }
        }
    }
}

#[test]
fn crc_is_of_known_bytes_and_continues_over_pieces() {
    let (mut digits, mut dst) = (*b"123456789", [0; 9]);
    // SAFETY: both are nine bytes.
    let crc = unsafe { copy_out_crc(&mut dst, digits.as_mut_ptr(), 0) };
    assert_eq!((crc, &dst), (0xCBF4_3926, b"123456789"));

    let mut from = pattern(3 * PIECE + 5, 9);
    let mut to = vec![0; from.len()];
    // SAFETY: both buffers are as long.
    let whole = unsafe { copy_out_crc(&mut to, from.as_mut_ptr(), 0) };
    assert_eq!(whole, crc32fast::hash(&from));
    let (a, b) = to.split_at_mut(PIECE + 77);
    // SAFETY: the two halves of the same buffers.
    let halves = unsafe {
        let first = copy_out_crc(a, from.as_mut_ptr(), 0);
        copy_out_crc(b, from.as_mut_ptr().add(a.len()), first)
    };
    assert_eq!(halves, whole);
}

/// Words of one buffer, as a racing program would store to them.
fn words(buffer: &[AtomicU64]) -> *mut u8 {
    buffer.as_ptr().cast_mut().cast()
}

/// Ends the writer when the test ends, however it does.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A copy with the CRC of what was copied: target and source, of the target's length.
type Summing = unsafe fn(&mut [u8], *const u8) -> u32;

/// Every way to do that which the processor has.
fn summing() -> Vec<(&'static str, Summing)> {
    // SAFETY: the caller vouches for the source, and whether the processor has a way is asked below.
    let chosen: Summing = |dst, src| unsafe { copy_out_crc(dst, src, 0) };
    // SAFETY: as above.
    let apart: Summing = |dst, src| unsafe { copy_out_then_crc(dst, src, 0) };
    let mut ways = vec![("chosen", chosen), ("apart", apart)];
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        // SAFETY: as above.
        let narrow: Summing = |dst, src| unsafe { copy_out_crc_by(fused::Way::Bits256, dst, src, 0) };
        // SAFETY: as above.
        let wide: Summing = |dst, src| unsafe { copy_out_crc_by(fused::Way::Bits512, dst, src, 0) };
        let had = |&(way, ..): &(fused::Way, _, _)| way.is_had();
        let passes = [(fused::Way::Bits256, "256", narrow), (fused::Way::Bits512, "512", wide)];
        ways.extend(passes.into_iter().filter(had).map(|(_, name, pass)| (name, pass)));
    }
    ways
}

#[test]
fn crc_fits_the_copy_while_the_source_changes() {
    for (name, copy) in summing() {
        for len in [4096, 4000, 300] {
            fits_the_copy(name, copy, len);
        }
    }
}

fn fits_the_copy(name: &str, copy: Summing, len: usize) {
    let source: Vec<AtomicU64> = (0..512).map(|_| AtomicU64::new(0)).collect();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        scope.spawn(|| {
            let mut value = 0u64;
            while !stop.load(Ordering::Relaxed) {
                value = value.wrapping_add(0x0101_0101_0101_0101);
                source.iter().for_each(|word| word.store(value, Ordering::Relaxed));
            }
        });
        let mut dst = vec![0; len];
        // Copies that the writer got into: without some of them, nothing was tested.
        let mut torn = 0;
        let deadline = Instant::now() + Duration::from_secs(20);
        while torn < 20 {
            // SAFETY: 512 words are 4096 bytes, which are only accessed atomically and by this copy.
            let crc = unsafe { copy(&mut dst, words(&source)) };
            assert_eq!(crc, crc32fast::hash(&dst), "{name}, {len} bytes");
            torn += u32::from(dst[..8] != dst[len - 8..]);
            assert!(Instant::now() < deadline, "the writer hardly ever ran during a copy ({name}, {len})");
        }
    });
}

/// A poller of the last word must find everything before it, for each size and alignment of the end.
#[cfg_attr(miri, ignore = "polls a byte of a word: sizes that race, which the language's model lacks")]
#[test]
fn the_end_of_a_copy_in_becomes_visible_last() {
    let rounds = 100;
    for (start, len) in [(0, 64), (3, 61), (0, 4096), (8, 1000), (5, 300), (16, 17), (1, 7), (0, 8)] {
        let target: Vec<AtomicU64> = (0..520).map(|_| AtomicU64::new(0)).collect();
        let taken = AtomicU64::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 1..=rounds {
                    let src = vec![round as u8; len];
                    // SAFETY: `start + len` is within the 4160 bytes.
                    unsafe { copy_in(words(&target).add(start), &src) };
                    while taken.load(Ordering::Acquire) != round {
                        std::thread::yield_now();
                    }
                }
            });
            for round in 1..=rounds {
                let mut last = [0];
                let mut all = vec![0; len];
                let mut spins = 0;
                while last[0] != round as u8 {
                    // SAFETY: within the same bytes.
                    unsafe { copy_out(&mut last, words(&target).add(start + len - 1)) };
                    spins += 1;
                    if spins % 1000 == 0 {
                        std::thread::yield_now();
                    }
                }
                // SAFETY: as above.
                unsafe { copy_out(&mut all, words(&target).add(start)) };
                assert!(all.iter().all(|&b| b == round as u8), "{len} bytes at {start}: {all:?}");
                taken.store(round, Ordering::Release);
            }
        });
    }
}

/// An aligned integer at the end of a copy is never seen half-written.
#[test]
fn an_aligned_integer_at_the_end_is_whole() {
    for (start, len, size) in
        [(0, 8, 8), (1, 7, 4), (3, 61, 8), (2, 6, 4), (0, 14, 2), (4, 4, 4), (5, 300 - 5, 4)]
    {
        let target: Vec<AtomicU64> = (0..64).map(|_| AtomicU64::new(0)).collect();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let _stop = StopOnDrop(&stop);
            scope.spawn(|| {
                let mut value = 0u8;
                while !stop.load(Ordering::Relaxed) {
                    value = value.wrapping_add(1);
                    // SAFETY: `start + len` is within the 512 bytes.
                    unsafe { copy_in(words(&target).add(start), &vec![value; len]) };
                }
            });
            for _ in 0..if cfg!(miri) { 5 } else { 5000 } {
                let mut seen = vec![0; size];
                // SAFETY: within the same bytes.
                unsafe { copy_out(&mut seen, words(&target).add(start + len - size)) };
                assert!(seen.iter().all(|&b| b == seen[0]), "{len} bytes at {start}: torn, {seen:?}");
            }
            stop.store(true, Ordering::Relaxed);
        });
    }
}
