//! Copy and CRC-32 in one pass, by carry-less multiplication of 256 or 512 bits at once.
//!
//! Each block is loaded once, into a register; from there it is stored, and folded into the CRC. So the
//! source is read once, and the CRC is of the bytes that were stored, whatever happens to the source. The
//! pass is assembly, since the compiler may read memory again that a plain load has read.
//!
//! Folding is that of "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ" (Gopal et al., Intel
//! 2009) for reflected bits: a stream of 128 bits is moved on by D bits by multiplying its low half by
//! z^(D+32) and its high half by z^(D-32), modulo the polynomial, and the block that stands there is
//! added. Several streams run side by side.

use std::arch::asm;
use std::arch::x86_64::*;

/// Bytes from which on a pass pays.
pub(super) const LEAST: usize = 256;

/// Bytes from which on vectors of 512 bits pay.
const LEAST_512: usize = 512;

/// The CRC-32 polynomial, reflected, without its leading term.
const P: u32 = 0xEDB8_8320;

/// z to the power `n` modulo the polynomial, reflected, and one bit further up: where a carry-less product of
/// two reflected numbers has its factors.
const fn power(n: u32) -> i64 {
    let mut a = 1_u32 << 31;
    let mut i = 0;
    while i < n {
        a = a >> 1 ^ (P & (a & 1).wrapping_neg());
        i += 1;
    }
    (a as i64) << 1
}

/// What the low and the high half of a stream of 128 bits are multiplied by to move it on by `bits`.
const fn by(bits: u32) -> [i64; 2] {
    [power(bits + 32), power(bits - 32)]
}

const BY_128: [i64; 2] = by(128);
const BY_256: [i64; 2] = by(256);
const BY_512: [i64; 2] = by(512);
const BY_1024: [i64; 2] = by(1024);
const BY_2048: [i64; 2] = by(2048);

/// The polynomial, and the quotient of z^64 by it, both of 33 bits and reflected.
const POLYNOMIAL: i64 = 0x1_DB71_0641;
const QUOTIENT: i64 = 0x1_F701_1641;

/// A way that a processor may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    Bits256,
    Bits512,
}

impl Way {
    /// The best for `len` bytes; `None`: first a copy and then a CRC.
    #[inline]
    pub(super) fn of(len: usize) -> Option<Way> {
        if len < LEAST || !Way::Bits256.is_had() {
            None
        } else if len < LEAST_512 || !Way::Bits512.is_had() {
            Some(Way::Bits256)
        } else {
            Some(Way::Bits512)
        }
    }

    /// Whether this processor has it.
    #[inline]
    pub(super) fn is_had(self) -> bool {
        let narrow = is_x86_feature_detected!("vpclmulqdq")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("pclmulqdq")
            && is_x86_feature_detected!("sse4.1");
        narrow && (self == Way::Bits256 || is_x86_feature_detected!("avx512f"))
    }

    /// Bytes that it moves at once.
    const fn block(self) -> usize {
        match self {
            Way::Bits256 => 128,
            Way::Bits512 => 256,
        }
    }

    /// How much of `len` bytes [`run`](Way::run) does: whole blocks, at least two, or nothing.
    #[inline]
    pub(super) const fn share(self, len: usize) -> usize {
        let share = len / self.block() * self.block();
        if share < 2 * self.block() { 0 } else { share }
    }

    /// Fills `dst` from racy memory at `src`, and continues the finished CRC-32 `crc` over what it stored.
    ///
    /// # Safety
    /// `src` must be valid for reads of `dst.len()` bytes and must not overlap `dst`. That length must be a
    /// [`share`](Way::share) and not 0, and the processor must have this way.
    #[inline]
    pub(super) unsafe fn run(self, dst: &mut [u8], src: *const u8, crc: u32) -> u32 {
        // SAFETY: the caller's promise is what each of them asks for.
        unsafe {
            match self {
                Way::Bits256 => run_256(dst, src, crc),
                Way::Bits512 => run_512(dst, src, crc),
            }
        }
    }
}

/// # Safety
/// As [`Way::run`].
#[target_feature(enable = "avx2,vpclmulqdq,pclmulqdq,sse4.1")]
unsafe fn run_256(dst: &mut [u8], src: *const u8, crc: u32) -> u32 {
    let blocks = dst.len() / Way::Bits256.block();
    // The CRC so far belongs to the first four bytes.
    let first = _mm256_setr_epi32(!crc as i32, 0, 0, 0, 0, 0, 0, 0);
    let by = twice(BY_1024);
    let (a, b, c, d): (__m256i, __m256i, __m256i, __m256i);
    // SAFETY: `blocks` is at least 2. That many blocks are inside the `dst.len()` bytes that the caller vouches
    // for at `src`, and inside `dst`: the code before the loop moves one, and the loop as many as `k` counts,
    // all the others. It touches no other memory, and clobbers the flags and the registers that are named.
    // The compiler takes it as touching memory, so no access moves across it.
    unsafe {
        asm!(
            "vmovdqu {a}, [{s}]",
            "vmovdqu {b}, [{s} + 32]",
            "vmovdqu {c}, [{s} + 64]",
            "vmovdqu {d}, [{s} + 96]",
            "vmovdqu [{t}], {a}",
            "vmovdqu [{t} + 32], {b}",
            "vmovdqu [{t} + 64], {c}",
            "vmovdqu [{t} + 96], {d}",
            "vpxor {a}, {a}, {first}",
            ".p2align 5",
            "2:",
            "add {s}, 128",
            "add {t}, 128",
            "vmovdqu {m}, [{s}]",
            "vmovdqu {n}, [{s} + 32]",
            "vmovdqu {o}, [{s} + 64]",
            "vmovdqu {p}, [{s} + 96]",
            "vpclmulqdq {x}, {a}, {by}, 0",
            "vpclmulqdq {a}, {a}, {by}, 17",
            "vmovdqu [{t}], {m}",
            "vpxor {x}, {x}, {m}",
            "vpxor {a}, {a}, {x}",
            "vpclmulqdq {y}, {b}, {by}, 0",
            "vpclmulqdq {b}, {b}, {by}, 17",
            "vmovdqu [{t} + 32], {n}",
            "vpxor {y}, {y}, {n}",
            "vpxor {b}, {b}, {y}",
            "vpclmulqdq {x}, {c}, {by}, 0",
            "vpclmulqdq {c}, {c}, {by}, 17",
            "vmovdqu [{t} + 64], {o}",
            "vpxor {x}, {x}, {o}",
            "vpxor {c}, {c}, {x}",
            "vpclmulqdq {y}, {d}, {by}, 0",
            "vpclmulqdq {d}, {d}, {by}, 17",
            "vmovdqu [{t} + 96], {p}",
            "vpxor {y}, {y}, {p}",
            "vpxor {d}, {d}, {y}",
            "dec {k}",
            "jnz 2b",
            s = inout(reg) src => _,
            t = inout(reg) dst.as_mut_ptr() => _,
            k = inout(reg) blocks - 1 => _,
            a = out(ymm_reg) a,
            b = out(ymm_reg) b,
            c = out(ymm_reg) c,
            d = out(ymm_reg) d,
            m = out(ymm_reg) _,
            n = out(ymm_reg) _,
            o = out(ymm_reg) _,
            p = out(ymm_reg) _,
            x = out(ymm_reg) _,
            y = out(ymm_reg) _,
            by = in(ymm_reg) by,
            first = in(ymm_reg) first,
            options(nostack)
        );
    }
    // Neighbours first, so that few folds wait for one another.
    let (b, d) = (fold_256(a, b, twice(BY_256)), fold_256(c, d, twice(BY_256)));
    reduce(fold_256(b, d, twice(BY_512)))
}

/// # Safety
/// As [`Way::run`].
#[target_feature(enable = "avx512f,avx2,vpclmulqdq,pclmulqdq,sse4.1")]
unsafe fn run_512(dst: &mut [u8], src: *const u8, crc: u32) -> u32 {
    let blocks = dst.len() / Way::Bits512.block();
    let first = _mm512_zextsi128_si512(_mm_cvtsi32_si128(!crc as i32));
    let by = _mm512_broadcast_i64x4(twice(BY_2048));
    let (a, b, c, d): (__m512i, __m512i, __m512i, __m512i);
    // SAFETY: `blocks` is at least 2. That many blocks are inside the `dst.len()` bytes that the caller vouches
    // for at `src`, and inside `dst`: the code before the loop moves one, and the loop as many as `k` counts,
    // all the others. It touches no other memory, and clobbers the flags and the registers that are named.
    // The compiler takes it as touching memory, so no access moves across it.
    unsafe {
        asm!(
            "vmovdqu64 {a}, [{s}]",
            "vmovdqu64 {b}, [{s} + 64]",
            "vmovdqu64 {c}, [{s} + 128]",
            "vmovdqu64 {d}, [{s} + 192]",
            "vmovdqu64 [{t}], {a}",
            "vmovdqu64 [{t} + 64], {b}",
            "vmovdqu64 [{t} + 128], {c}",
            "vmovdqu64 [{t} + 192], {d}",
            "vpxorq {a}, {a}, {first}",
            ".p2align 5",
            "2:",
            "add {s}, 256",
            "add {t}, 256",
            "vmovdqu64 {m}, [{s}]",
            "vmovdqu64 {n}, [{s} + 64]",
            "vmovdqu64 {o}, [{s} + 128]",
            "vmovdqu64 {p}, [{s} + 192]",
            "vpclmulqdq {x}, {a}, {by}, 0",
            "vpclmulqdq {a}, {a}, {by}, 17",
            "vmovdqu64 [{t}], {m}",
            "vpxorq {x}, {x}, {m}",
            "vpxorq {a}, {a}, {x}",
            "vpclmulqdq {y}, {b}, {by}, 0",
            "vpclmulqdq {b}, {b}, {by}, 17",
            "vmovdqu64 [{t} + 64], {n}",
            "vpxorq {y}, {y}, {n}",
            "vpxorq {b}, {b}, {y}",
            "vpclmulqdq {x}, {c}, {by}, 0",
            "vpclmulqdq {c}, {c}, {by}, 17",
            "vmovdqu64 [{t} + 128], {o}",
            "vpxorq {x}, {x}, {o}",
            "vpxorq {c}, {c}, {x}",
            "vpclmulqdq {y}, {d}, {by}, 0",
            "vpclmulqdq {d}, {d}, {by}, 17",
            "vmovdqu64 [{t} + 192], {p}",
            "vpxorq {y}, {y}, {p}",
            "vpxorq {d}, {d}, {y}",
            "dec {k}",
            "jnz 2b",
            s = inout(reg) src => _,
            t = inout(reg) dst.as_mut_ptr() => _,
            k = inout(reg) blocks - 1 => _,
            a = out(zmm_reg) a,
            b = out(zmm_reg) b,
            c = out(zmm_reg) c,
            d = out(zmm_reg) d,
            m = out(zmm_reg) _,
            n = out(zmm_reg) _,
            o = out(zmm_reg) _,
            p = out(zmm_reg) _,
            x = out(zmm_reg) _,
            y = out(zmm_reg) _,
            by = in(zmm_reg) by,
            first = in(zmm_reg) first,
            options(nostack)
        );
    }
    let by_512 = _mm512_broadcast_i64x4(twice(BY_512));
    let (b, d) = (fold_512(a, b, by_512), fold_512(c, d, by_512));
    let sum = fold_512(b, d, _mm512_broadcast_i64x4(twice(BY_1024)));
    let (low, high) = (_mm512_castsi512_si256(sum), _mm512_extracti64x4_epi64(sum, 1));
    reduce(fold_256(low, high, twice(BY_256)))
}

/// Multipliers for two streams.
#[target_feature(enable = "avx2")]
#[inline]
fn twice([low, high]: [i64; 2]) -> __m256i {
    _mm256_setr_epi64x(low, high, low, high)
}

/// Moves the streams of `from` on, and adds what stands there.
#[target_feature(enable = "avx2,vpclmulqdq")]
#[inline]
fn fold_256(from: __m256i, to: __m256i, by: __m256i) -> __m256i {
    let (low, high) = (_mm256_clmulepi64_epi128(from, by, 0x00), _mm256_clmulepi64_epi128(from, by, 0x11));
    _mm256_xor_si256(to, _mm256_xor_si256(low, high))
}

/// The same for twice as many.
#[target_feature(enable = "avx512f,vpclmulqdq")]
#[inline]
fn fold_512(from: __m512i, to: __m512i, by: __m512i) -> __m512i {
    let (low, high) = (_mm512_clmulepi64_epi128(from, by, 0x00), _mm512_clmulepi64_epi128(from, by, 0x11));
    _mm512_xor_si512(to, _mm512_xor_si512(low, high))
}

/// The finished CRC of the last 256 bits.
#[target_feature(enable = "avx2,pclmulqdq,sse4.1")]
#[inline]
fn reduce(sum: __m256i) -> u32 {
    let by = _mm_set_epi64x(BY_128[1], BY_128[0]);
    let low_word = _mm_setr_epi32(!0, 0, 0, 0);
    let (from, to) = (_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    let sum = _mm_xor_si128(
        to,
        _mm_xor_si128(_mm_clmulepi64_si128(from, by, 0x00), _mm_clmulepi64_si128(from, by, 0x11)),
    );
    // 32 zeros follow the last bit, and 128 bits become 96 and then 64.
    let sum = _mm_xor_si128(_mm_clmulepi64_si128(sum, by, 0x10), _mm_srli_si128(sum, 8));
    let by_64 = _mm_set_epi64x(0, power(64));
    let sum = _mm_xor_si128(
        _mm_clmulepi64_si128(_mm_and_si128(sum, low_word), by_64, 0x00),
        _mm_srli_si128(sum, 4),
    );
    // Barrett: the quotient by the polynomial, and the remainder.
    let by = _mm_set_epi64x(QUOTIENT, POLYNOMIAL);
    let quotient = _mm_clmulepi64_si128(_mm_and_si128(sum, low_word), by, 0x10);
    let whole = _mm_clmulepi64_si128(_mm_and_si128(quotient, low_word), by, 0x00);
    !(_mm_extract_epi32(_mm_xor_si128(sum, whole), 1) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_powers_are_those_that_others_use() {
        // From the paper and from zlib's and crc32fast's tables.
        assert_eq!(by(128), [0x1_7519_97d0, 0x0_ccaa_009e]);
        assert_eq!(by(512), [0x1_5444_2bd4, 0x1_c6e4_1596]);
        assert_eq!(by(1024), [0x1_e88e_f372, 0x1_4a7f_e880]);
        assert_eq!(by(2048), [0x1_1542_778a, 0x1_322d_1430]);
        assert_eq!(power(64), 0x1_63cd_6124);
    }
}
