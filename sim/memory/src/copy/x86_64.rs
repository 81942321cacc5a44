//! The copies in assembly: vector loads and stores, which do not care who else touches the memory.
//!
//! Stores happen in ascending order (but for bytes that are stored twice, where two accesses
//! overlap in the middle), and x86 makes them visible in program order. None is non-temporal.

use std::arch::asm;

/// From here on it pays to align the stores and to loop.
const LONG: usize = 128;

/// Fills `dst` from racy memory.
///
/// # Safety
/// `src` must be valid for reads of `dst.len()` bytes and must not overlap `dst`.
#[inline]
pub(super) unsafe fn load(dst: &mut [u8], src: *const u8) {
    // SAFETY: `dst` is valid for writes of its length, and the caller vouches for `src`.
    unsafe { copy(dst.as_mut_ptr(), src, dst.len()) }
}

/// Copies `src` to racy memory.
///
/// # Safety
/// `dst` must be valid for writes of `src.len()` bytes and must not overlap `src`.
#[inline]
pub(super) unsafe fn store(dst: *mut u8, src: &[u8]) {
    // SAFETY: `src` is valid for reads of its length, and the caller vouches for `dst`.
    unsafe { copy(dst, src.as_ptr(), src.len()) }
}

/// # Safety
/// `src` must be valid for reads and `dst` for writes of `len` bytes, and they must not overlap.
#[inline]
unsafe fn copy(dst: *mut u8, src: *const u8, len: usize) {
    // Two accesses of one size that overlap as much as need be, so that sizes need few branches.
    // SAFETY: each branch knows that `len` is at least the size that it moves, so both accesses lie
    // within the `len` bytes that the caller vouches for.
    unsafe {
        let from_end = |n: usize| (dst.add(len - n), src.add(len - n));
        macro_rules! twice {
            ($move:ident, $size:literal) => {{
                $move(dst, src);
                let (dst, src) = from_end($size);
                $move(dst, src);
            }};
        }
        match len {
            0 => {}
            1 => move_1(dst, src),
            2..4 => twice!(move_2, 2),
            4..8 => twice!(move_4, 4),
            8 => move_8(dst, src),
            9..=16 => twice!(move_8, 8),
            17..=32 => twice!(move_16, 16),
            33..=64 => twice!(move_32, 32),
            65..LONG => twice!(move_64, 64),
            _ if is_x86_feature_detected!("avx") => long_avx(dst, src, len),
            _ => long_sse2(dst, src, len),
        }
    }
}

/// Defines a function that moves a fixed number of bytes, at any alignment, by one or more loads
/// and then as many stores.
macro_rules! define_move {
    ($name:ident, $bytes:literal, $class:ident, $($instruction:literal),+ ; $($temporary:ident),+) => {
        #[doc = concat!("Moves ", $bytes, " bytes.")]
        ///
        /// # Safety
        /// `src` must be valid for reads and `dst` for writes of that many bytes.
        #[inline(always)]
        unsafe fn $name(dst: *mut u8, src: *const u8) {
            // SAFETY: the instructions read and write the bytes that the caller vouches for and nothing else,
            // leave the flags alone, and clobber only the named temporaries. The block counts as
            // touching memory, so the compiler moves no access across it.
            unsafe {
                asm!(
                    $($instruction),+,
                    s = in(reg) src,
                    d = in(reg) dst,
                    $($temporary = out($class) _),+,
                    options(nostack, preserves_flags)
                );
            }
        }
    };
}

define_move!(move_1, 1, reg_byte, "mov {a}, byte ptr [{s}]", "mov byte ptr [{d}], {a}"; a);
define_move!(move_2, 2, reg, "movzx {a:e}, word ptr [{s}]", "mov word ptr [{d}], {a:x}"; a);
define_move!(move_4, 4, reg, "mov {a:e}, dword ptr [{s}]", "mov dword ptr [{d}], {a:e}"; a);
define_move!(move_8, 8, reg, "mov {a}, qword ptr [{s}]", "mov qword ptr [{d}], {a}"; a);
define_move!(move_16, 16, xmm_reg, "movdqu {a}, [{s}]", "movdqu [{d}], {a}"; a);
define_move!(
    move_32, 32, xmm_reg,
    "movdqu {a}, [{s}]", "movdqu {b}, [{s} + 16]",
    "movdqu [{d}], {a}", "movdqu [{d} + 16], {b}";
    a, b
);
define_move!(
    move_64, 64, xmm_reg,
    "movdqu {a}, [{s}]", "movdqu {b}, [{s} + 16]", "movdqu {c}, [{s} + 32]", "movdqu {e}, [{s} + 48]",
    "movdqu [{d}], {a}", "movdqu [{d} + 16], {b}", "movdqu [{d} + 32], {c}", "movdqu [{d} + 48], {e}";
    a, b, c, e
);

/// Copies `len >= LONG` bytes, 32 at a time.
///
/// Stores are aligned, since a store that straddles cache lines costs two; a first, unaligned one
/// fills the gap before them. Four loads go before four stores, so that a load seldom waits for
/// a recent store that looks the same in its low 12 bits.
///
/// # Safety
/// As [`copy`]; `len` must be at least [`LONG`], and the CPU must have AVX.
unsafe fn long_avx(dst: *mut u8, src: *const u8, len: usize) {
    // SAFETY: the caller vouches for `len >= 128` bytes at both pointers. The first store covers the
    // bytes up to the next multiple of 32; the loop advances by 128 while more than 128 are left, and
    // so stays inside; the last four accesses end exactly at the end and start no earlier than
    // the first byte, as `len >= 128`. `clobber_abi` covers all vector registers, so also their upper
    // halves, which `vzeroupper` clears.
    unsafe {
        asm!(
            "mov rax, rdi",
            "neg rax",
            "and rax, 31",
            "jz 2f",
            "vmovdqu ymm0, [rsi]",
            "vmovdqu [rdi], ymm0",
            "add rsi, rax",
            "add rdi, rax",
            "sub rdx, rax",
            "2:",
            "cmp rdx, 128",
            "jbe 4f",
            ".p2align 5",
            "3:",
            "vmovdqu ymm0, [rsi]",
            "vmovdqu ymm1, [rsi + 32]",
            "vmovdqu ymm2, [rsi + 64]",
            "vmovdqu ymm3, [rsi + 96]",
            "vmovdqa [rdi], ymm0",
            "vmovdqa [rdi + 32], ymm1",
            "vmovdqa [rdi + 64], ymm2",
            "vmovdqa [rdi + 96], ymm3",
            "add rsi, 128",
            "add rdi, 128",
            "sub rdx, 128",
            "cmp rdx, 128",
            "ja 3b",
            "4:",
            "vmovdqu ymm0, [rsi + rdx - 128]",
            "vmovdqu ymm1, [rsi + rdx - 96]",
            "vmovdqu ymm2, [rsi + rdx - 64]",
            "vmovdqu ymm3, [rsi + rdx - 32]",
            "vmovdqu [rdi + rdx - 128], ymm0",
            "vmovdqu [rdi + rdx - 96], ymm1",
            "vmovdqu [rdi + rdx - 64], ymm2",
            "vmovdqu [rdi + rdx - 32], ymm3",
            "vzeroupper",
            inout("rdi") dst => _,
            inout("rsi") src => _,
            inout("rdx") len => _,
            out("rax") _,
            clobber_abi("C"),
            options(nostack)
        );
    }
}

/// Copies `len >= LONG` bytes, 16 at a time; otherwise as [`long_avx`].
///
/// # Safety
/// As [`copy`]; `len` must be at least [`LONG`].
unsafe fn long_sse2(dst: *mut u8, src: *const u8, len: usize) {
    let gap = dst.addr().wrapping_neg() % 16;
    let loops = (len - gap - 1) / 64;
    // SAFETY: the caller vouches for `len >= 128` bytes at both pointers. The first move and the gap are
    // within them. `64 * loops < len - gap`, so the loop, of at least one round, stays inside; the
    // last move ends at the end. Only registers named here are clobbered.
    unsafe {
        move_16(dst, src);
        asm!(
            ".p2align 5",
            "2:",
            "movdqu {a}, [{s}]",
            "movdqu {b}, [{s} + 16]",
            "movdqu {c}, [{s} + 32]",
            "movdqu {e}, [{s} + 48]",
            "movdqa [{d}], {a}",
            "movdqa [{d} + 16], {b}",
            "movdqa [{d} + 32], {c}",
            "movdqa [{d} + 48], {e}",
            "add {s}, 64",
            "add {d}, 64",
            "dec {n}",
            "jnz 2b",
            s = inout(reg) src.add(gap) => _,
            d = inout(reg) dst.add(gap) => _,
            n = inout(reg) loops => _,
            a = out(xmm_reg) _,
            b = out(xmm_reg) _,
            c = out(xmm_reg) _,
            e = out(xmm_reg) _,
            options(nostack)
        );
        move_64(dst.add(len - 64), src.add(len - 64));
    }
}

/// A copy of `len >= LONG` bytes: destination, source, length.
#[cfg(test)]
pub(super) type LongCopy = unsafe fn(*mut u8, *const u8, usize);

/// For the tests, which try both on one CPU.
#[cfg(test)]
pub(super) const LONG_COPIES: [(&str, LongCopy); 2] = [("sse2", long_sse2), ("avx", long_avx)];
